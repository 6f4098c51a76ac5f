# SPDX-License-Identifier: Apache-2.0
"""`reconciler status` the quick way: it prints what the ordinary way prints, or leaves the answer to it."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reconciler import _words as words
from reconciler.cli import _quick as quick
from reconciler.cli import run_command
from reconciler.cli._group import run as run_ordinary
from reconciler.config import Paths
from reconciler.errors import ExitCode
from reconciler.model import CommitRecord, Drift, DriftKind, Refusal, Suspension, encode_json
from reconciler.status import Expiry, Status
from tests.command import reconciler

if TYPE_CHECKING:
    from pathlib import Path

LONG_AGO = "2020-01-01T00:00:00+00:00"
FOREVER = "2999-01-01T00:00:00+00:00"

PLAIN = Status(host="edge-1", at=LONG_AGO, reason="InSync", exit_code=0, message="everything is as declared")
DRIFT = tuple(Drift(kind=kind, where="eth0 xdp", message=kind.value) for kind in DriftKind)
STATUSES = [
    PLAIN,
    replace(PLAIN, next_poll=FOREVER, contact=LONG_AGO, chains=3, chains_pending=1, hooks=400, policy="ab" * 32),
    replace(PLAIN, next_poll=LONG_AGO),
    replace(PLAIN, exit_code=2, reason="Drift", drift=DRIFT, pending=DRIFT[:1]),
    replace(
        PLAIN,
        exit_code=3,
        reason="Unsigned",
        refusal=Refusal(commit="c" * 40, reason="Unsigned", message="\x1b[2J", at=LONG_AGO),
    ),
    replace(PLAIN, applied=CommitRecord(id="a" * 40, signer="alice", subject="ünïcode\u202e\n" * 40, at=LONG_AGO)),
    replace(PLAIN, exit_code=5, suspension=Suspension(until=FOREVER, reason="work", by="uid 0", at=LONG_AGO)),
    replace(PLAIN, expiry=Expiry(what="trust root corp", at=FOREVER), state_digest="ef" * 32),
    replace(PLAIN, at="no time", contact="no time", next_poll="no time"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose state lies beside it."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: reconciler/v1alpha1\nkind: Config\nspec:\n"
        f"  source: {{url: 'file:///none', allowFile: true}}\n  paths: {{state: {tmp_path / 'state'}}}\n"
    )
    (tmp_path / "state").mkdir()
    return path


def report(config: Path, content: bytes) -> None:
    (config.parent / "state" / "status.json").write_bytes(content)


def quickly(*arguments: object) -> tuple[int | None, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = quick.quick_status([str(each) for each in arguments])
    return code, out.getvalue()


def ordinarily(*arguments: object) -> tuple[int | None, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run_ordinary([str(each) for each in arguments])
    return code, out.getvalue()


@pytest.mark.parametrize("status", STATUSES)
def test_both_ways_print_the_same(config: Path, status: Status) -> None:
    report(config, encode_json(status))
    code, text = quickly("-c", config, "status")
    assert text
    assert (code, text) == ordinarily("-c", config, "status")
    assert (code, text) == quickly("status", "--config", config)


def test_the_words_know_the_codes_that_they_tell_apart() -> None:
    assert (words.OK, words.CHANGES, words.STALE) == (ExitCode.OK, ExitCode.CHANGES, ExitCode.STALE)
    assert (words.FOREIGN, words.NOT_REMOVABLE) == (DriftKind.FOREIGN, DriftKind.NOT_REMOVABLE)
    assert Paths().state == quick.DEFAULT_STATE
    assert PLAIN.version == quick.VERSION


def test_a_script_that_looks_at_the_exit_code_learns_that_no_agent_runs(config: Path) -> None:
    for code, seen in ((0, 7), (2, 7), (1, 1), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)):
        report(config, encode_json(replace(PLAIN, exit_code=code, next_poll=LONG_AGO)))
        assert quickly("-c", config, "status")[0] == seen
        report(config, encode_json(replace(PLAIN, exit_code=code, next_poll=FOREVER)))
        assert quickly("-c", config, "status")[0] == code


def test_the_configuration_of_the_environment_counts(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(config, encode_json(PLAIN))
    monkeypatch.setenv("RECONCILER_CONFIG", str(config))
    assert quickly("status")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [[], ["status", "--watch"], ["status", "-o", "json"], ["--help"], ["status", "status"], ["status", "-c"], ["plan"]],
)
def test_what_is_not_the_plain_form_is_left_to_the_verb(
    config: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    report(config, encode_json(PLAIN))
    monkeypatch.setenv("RECONCILER_CONFIG", str(config))
    assert quickly(*arguments) == (None, "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b'{"version": 1}',
        b"[" * 100_000,
        encode_json(PLAIN).replace(b'"version":1', b'"version":2'),
        encode_json(PLAIN).replace(b'"version":1', b'"version":true'),
        encode_json(PLAIN).replace(b'"exit_code":0', b'"exit_code":"0"'),
        encode_json(PLAIN).replace(b'"drift":[]', b'"drift":[7]'),
    ],
)
def test_a_report_that_is_not_as_it_should_be_is_left_to_the_verb(config: Path, content: bytes) -> None:
    report(config, content)
    assert quickly("-c", config, "status") == (None, "")
    assert reconciler("-c", config, "status").code == ExitCode.ERROR


def test_a_host_without_a_pass_is_left_to_the_verb(config: Path) -> None:
    assert quickly("-c", config, "status") == (None, "")
    assert reconciler("-c", config, "status").code == ExitCode.CHANGES


def test_a_configuration_that_others_can_write_is_refused(config: Path) -> None:
    report(config, encode_json(PLAIN))
    config.chmod(0o666)
    assert quickly("-c", config, "status") == (None, "")
    assert "chmod go-w" in reconciler("-c", config, "status").err


def test_a_folder_that_others_can_write_is_refused(config: Path) -> None:
    report(config, encode_json(PLAIN))
    config.parent.chmod(0o777)
    assert quickly("-c", config, "status") == (None, "")
    config.parent.chmod(0o700)


@pytest.mark.parametrize("text", ["", "7", "[]", "a: {", "kind: Config\n", "kind: Chain\nspec: {paths: {state: /x}}\n"])
def test_a_configuration_that_says_no_state_is_left_to_the_verb(config: Path, text: str) -> None:
    config.write_text(text + "# paths\n")
    assert quickly("-c", config, "status") == (None, "")


@pytest.mark.parametrize("text", ["kind: Config\nspec: {}\n", "kind: Config\nspec: {paths: {}}\n"])
def test_without_a_setting_the_state_lies_where_it_always_does(config: Path, text: str) -> None:
    config.write_text(text)
    assert quick.state_directory(str(config)) == quick.DEFAULT_STATE


def test_a_key_that_is_spelled_otherwise_is_found(config: Path) -> None:
    config.write_text('kind: Config\nspec: {"p\\x61ths": {state: /elsewhere}}\n')
    assert quick.state_directory(str(config)) == "/elsewhere"


def test_status_needs_one_setting_of_the_configuration(config: Path) -> None:
    """It also answers when the agent would not start: that is when people look."""
    report(config, encode_json(PLAIN))
    config.write_text(config.read_text() + "  sourrce: {}\n")
    assert quickly("-c", config, "status")[0] == 0
    shown = reconciler("-c", config, "-o", "json", "status")
    assert shown.code == 0
    assert json.loads(shown.out)["host"] == "edge-1"


def test_a_pipe_that_nobody_reads_is_no_crash(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    report(config, encode_json(PLAIN))
    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert run_command(["-c", str(config), "status"]) == ExitCode.ERROR
