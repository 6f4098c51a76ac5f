# SPDX-License-Identifier: Apache-2.0
"""What systemd hears of the agent: sd_notify(3), the watchdog while the loop waits and while it works."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from reconciler.sensor import WORK_SECONDS, Sensor, ServiceManager, open_sensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(0)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> list[list[str]]:
        """Every message since the last call, as lines."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(str(tmp_path / "notify") if request.param == "path" else f"@reconciler-test-{os.getpid()}")
    with closing(made.socket):
        yield made


def sensor(manager: ServiceManager) -> Sensor:
    return open_sensor(None, mode=0o600, group=None, watches=(), manager=manager)


BUSY = f"WATCHDOG_USEC={int(WORK_SECONDS * 1e6)}"


def test_ready_is_the_end_of_the_first_pass_and_is_said_once(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environment())
    with closing(sensor(manager)) as made:
        made.wait(0)  # for the source's first answer
        assert systemd.heard() == []
        manager.passed("Applied: 3 steps done")
        manager.passed("InSync: everything is as declared")
        assert systemd.heard() == [
            ["STATUS=Applied: 3 steps done", "READY=1"],
            ["STATUS=InSync: everything is as declared"],
        ]


def test_the_watchdog_is_pinged_while_the_loop_waits_and_gives_a_pass_its_time(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environment(WATCHDOG_USEC="100000", WATCHDOG_PID=str(os.getpid())))
    assert manager.ping_seconds == 0.05
    with closing(sensor(manager)) as made:
        assert systemd.heard() == [[BUSY, "WATCHDOG=1"]]
        made.wait(0)
        assert systemd.heard() == [["WATCHDOG_USEC=100000", "WATCHDOG=1"], [BUSY, "WATCHDOG=1"]]
        for _ in range(50):  # however little this process gets to run
            made.wait(0.25)
            first, *pings, last = systemd.heard()
            assert first == ["WATCHDOG_USEC=100000", "WATCHDOG=1"]
            assert all(ping == ["WATCHDOG=1"] for ping in pings)
            assert last == [BUSY, "WATCHDOG=1"]  # and then nothing, until the loop waits again
            if len(pings) >= 2:
                break
        else:
            pytest.fail("no pings while the loop waited")
        assert systemd.heard() == []
        made.wait(0)
        assert systemd.heard() == [["WATCHDOG_USEC=100000", "WATCHDOG=1"], [BUSY, "WATCHDOG=1"]]


def test_a_watchdog_longer_than_a_pass_stays_as_it_is(systemd: Systemd) -> None:
    ServiceManager(systemd.environment(WATCHDOG_USEC=str(10**12))).working()
    assert systemd.heard() == [[f"WATCHDOG_USEC={10**12}", "WATCHDOG=1"]]


@pytest.mark.parametrize("extra", [{"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}])
def test_a_watchdog_of_somebody_else_is_not_ours(systemd: Systemd, extra: dict[str, str]) -> None:
    manager = ServiceManager(systemd.environment(**extra))
    assert manager.ping_seconds == float("inf")
    manager.working()
    assert systemd.heard() == []


def test_the_end(systemd: Systemd) -> None:
    with closing(sensor(ServiceManager(systemd.environment()))) as made:
        os.kill(os.getpid(), 15)
        assert made.wait(5).stop
    assert systemd.heard() == [["STOPPING=1"]]


def test_without_systemd_and_with_one_that_is_gone_nothing_happens(systemd: Systemd) -> None:
    ServiceManager({}).passed("x")
    assert systemd.heard() == []
    manager = ServiceManager({"NOTIFY_SOCKET": "/nonexistent/notify"})
    manager.passed("x")
    manager.waiting()


def test_without_a_free_descriptor_a_message_is_lost_and_nothing_else(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environment())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        manager.passed("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    manager.passed("heard")
    assert systemd.heard() == [["STATUS=heard"]]
