# SPDX-License-Identifier: Apache-2.0
"""Certificates in a child: the same answers as in this process, and no answer is never an acceptance."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from reconciler import trust
from reconciler.config import IdentityRule, KeyRule
from reconciler.errors import Disposition, IdentityError, SignatureError, TrustError
from reconciler.trust import _apart, _child
from reconciler.trust._bundles import _sigstore
from tests.private_sigstore import IDENTITY, ISSUER, SIGNED_AT, PrivateSigstore, new_key, public_der, public_pem

if TYPE_CHECKING:
    from reconciler.model import Signer

ARTIFACT = b"artifact"
NOW = SIGNED_AT + timedelta(days=1)
RULE = IdentityRule(name="ci", packages=("*",), identity=IDENTITY, issuer=ISSUER, root="private")


@pytest.fixture(scope="module")
def sigstore() -> PrivateSigstore:
    return PrivateSigstore()


@pytest.fixture(scope="module")
def bundle(sigstore: PrivateSigstore) -> dict[str, Any]:
    return sigstore.bundle(ARTIFACT)


def verify(
    sigstore: PrivateSigstore, bundle: dict[str, Any], rule: IdentityRule | KeyRule = RULE, artifact: bytes = ARTIFACT
) -> Signer:
    roots = {"private": sigstore.root()}
    data = json.dumps(bundle).encode()
    return trust.verify_package(artifact, data, package="demo", rules=(rule,), roots=roots, now=NOW)


# --- the real child ----------------------------------------------------------------------------------------


def test_it_answers_as_this_process_does(sigstore: PrivateSigstore, bundle: dict[str, Any]) -> None:
    key = new_key()
    other = PrivateSigstore()
    by_key = sigstore.key_bundle(ARTIFACT, key)
    key_rule = KeyRule(name="k", packages=("*",), key_pem=public_pem(key), root="private", tlog="required")
    cases: list[tuple[PrivateSigstore, dict[str, Any], IdentityRule | KeyRule, bytes]] = [
        (sigstore, bundle, RULE, ARTIFACT),
        (
            sigstore,
            bundle,
            IdentityRule(name="x", packages=("*",), identity="y", issuer=ISSUER, root="private"),
            ARTIFACT,
        ),
        (sigstore, bundle, RULE, b"another"),
        (sigstore, {**bundle, "verificationMaterial": {**bundle["verificationMaterial"], "x": 1}}, RULE, ARTIFACT),
        (other, bundle, RULE, ARTIFACT),
        (sigstore, by_key, key_rule, ARTIFACT),
        (other, by_key, key_rule, ARTIFACT),
    ]

    def outcome(case: tuple[PrivateSigstore, dict[str, Any], IdentityRule | KeyRule, bytes]) -> object:
        try:
            return verify(*case)
        except TrustError as error:
            return type(error), error.reason

    here = [outcome(case) for case in cases]
    with trust.apart():
        assert isinstance(_sigstore(), _apart.Child)
        there = [outcome(case) for case in cases]
        running = _apart.current()
        assert running is not None
        process = running._process
        assert process is not None
        assert process.poll() is None  # one child for all of them
        if os.geteuid() == 0:
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert "NoNewPrivs:\t1\n" in status
            assert f"Uid:\t{_child.NOBODY}\t{_child.NOBODY}\t{_child.NOBODY}\t{_child.NOBODY}\n" in status
            assert "CapEff:\t0000000000000000\n" in status
    assert there == here
    assert [type(each).__name__ for each in here] == ["Signer", "tuple", "tuple", "tuple", "tuple", "Signer", "tuple"]
    assert here[1] == (IdentityError, "IdentityRefused")
    assert process.returncode is not None
    assert _apart.current() is None


def test_it_imports_nothing_once_its_privileges_are_gone(sigstore: PrivateSigstore, bundle: dict[str, Any]) -> None:
    """The folder of the program may be one that nobody else can read."""
    key = new_key()
    common: dict[str, Any] = {
        "root": sigstore.root(),
        "digest": hashlib.sha256(ARTIFACT).digest(),
        "now": NOW.isoformat(),
    }
    by_key = sigstore.key_bundle(ARTIFACT, key, stamped=SIGNED_AT)
    questions = [
        _apart.Question(fields=json.dumps(bundle).encode(), **common),
        _apart.Question(fields=json.dumps(by_key).encode(), key=public_der(key), **common),
    ]
    code = """
import sys
from reconciler.trust import _child
before = set(sys.modules)
for question in sys.stdin.buffer.read().splitlines():
    answer = _child.answer(question)
    assert answer.identity or answer.times, answer
print(sorted(set(sys.modules) - before))
"""
    data = b"\n".join(map(msgspec.json.encode, questions))
    done = subprocess.run([sys.executable, "-I", "-c", code], input=data, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"[]\n", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives capabilities away")
def test_a_service_that_may_not_change_its_uid_drops_its_capabilities(
    monkeypatch: pytest.MonkeyPatch, sigstore: PrivateSigstore, bundle: dict[str, Any]
) -> None:
    without = ("/usr/bin/setpriv", "--bounding-set=-setuid,-setgid", "--")
    monkeypatch.setattr(_apart, "COMMAND", (*without, *_apart.COMMAND))
    with trust.apart():
        assert verify(sigstore, bundle).identity == IDENTITY
        running = _apart.current()
        assert running is not None
        assert running._process is not None
        status = Path(f"/proc/{running._process.pid}/status").read_text()
    assert "Uid:\t0\t0\t0\t0\n" in status
    for kind in ("Inh", "Prm", "Eff", "Amb"):
        assert f"Cap{kind}:\t0000000000000000\n" in status


def test_a_block_without_certificates_starts_no_child() -> None:
    with trust.apart():
        child = _apart.current()
        assert child is not None
        assert child._process is None


def test_it_ends_with_its_questions() -> None:
    """A parent that was killed leaves nothing behind."""
    done = subprocess.run([*_apart.COMMAND], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_question_that_is_too_long_ends_it() -> None:
    done = subprocess.run([*_apart.COMMAND], input=b"\xff" * 4096, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 100_000, b'{"fields": "e30=", "root": "", "digest": "", "now": ""}']
)
def test_questions_that_are_none_are_refused(data: bytes) -> None:
    answer = _child.answer(data)
    assert answer.refused
    assert answer.identity is None
    assert answer.times is None


# --- children that fail ------------------------------------------------------------------------------------

FRAME = "import os, sys, time\ndef say(text): os.write(1, len(text).to_bytes(4, 'big') + text)\n"
ASKED = FRAME + "size = int.from_bytes(os.read(0, 4), 'big')\nwhile size: size -= len(os.read(0, size))\n"
FAILURES = {
    "is not there": None,
    "crashes at once": "raise SystemExit(1)",
    "crashes when it is asked": ASKED + "os.abort()",
    "ends without a word": ASKED,
    "hangs before it listens": "import time; time.sleep(60)",
    "hangs": ASKED + "time.sleep(60)",
    "hangs in the middle of its answer": ASKED + "os.write(1, b'\\0\\0\\0\\x40{\"identity\"'); time.sleep(60)",
    "is killed in the middle of its answer": ASKED + "os.write(1, b'\\0\\0\\0\\x40{'); os.kill(os.getpid(), 9)",
    "is killed in the middle of the length": ASKED + "os.write(1, b'\\0\\0'); os.kill(os.getpid(), 9)",
    "talks too much": ASKED + "os.write(1, b'\\xff' * 4096); time.sleep(60)",
    "says no JSON": ASKED + "say(b'yes')",
    "says nothing that is known": ASKED + "say(b'{\"accepted\": true}')",
    "says something besides": ASKED + 'say(b\'{"identity": "a", "issuer": "b", "x": 1}\')',
    "says nothing at all": ASKED + "say(b'{}')",
    "names no issuer": ASKED + 'say(b\'{"identity": "a"}\')',
    "names no identity": ASKED + 'say(b\'{"identity": "", "issuer": "b"}\')',
    "answers another question": ASKED + "say(b'{\"times\": []}')",
    "answers two questions": ASKED + 'say(b\'{"identity": "a", "issuer": "b", "times": []}\')',
    "says bytes that are no text": ASKED + 'say(b\'{"identity": "\\xff"}\')',
    "nests deeply": ASKED + "say(b'[' * 60000)",
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_child_that_fails_accepts_nothing(
    monkeypatch: pytest.MonkeyPatch, sigstore: PrivateSigstore, bundle: dict[str, Any], how: str
) -> None:
    code = FAILURES[how]
    command = ("/nonexistent",) if code is None else (sys.executable, "-I", "-S", "-c", code)
    if "hangs" in how:
        monkeypatch.setattr(_apart, "SECONDS", 0.3)
    monkeypatch.setattr(_apart, "COMMAND", command)
    with trust.apart():
        with pytest.raises(trust.VerifierFailedError, match="nothing is accepted") as raised:
            verify(sigstore, bundle)
        child = _apart.current()
        assert child is not None
        assert child._process is None  # what it may say later is no answer to the next question
    assert raised.value.reason == "VerifierFailed"
    assert raised.value.disposition is Disposition.BACKOFF


@pytest.mark.parametrize("times", ['["yesterday"]', '["2026-01-01T00:00:00"]', "[7]", "null"])
def test_times_that_are_none_are_no_times(
    monkeypatch: pytest.MonkeyPatch, sigstore: PrivateSigstore, times: str
) -> None:
    monkeypatch.setattr(
        _apart, "COMMAND", (sys.executable, "-I", "-S", "-c", ASKED + f"say(b'{{\"times\": {times}}}')")
    )
    key = new_key()
    rule = KeyRule(name="k", packages=("*",), key_pem=public_pem(key), root="private", tlog="required")
    with trust.apart(), pytest.raises(trust.VerifierFailedError):
        verify(sigstore, sigstore.key_bundle(ARTIFACT, key), rule)


def test_a_refusal_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, sigstore: PrivateSigstore, bundle: dict[str, Any]
) -> None:
    say = 'say(b\'{"refused": "no", "identity": "a", "issuer": "b"}\')'
    monkeypatch.setattr(_apart, "COMMAND", (sys.executable, "-I", "-S", "-c", ASKED + say))
    with trust.apart(), pytest.raises(SignatureError, match="no"):
        verify(sigstore, bundle)


def test_after_a_failure_another_child_is_asked(sigstore: PrivateSigstore, bundle: dict[str, Any]) -> None:
    with trust.apart():
        child = _apart.current()
        assert child is not None
        good, child._command = child._command, ("/nonexistent",)
        with pytest.raises(trust.VerifierFailedError):
            verify(sigstore, bundle)
        child._command = good
        assert verify(sigstore, bundle).identity == IDENTITY
