# SPDX-License-Identifier: Apache-2.0
"""What the demo stands on: two namespaces, a wire, an sshd with the Git repository; and all of it is removed."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
TRAFFIC = Path(__file__).with_name("traffic.py")

EDGE_ADDRESS = "10.99.0.1"
WORLD_ADDRESS = "10.99.0.2"
BLOCKED_ADDRESS = "10.99.0.66"
SSH_PORT = 2222
INTERFACE = "rc-demo0"

COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOURS else text


def title(text: str) -> None:
    print(f"\n{paint(f'━━ {text} ', '1;36')}", flush=True)


def tell(text: str) -> None:
    print(paint(text, "2"), flush=True)


def run(*command: str, cwd: Path | None = None, check: bool = True, **environment: str) -> str:
    """A command whose output nobody needs to see."""
    done = subprocess.run(
        command, cwd=cwd, check=False, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )
    if check and done.returncode != 0:
        raise SystemExit(f"demo: {shlex.join(command)}: {done.stderr or done.stdout}")
    return done.stdout.strip()


class World:
    """Everything that is made, in one place, so that `close` can remove it."""

    def __init__(self) -> None:
        self.token = str(os.getpid())
        self.edge = f"rcdemo-edge-{self.token}"
        self.world = f"rcdemo-world-{self.token}"
        self.pins = Path(f"/sys/fs/bpf/reconciler-demo-{self.token}")
        self.folder = Path(tempfile.mkdtemp(prefix="reconciler-demo."))
        self.processes: list[subprocess.Popen[str]] = []
        self.made_sshd_folder = False

    # --- namespaces ----------------------------------------------------------------------------------------

    def wire(self) -> None:
        for name in (self.edge, self.world):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        peer = ["peer", "name", "rc-demo1", "netns", self.world]
        run("ip", "-n", self.edge, "link", "add", INTERFACE, "type", "veth", *peer)
        run("ip", "-n", self.edge, "address", "add", f"{EDGE_ADDRESS}/24", "dev", INTERFACE)
        for address in (WORLD_ADDRESS, BLOCKED_ADDRESS):
            run("ip", "-n", self.world, "address", "add", f"{address}/24", "dev", "rc-demo1")
        run("ip", "-n", self.edge, "link", "set", INTERFACE, "up")
        run("ip", "-n", self.world, "link", "set", "rc-demo1", "up")

    def inside(self, name: str, *command: str) -> list[str]:
        # nsenter, not `ip netns exec`: that one would hide bpffs behind a fresh /sys.
        return ["nsenter", f"--net=/run/netns/{name}", *command]

    # --- processes -----------------------------------------------------------------------------------------

    def start(self, name: str, *command: str, log: Path | None = None) -> subprocess.Popen[str]:
        output = log.open("w") if log is not None else None
        try:
            process = subprocess.Popen(
                self.inside(name, *command),
                stdin=subprocess.DEVNULL,
                stdout=output or subprocess.PIPE,
                stderr=subprocess.STDOUT if log is not None else None,
                text=True,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> str:
        """End one process; returns what it printed last."""
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=15)[0] or ""
        self.processes.remove(process)
        return printed.strip().rpartition("\n")[2]

    @contextlib.contextmanager
    def traffic(self, name: str, verb: str, *arguments: str) -> Iterator[list[str]]:
        """A verb of traffic.py for as long as the block lasts; the list then holds what it printed last."""
        process = self.start(name, sys.executable, str(TRAFFIC), verb, *arguments)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"demo: traffic {verb} did not start")
        last: list[str] = []
        try:
            yield last
        finally:
            last.append(self.stop(process))

    def connections(self, source: str, port: int, count: int) -> int:
        """How many of `count` connections that are opened at once are accepted."""
        command = (sys.executable, str(TRAFFIC), "connect", source, EDGE_ADDRESS, str(port), str(count))
        return int(run(*self.inside(self.world, *command)))

    # --- the Git server ------------------------------------------------------------------------------------

    def serve_git(self, repository: Path) -> dict[str, str]:
        """An sshd in the other namespace that serves `repository` and nothing else; what a host needs to reach it."""
        work = self.folder / "sshd"
        work.mkdir(mode=0o700)
        for name in ("host_key", "client_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(work / name))
        client = (work / "client_key.pub").read_text()
        forced = f"command=\"git-upload-pack '{repository}'\",restrict"
        (work / "authorized_keys").write_text(f"{forced} {client}")
        key = " ".join((work / "host_key.pub").read_text().split()[:2])
        (work / "known_hosts").write_text(f"[{WORLD_ADDRESS}]:{SSH_PORT} {key}\n")
        # A locked root account is let in with a key only through PAM.
        pam = "yes" if _is_locked() else "no"
        (work / "sshd_config").write_text(
            f"ListenAddress {WORLD_ADDRESS}:{SSH_PORT}\nHostKey {work}/host_key\nPidFile none\nUsePAM {pam}\n"
            f"AuthorizedKeysFile {work}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nAcceptEnv GIT_PROTOCOL\nPrintMotd no\nUseDNS no\n"
        )
        if not Path("/run/sshd").exists():
            Path("/run/sshd").mkdir(mode=0o755)
            self.made_sshd_folder = True
        log = work / "log"
        process = self.start(self.world, "/usr/sbin/sshd", "-D", "-e", "-f", str(work / "sshd_config"), log=log)
        deadline = time.monotonic() + 10
        while "Server listening" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: sshd did not start: {log.read_text()}")
            time.sleep(0.02)
        return {
            "url": f"ssh://root@{WORLD_ADDRESS}:{SSH_PORT}{repository}",
            "key": str(work / "client_key"),
            "known_hosts": str(work / "known_hosts"),
        }

    # --- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove everything, whatever state it is in."""
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        self.processes.clear()
        # bpffs knows no recursive removal: every pin is unlinked, then the folders from below.
        for path in sorted(self.pins.rglob("*"), reverse=True) if self.pins.exists() else []:
            path.rmdir() if path.is_dir() else path.unlink()
        if self.pins.exists():
            self.pins.rmdir()
        for name in (self.edge, self.world):
            run("ip", "netns", "delete", name, check=False)
        if self.made_sshd_folder:
            with contextlib.suppress(OSError):
                Path("/run/sshd").rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """What should be gone and is not."""
        names = run("ip", "netns", "list").split()
        left = [name for name in (self.edge, self.world) if name in names]
        return left + [str(path) for path in (self.pins, self.folder) if path.exists()]


def _is_locked() -> bool:
    with contextlib.suppress(OSError):
        for line in Path("/etc/shadow").read_text().splitlines():
            if line.startswith("root:"):
                return line.split(":")[1].startswith("!")
    return False
