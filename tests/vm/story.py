# SPDX-License-Identifier: Apache-2.0
"""What is played inside of a virtual machine that tests/vm/run.sh boots, twice: first, then again after a real reboot.

    python -m tests.vm.story first|again SHARE

Not collected by pytest: it needs a kernel of its own, with nothing on bpffs and systemd's places free. The command is
the installed one, with the default paths; what must outlive the reboot lies in SHARE. Exit 0 if all of it held.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.lab import COMMAND, Archive, Kit, Lab, chain
from tests.kernel import support
from tests.support_probe import DROP_PORT, PASS_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
STATE = Path("/var/lib/reconciler")
CONFIG = Path("/etc/reconciler/config.yaml")
PINS = support.BPFFS / "reconciler"
UNIT = Path("/run/systemd/system/reconciler.service")
KINDS = ("xdp", "tc-ingress", "tc-egress")
SECONDS = 300.0
"""A bound on waiting: everything is some ten times slower here."""

SUBSET = (
    "what_is_attached_is_seen",
    "packets_pass_every_member",
    "keeps_the_attachment_and_changes_the_program",
    "evicted_and_ours_stays",
    "detach_takes_all_of_it",
    "load_pins_exactly",
)
"""Of the conformance suite, on each kind of hook and way of attaching: all of it takes an hour here."""


def say(text: str) -> None:
    print(f"vm: {text}", flush=True)  # noqa: T201  # the log of the machine


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited for {what}")
        time.sleep(0.2)


@contextlib.contextmanager
def wire() -> Iterator[support.Wire]:
    """The host's own namespace, under a name, and the rest of the world."""
    near, far = support.Netns("vmhost"), support.Netns("vmfar")
    support.run("ip", "netns", "attach", near.name, str(os.getpid()))
    support.run("ip", "netns", "add", far.name)
    support.add_veth(near, "near0", far, "far0")
    made = support.Wire(near=near, far=far, interface="near0", far_interface="far0")
    near.ip("addr", "add", f"{made.near_address}/24", "dev", "near0")
    near.ip("link", "set", "lo", "up")
    far.ip("addr", "add", f"{made.far_address}/24", "dev", "far0")
    near.ip("neigh", "add", made.far_address, "lladdr", made.mac(far, "far0").hex(":"), "dev", "near0")
    far.ip("neigh", "add", made.near_address, "lladdr", made.mac(near, "near0").hex(":"), "dev", "far0")
    yield made


class Host(Lab):
    """A lab whose host is this machine: default paths, the host's namespace."""

    def __init__(self, share: Path, kit: Kit | None, ends: support.Wire) -> None:
        super().__init__(share, kit)  # type: ignore[arg-type]  # without one nothing is committed
        self.wire, self.near, self.far = ends, ends.near, ends.far
        self.state, self.run, self.pins = STATE, Path("/run/reconciler"), PINS

    @property
    def netns(self) -> str:
        return "host"

    @property
    def config_file(self) -> Path:
        return CONFIG


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def conformance(_: Path) -> None:
    """The kernel protocol's promises on this kernel, each way of attaching that it has."""
    # The plugins that count descriptors and the like are those of the suite; nothing is written into the checkout.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout=1200", "-k", " or ".join(SUBSET)]
    code = pytest.main([*options, str(ROOT / "tests" / "kernel" / "test_conformance.py")])
    assert code == 0, f"conformance: {code}"


def first(share: Path) -> None:
    """From nothing: prerequisites, the first commit, a change of it, packets through each."""
    checked = command("check")
    say(f"check: exit {checked.returncode}\n{checked.stdout}")
    assert checked.returncode == 0, checked.stderr
    (share / "kit").mkdir()
    kit = Kit(share / "kit")
    with wire() as ends:
        from tests.e2e.servers import GitRepository, allowed_signers  # noqa: PLC0415  # slow to import here

        host = Host(share, kit, ends)
        host.repository = GitRepository(share / "policy.git")
        CONFIG.parent.mkdir(mode=0o755, exist_ok=True)
        files = {"allowed_signers": allowed_signers(alice=kit.alice), "release.pub": kit.release.public}
        host.config = host._default_config()  # the lab's own, with other paths
        del host.config["paths"]
        host.config["source"]["confirmTimeout"] = "120s"
        host.config["trust"]["signers"] = host.config["trust"]["signers"][:1]
        host.commit(*chains(host, kit.firewall))
        write(share, files, host.config)
        assert host.reaches(DROP_PORT), "nothing is attached yet"
        host.apply().expect(0, "Applied")
        assert not host.reaches(DROP_PORT)
        assert host.reaches(PASS_PORT)
        host.commit(*chains(host, kit.firewall_next))
        switched = host.apply().expect(0, "Applied")
        assert switched.steps.count("switch") == len(KINDS), switched.steps
        assert not host.reaches(DROP_PORT)
        assert host.reaches(PASS_PORT)
        for each in host.attached():
            say(f"attached: {each['hook']} by {each['attached']} {each['mode']}")
        say(host.reconciler("status", output="table").out)


def chains(host: Host, archive: Archive) -> list[dict[str, object]]:
    return [chain(kind, host.wall(kind=kind, archive=archive), hook=host.hook(kind)) for kind in KINDS]


def write(share: Path, files: dict[str, bytes], config: object) -> None:
    """Configuration where the unit looks for it; /etc does not outlive the machine, so SHARE keeps a copy."""
    document = json.dumps({"apiVersion": "reconciler/v1alpha1", "kind": "Config", "spec": config}, indent=1)
    for folder in (share / "etc", CONFIG.parent):
        folder.mkdir(mode=0o755, exist_ok=True)
        for name, data in {**files, CONFIG.name: document.encode()}.items():
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o644)


def again(share: Path) -> None:
    """After the reboot: nothing is attached, no Git server; systemd starts the agent, which puts everything back."""
    if (share / "policy.git").exists():
        (share / "policy.git").rename(share / "gone.git")
    CONFIG.parent.mkdir(mode=0o755, exist_ok=True)
    for file in (share / "etc").iterdir():
        (CONFIG.parent / file.name).write_bytes(file.read_bytes())
    with wire() as ends:
        host = Host(share, None, ends)
        assert not PINS.exists(), "bpffs is empty after a boot"
        assert host.reaches(DROP_PORT), "nothing is attached yet"
        systemctl("start", "reconciler.service")  # returns with READY=1
        assert not host.reaches(DROP_PORT), "the first pass has put the chains back"
        assert host.reaches(PASS_PORT)
        kinds = sorted(each["attached"] for each in host.attached())
        say(f"after the reboot, without the Git server: {kinds}")
        assert len(kinds) == len(KINDS)
        wait_for(lambda: "NotARepository" in show("StatusText"), "the poll that finds no repository")
        say(f"systemd: {show('ActiveState')}, {show('StatusText')}")
        assert "reconciler.service" in systemctl("show", "-P", "After", "network-pre.target")
        hang(host)
        systemctl("stop", "reconciler.service")
        assert show("ActiveState") == "inactive"
        assert not host.reaches(DROP_PORT), "programs stay"


def hang(host: Host) -> None:
    """An agent that does not run any more is ended by the watchdog and started again; no program is touched."""
    before = [each["program_id"] for each in host.attached()]
    systemctl("kill", "--kill-whom=main", "--signal=STOP", "reconciler.service")
    wait_for(lambda: show("NRestarts") == "1" and show("ActiveState") == "active", "the watchdog")
    say(f"watchdog: restarted {show('NRestarts')} time")
    assert [each["program_id"] for each in host.attached()] == before
    assert not host.reaches(DROP_PORT)


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        journal = subprocess.run(["systemctl", "status", "-l", "reconciler.service"], capture_output=True, check=False)
        raise AssertionError(f"systemctl {arguments}: {done.stderr}\n{journal.stdout.decode()}")
    return done.stdout


def show(field: str) -> str:
    return systemctl("show", "-P", field, "reconciler.service").strip()


def main() -> int:
    phase, share = sys.argv[1], Path(sys.argv[2])
    say(f"{phase} on {os.uname().release}")
    {"first": first, "again": again, "conformance": conformance}[phase](share)
    say(f"{phase}: held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
