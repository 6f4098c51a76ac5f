# SPDX-License-Identifier: Apache-2.0
"""The child that verifies certificates: questions on standard input, answers on standard output (`_apart.py`).

Everything that verification needs is imported first; then privileges and limits go, and only then the first byte is
read that somebody else wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.utf_16_be
import os
import resource
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import cryptography.hazmat.backends.openssl.backend
import msgspec

from reconciler.errors import TrustError
from reconciler.trust import _sigstore
from reconciler.trust._apart import SIZE, Answer, Question
from reconciler.trust._format import MAX_BUNDLE_BYTES, bundle_of

if TYPE_CHECKING:
    from typing import BinaryIO

# Imported by name only when the first certificate or timestamp is looked at; by then it may not be readable any more.
_EARLY: Final = (encodings.utf_16_be, cryptography.hazmat.backends.openssl.backend)

NOBODY: Final = 65534
MAX_QUESTION: Final = 4 * MAX_BUNDLE_BYTES + (16 << 20)
"""Bytes: a bundle, and a trusted root, which the host's configuration bounds; both as base64."""
LIMITS: Final = {
    resource.RLIMIT_AS: 1 << 30,
    resource.RLIMIT_CPU: 60,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_NOFILE: 64,
}
"""Bytes, seconds, bytes, bytes, processes, descriptors."""


def give_up_privileges() -> None:
    """Become nobody, if this is root and may; drop every capability; keep to `LIMITS`."""
    for limit, value in LIMITS.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)  # noqa: PLW2901
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    if os.geteuid() == 0:
        # A service without CAP_SETUID and CAP_SETGID keeps its uid; what follows holds all the same.
        with contextlib.suppress(PermissionError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    # capset(2): version 3, this process; no capability is effective, permitted or inheritable.
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def answer(data: bytes) -> Answer:
    """The answer to one question; whatever goes wrong with unverified bytes is a refusal."""
    try:
        question = msgspec.json.decode(data, type=Question)
        fields: dict[str, Any] = msgspec.json.decode(question.fields)
        bundle, now = bundle_of(fields), datetime.fromisoformat(question.now)
        if question.key is None:
            named = _sigstore.verify_certificate(bundle, question.root, digest=question.digest, now=now)
            return Answer(identity=named.identity, issuer=named.issuer)
        times = _sigstore.verify_evidence(bundle, question.root, key=question.key, digest=question.digest, now=now)
        return Answer(times=[each.isoformat() for each in times])
    except TrustError as error:
        return Answer(refused=str(error))
    # As in `_bundles`: sigstore and what is below it raise anything at all on hostile bytes.
    except Exception as error:  # noqa: BLE001
        return Answer(refused=f"the bundle is malformed or not supported: {type(error).__name__}: {str(error)[:200]}")


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until `source` ends."""
    while head := source.read(SIZE):
        size = int.from_bytes(head, "big")
        if size > MAX_QUESTION:
            return
        data = msgspec.json.encode(answer(source.read(size)))
        sink.write(len(data).to_bytes(SIZE, "big") + data)
        sink.flush()


def main() -> None:
    """The whole life of the child."""
    give_up_privileges()
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
