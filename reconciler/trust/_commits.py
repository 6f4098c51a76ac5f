# SPDX-License-Identifier: Apache-2.0
"""Who signed a commit: SSH signatures over canonical bytes, checked under the host's policy.

The steps, in this order, and none of them looks at words that a verifier prints:

1. the bytes are the commit that was asked for (its id is computed again);
2. they have one canonical form: no NUL, headers in git's order, exactly one signature header, the last one;
3. the armour is SSH's. PGP and X.509 are refused here, because git would start gpg or gpgsm for them;
4. the signature is in its one canonical spelling (`_sshsig.py`), made for the namespace "git";
5. a plain key that is listed plainly is accepted at once (`_accept.py`); about everything else, every refusal among it,
   `ssh-keygen -Y find-principals` and `-Y verify` decide, under the allowed signers and under the revocations.

Time: `valid-after` and `valid-before` of the allowed signers are compared with `now`, not with the committer's date,
which the signer chooses. So a key that expired signs nothing that is *new* to a host, however the commit is dated.
For a key that leaked, use the revocation file.

What this does not do: it verifies one commit and says nothing about its parents.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Final

from reconciler.errors import ConfigError, IdentityError, RevokedError, SignatureError, TrustError
from reconciler.model import Signer
from reconciler.trust._accept import accept
from reconciler.trust._sshsig import BEGIN, NAMESPACE, SshSignature, read_signature

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

SSH_KEYGEN: Final = "/usr/bin/ssh-keygen"
TIMEOUT: Final = 20.0
"""Seconds for one run of ssh-keygen, which takes about 5 ms."""
MAX_POLICY_BYTES: Final = 4 << 20
"""Bytes of an allowed signers or revocation file."""

_ADVICE: Final = (
    "merge by fast-forward, or let a merge bot with an SSH key of its own sign merge and squash commits "
    "(git commit -S, gpg.format=ssh); a forge signs with its own PGP key, and leaves rebased commits unsigned"
)
_HEADER_NAME: Final = re.compile(rb"[A-Za-z0-9-]+")
_SHA1_HEX: Final = 40
_KRL_MAGIC: Final = b"SSHKRL\n\0"
_KEY_LINE: Final = re.compile(rb"[a-z0-9@.-]+ ([A-Za-z0-9+/]+={0,2})(?:[ \t].*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCommit:
    """A commit in canonical form: the bytes that were signed, and the signature as armour."""

    payload: bytes
    armour: bytes


def verify_commit(raw: bytes, *, commit: str, allowed_signers: bytes, revoked: bytes | None, now: datetime) -> Signer:
    """Who signed the commit.

    Args:
        raw: the commit object's bytes, as `git cat-file commit` prints them.
        commit: its id, which must be that of `raw`.
        allowed_signers: ssh-keygen's ALLOWED SIGNERS format; empty allows nobody.
        revoked: a KRL, or public keys, one per line; None if the host has no such file.
        now: compared with the validity of the allowed signers; aware.

    Returns:
        `name` is the principal that the allowed signers give the key, `identity` the key's fingerprint.

    Raises:
        SignatureError: not signed, not canonically, not by SSH, or not over these bytes.
        IdentityError: a valid signature by somebody who is not allowed (any more, or yet).
        RevokedError: the key is revoked.
        ConfigError: one of the host's files cannot be used.
    """
    _check_policy_files(allowed_signers, revoked)
    signed = parse_commit(raw, commit)
    try:
        signature = read_signature(signed.armour)
    except ValueError as error:
        raise SignatureError(f"commit {commit}: {error}", reason="SignatureNotCanonical") from error
    signer = accept(signed.payload, signature, allowed_signers=allowed_signers, revoked=revoked)
    if signer is not None:
        return signer
    with contextlib.ExitStack() as stack:
        verifier = _Verifier(
            payload=signed.payload,
            signature=stack.enter_context(_memory_file(signed.armour)),
            allowed=stack.enter_context(_memory_file(allowed_signers)),
            revoked=None if revoked is None else stack.enter_context(_memory_file(revoked)),
            time=f"-Overify-time={now.astimezone(UTC):%Y%m%d%H%M%S}",
        )
        principals = verifier.principals()
        for principal in principals:
            if verifier.verifies(principal, with_revocations=True):
                return Signer(name=principal, identity=signature.fingerprint, issuer="ssh")
        raise _refusal(verifier, principals, signature, commit)


def parse_commit(raw: bytes, commit: str) -> SignedCommit:
    """What was signed, and the signature, if `raw` is the commit `commit` in canonical form.

    Raises:
        SignatureError: it is not; reasons CommitIdMismatch, CommitNotCanonical, Unsigned, SignatureKindRefused.
    """
    _check_id(raw, commit)
    head, blank, message = raw.partition(b"\n\n")
    if not blank or b"\0" in raw or b"\r" in head:
        raise _not_canonical(commit, "expected headers, an empty line and a message, without NUL and CR")
    headers = _split_headers(head, commit)
    _check_order([name for name, _ in headers], commit)
    wanted = b"gpgsig" if len(commit) == _SHA1_HEX else b"gpgsig-sha256"
    signatures = [(name, value) for name, value in headers if name.lower().startswith(b"gpgsig")]
    if not signatures:
        hint = "sign this very commit (git commit --amend -S), since a signed one on top does not help"
        raise SignatureError(f"commit {commit}: expected a signature, got none; {hint}; {_ADVICE}", reason="Unsigned")
    if len(signatures) > 1 or headers[-1][0] != wanted:
        raise _not_canonical(commit, f"expected exactly one {wanted.decode()} header, the last of all")
    armour = signatures[0][1]
    if not armour.startswith(BEGIN + b"\n"):
        kind = "a PGP" if armour.startswith(b"-----BEGIN PGP") else "an X.509 or other"
        raise SignatureError(
            f"commit {commit}: expected an SSH signature, got {kind} signature; {_ADVICE}",
            reason="SignatureKindRefused",
        )
    unsigned = b"\n".join(_join(name, value) for name, value in headers[:-1])
    return SignedCommit(payload=unsigned + blank + message, armour=armour + b"\n")


def _check_id(raw: bytes, commit: str) -> None:
    data = f"commit {len(raw)}\0".encode("ascii")
    match len(commit):
        case 40:
            digest = hashlib.sha1(data, usedforsecurity=False)
        case 64:
            digest = hashlib.sha256(data)
        case _:
            raise SignatureError(f"expected a commit id of 40 or 64 hex digits, got {commit[:80]!a}")
    digest.update(raw)
    if digest.hexdigest() != commit:
        raise SignatureError(
            f"expected the bytes of commit {commit}, got those of {digest.hexdigest()}", reason="CommitIdMismatch"
        )


def _split_headers(head: bytes, commit: str) -> list[tuple[bytes, bytes]]:
    # A line that starts with a blank continues the one before.
    headers: list[tuple[bytes, bytes]] = []
    for line in head.split(b"\n"):
        if line.startswith(b" "):
            if not headers:
                raise _not_canonical(commit, "expected a header first, got a continuation")
            name, value = headers[-1]
            headers[-1] = (name, value + b"\n" + line[1:])
        else:
            name, space, value = line.partition(b" ")
            if not space or not _HEADER_NAME.fullmatch(name):
                raise _not_canonical(commit, f"expected a header, got {line[:40]!r}")
            headers.append((name, value))
    return headers


def _join(name: bytes, value: bytes) -> bytes:
    return name + b" " + value.replace(b"\n", b"\n ")


def _check_order(names: list[bytes], commit: str) -> None:
    # git writes: tree, parents, author, committer, then the rest. fsck is more lenient.
    parents = 0
    while names[1 + parents : 2 + parents] == [b"parent"]:
        parents += 1
    fixed = [b"tree", *[b"parent"] * parents, b"author", b"committer"]
    rest = names[len(fixed) :]
    if names[: len(fixed)] != fixed or set(rest) & {*fixed, b"parent"}:
        raise _not_canonical(commit, "expected the headers tree, parent, author, committer once and in this order")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verifier:
    # Runs ssh-keygen on descriptors; only exit codes decide, and the output of find-principals, which is the
    # host's own file.
    payload: bytes
    signature: int
    allowed: int
    revoked: int | None
    time: str

    def principals(self) -> tuple[str, ...]:
        done = self._run("find-principals", "-s", _path(self.signature), "-f", _path(self.allowed), self.time)
        if done.returncode != 0:
            return ()
        # OpenSSH 9.2 prints one principal per line; others print the file's whole comma-separated field.
        names = done.stdout.decode("utf-8", "replace").replace(",", "\n").splitlines()
        return tuple(dict.fromkeys(name for name in names if name and not name.startswith(("!", "-"))))

    def verifies(self, principal: str, *, with_revocations: bool) -> bool:
        options = ["-I", principal, "-s", _path(self.signature), "-f", _path(self.allowed), self.time]
        if with_revocations and self.revoked is not None:
            options += ["-r", _path(self.revoked)]
        return self._run("verify", "-n", NAMESPACE.decode("ascii"), *options).returncode == 0

    def is_valid(self) -> bool:
        # Whether the key in the signature made it over these bytes, whoever that is.
        options = ("-n", NAMESPACE.decode("ascii"), "-s", _path(self.signature))
        return self._run("check-novalidate", *options).returncode == 0

    def _run(self, action: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        descriptors = [self.signature, self.allowed, *([] if self.revoked is None else [self.revoked])]
        try:
            return subprocess.run(  # noqa: S603 - a fixed program, options that start with ours, no shell
                [SSH_KEYGEN, "-Y", action, *options],
                input=self.payload,
                capture_output=True,
                check=False,
                env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C", "TZ": "UTC"},
                pass_fds=descriptors,
                timeout=TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TrustError(
                f"expected {SSH_KEYGEN} to answer (Debian: openssh-client): {type(error).__name__}",
                reason="VerifierMissing",
            ) from error


def _refusal(verifier: _Verifier, principals: tuple[str, ...], signature: SshSignature, commit: str) -> TrustError:
    key = f"{signature.key_type} {signature.fingerprint}"
    if not verifier.is_valid():
        return SignatureError(f"commit {commit}: the signature by {key} is not over these bytes")
    for principal in principals:
        if verifier.verifies(principal, with_revocations=False):
            return RevokedError(f"commit {commit}: the key {key} of {principal} is revoked", reason="SignerRevoked")
    return IdentityError(
        f"commit {commit}: signed by {key}, which the allowed signers of this host do not list "
        f"for git at this time; sign it with a listed key, or list this one (trust.commits.allowedSigners); {_ADVICE}",
        reason="SignerNotAllowed",
    )


def _check_policy_files(allowed_signers: bytes, revoked: bytes | None) -> None:
    # ssh-keygen cannot tell "revoked" from "could not read the list"; so what it cannot read is found here.
    if len(allowed_signers) > MAX_POLICY_BYTES or len(revoked or b"") > MAX_POLICY_BYTES:
        raise ConfigError(f"expected at most {MAX_POLICY_BYTES} bytes of allowed signers and of revocations")
    if b"\0" in allowed_signers:
        raise ConfigError("allowed signers: expected text, got a NUL byte")
    if revoked is None or revoked.startswith(_KRL_MAGIC):
        return
    for number, line in enumerate(revoked.split(b"\n"), start=1):
        text = line.strip()
        if text and not text.startswith(b"#") and not _is_key(text):
            raise ConfigError(f"revoked signers, line {number}: expected a KRL, or one public key per line")


def _is_key(line: bytes) -> bool:
    found = _KEY_LINE.fullmatch(line)
    if found is None:
        return False
    try:
        blob = base64.b64decode(found[1], validate=True)
    except binascii.Error:
        return False
    name = line.split(b" ", 1)[0]
    return blob.startswith(len(name).to_bytes(4, "big") + name)


def _not_canonical(commit: str, why: str) -> SignatureError:
    return SignatureError(
        f"commit {commit}: {why}; other forms let anybody make a second id of a signed commit",
        reason="CommitNotCanonical",
    )


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("reconciler", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield descriptor
    finally:
        os.close(descriptor)
