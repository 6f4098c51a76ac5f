# SPDX-License-Identifier: Apache-2.0
"""A Git server that stalls, throttles or changes its password, and an agent that repairs, waits and keeps secrets."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.intruder import Intruder
from tests.e2e.lab import Lab, chain
from tests.e2e.servers import git_https, secret, stall, status
from tests.kernel import support
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.servers import HttpsServer

TOKEN = "s3cret-token-of-the-test"
NEXT_TOKEN = "n3xt-token-of-the-test"


def behind(lab: Lab, server: HttpsServer, token: str) -> Path:
    """Make the server the host's source; returns the token's file."""
    server.token = token
    file = secret(lab.host / "token", token)
    auth = {"caFile": str(server.ca_file), "tokenFile": str(file)}
    lab.config["source"] |= {
        "url": server.url("policy.git"),
        "allowFile": False,
        "auth": auth,
        "interval": "24h",
        "driftInterval": "300ms",
        "timeout": "120s",
    }
    return file


def family(root: int) -> Iterator[int]:
    """A process and all that it started."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from family(int(child))


def visible(root: int) -> bytes:
    """Argument lists and environments of a process and all that it started."""
    seen = b""
    for pid in family(root):
        for name in ("cmdline", "environ"):
            try:
                seen += Path(f"/proc/{pid}/{name}").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
    return seen


def test_a_server_that_stalls_delays_no_repair_and_no_end(lab: Lab, tmp_path: Path) -> None:
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    with git_https(lab.repository.path.parent, tmp_path / "https") as server:
        token = behind(lab, server, TOKEN)
        agent = lab.agent()
        agent.wait("pass", reason="Applied")

        # The server takes the question and never answers; what somebody detaches comes back all the same.
        server.fault = stall()
        before = len(server.requests)
        agent.hup()
        agent.wait_until(lambda: len(server.requests) > before, "the agent to ask")
        for _ in range(2):
            repaired = agent.count("repaired")
            (pin,) = (lab.pins / "links").iterdir()
            with support.pin_directory() as pins, Intruder(lab.near, lab.wire.interface, pins) as intruder:
                intruder.detach(json.loads(support.run("bpftool", "-j", "link", "show", "pinned", str(pin)))["id"])
            agent.wait("repaired", more_than=repaired)
            assert not lab.reaches(DROP_PORT)
        assert re.search(rb"\0(fetch|ls-remote)\0", visible(agent.process.pid))
        for word in (TOKEN.encode(), base64.b64encode(f"x-access-token:{TOKEN}".encode())):
            assert word not in visible(agent.process.pid)

        # It ends when it is told, not when the server would have been given up.
        assert agent.stop() == 0
        assert lab.xdp_id() is not None

        # The next agent is throttled, and asks no more than it may.
        server.fault = status(429, b"later", Retry_After="3000")
        agent = lab.agent()
        agent.wait("pass", reason="SourceThrottled")
        asked = len(server.requests)
        looks = agent.count("pass")
        agent.wait("pass", more_than=looks + 3)
        assert len(server.requests) == asked

        # A token that rotates is taken at the next poll, without a restart.
        server.fault = None
        server.token = NEXT_TOKEN
        agent.hup()
        agent.wait("pass", reason="AuthenticationFailed")
        secret(token, NEXT_TOKEN)
        agent.hup()
        agent.wait("pass", more_than=agent.count("pass", reason="InSync"), reason="InSync")
        said = "\n".join(agent.lines) + agent.errors + "".join(each.read_text() for each in lab.state.glob("*.json*"))
        assert TOKEN not in said
        assert NEXT_TOKEN not in said
        assert agent.stop() == 0
