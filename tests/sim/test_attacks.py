# SPDX-License-Identifier: Apache-2.0
"""What somebody who may push, and even sign, cannot do to a host."""

from __future__ import annotations

import errno
import os
import random
import socket
from typing import TYPE_CHECKING, Literal

import pytest

from reconciler import reconcile, sensor
from reconciler.config import Revoked
from reconciler.errors import StateError
from reconciler.state import open_state
from tests.sim.host import chain, member, package_keys, ref, tree

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.sensor import Watch
    from tests.sim.host import Host


def test_a_revoked_package_stays_where_it_runs_and_spreads_nowhere(edge: Host) -> None:
    edge.trust(revoked=Revoked(digests=frozenset({ref("ratelimit")["digest"]})))
    spread = [
        (chain(), chain("more", hook={"type": "xdp", "interfaces": ["eth1"]})),
        (chain(hook={"type": "xdp", "interfaces": ["eth0", "eth1"]}),),
        (chain("edge", member(), member(name="again")),),
        (chain("other"),),
    ]
    for documents in spread:
        edge.origin.commit(*documents)
        status = edge.apply().status
        assert (status.reason, status.exit_code) == ("Revoked", 3)
        assert (edge.runs("eth0"), edge.runs("eth1")) == (["ratelimit"], [])
    # What runs can still be tuned, and what is beside it changed.
    commit = edge.origin.commit(chain("edge", member(params={"rate": 1}), member("firewall")))
    assert edge.apply().status.exit_code == 2
    assert edge.applied == commit
    assert edge.runs("eth0") == ["ratelimit", "firewall"]


@pytest.mark.parametrize("on_revoked", ["keep", "detach"])
def test_a_host_whose_signers_changed_goes_on_repairing(edge: Host, on_revoked: Literal["keep", "detach"]) -> None:
    edge.trust(signers=(package_keys()["other"].rule(),), on_revoked=on_revoked)
    edge.detach()
    status = edge.repair().status
    assert (status.reason, status.exit_code) == ("Revoked", 2)
    assert "not trusted any more" in status.message
    assert edge.runs() == ["ratelimit"]


def test_files_behind_a_limit_are_not_taken_for_removed(edge: Host) -> None:
    # chains/0.yaml sorts behind the others, whose bytes alone exceed the limit on all manifests together.
    files = tree(chain())
    files["reconciler.yaml"] += b"spec: {allowEmpty: true}\n"
    files["chains/z.yaml"] = files.pop("chains/0.yaml")
    filler = b"#" + b"x" * ((1 << 20) - 2) + b"\n"
    others = {f"chains/a{n:02}.md": filler for n in range(64)}
    before = edge.fingerprint()
    edge.origin.commit(files=files | others)
    status = edge.apply().status
    assert (status.reason, status.exit_code) == ("InvalidManifest", 1)
    assert "in all manifests together" in status.message
    assert edge.fingerprint() == before


def test_health_checks_take_as_long_as_the_longest_however_many_there_are(edge: Host) -> None:
    counters = ("dropped", "passed", "redirected")
    checks = [
        {"member": "ratelimit", "counter": counter, "below": f"{below}%", "over": "5m"}
        for counter in counters
        for below in range(90, 100)
    ]
    asked = len(edge.clock.slept)
    edge.origin.commit(chain("edge", member(params={"rate": 3}), health={"source": False, "stats": checks}))
    assert edge.apply().status.reason == "Applied"
    assert sum(edge.clock.slept[asked:]) == 300


@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o700), (0, 0o770), (0, 0o1777)])
def test_a_state_directory_that_others_can_write_is_not_used(tmp_path: Path, owner: int, mode: int) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    directory.chmod(mode)
    os.chown(directory, owner, -1)
    with pytest.raises(StateError, match="expected a directory that only root can write"):
        open_state(directory)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o755), (0, 0o775)])
def test_a_state_directory_below_a_folder_of_others_is_not_used(tmp_path: Path, owner: int, mode: int) -> None:
    above = tmp_path / "above"
    above.mkdir()
    open_state(above / "state").close()
    above.chmod(mode)
    os.chown(above, owner, -1)
    (tmp_path / "link").symlink_to(above / "state")
    for directory in (above / "state", tmp_path / "link", above / "new"):
        with pytest.raises(StateError, match=f"{above}: expected a directory that only root can write"):
            open_state(directory)
    assert not (above / "new").exists()
    above.chmod(0o1777)  # sticky: others can add names here, and not replace ours
    os.chown(above, 0, -1)
    open_state(above / "state").close()


def test_a_client_that_does_not_read_its_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor, "REPLY_SECONDS", 0.05)
    client, served = socket.socketpair()
    with client:
        client.settimeout(10)
        sensor.Command(verb="plan", arguments={}, uid=1000, pid=1, connection=served).reply({"plan": "x" * (32 << 20)})
        assert served.fileno() == -1
        received = 0
        while chunk := client.recv(1 << 20):
            received += len(chunk)
        assert received < 32 << 20


def test_an_agent_that_cannot_watch_interfaces_goes_on_by_the_clock(edge: Host) -> None:
    # fs.inotify.max_user_instances is one limit for root and for all containers that run as root.
    def refused(names: tuple[str, ...]) -> list[Watch]:
        raise OSError(errno.EMFILE, f"Too many open files ({names[0]})")

    class Clockwork:
        passes = 0

        def wait(self, seconds: float) -> sensor.Wake:
            self.passes += 1
            edge.clock.seconds += seconds
            return sensor.Wake(stop=self.passes == 3)

    results: list[reconcile.PassResult] = []
    agent = reconcile.Agent(
        edge.parts(),
        Clockwork(),  # type: ignore[arg-type]  # what it uses of a Sensor
        random=random.Random(1),
        machine="m",
        open_watches=refused,
        report=results.append,
    )
    agent.run()
    assert [result.status.exit_code for result in results] == [0, 0, 0]
    assert "are not watched" in str(edge.emitted("warning")[0]["message"])
