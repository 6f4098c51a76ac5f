# SPDX-License-Identifier: Apache-2.0
"""What is accepted without ssh-keygen is what ssh-keygen accepts, and everything else is left to it."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.errors import TrustError
from reconciler.model import Signer
from reconciler.trust import _commits as commits
from reconciler.trust._accept import accept
from reconciler.trust._sshsig import read_signature

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KINDS = {
    "ed25519": ("-t", "ed25519"),
    "ecdsa256": ("-t", "ecdsa", "-b", "256"),
    "ecdsa384": ("-t", "ecdsa", "-b", "384"),
    "ecdsa521": ("-t", "ecdsa", "-b", "521"),
    "rsa": ("-t", "rsa", "-b", "2048"),
}
PAYLOAD = (
    b"tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a@b> 1700000000 +0000\n"
    b"committer A <a@b> 1700000000 +0000\n\na change\n"
)


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rct-keys-")


@pytest.fixture(scope="module", autouse=True)
def _remove_keys() -> object:
    yield
    folder().cleanup()
    for each in (folder, private, signature_of):
        each.cache_clear()


@functools.cache
def private(kind: str, number: int) -> Path:
    path = Path(folder().name) / f"{kind}{number}"
    options = ["-q", "-N", "", "-C", "someone", *KINDS[kind], "-f", str(path)]
    subprocess.run(["ssh-keygen", *options], check=True, capture_output=True)
    return path


def public(kind: str, number: int = 0) -> str:
    """TYPE KEY, without the comment."""
    return " ".join(private(kind, number).with_suffix(".pub").read_text().split()[:2])


@functools.cache
def signature_of(payload: bytes, kind: str, number: int = 0, *options: str) -> bytes:
    command = ["ssh-keygen", "-Y", "sign", "-q", "-n", "git", *options, "-f", str(private(kind, number))]
    return subprocess.run(command, input=payload, check=True, capture_output=True).stdout


@dataclass(frozen=True)
class Case:
    """A commit and the two files of a host."""

    payload: bytes
    armour: bytes
    allowed: bytes
    revoked: bytes | None = None

    def quick(self) -> Signer | None:
        return accept(self.payload, read_signature(self.armour), allowed_signers=self.allowed, revoked=self.revoked)

    def slow(self) -> Signer | None:
        """What ssh-keygen alone says."""
        head, _, message = self.payload.partition(b"\n\n")
        raw = head + b"\ngpgsig " + self.armour.rstrip(b"\n").replace(b"\n", b"\n ") + b"\n\n" + message
        commit = hashlib.sha1(b"commit %d\0" % len(raw) + raw).hexdigest()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commits, "accept", lambda *_, **__: None)
            try:
                return commits.verify_commit(
                    raw, commit=commit, allowed_signers=self.allowed, revoked=self.revoked, now=NOW
                )
            except TrustError:
                return None


def case(allowed: str, kind: str = "ed25519", revoked: str | bytes | None = None, payload: bytes = PAYLOAD) -> Case:
    data = revoked.encode() if isinstance(revoked, str) else revoked
    return Case(payload, signature_of(PAYLOAD, kind), allowed.encode(), data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
def test_a_plain_key_is_accepted_as_ssh_keygen_accepts_it(kind: str, algorithm: str) -> None:
    armour = signature_of(PAYLOAD, kind, 0, "-O", f"hashalg={algorithm}")
    made = Case(PAYLOAD, armour, f"# people\n\nalice@corp,bob {public(kind)} a comment\n".encode())
    assert made.quick() == made.slow()
    assert made.quick() is not None


@pytest.mark.parametrize("kind", KINDS)
def test_other_bytes_and_other_keys_are_not_accepted(kind: str) -> None:
    assert case(f"alice {public(kind)}", kind, payload=PAYLOAD + b"!").quick() is None
    assert case(f"alice {public(kind, 1)}", kind).quick() is None
    assert case("", kind).quick() is None


PLAIN = "alice {key}"
ALLOWED = {
    "plain": PLAIN,
    "no line feed at the end": PLAIN.rstrip("\n"),
    "for git": 'alice namespaces="git" {key}',
    "for others": 'alice namespaces="file" {key}',
    "for git and others": 'alice namespaces="file,git" {key}',
    "for all by a pattern": 'alice namespaces="g*" {key}',
    "not for git": 'alice namespaces="!git,*" {key}',
    "too early": 'alice valid-after="20300101" {key}',
    "too late": 'alice valid-before="20200101" {key}',
    "in time": 'alice valid-after="20200101",valid-before="20300101" {key}',
    "an authority": "alice cert-authority {key}",
    "a pattern of principals": "al*ce {key}",
    "no principal": "{key}",
    "not this one": "!alice,alice {key}",
    "quoted": '"alice" {key}',
    "two blanks": "alice  {key}",
    "a tab": "alice\t{key}",
    "a blank first": " alice {key}",
    "windows": "alice {key}\r\n",
    "twice": "alice {key}\nbob {key}",
    "twice, once too late": 'alice valid-before="20200101" {key}\nbob {key}',
    "twice, then too late": 'alice {key}\nbob valid-before="20200101" {key}',
    "after another": "bob {other}\nalice {key}",
    "after another that expired": 'bob valid-before="20200101" {other}\nalice {key}',
    "after nonsense": "nonsense\nalice {key}",
    "before nonsense": "alice {key}\nnonsense and more",
    "after a broken key": "bob ssh-ed25519 AAAA\nalice {key}",
    "with another type": "alice ssh-rsa {key64}",
    "an unknown option": 'alice no-such-option="x" {key}',
    "several names": "carol,alice,bob {key}",
    "bytes that are no text": "al\udcffice {key}",
}


@pytest.mark.parametrize("name", ALLOWED)
def test_the_list_of_signers_is_read_as_ssh_keygen_reads_it(name: str) -> None:
    text = ALLOWED[name].format(key=public("ed25519"), other=public("ed25519", 1), key64=public("ed25519").split()[1])
    made = Case(PAYLOAD, signature_of(PAYLOAD, "ed25519"), text.encode(errors="surrogateescape"))
    quick = made.quick()
    assert quick is None or quick == made.slow()
    accepted = {"plain", "no line feed at the end", "for git", "after another", "after another that expired"}
    assert (quick is not None) == (name in {*accepted, "several names"})


REVOKED = {
    "nothing": "",
    "comments": "# nobody\n\n",
    "another": "{other}\n",
    "this one": "{key}\n",
    "this one, with a comment": "{other} x\n  {key} of alice\n",
    "this one, after a broken line": "ssh-ed25519 AAAA\n{key}\n",
    "this one, with two blanks": "{kind}  {key64}",
}


@pytest.mark.parametrize("name", REVOKED)
def test_a_revoked_key_is_not_accepted(name: str) -> None:
    kind, key64 = public("ed25519").split()
    text = REVOKED[name].format(key=public("ed25519"), other=public("rsa"), kind=kind, key64=key64)
    made = case(f"alice {public('ed25519')}", revoked=text)
    assert (made.quick() is not None) == (name in {"nothing", "comments", "another"})


def test_a_revocation_list_in_binary_form_is_left_to_ssh_keygen() -> None:
    krl = Path(folder().name) / "krl"
    subprocess.run(
        ["ssh-keygen", "-q", "-k", "-f", str(krl), f"{private('rsa', 0)}.pub"], check=True, capture_output=True
    )
    made = case(f"alice {public('ed25519')}", revoked=krl.read_bytes())
    assert made.quick() is None
    assert made.slow() == Signer(name="alice", identity=read_signature(made.armour).fingerprint, issuer="ssh")


def test_a_commit_is_accepted_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    made = case(f"alice {public('ed25519')}")
    expected = made.quick()
    monkeypatch.setattr(subprocess, "run", refuse)
    head, _, message = PAYLOAD.partition(b"\n\n")
    raw = head + b"\ngpgsig " + made.armour.rstrip(b"\n").replace(b"\n", b"\n ") + b"\n\n" + message
    commit = hashlib.sha1(b"commit %d\0" % len(raw) + raw).hexdigest()
    assert commits.verify_commit(raw, commit=commit, allowed_signers=made.allowed, revoked=None, now=NOW) == expected
