# SPDX-License-Identifier: Apache-2.0
"""The agent: what wakes it, what it says, who may ask it, and what stays when it ends or is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.intruder import Intruder
from tests.e2e.lab import Lab, chain
from tests.e2e.servers import free_port
from tests.kernel import support
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.lab import Document


PAUSES = (0.0, 0.01, 0.03, 0.06, 0.1)
"""Seconds between the first step of a change and SIGKILL; all of it takes about a fifth of a second."""


def samples(text: str) -> dict[str, float]:
    """Prometheus' text format as name with labels → value."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_the_agent_follows_commits_signals_requests_and_interfaces(lab: Lab) -> None:
    textfile, port = lab.folder / "reconciler.prom", free_port()
    lab.config["metrics"] = {"textfile": str(textfile), "listen": f"127.0.0.1:{port}"}
    hook = lab.hook() | {"interfaces": ["near*"]}
    lab.commit(chain("edge", lab.wall(), hook=hook))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")

    # One agent per host; verbs go through it.
    second = lab.agent()
    assert second.end() == 1
    assert "Locked" in second.errors

    # A signal makes it poll; so does a request, which is answered with what came of it.
    commit = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=hook))
    agent.hup()
    assert agent.wait("applied", commit=commit)["signer"] == "alice@example.com"
    commit = lab.commit(chain("edge", lab.limit(6), lab.wall(), hook=hook))
    assert lab.reconciler("plan").expect(2).steps.count("switch") == 1
    answer = lab.apply()
    assert "switch" in answer.steps
    assert answer.json["status"]["applied"]["id"] == commit
    assert agent.count("applied", commit=commit) == 1

    # An interface appears, and packets on it are judged; it goes, and its pins go with it.
    passes = agent.count("pass", reason="Applied")
    support.add_veth(lab.near, "near-late", lab.far, "far-late")
    agent.wait("pass", more_than=passes, reason="Applied")
    assert {each["interface"] for each in lab.attached()} == {lab.wire.interface, "near-late"}
    pins = len(lab.pinned())
    lab.near.ip("link", "del", "dev", "near-late")
    agent.wait_until(lambda: len(lab.pinned()) == pins - 1, "the pin of the link to go")

    # Metrics: the last pass, and packets by member and verdict.
    assert not lab.reaches(DROP_PORT)
    wall = 'reconciler_packets_total{chain="edge",member="wall",verdict="dropped"}'
    agent.hup()  # a pass that began before the packet may still write its text meanwhile
    agent.wait_until(lambda: samples(textfile.read_text())[wall] == 1, "the dropped packet to be counted")
    found = samples(textfile.read_text())
    assert found["reconciler_hooks"] == 1
    assert found["reconciler_suspended"] == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answered:
        assert samples(answered.read().decode())[wall] == 1

    # The end: programs stay, the socket goes, every line was an event.
    program = lab.xdp_id()
    assert agent.stop() == 0
    assert lab.xdp_id() == program
    assert not lab.reaches(DROP_PORT)
    assert list(lab.run.glob("*.sock")) == []
    assert agent.errors == ""
    assert all({"time", "event"} <= event.keys() for event in agent.events)


def test_the_agent_polls_and_repairs_by_itself(lab: Lab) -> None:
    lab.config["source"] |= {"interval": "1s", "driftInterval": "300ms"}
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")
    commit = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    agent.wait("applied", commit=commit)
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()), signed=False)
    agent.wait("pass", reason="Unsigned")
    # A detached link sends no event; only looking finds it. It comes back although the newest commit is refused.
    with support.pin_directory() as pins, Intruder(lab.near, lab.wire.interface, pins) as intruder:
        (pin,) = (lab.pins / "links").iterdir()
        intruder.detach(json.loads(support.run("bpftool", "-j", "link", "show", "pinned", str(pin)))["id"])
    agent.wait("repaired")
    assert not lab.reaches(DROP_PORT)
    assert agent.count("refused") == 1
    assert agent.stop() == 0


def test_a_killed_agent_leaves_programs_and_the_next_one_adopts_them(lab: Lab) -> None:
    lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")
    program, pins = lab.xdp_id(), lab.pinned()
    with lab.traffic() as traffic:
        agent.kill()
        agent = lab.agent()
        assert agent.wait("pass")["reason"] == "InSync"
    traffic.assert_filtered()
    assert (lab.xdp_id(), lab.pinned()) == (program, pins)

    assert agent.stop() == 0


def test_an_agent_killed_in_the_middle_of_a_change_lets_nothing_through(lab: Lab) -> None:
    def chains(rounds: int) -> list[Document]:
        xdp = chain("xdp", lab.limit(rounds + 1), lab.wall(), hook=lab.hook())
        tc = chain("tc", lab.count(by_port=rounds % 2 == 0), lab.wall(kind="tc-ingress"), hook=lab.hook("tc-ingress"))
        return [xdp, tc]

    lab.commit(*chains(0))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")
    generations, pins = len(list((lab.pins / "gen").iterdir())), len(lab.pinned())
    for rounds, pause in enumerate(PAUSES, 1):
        commit = lab.commit(*chains(rounds))
        with lab.traffic(udp=True) as traffic:
            agent.hup()
            agent.wait("applying")
            time.sleep(pause)
            agent.kill()
            agent = lab.agent()
            agent.wait("pass")
        traffic.assert_filtered()
        status = lab.reconciler("status").expect(0).json
        assert status["applied"]["id"] == commit
        # Nothing of the old generations stays, and nothing of a half-made one.
        assert (len(list((lab.pins / "gen").iterdir())), len(lab.pinned())) == (generations, pins)
    assert lab.apply().expect(0, "InSync").steps == []
    assert agent.stop() == 0


def test_the_agent_starts_without_the_git_server_and_enforces_what_was_applied(lab: Lab) -> None:
    commit = lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    away = lab.repository.path.with_name("away")
    lab.repository.path.rename(away)
    # As after a reboot: nothing is attached or pinned any more.
    for path in (lab.pins / "links").iterdir():
        path.unlink()
    assert lab.reaches(DROP_PORT)
    agent = lab.agent()
    assert agent.wait("pass")["exitCode"] == 1
    assert not lab.reaches(DROP_PORT)
    status = lab.reconciler("status").expect(1).json
    assert status["applied"]["id"] == commit
    away.rename(lab.repository.path)
    agent.hup()
    agent.wait("pass", exitCode=0)
    assert agent.stop() == 0


# --- who may ask -------------------------------------------------------------------------------------------

CLIENT = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode() + b"\\n")
    print(b"".join(iter(lambda: connection.recv(65536), b"")).decode())
"""


@pytest.fixture
def public(lab: Lab) -> Iterator[Lab]:
    """A host whose socket lies where everybody may look."""
    with tempfile.TemporaryDirectory(prefix="rct") as folder:
        Path(folder).chmod(0o755)
        lab.run = Path(folder) / "run"
        lab.config["paths"]["run"] = str(lab.run)
        yield lab


def ask_as_nobody(lab: Lab, verb: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    request = json.dumps({"verb": verb, "arguments": arguments})
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", CLIENT]
    (path,) = lab.run.glob("*.sock")
    return subprocess.run([*command, str(path), request], capture_output=True, text=True, check=False, cwd="/")


def test_who_is_not_root_may_look_where_the_host_allows_it_and_decides_nothing(public: Lab) -> None:
    lab = public
    head = lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")
    assert "PermissionError" in ask_as_nobody(lab, "plan").stderr
    assert agent.stop() == 0

    lab.config["control"] = {"mode": "0666"}
    agent = lab.agent()
    agent.wait("pass")
    asked: dict[str, dict[str, Any]] = {
        "accept": {"commit": head, "reason": "x"},
        "suspend": {"seconds": 60, "reason": "x"},
        "resume": {},
        "confirm": {"digest": "0" * 64},
        "teardown": {},
    }
    for verb, arguments in asked.items():
        answer = json.loads(ask_as_nobody(lab, verb, **arguments).stdout)
        assert (verb, answer["reason"], answer["exitCode"]) == (verb, "Forbidden", 1)
    answer = json.loads(ask_as_nobody(lab, "plan").stdout)
    assert (answer["exitCode"], answer["plan"]["steps"]) == (0, [])
    for verb in ("", "no-such-verb"):
        assert json.loads(ask_as_nobody(lab, verb).stdout)["exitCode"] == 64
    assert not lab.reaches(DROP_PORT)
    assert lab.reconciler("status").json["suspension"] is None
    agent.process.send_signal(signal.SIGINT)
    assert agent.end() == 0


def test_operators_decide_through_the_agent_as_without_it(lab: Lab) -> None:
    old = lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")

    lab.reconciler("suspend", "--reason", "maintenance", "--for", "1h").expect(0)
    new = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    held = agent.count("pass", reason="Suspended")
    agent.hup()
    agent.wait("pass", more_than=held, reason="Suspended")
    assert lab.reconciler("status").expect(5).json["applied"]["id"] == old
    resumed = lab.reconciler("resume").expect(0, "Applied")
    assert resumed.json["status"]["applied"]["id"] == new

    lab.repository.git("update-ref", "refs/heads/main", old)
    lab.apply().expect(4, "HistoryRewritten")
    accepted = lab.reconciler("accept", old, "--reason", "the branch was wrong").expect(0, "Applied")
    assert accepted.json["status"]["applied"]["id"] == old

    lab.config["guardrail"] = {"share": "100%"}  # a file that changes under an agent changes nothing
    assert lab.reconciler("teardown", "--yes").expect(0).json["outcome"]["survivors"] == []
    assert lab.pinned() == []
    down = agent.count("pass", reason="TornDown")
    agent.hup()
    agent.wait("pass", more_than=down, reason="TornDown")
    assert lab.attached() == []
    lab.reconciler("resume").expect(0)  # Applied; or InSync, when a pass that came in between had put it back already
    assert not lab.reaches(DROP_PORT)
    kinds = [record["event"] for record in lab.reconciler("history").json]
    assert [kind for kind in kinds if kind != "refused"] == [
        *("applied", "suspended", "resumed", "applied"),
        *("accepted", "applied", "torn-down", "resumed"),
    ]
    assert agent.stop() == 0


def test_a_configuration_that_is_replaced_half_way_stops_nothing_that_runs(lab: Lab) -> None:
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    agent = lab.agent()
    agent.wait("pass", reason="Applied")
    whole = lab.config_file.read_bytes()
    path = lab.host / "config.yaml"
    command = lab.line()
    path.write_bytes(whole[: len(whole) // 2])
    # The agent read it when it started; it goes on, and takes commits.
    commit = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    path.write_bytes(whole[: len(whole) // 2])
    agent.hup()
    agent.wait("applied", commit=commit)
    # Who starts now is told, and touches nothing.
    for verb in ("apply", "run"):
        done = subprocess.run([*command, verb], capture_output=True, text=True, check=False, env=lab.environment)
        assert done.returncode == 1
        assert "config.yaml" in done.stderr
        assert "Traceback" not in done.stderr
    assert len(lab.attached()) == 1
    path.write_bytes(whole)
    assert agent.stop() == 0
    assert lab.reconciler("apply").expect(0).json["status"]["reason"] == "InSync"
