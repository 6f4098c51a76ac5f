# SPDX-License-Identifier: Apache-2.0
"""Every error says a stable reason, what the loop shall do, and which exit code it stands for."""

from __future__ import annotations

import inspect
import re

import pytest

from reconciler import errors
from reconciler.errors import Diagnostic, Disposition, ExitCode, InputError, KernelError, ReconcilerError

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.ReconcilerError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_reason_is_a_code_that_holds_no_data(kind: type[ReconcilerError]) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]{2,30}", kind.reason)
    assert isinstance(kind.disposition, Disposition)
    assert kind.exit_code not in (ExitCode.OK, ExitCode.CHANGES, ExitCode.USAGE)


def test_each_class_has_a_reason_of_its_own() -> None:
    reasons = [kind.__dict__["reason"] for kind in CLASSES if "reason" in kind.__dict__]
    assert len(reasons) == len(set(reasons))


def test_what_is_not_trusted_waits_for_somebody_and_what_moved_does_not() -> None:
    assert errors.SignatureError("x").disposition is Disposition.STALLED
    assert errors.HistoryError("x").exit_code is ExitCode.GUARDRAIL
    assert errors.StaleError("call", 1).disposition is Disposition.RETRY
    assert errors.SourceError("x").disposition is Disposition.BACKOFF


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "wrong"),
        ({"file": "a.yaml"}, "a.yaml: wrong"),
        ({"file": "a.yaml", "line": 3, "column": 7}, "a.yaml:3:7: wrong"),
        ({"file": "a.yaml", "line": 3, "pointer": "/spec"}, "a.yaml:3: wrong (at /spec)"),
        ({"pointer": "/spec"}, "wrong (at /spec)"),
    ],
)
def test_a_diagnostic_says_where(place: dict[str, object], text: str) -> None:
    assert str(Diagnostic(message="wrong", **place)) == text  # type: ignore[arg-type]  # by the parameters


def test_a_diagnostic_can_be_placed_later() -> None:
    assert str(Diagnostic(message="wrong", line=2).within("b.yaml")) == "b.yaml:2: wrong"


def test_an_input_error_carries_every_finding() -> None:
    findings = (Diagnostic(message="one"), Diagnostic(message="two"))
    assert InputError(findings).diagnostics() == findings
    assert str(InputError(findings)) == "one\ntwo"
    assert InputError("one").diagnostics() == (Diagnostic(message="one"),)
    assert ReconcilerError("x", reason="Other").diagnostics() == (Diagnostic(message="x"),)
    assert ReconcilerError("x", reason="Other").reason == "Other"


def test_a_kernel_error_names_the_call_and_keeps_errno() -> None:
    error = KernelError("BPF_LINK_CREATE xdp on eth0", 16)
    assert (error.errno, str(error)) == (16, "BPF_LINK_CREATE xdp on eth0: failed (errno 16)")
    verifier = errors.VerifierError("BPF_PROG_LOAD", 13, "invalid mem access", "0: r0 = 0\n")
    assert verifier.log == "0: r0 = 0\n"
    assert "invalid mem access" in str(verifier)
