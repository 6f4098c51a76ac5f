# SPDX-License-Identifier: Apache-2.0
"""The metrics port and the metrics file, with clients and folders that mean no good."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from reconciler.cli import _metrics
from reconciler.cli._metrics import write_textfile
from tests.e2e.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(_metrics, "CLIENT_SECONDS", 0.5)
    number = free_port()
    with closing(_metrics.MetricsServer(f"127.0.0.1:{number}")) as server:
        server.publish(b"reconciler_in_sync 1\n")
        yield number


def scrape(port: int, host: str = "127.0.0.1") -> bytes:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        return bytes(answer.read())


def test_the_text_is_served_on_ipv6_too() -> None:
    number = free_port("::1")
    with closing(_metrics.MetricsServer(f"[::1]:{number}")) as server:
        server.publish(b"x 1\n")
        assert scrape(number, "[::1]") == b"x 1\n"


def test_clients_that_hold_on_take_a_bounded_number_of_threads_for_a_bounded_time(port: int) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        clients = [connected(stack, port) for _ in range(4 * _metrics.MAX_CLIENTS)]
        time.sleep(0.1)
        # Each has its own and that of its timer.
        assert threading.active_count() - before <= 2 * _metrics.MAX_CLIENTS
        assert clients[-1].recv(1) == b""
    assert scrape_when_free(port) == b"reconciler_in_sync 1\n"


@pytest.mark.parametrize("kind", [threading.Thread, threading.Timer])
def test_a_host_that_has_no_threads_for_a_while_is_served_afterwards(
    port: int, monkeypatch: pytest.MonkeyPatch, kind: type[threading.Thread]
) -> None:
    real, failed = threading.Thread.start, list[threading.Thread]()

    def start(self: threading.Thread) -> None:
        if type(self) is kind and len(failed) < 2 * _metrics.MAX_CLIENTS:
            failed.append(self)
            raise RuntimeError("can't start new thread")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(2 * _metrics.MAX_CLIENTS):
            with pytest.raises(OSError):  # noqa: PT011 - turned away, in one of several ways
                scrape(port)
    assert len(failed) == 2 * _metrics.MAX_CLIENTS
    assert scrape(port) == b"reconciler_in_sync 1\n"


def test_a_client_that_sends_a_byte_now_and_then_is_left(port: int) -> None:
    with ExitStack() as stack:
        client = connected(stack, port)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            drip(client)
    assert scrape_when_free(port) == b"reconciler_in_sync 1\n"


def connected(stack: ExitStack, port: int) -> socket.socket:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
    client.sendall(b"G")
    return client


def drip(client: socket.socket) -> None:
    for _ in range(600):
        client.sendall(b"G")
        time.sleep(0.05)


def scrape_when_free(port: int) -> bytes:
    for _ in range(100):
        try:
            return scrape(port)
        except OSError:
            time.sleep(0.1)
    return b""


def test_the_metrics_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    # The folder of a textfile collector often belongs to another user, who may put anything there.
    victim, target = tmp_path / "victim", tmp_path / "reconciler.prom"
    victim.write_text("precious")
    for name in (".reconciler.prom.new", "reconciler.prom"):
        (tmp_path / name).symlink_to(victim)
    write_textfile(target, b"x 1\n")
    assert victim.read_text() == "precious"
    assert not target.is_symlink()
    assert target.read_bytes() == b"x 1\n"
    assert target.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == [".reconciler.prom.new", "reconciler.prom", "victim"]


def test_a_metrics_file_that_cannot_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "reconciler.prom").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_textfile(tmp_path / "reconciler.prom", b"x 1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["reconciler.prom"]
