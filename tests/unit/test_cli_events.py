# SPDX-License-Identifier: Apache-2.0
"""Events of the agent: one line of JSON each, and a log that takes none of them ends nothing."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from reconciler.cli._compose import emit_json

ROOT = Path(__file__).parents[2]


def test_an_event_is_one_line_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"event": "pass", "message": "a\nb\x1b\u202e"})
    assert capsys.readouterr().out == '{"event": "pass", "message": "a\\nb\\u001b\\u202e"}\n'


def test_a_log_that_is_full_or_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    for descriptor in (write, os.open("/dev/full", os.O_WRONLY)):
        log = os.fdopen(descriptor, "w")
        monkeypatch.setattr(sys, "stdout", log)
        for _ in range(1000):  # more than a buffer holds
            emit_json({"event": "pass", "message": "x" * 100})
        with pytest.raises(OSError, match=r"Broken pipe|No space left"):
            log.close()


def test_a_log_that_works_again_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        kept, full = os.dup(log.fileno()), os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, log.fileno())
        emit_json({"event": "lost or late"})
        os.dup2(kept, log.fileno())
        for descriptor in (kept, full):
            os.close(descriptor)
        emit_json({"event": "heard"})
    assert (tmp_path / "log").read_text().splitlines()[-1] == '{"event": "heard"}'


def test_the_page_for_operators_names_every_event() -> None:
    code = "".join(path.read_text() for path in sorted((ROOT / "reconciler").rglob("*.py")))
    named = re.findall(r"""(?:\bemit\(\s*|_record\(parts, |"event": |\bevent\()"([a-z-]+)\"""", code)
    named += re.findall(r'"(repaired)" if drift.kind is not DriftKind.FOREIGN else "(foreign)"', code)[0]
    page = (ROOT / "docs" / "operations.md").read_text()
    said = page.split("one JSON object per line on stdout:")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", said)) == set(named)
    assert len(set(named)) > 12
