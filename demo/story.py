# SPDX-License-Identifier: Apache-2.0
"""The demo: from a signed commit to programs in the kernel, and everything that must not get through.

All output that is not narration is the command's own. The script checks each step (exit codes, connections, packets)
and ends with an error when something is not as told.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from world import (
    BLOCKED_ADDRESS,
    EDGE_ADDRESS,
    INTERFACE,
    ROOT,
    SSH_PORT,
    WORLD_ADDRESS,
    World,
    paint,
    run,
    tell,
    title,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PORT = 8080
SINK_PORT = 9999
DRIFT_SECONDS = 4
"""Long enough to show what is wrong before the agent mends it."""
MEANING = {0: "in sync", 2: "changes", 3: "signature refused", 4: "guardrail", 6: "rolled back"}

CONFIG = """\
apiVersion: reconciler/v1alpha1
kind: Config
spec:
  host: {{name: edge-1}}
  labels: {{role: edge}}
  source:
    url: {url}
    auth: {{sshKeyFile: {key}, knownHostsFile: {known_hosts}}}
    repository: policy
    minimumCommit: {commit}
    interval: 24h
    driftInterval: {drift}s
    confirmTimeout: 4s
    timeout: 10s
  trust:
    commits: {{allowedSigners: allowed_signers}}
    signers: [{{name: release, packages: ["*"], key: {{file: package.pub}}}}]
  secureMode: {{mode: enforce, interfaces: [{interface}]}}
  paths: {{state: {folder}/state, pins: {pins}, run: {folder}/run}}
"""

CHAINS = """\
apiVersion: reconciler/v1alpha1
kind: Chain
metadata: {{name: edge-ingress}}
spec:
  hosts: {{matchLabels: {{role: edge}}}}
  priority: 100
  hook: {{type: xdp, interfaces: [{interface}]}}
  members:
    - name: firewall
      package: {{name: firewall, version: {firewall_version}, digest: "{firewall}"}}
      program: firewall_xdp
      params: {{default_verdict: {default}}}
      maps: {{deny_v4: {{entries: [{{key: {blocked}/32, value: 0}}]}}}}
    - name: ratelimit
      package: {{name: ratelimit, version: 1.0.0, digest: "{ratelimit}"}}
      program: ratelimit
      params: {{rate: {rate}}}
      maps: {{ports: {{entries: [{{key: {port}, value: 0}}]}}}}
---
apiVersion: reconciler/v1alpha1
kind: Chain
metadata: {{name: edge-flows}}
spec:
  hosts: {{matchLabels: {{role: edge}}}}
  priority: 100
  hook: {{type: tc, direction: ingress, interfaces: [{interface}]}}
  members:
    - name: flows
      package: {{name: flowcount, version: 1.0.0, digest: "{flowcount}"}}
      program: flowcount
"""


class Story:
    def __init__(self, world: World) -> None:
        self.world = world
        self.policy = world.folder / "policy"
        self.keys = world.folder / "policy-keys"
        self.host = world.folder / "policy-host"
        self.environment = {**os.environ, "RECONCILER_CONFIG": str(self.host / "config.yaml")}
        self.values: dict[str, object] = {
            "interface": INTERFACE,
            "blocked": BLOCKED_ADDRESS,
            "port": PORT,
            "rate": 5,
            "default": "ALLOW",
            "firewall_version": "1.0.0",
        }

    # --- how things are done and shown ---------------------------------------------------------------------

    def reconciler(self, *arguments: str, expect: int = 0) -> None:
        """Run the command where the host is, and show what it says."""
        print(paint(f"$ reconciler {shlex.join(arguments)}", "1"), flush=True)
        command = self.world.inside(self.world.edge, "reconciler", *arguments)
        code = subprocess.run(command, check=False, cwd=self.policy, env=self.environment, timeout=120).returncode
        if code != 0 or expect != 0:
            print(paint(f"→ exit {code}: {MEANING.get(code, 'error')}", "32" if code == expect else "31"), flush=True)
        if code != expect:
            raise SystemExit(f"demo: expected exit {expect} from {arguments[0]}, got {code}")

    def git(self, *arguments: str, show: bool = True) -> str:
        if show:
            print(paint(f"$ git {shlex.join(arguments)}", "1"), flush=True)
        return run("git", *arguments, cwd=self.policy)

    def commit(self, message: str, **values: object) -> None:
        """Change the chains, commit (signed: `init` arranged that) and push."""
        self.values |= values
        (self.policy / "chains" / "edge.yaml").write_text(CHAINS.format(**self.values))
        self.git("add", "--all", show=False)
        self.git("commit", "--quiet", "--message", message)
        self.git("push", "--quiet")

    def expect(self, what: str, got: int, low: int, high: int) -> None:
        wanted = str(low) if low == high else f"{low} to {high}"
        print(f"   {what}: {paint(str(got), '1')}   (expected {wanted})", flush=True)
        if not low <= got <= high:
            raise SystemExit(f"demo: {what}: expected {wanted}, got {got}")

    # --- the chapters --------------------------------------------------------------------------------------

    def prepare(self) -> None:
        title("A policy repository, keys outside of it, and a host configuration")
        tell("Two network namespaces joined by a veth: `edge` is the host, `world` holds clients and the Git server.")
        self.world.wire()
        print(paint("$ reconciler init policy", "1"), flush=True)
        subprocess.run(["reconciler", "init", str(self.policy)], check=True, stdout=subprocess.DEVNULL)
        for folder in ("chains", "tests"):  # those of this demo come instead
            (self.policy / folder / "demo.yaml").unlink()
        server = self.world.serve_git(self.policy.with_name("policy.git"))
        (self.host / "config.yaml").write_text(
            CONFIG.format(
                **server,
                commit=self.git("rev-parse", "HEAD", show=False),
                drift=DRIFT_SECONDS,
                interface=INTERFACE,
                folder=self.host,
                pins=self.world.pins,
            )
        )
        tell("Three packages, signed with a key of this demo:")
        for name in ("firewall", "flowcount", "ratelimit"):
            self.values[name] = self.add_package(ROOT / "build" / "packages" / f"{name}-1.0.0.tar.gz", "policy")
        self.commit("edge: firewall, rate limit and flow counts")
        self.reconciler("validate", ".")

    def add_package(self, archive: Path, signer: str) -> str:
        """Copy an archive into the repository and sign it there; returns its digest."""
        target = self.policy / "packages" / archive.name
        shutil.copyfile(archive, target)
        key = self.world.folder / f"{signer}-keys" / "package.pem"
        command = ("package", "sign", f"packages/{archive.name}", "--key", str(key))
        print(paint(f"$ reconciler package sign packages/{archive.name} --key …/{key.parent.name}/{key.name}", "1"))
        return run("reconciler", *command, cwd=self.policy).split()[-1]

    def first_apply(self) -> None:
        title("The first plan, and the first apply")
        self.reconciler("plan", expect=2)
        self.reconciler("apply")

    def traffic(self) -> None:
        title("Traffic is limited, blocked and counted")
        with self.world.traffic(self.world.edge, "serve", EDGE_ADDRESS, str(PORT)):
            accepted = self.world.connections(WORLD_ADDRESS, PORT, 30)
            self.expect("30 connections at once to the limited port, accepted", accepted, 5, 7)
            blocked = self.world.connections(BLOCKED_ADDRESS, PORT, 30)
            self.expect("30 connections from the denied address, accepted", blocked, 0, 0)
        self.reconciler("observe")

    def change(self) -> None:
        title("A commit changes the limit; the agent applies it and no packet escapes")
        log = self.world.folder / "agent.log"
        command = ("env", f"RECONCILER_CONFIG={self.host / 'config.yaml'}", "reconciler", "run")
        self.agent = self.world.start(self.world.edge, *command, log=log)
        print(paint("$ reconciler run &", "1"), flush=True)
        self.wait_for(lambda: '"event": "pass"' in log.read_text(), "the agent's first pass")
        with (
            self.world.traffic(self.world.edge, "sink", EDGE_ADDRESS, str(SINK_PORT)) as arrived,
            self.world.traffic(self.world.world, "flood", BLOCKED_ADDRESS, EDGE_ADDRESS, str(SINK_PORT)) as sent,
        ):
            self.commit("edge: 15 connections per second", rate=15)
            self.reconciler("apply")
            time.sleep(0.2)
        print(f"   packets that the denied address sent meanwhile: {paint(sent[0], '1')}")
        self.expect("of these arrived", int(arrived[0]), 0, 0)
        time.sleep(1)
        with self.world.traffic(self.world.edge, "serve", EDGE_ADDRESS, str(PORT)):
            accepted = self.world.connections(WORLD_ADDRESS, PORT, 30)
            self.expect("30 connections at once to the limited port, accepted", accepted, 15, 20)

    def unsigned(self) -> None:
        title("Packages that nobody signed, or that somebody else signed, are refused")
        folder = self.world.folder / "firewall"
        shutil.copytree(ROOT / "build" / "bpf" / "firewall", folder)
        manifest = (ROOT / "bpf" / "firewall" / "package.yaml").read_text()
        (folder / "package.yaml").write_text(manifest.replace("version: 1.0.0", "version: 1.0.1"))
        run("reconciler", "package", "build", str(folder), "--into", str(self.world.folder))
        stranger = self.world.folder / "stranger-keys"
        stranger.mkdir(mode=0o700)
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(stranger / "package.pem"))
        digest = self.add_package(self.world.folder / "firewall-1.0.1.tar.gz", "stranger")
        self.commit("edge: firewall 1.0.1", firewall=digest, firewall_version="1.0.1")
        self.reconciler("apply", expect=3)
        (self.policy / "packages" / "firewall-1.0.1.tar.gz.sigstore.json").unlink()
        self.commit("edge: firewall 1.0.1 without any signature")
        self.reconciler("apply", expect=3)
        tell("What ran before goes on running. The commits are taken back in Git, by a commit:")
        self.git("revert", "--no-edit", "HEAD", "HEAD~1")
        self.git("push", "--quiet")
        self.values |= {"firewall": self.digest("firewall-1.0.0"), "firewall_version": "1.0.0"}
        self.reconciler("apply")

    def digest(self, name: str) -> str:
        archive = self.policy / "packages" / f"{name}.tar.gz"
        return "sha256:" + run("sha256sum", str(archive)).split()[0]

    def rewritten(self) -> None:
        title("A force-push to an older commit is refused, although every commit is signed")
        head = self.git("rev-parse", "HEAD", show=False)
        self.git("push", "--quiet", "--force", "origin", "HEAD~4:main")
        self.reconciler("apply", expect=4)
        self.git("push", "--quiet", "--force", "origin", f"{head}:main")
        self.reconciler("apply")

    def cut_off(self) -> None:
        title("A commit that cuts this host off from its own source takes itself back")
        tell(f"Valid and signed, but `default_verdict: DENY` also drops the answers of {WORLD_ADDRESS}:{SSH_PORT}.")
        self.commit("edge: deny by default", default="DENY")
        self.reconciler("apply", expect=6)
        self.commit("edge: allow by default again", default="ALLOW")
        self.reconciler("apply")

    def tampering(self) -> None:
        title("Somebody detaches a program and attaches a foreign one")
        # Right after a pass, so that there is time to see it before the agent looks again.
        self.reconciler("apply")
        link = self.link_id()
        for command in (
            f"bpftool link detach id {link}",
            f"tc qdisc add dev {INTERFACE} clsact",
            f"tc filter add dev {INTERFACE} egress bpf direct-action obj build/bpf/flowcount/flowcount.bpf.o sec tc",
        ):
            print(paint(f"# {command}", "33"), flush=True)
            run(*self.world.inside(self.world.edge, *command.split()), cwd=ROOT)
        self.reconciler("plan", expect=2)
        tell(f"The agent compares with the kernel every {DRIFT_SECONDS} s, and needs nobody to tell it:")
        self.wait_for(lambda: self.link_id() and not self.filters(), "the agent to put things right")
        self.reconciler("observe")

    def link_id(self) -> str:
        """Id of the XDP link on our interface, "" when there is none."""
        shown = run(*self.world.inside(self.world.edge, "ip", "-j", "link", "show", "dev", INTERFACE))
        program = json.loads(shown)[0].get("xdp", {}).get("prog", {}).get("id")
        links = json.loads(run("bpftool", "-j", "link", "list"))
        return next((str(link["id"]) for link in links if program and link.get("prog_id") == program), "")

    def filters(self) -> str:
        return run(*self.world.inside(self.world.edge, "tc", "filter", "show", "dev", INTERFACE, "egress"))

    def records(self) -> None:
        title("What the host says of itself")
        self.reconciler("status")
        self.reconciler("history")

    def farewell(self) -> None:
        title("A clean teardown")
        self.reconciler("teardown", "--yes")
        self.reconciler("observe")
        print(paint("$ kill -TERM %reconciler", "1"))
        self.world.stop(self.agent)
        if self.agent.returncode != 0:
            raise SystemExit(f"demo: expected the agent to end with 0, got {self.agent.returncode}")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"demo: waited 20 s for {what}; the agent said:\n{self.said()}")
            time.sleep(0.1)

    def said(self) -> str:
        log = self.world.folder / "agent.log"
        return log.read_text()[-3000:] if log.exists() else ""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    started = time.monotonic()
    world = World()
    story = Story(world)
    try:
        for chapter in (
            story.prepare,
            story.first_apply,
            story.traffic,
            story.change,
            story.unsigned,
            story.rewritten,
            story.cut_off,
            story.tampering,
            story.records,
            story.farewell,
        ):
            chapter()
    except KeyboardInterrupt:
        return 130
    except BaseException:
        if said := story.said():
            print(f"demo: the agent's last words:\n{said}", file=sys.stderr)
        raise
    finally:
        world.close()
    if left := world.leftovers():
        print(f"demo: left behind: {', '.join(left)}", file=sys.stderr)
        return 1
    title(f"Done in {time.monotonic() - started:.0f} s; nothing is left on this machine")
    return 0


sys.exit(main())
