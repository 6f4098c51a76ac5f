# SPDX-License-Identifier: Apache-2.0
"""Merges everything that can wake the loop: time, signals, the control socket, and descriptors that `kernel` opened.

Events wake, they never decide: what an event says is dropped, and the pass observes again. The control socket carries
one JSON object per line each way; who is asking is taken from the kernel (SO_PEERCRED), never from the message.

Waiting is also where the service manager hears from the agent: while the loop waits it pings often, and what the loop
does between two waits gets a budget of its own.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import selectors
import signal
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from reconciler.errors import ConfigError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import FrameType

MAX_REQUEST_BYTES: Final = 64 * 1024
"""A control request names a verb and a few words; nothing legitimate comes near this."""

MAX_CLIENTS: Final = 16
"""Clients that may be connected at once; more are turned away."""

CLIENT_SECONDS: Final = 10.0
"""A client that does not finish its request within this time is disconnected."""

REPLY_SECONDS: Final = 2.0
"""A client that does not read its answer within this time does not get it: nothing else happens meanwhile."""

SETTLE_SECONDS: Final = 0.05
"""Interfaces come in bursts; one pass serves all events of this span."""

WORK_SECONDS: Final = 1800.0
"""How long the watchdog lets the loop be busy between two waits. More than all limits of one pass together: asking
and fetching (6 minutes), packages (5 for each web server), health checks (10), manifests of 64 MiB (minutes)."""

NOTIFY_SECONDS: Final = 1.0
"""A service manager that does not read its socket within this time does not get the message."""


NUDGE: Final = 0
"""Stands for `Sensor.nudge` where numbers of signals stand; no signal has it."""


class Watch(Protocol):
    """A descriptor of `kernel` that becomes readable when something may have changed."""

    def fileno(self) -> int:
        """The descriptor to wait for."""

    def drain(self) -> None:
        """Read and drop what came."""

    def close(self) -> None:
        """Release the descriptor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One request of a local user; answer with `reply`, exactly once."""

    verb: str
    arguments: Mapping[str, Any]
    uid: int
    pid: int
    connection: socket.socket = field(repr=False)

    def reply(self, answer: Mapping[str, Any]) -> None:
        """Answer and hang up; a client that is gone is no error."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(REPLY_SECONDS)
            self.connection.sendall(json.dumps(answer).encode() + b"\n")
        self.connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Why the loop woke: commands to answer, and whether to stop, to poll, or only to look again."""

    stop: bool = False
    changed: bool = False
    poll: bool = False
    commands: tuple[Command, ...] = ()


class ServiceManager:
    """systemd, if it started this process: sd_notify(3) over the datagram socket that the environment names.

    The watchdog is told two spans: `WatchdogSec` of the unit while the loop waits, during which it is pinged at half of
    that, and `WORK_SECONDS` while the loop works, during which nothing pings. So a loop that hangs is ended in either
    case, and a fetch that takes minutes is not. Without a socket nothing happens; a lost message is no error.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        usec = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(usec) / 1e6 if ours and usec.isdigit() else 0.0
        self._ready = False
        self._working = False

    @property
    def ping_seconds(self) -> float:
        """The longest time between two calls of `waiting` that the watchdog bears."""
        return self._watchdog / 2 if self._watchdog > 0 else float("inf")

    def waiting(self) -> None:
        """The loop waits, or waits on."""
        if self._watchdog > 0:
            again = [f"WATCHDOG_USEC={int(self._watchdog * 1e6)}"] if self._working else []
            self._send(*again, "WATCHDOG=1")
        self._working = False

    def working(self) -> None:
        """The loop begins to work, before the first pass too."""
        self._working = True
        if self._watchdog > 0:
            self._send(f"WATCHDOG_USEC={int(max(self._watchdog, WORK_SECONDS) * 1e6)}", "WATCHDOG=1")

    def passed(self, text: str) -> None:
        """A pass is over, with one line for `systemctl status`; the end of the first one is what ready means."""
        self._send(f"STATUS={text}", *([] if self._ready else ["READY=1"]))
        self._ready = True

    def stopping(self) -> None:
        """The loop ends because it was asked to."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        # A name that begins with @ is in the abstract namespace, see unix(7).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Also when no socket can be had.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(NOTIFY_SECONDS)
            connection.sendto("\n".join(lines).encode(), address)


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    deadline: float
    data: bytes = b""


class Sensor:
    """Made by `open_sensor`, ended by `close`. Only the thread that made it may use it, but for `nudge`."""

    def __init__(
        self,
        listener: socket.socket | None,
        path: Path | None,
        watches: Iterable[Watch],
        manager: ServiceManager,
    ) -> None:
        self._manager = manager
        manager.working()
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._path = path
        self._clients: dict[int, _Client] = {}
        self._watches: list[Watch] = []
        self._signal_read, self._signal_write = socket.socketpair()
        for end in (self._signal_read, self._signal_write):
            end.settimeout(0)
        self._old_wakeup = signal.set_wakeup_fd(self._signal_write.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        self._selector.register(self._signal_read, selectors.EVENT_READ)
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)
        self.watch(watches)

    def watch(self, watches: Iterable[Watch]) -> None:
        """Replace the descriptors of `kernel` that wake the loop; the former ones are closed."""
        for old in self._watches:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(old)
            old.close()
        self._watches = list(watches)
        for new in self._watches:
            self._selector.register(new, selectors.EVENT_READ)

    def close(self) -> None:
        """Give signals back, close every descriptor, remove the socket. Idempotent."""
        if self._signal_read.fileno() < 0:
            return
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self.watch(())
        for client in self._clients.values():
            client.connection.close()
        self._clients.clear()
        self._selector.close()
        self._signal_read.close()
        self._signal_write.close()
        if self._listener is not None:
            self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def nudge(self) -> None:
        """End a `wait` early, from any thread."""
        with contextlib.suppress(OSError):  # full: it ends anyway; closed: nobody waits
            self._signal_write.send(bytes([NUDGE]))

    def wait(self, seconds: float) -> Wake:
        """Sleep until something happens, at most `seconds`."""
        wake = self._wait(seconds)
        if wake.stop:
            self._manager.stopping()
        else:
            self._manager.working()
        return wake

    def _wait(self, seconds: float) -> Wake:
        deadline = time.monotonic() + max(seconds, 0.0)
        stop = changed = poll = nudged = False
        commands: list[Command] = []
        left = max(seconds, 0.0)
        while True:  # at least one look, so that a signal is seen however much there is to do
            self._manager.waiting()
            for key, _ in self._selector.select(min([left, self._manager.ping_seconds, *self._client_waits()])):
                source = key.fileobj
                if source is self._signal_read:
                    numbers = self._read_signals()
                    stop = stop or signal.SIGTERM in numbers or signal.SIGINT in numbers
                    poll = poll or signal.SIGHUP in numbers
                    nudged = nudged or NUDGE in numbers
                elif source is self._listener:
                    self._accept()
                elif key.fd in self._clients:
                    command = self._read_client(key.fd)
                    if command is not None:
                        commands.append(command)
                else:
                    changed = True
            self._expire_clients()
            left = deadline - time.monotonic()
            if stop or changed or poll or nudged or commands or left <= 0:
                break
        if changed and not stop:
            time.sleep(SETTLE_SECONDS)
        for watch in self._watches:
            watch.drain()
        return Wake(stop=stop, changed=changed, poll=poll, commands=tuple(commands))

    # --- signals -----------------------------------------------------------------------------------------

    def _read_signals(self) -> set[int]:
        try:
            return set(self._signal_read.recv(64))
        except BlockingIOError:
            return set()

    # --- clients -----------------------------------------------------------------------------------------

    def _client_waits(self) -> list[float]:
        now = time.monotonic()
        return [max(client.deadline - now, 0.0) for client in self._clients.values()]

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            time.sleep(SETTLE_SECONDS)  # without a free descriptor it would be ready again at once, and for long
            return
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
            return
        connection.settimeout(0)
        self._clients[connection.fileno()] = _Client(connection, time.monotonic() + CLIENT_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ)

    def _read_client(self, fd: int) -> Command | None:
        client = self._clients[fd]
        try:
            data = client.connection.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        client.data += data
        if not data or len(client.data) > MAX_REQUEST_BYTES:
            self._drop(fd)
            return None
        if b"\n" not in client.data:
            return None
        self._selector.unregister(client.connection)
        del self._clients[fd]
        client.connection.settimeout(None)
        return _command(client)

    def _expire_clients(self) -> None:
        now = time.monotonic()
        for fd in [fd for fd, client in self._clients.items() if client.deadline <= now]:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._selector.unregister(client.connection)
        client.connection.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor carries the signal; nothing happens in the handler."""


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and uid at the other end, as the kernel noted them on connect (of a client) and listen (of a server)."""
    pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _command(client: _Client) -> Command | None:
    pid, uid = _peer(client.connection)
    try:
        request = json.loads(client.data.split(b"\n", 1)[0])
        verb, arguments = request["verb"], request.get("arguments", {})
    except (ValueError, KeyError, TypeError, RecursionError):
        verb = arguments = None
    if not isinstance(verb, str) or not isinstance(arguments, dict):
        broken = Command(verb="", arguments={}, uid=uid, pid=pid, connection=client.connection)
        broken.reply({"error": "expected one line of JSON with verb and arguments", "exitCode": 64})
        return None
    return Command(verb=verb, arguments=arguments, uid=uid, pid=pid, connection=client.connection)


def open_sensor(
    path: Path | None, *, mode: int, group: str | None, watches: Iterable[Watch], manager: ServiceManager | None = None
) -> Sensor:
    """Listen on the control socket and take over SIGTERM, SIGINT and SIGHUP; `manager` hears of it.

    Raises:
        ConfigError: the group does not exist.
        StateError: the socket cannot be made.
    """
    manager = manager or ServiceManager({})
    if path is None:
        return Sensor(None, None, watches, manager)
    try:
        gid = grp.getgrnam(group).gr_gid if group is not None else -1
    except KeyError as error:
        raise ConfigError(f"control.group: expected a group of this host, got {group}") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        if gid >= 0:
            os.chown(path, -1, gid)
        path.chmod(mode)
        listener.listen(MAX_CLIENTS)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        raise StateError(f"cannot listen on {path}: {error.strerror}") from error
    return Sensor(listener, path, watches, manager)


def ask(path: Path, verb: str, arguments: Mapping[str, Any], *, timeout: float) -> dict[str, Any] | None:
    """Ask a running agent; None when none listens.

    Raises:
        StateError: it listens but does not answer within `timeout` seconds, refuses the connection, or is no agent.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            hint = "; run it as root, or as a member of control.group" if isinstance(error, PermissionError) else ""
            raise StateError(f"cannot reach the agent at {path}: {error.strerror or error}{hint}") from error
        _, uid = _peer(connection)
        if uid not in (0, os.geteuid()):
            raise StateError(f"{path}: expected root's agent to listen, got uid {uid}; who made that socket, and how?")
        try:
            connection.sendall(json.dumps({"verb": verb, "arguments": dict(arguments)}).encode() + b"\n")
            chunks = []
            while chunk := connection.recv(1 << 16):
                chunks.append(chunk)
            answer = json.loads(b"".join(chunks))
        except (OSError, ValueError) as error:
            raise StateError(f"the agent at {path} gave no answer: {error}") from error
    if not isinstance(answer, dict):
        raise StateError(f"the agent at {path} gave no answer that can be read")
    return answer
