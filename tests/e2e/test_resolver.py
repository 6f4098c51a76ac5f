# SPDX-License-Identifier: Apache-2.0
"""A name server that says nothing keeps nobody longer than the limit, and no process alive."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.kernel import support

if TYPE_CHECKING:
    from pathlib import Path

ASK = """
import threading
from reconciler._connect import connect
from reconciler.cli._compose import SystemClock
from reconciler.errors import HealthError, RepositoryError
from reconciler.model import CheckHealth, Health, Inventory, PackageRef, TcpCheck
from reconciler.packages import HttpsRepository
from reconciler.reconcile._health import KernelHealth

class Kernel:
    def not_alive(self, judged, first):
        return ()

def said(kind, call, *arguments):
    try:
        call(*arguments)
    except kind as error:
        print(error)

ref = PackageRef(name="demo", version="1.0.0", digest="sha256:" + "0" * 64)
said(RepositoryError, HttpsRepository("https://silent.test", seconds=0.5).fetch, ref)
check = TcpCheck(connect="silent.test:443", within=1.0)
step = CheckHealth(generations={}, checks={"edge": Health(tcp=(check,))}, source=False)
health = KernelHealth(kernel=Kernel(), clock=SystemClock(), probe=lambda seconds: True, confirm_timeout=1.0)
said(HealthError, health.check, step, Inventory(boot_id="b"))
said(OSError, connect, "127.0.0.1", 1, 5.0)
print([each.name for each in threading.enumerate()])
"""


def test_a_name_server_that_says_nothing_keeps_nobody_longer_than_the_limit(tmp_path: Path) -> None:
    config = tmp_path / "resolv.conf"
    config.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    # In namespaces of its own: who asks there, asks this server.
    command = f'mount --bind {config} /etc/resolv.conf && ip link set lo up && exec "$@"'
    with support.netns() as space, space.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 53))
        done = space.run(
            lambda: subprocess.run(
                ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "-c", ASK],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,  # the resolver itself would take 150 s
            )
        )
        assert silent.recv(512)
    package, health, refused, threads = done.stdout.splitlines() or [done.stderr]
    assert (
        package
        == "https://silent.test/demo-1.0.0.tar.gz: no whole answer within 0.5 s; check the server and the network"
    )
    assert "expected a connection to silent.test:443 within 1 s, got no address of silent.test within" in health
    assert "refused" in refused
    assert threads == "['MainThread', 'reconciler-resolve']"  # one for each name, however often it is asked for
    assert (done.returncode, done.stderr) == (0, "")
