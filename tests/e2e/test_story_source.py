# SPDX-License-Identifier: Apache-2.0
"""The Git server: over https with a private authority and a token, over ssh, and behind the chain that is changed."""

from __future__ import annotations

import base64
import itertools
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.lab import Lab, chain, rule
from tests.e2e.servers import descendants, everything_visible, git_https, secret, ssh_server, wait_until
from tests.support_probe import DROP_PORT, PASS_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.lab import Document, Kit
    from tests.e2e.servers import Handler

LONG_CHECK = {"member": "wall", "counter": "dropped", "below": "50%", "over": "8s"}
TOKEN = "s3cret-token-of-the-test"


def test_https_with_a_private_authority_and_a_token(lab: Lab, tmp_path: Path) -> None:
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    with git_https(lab.repository.path.parent, tmp_path / "https") as server:
        server.token = TOKEN
        token = lab.host / "token"
        token.write_text("wrong\n")
        token.chmod(0o600)
        auth = {"caFile": str(server.ca_file), "tokenFile": str(token)}
        lab.config["source"] |= {"url": server.url("policy.git"), "allowFile": False, "auth": auth}
        refused = lab.apply().expect(1, "AuthenticationFailed")
        assert lab.xdp_id() is None
        token.write_text(TOKEN + "\n")
        applied = lab.apply().expect(0, "Applied")
        without = {"caFile": str(lab.host / "release.pub"), "tokenFile": str(token)}
        lab.config["source"]["auth"] = without
        distrusted = lab.apply().expect(1, "TlsRefused")
        assert lab.xdp_id() is not None
        for result in (refused, applied, distrusted):
            assert TOKEN not in result.out + result.err
        assert TOKEN not in "".join(path.read_text() for path in lab.state.glob("*.json*"))


def test_credentials_rotate_while_the_agent_runs_and_stand_nowhere(lab: Lab, tmp_path: Path) -> None:
    """Not in arguments, environments, events, records, metrics, or what is printed; and a second agent is told."""
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    visible: list[bytes] = []
    with git_https(lab.repository.path.parent, tmp_path / "https") as server:
        server.token = f"{TOKEN}-0"
        auth = {"caFile": str(server.ca_file), "tokenFile": str(secret(lab.host / "token", server.token))}
        lab.config["source"] |= {"url": server.url("policy.git"), "allowFile": False, "auth": auth}
        lab.config["metrics"] = {"textfile": str(lab.host / "metrics.prom")}
        agent = lab.agent()
        agent.wait("pass", reason="Applied")
        for number, form in ((1, "{}"), (2, "Bearer {}"), (3, "robot:{}")):
            server.token = f"{TOKEN}-{number}"
            refused = agent.count("pass", reason="AuthenticationFailed")
            agent.hup()
            agent.wait("pass", more_than=refused, reason="AuthenticationFailed")
            assert lab.reconciler("status").expect(1).json["reason"] == "AuthenticationFailed"
            secret(lab.host / "token", form.format(server.token))
            commit = lab.commit(chain("edge", lab.wall(rule(number, "DENY")), hook=lab.hook()))

            def look(_: Handler) -> bool:
                visible.extend(everything_visible(pid) for pid in descendants(agent.process.pid))
                return False

            server.fault = look
            agent.hup()
            agent.wait("applied", commit=commit)
            server.fault = None
        second = lab.reconciler("run")
        assert (second.code, "Locked" in second.err) == (1, True)
        verbs = itertools.product(("status", "history", "plan"), ("json", "table"))
        shown = [lab.reconciler(verb, output=output) for verb, output in verbs]
        assert agent.stop() == 0
    written = [path.read_bytes() for path in (*lab.state.rglob("*"), lab.host / "metrics.prom") if path.is_file()]
    printed = "".join([*agent.lines, agent.errors, *(each.out + each.err for each in (second, *shown))])
    assert b"policy.git" in b"".join(visible)
    users = itertools.product(("x-access-token", "robot"), range(4))
    encoded = [base64.b64encode(f"{user}:{TOKEN}-{number}".encode()) for user, number in users]
    for word in (TOKEN.encode(), *encoded):
        assert word not in b"".join((*visible, *written, printed.encode()))


def test_ssh_with_known_hosts(lab: Lab, tmp_path: Path) -> None:
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    with ssh_server(lab.repository.path.parent, tmp_path / "ssh") as server:
        other = lab.host / "known_hosts"
        other.write_text(server.known_hosts.read_text().replace(f":{server.port} ", ":1 "))
        auth = {"sshKeyFile": str(server.key_file), "knownHostsFile": str(other)}
        lab.config["source"] |= {"url": server.url("policy.git"), "allowFile": False, "auth": auth}
        lab.apply().expect(1, "HostKeyRefused")
        auth["knownHostsFile"] = str(server.known_hosts)
        lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)


@pytest.fixture
def remote(tmp_path: Path, kit: Kit) -> Iterator[Lab]:
    """A host whose Git server is beyond the interface that chains are attached to."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(tmp_path, kit, inside=True))
        server = stack.enter_context(ssh_server(lab.repository.path.parent, tmp_path / "ssh"))
        port = stack.enter_context(lab.relay(server.port))
        known = lab.host / "known_hosts"
        known.write_text(f"[{lab.wire.far_address}]:{port} {server.host_key}\n")
        lab.config["source"] |= {
            "url": server.url("policy.git").replace(f"127.0.0.1:{server.port}", f"{lab.wire.far_address}:{port}"),
            "allowFile": False,
            "auth": {"sshKeyFile": str(server.key_file), "knownHostsFile": str(known)},
            "timeout": "5s",
            "confirmTimeout": "5s",
        }
        yield lab


def cut_off(lab: Lab, kind: str) -> Document:
    """Lets nothing in, the Git server's answers among it."""
    return chain("edge", lab.wall(kind=kind, default="DENY"), hook=lab.hook(kind))


def test_a_commit_that_cuts_the_host_off_is_taken_back(remote: Lab) -> None:
    lab, kind = remote, "tc-ingress"
    good = lab.applied(chain("edge", lab.wall(kind=kind), hook=lab.hook(kind)))
    (before,) = lab.attached()

    bad = lab.commit(cut_off(lab, kind), message="cuts the host off")
    taken_back = lab.apply().expect(6, "RolledBack")
    outcome = taken_back.json["outcome"]
    assert outcome["failed"]["reason"] == "SourceCutOff"
    assert outcome["undo_failures"] == []
    assert [step["step"] for step in outcome["undone"]].count("switch") == 1
    (after,) = lab.attached()
    assert after == before
    status = lab.reconciler("status").expect(6).json
    assert (status["applied"]["id"], status["refusal"]["commit"]) == (good, bad)

    # The host is back by itself, and does not try that again: not the commit, and not another one that wants the same.
    lab.apply().expect(6, "RolledBack")
    assert lab.attached() == [before]
    again = lab.commit(cut_off(lab, kind), message="once more")
    refused = lab.apply().expect(6, "Quarantined")
    assert refused.steps == []
    assert refused.json["status"]["refusal"]["commit"] == again

    fixed = chain("edge", lab.wall(rule(0, "ALLOW", protocol=6), kind=kind, default="DENY"), hook=lab.hook(kind))
    newer = lab.commit(fixed, message="fixed")
    assert lab.apply().expect(0, "Applied").json["status"]["applied"]["id"] == newer
    events = [record["event"] for record in lab.reconciler("history").json]
    assert events.count("rolled-back") == 1
    assert events[-1] == "applied"


def test_a_host_that_is_killed_while_it_is_cut_off_comes_back(remote: Lab) -> None:
    lab = remote
    lab.config["source"]["confirmTimeout"] = "30s"
    good = lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    before = lab.xdp_id()
    agent = lab.agent()
    agent.wait("pass", reason="InSync")
    lab.commit(cut_off(lab, "xdp"))
    agent.hup()
    agent.wait("applying")
    agent.wait_until(lambda: lab.xdp_id() != before, "the switch")
    agent.kill()
    assert not lab.reaches(PASS_PORT)
    # The next one finds a source that does not answer and a chain that nobody confirmed: what was applied last counts.
    agent = lab.agent()
    agent.wait("pass")
    assert lab.reaches(PASS_PORT)
    assert not lab.reaches(DROP_PORT)
    assert lab.reconciler("status").json["applied"]["id"] == good
    assert len(list((lab.pins / "gen").iterdir())) == 1
    assert agent.stop() == 0


def test_a_chain_may_decline_commit_confirm_and_a_tcp_check_decides_then(remote: Lab) -> None:
    lab = remote
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    far = lab.config["source"]["url"].partition("@")[2].partition("/")[0]
    health = {"source": False, "tcp": [{"connect": far, "within": "1s"}]}
    lab.commit(chain("edge", lab.wall(default="DENY"), hook=lab.hook(), health=health))
    taken_back = lab.apply().expect(6, "RolledBack")
    assert taken_back.json["outcome"]["failed"]["reason"] == "Unhealthy"
    lab.commit(chain("edge", lab.wall(default="DENY"), hook=lab.hook(), health={"source": False}))
    # Checks are part of the state, so this is another one; and nobody asked for one.
    lab.apply().expect(0, "Applied")
    lab.apply().expect(1, "SourceTimeout")


def test_a_source_that_is_gone_for_too_long_is_stale_and_what_runs_is_kept(lab: Lab) -> None:
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    lab.repository.path.rename(lab.repository.path.with_name("away"))
    gone = lab.apply()
    assert gone.code == 1
    lab.config["source"]["staleAfter"] = "1s"
    time.sleep(1.1)  # what is compared has whole seconds
    next((lab.pins / "links").iterdir()).unlink()
    stale = lab.apply().expect(7, "SourceStale")
    assert "attach" in stale.steps
    assert not lab.reaches(DROP_PORT)
    lab.repository.path.with_name("away").rename(lab.repository.path)
    lab.apply().expect(0, "InSync")


def test_two_passes_never_work_at_once(lab: Lab) -> None:
    lab.commit(chain("edge", lab.wall(), hook=lab.hook(), health={"stats": [LONG_CHECK]}))
    first = subprocess.Popen(lab.line("-o", "json", "apply"), stdout=subprocess.PIPE, env=lab.environment)
    try:
        assert wait_until(lambda: lab.xdp_id() is not None)
        second = lab.apply()
        assert (second.code, "Locked" in second.err) == (1, True)
    finally:
        output, _ = first.communicate()
    assert first.returncode == 0, output
    lab.apply().expect(0, "InSync")
