# SPDX-License-Identifier: Apache-2.0
"""The unit of deploy/systemd: its capabilities are enough, each is needed, and the agent says what systemd asks for."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.e2e.intruder import Intruder
from tests.e2e.lab import COMMAND, ROOT, Lab, chain
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

UNIT = ROOT / "deploy" / "systemd" / "reconciler.service"
CAPABILITIES = re.findall(r"CAP_(\w+)", re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)[0])
KINDS = ("xdp", "tc-ingress", "tc-egress")

WITHOUT = {
    "SYS_ADMIN": ("KernelRefused", "not all interfaces and hooks could be read"),
    "NET_ADMIN": ("NotRemovable", "RTM_DELTFILTER"),
}
"""What fails without each of them: a reason, and words of its message. docs/operations.md tells the same."""


def only(capabilities: Sequence[str]) -> tuple[str, ...]:
    """The command as the unit starts it: root with these capabilities and no others, and no way to more."""
    bounds = ",".join(("-all", *(f"+{each.lower()}" for each in capabilities)))
    return ("setpriv", "--no-new-privs", "--bounding-set", bounds, "--inh-caps", "-all", *COMMAND)


def test_the_capabilities_of_the_unit_are_enough(lab: Lab) -> None:
    lab.command = only(CAPABILITIES)
    lab.config["secureMode"]["mode"] = "enforce"
    lab.applied(*[chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in KINDS])
    lab.commit(
        *[chain(kind, lab.wall(kind=kind, archive=lab.kit.firewall_next), hook=lab.hook(kind)) for kind in KINDS]
    )
    assert lab.apply().expect(0, "Applied").steps.count("switch") == len(KINDS)
    with Intruder(lab.near, lab.wire.interface, lab.pins) as intruder:
        intruder.tcx_link()
        intruder.filter()
        assert lab.apply().expect(0, "Applied").steps.count("evict") == 2
    assert not lab.reaches(DROP_PORT)
    lab.reconciler("teardown", "--yes").expect(0)
    assert lab.pinned() == []


def test_each_capability_of_the_unit_is_needed(lab: Lab) -> None:
    assert set(WITHOUT) == set(CAPABILITIES)
    lab.config["secureMode"]["mode"] = "enforce"
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    with Intruder(lab.near, lab.wire.interface, lab.pins) as intruder:
        intruder.filter()
        lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
        for missing, (reason, words) in WITHOUT.items():
            lab.command = only([each for each in CAPABILITIES if each != missing])
            findings = lab.apply().json["status"]["findings"]
            assert any(each["reason"] == reason and words in each["message"] for each in findings), (missing, findings)
            assert not lab.reaches(DROP_PORT)
    page = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"| `CAP_{each}` |" in page for each in CAPABILITIES)


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = UNIT.read_text().replace("/opt/reconciler/bin/reconciler", COMMAND[0])
    copy = tmp_path / "reconciler.service"
    copy.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_agent_tells_systemd_when_it_is_ready_and_when_it_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    address = lab.folder / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", str(60 * 10**6))
        agent = lab.agent()
        heard = [systemd.recv(4096).decode().split("\n")]
        while "READY=1" not in heard[-1]:
            heard.append(systemd.recv(4096).decode().split("\n"))
        # Ready only now: packets are filtered, and before it the pass had its time.
        assert not lab.reaches(DROP_PORT)
        assert heard[0] == [f"WATCHDOG_USEC={1800 * 10**6}", "WATCHDOG=1"]
        assert heard[-1] == ["STATUS=Applied: 4 steps done", "READY=1"]
        heard.append(systemd.recv(4096).decode().split("\n"))
        assert heard[-1] == [f"WATCHDOG_USEC={60 * 10**6}", "WATCHDOG=1"]
        agent.process.terminate()
        while heard[-1] != ["STOPPING=1"]:
            heard.append(systemd.recv(4096).decode().split("\n"))
        assert agent.end() == 0
