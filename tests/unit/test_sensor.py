# SPDX-License-Identifier: Apache-2.0
"""What wakes the loop: time, signals, descriptors of the kernel, and requests on the control socket."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import sensor as module
from reconciler.errors import ConfigError, StateError
from reconciler.sensor import MAX_CLIENTS, MAX_REQUEST_BYTES, Sensor, Wake, ask, open_sensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Pipe:
    """A watch: readable when something was written."""

    ends: tuple[int, int] = field(default_factory=os.pipe)
    drained: int = 0
    closed: bool = False

    def fileno(self) -> int:
        return self.ends[0]

    def drain(self) -> None:
        os.set_blocking(self.ends[0], False)
        with suppress(BlockingIOError):
            self.drained += len(os.read(self.ends[0], 64))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for end in self.ends:
                os.close(end)

    def happen(self) -> None:
        os.write(self.ends[1], b"x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


@pytest.fixture
def sensor(path: Path) -> Iterator[Sensor]:
    made = open_sensor(path, mode=0o600, group=None, watches=())
    yield made
    made.close()


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(10)
    client.connect(str(path))
    return client


def received(client: socket.socket) -> bytes:
    data = b""
    while chunk := client.recv(1 << 16):
        data += chunk
    return data


def until(sensor: Sensor, commands: int = 1) -> Wake:
    """Waits until so many requests came; each wait may bring some."""
    found: list[Any] = []
    for _ in range(50):
        found += sensor.wait(0.2).commands
        if len(found) >= commands:
            break
    return Wake(commands=tuple(found))


# --- time, signals, descriptors ----------------------------------------------------------------------------


def test_nothing_happens_and_time_passes(sensor: Sensor) -> None:
    assert sensor.wait(0.01) == Wake()
    assert sensor.wait(-5) == Wake()


@pytest.mark.parametrize(
    ("number", "wake"),
    [
        (signal.SIGTERM, Wake(stop=True)),
        (signal.SIGINT, Wake(stop=True)),
        (signal.SIGHUP, Wake(poll=True)),
    ],
)
@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_signals_wake_however_little_time_there_is(
    sensor: Sensor, number: signal.Signals, wake: Wake, seconds: float
) -> None:
    os.kill(os.getpid(), number)
    assert sensor.wait(seconds) == wake


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    made = open_sensor(None, mode=0o600, group=None, watches=())
    assert signal.getsignal(signal.SIGTERM) != before[0]
    made.close()
    made.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_a_descriptor_of_the_kernel_wakes_once_and_is_read_empty(sensor: Sensor) -> None:
    pipe = Pipe()
    sensor.watch([pipe])
    for _ in range(3):
        pipe.happen()
    assert sensor.wait(10) == Wake(changed=True)
    assert pipe.drained == 3
    assert sensor.wait(0) == Wake()
    sensor.watch([])
    assert pipe.closed


def test_watches_are_closed_with_the_sensor() -> None:
    pipe = Pipe()
    made = open_sensor(None, mode=0o600, group=None, watches=[pipe])
    made.close()
    assert pipe.closed


def test_a_watch_that_closed_itself_can_be_replaced(sensor: Sensor) -> None:
    pipe = Pipe()
    sensor.watch([pipe])
    pipe.close()
    sensor.watch([])


# --- the control socket ------------------------------------------------------------------------------------


def test_a_request_is_answered_and_who_asks_is_told_by_the_kernel(sensor: Sensor, path: Path) -> None:
    with connected(path) as client:
        client.sendall(b'{"verb": "plan", "arguments": {"a": 1, "uid": 0}}\nrest')
        (command,) = until(sensor).commands
        assert (command.verb, command.arguments) == ("plan", {"a": 1, "uid": 0})
        assert (command.uid, command.pid) == (os.getuid(), os.getpid())
        command.reply({"exitCode": 0})
        assert json.loads(received(client)) == {"exitCode": 0}


def test_a_request_may_come_in_pieces(sensor: Sensor, path: Path) -> None:
    with connected(path) as client:
        client.sendall(b'{"verb": ')
        assert sensor.wait(0.05).commands == ()
        client.sendall(b'"status"}\n')
        (command,) = until(sensor).commands
        assert command.arguments == {}
        command.reply({})


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"verb": 5}',
        b'{"verb": "plan", "arguments": []}',
        b"\xff\xfe",
        b"[" * 60_000,
        b"5",
        b"null",
    ],
)
def test_nonsense_is_answered_and_wakes_nobody(sensor: Sensor, path: Path, line: bytes) -> None:
    with connected(path) as client:
        client.sendall(line + b"\n")
        assert sensor.wait(0.3) == Wake()
        assert json.loads(received(client))["exitCode"] == 64


def test_a_request_that_is_too_long_is_cut_off(sensor: Sensor, path: Path) -> None:
    with connected(path) as client, pytest.raises(OSError):  # noqa: PT011, PT012  # reset or broken pipe
        for _ in range(50):
            client.sendall(b"x" * MAX_REQUEST_BYTES)
            sensor.wait(0.02)
        raise AssertionError("nobody minded")
    assert sensor.wait(0) == Wake()


def test_a_client_that_hangs_up_is_forgotten(sensor: Sensor, path: Path) -> None:
    connected(path).close()
    client = connected(path)
    client.sendall(b'{"verb"')
    client.close()
    assert sensor.wait(0.1) == Wake()


def test_too_many_clients_are_turned_away_and_slow_ones_disconnected(
    sensor: Sensor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 1.0)
    clients = []
    for _ in range(MAX_CLIENTS):
        clients.append(connected(path))
        sensor.wait(0.02)
    with connected(path) as late:
        sensor.wait(0.02)
        assert received(late) == b""
    sensor.wait(1.5)
    assert [received(client) for client in clients] == [b""] * MAX_CLIENTS
    for client in clients:
        client.close()
    with connected(path) as client:
        client.sendall(b'{"verb": "plan"}\n')
        (command,) = until(sensor).commands
        command.reply({})


def test_a_client_that_does_not_read_its_answer_is_no_error(sensor: Sensor, path: Path) -> None:
    client = connected(path)
    client.sendall(b'{"verb": "plan"}\n')
    (command,) = until(sensor).commands
    client.close()
    command.reply({"much": "x" * 10_000_000})


def test_clients_that_wait_when_it_ends_are_disconnected(path: Path) -> None:
    made = open_sensor(path, mode=0o600, group=None, watches=())
    with connected(path) as client:
        made.wait(0.05)
        made.close()
        assert received(client) == b""
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_mode_and_group_decide_who_may_connect(path: Path, mode: int) -> None:
    name = grp.getgrgid(os.getgid()).gr_name
    with closing(open_sensor(path, mode=mode, group=name, watches=())):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == mode
        assert found.st_gid == os.getgid()


def test_a_group_that_does_not_exist_is_a_mistake_of_the_configuration(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"control\.group"):
        open_sensor(path, mode=0o660, group="no-such-group", watches=())


def test_a_socket_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="control"):
        open_sensor(tmp_path / "file" / "control.sock", mode=0o600, group=None, watches=())


def test_a_socket_that_a_crash_left_is_replaced(sensor: Sensor, path: Path) -> None:
    with closing(open_sensor(path, mode=0o600, group=None, watches=())) as second, connected(path) as client:
        client.sendall(b'{"verb": "plan"}\n')
        (command,) = until(second).commands
        command.reply({})
        assert received(client) == b"{}\n"


# --- asking ------------------------------------------------------------------------------------------------


def test_nobody_listens(path: Path, tmp_path: Path) -> None:
    assert ask(path, "plan", {}, timeout=1) is None
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dead))
    assert ask(dead, "plan", {}, timeout=1) is None


def answering(path: Path, answer: bytes | None) -> threading.Thread:
    """A listener that gives one answer; None: it says nothing until the client leaves."""
    path.parent.mkdir(exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        with server, server.accept()[0] as connection:
            while b"\n" not in connection.recv(1 << 16):
                pass
            if answer is None:
                connection.recv(1)
            else:
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_an_answer_comes_back(path: Path) -> None:
    thread = answering(path, b'{"exitCode": 2}\n')
    assert ask(path, "plan", {"a": 1}, timeout=10) == {"exitCode": 2}
    thread.join()


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"[1]", None])
def test_an_answer_that_is_none_is_an_error(path: Path, answer: bytes | None) -> None:
    thread = answering(path, answer)
    with pytest.raises(StateError, match="no answer"):
        ask(path, "plan", {}, timeout=0.2 if answer is None else 10)
    thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_a_socket_on_which_somebody_else_listens_is_no_agent_and_is_told_nothing(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        os.seteuid(65534)
        try:
            server.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(StateError, match="expected root's agent to listen, got uid 65534"):
            ask(path, "accept", {"reason": "INC-1"}, timeout=10)
        with server.accept()[0] as connection:
            assert connection.recv(1) == b""


def test_a_path_that_cannot_be_a_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot reach"):
        ask(tmp_path / ("x" * 200), "plan", {}, timeout=1)
