# SPDX-License-Identifier: Apache-2.0
"""Certificates are verified by a child of its own that ends when the work is done (docs/adr/0010-verifier-apart.md).

sigstore takes 45 MiB and half a second to import, which an agent would keep for good; and it parses bytes that anybody
may have written, with pydantic, X.509, ASN.1 and RFC 3161, in a process that is root. Inside of `apart()` both happen
in a child without privileges, without the agent's memory and descriptors, and with limits on time, memory and files.

The child answers each question with a signer's name, with times or with a refusal, as JSON of a fixed form. A child
that does not start, crashes, hangs, says anything else or too much is a refusal with a reason, never an acceptance. It
is believed when it says yes: it is the verifier.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from reconciler.errors import Disposition, SignatureError, TrustError
from reconciler.trust._format import Certified

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reconciler.trust._format import Bundle

SECONDS: Final = 60.0
"""For the start of the child and for each answer; it needs 0.5 s and some milliseconds."""
MAX_ANSWER: Final = 64 << 10
"""Bytes; an answer has a hundred."""
SIZE: Final = 4
"""Bytes before each question and answer that say how long it is, big-endian."""
COMMAND: Final[Sequence[str]] = (
    "/usr/bin/setpriv",
    "--pdeathsig=KILL",
    "--no-new-privs",
    "--",
    sys.executable,
    "-I",
    "-m",
    "reconciler.trust._child",
)


class VerifierFailedError(TrustError):
    """The child that verifies certificates gave no answer: nothing is accepted, and it is tried again later."""

    reason = "VerifierFailed"
    disposition = Disposition.BACKOFF


class Question(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the child is asked; bytes travel as base64.

    Attributes:
        fields: the bundle as `_format.read_bundle` gave it.
        key: SubjectPublicKeyInfo (DER) of the key that signed; None asks for the certificate.
        now: RFC 3339.
    """

    fields: bytes
    root: bytes
    digest: bytes
    now: str
    key: bytes | None = None


class Answer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the child answers: exactly one of a signer, signing times, and why neither."""

    identity: str | None = None
    issuer: str | None = None
    times: list[str] | None = None
    refused: str | None = None


class Child:
    """The running verifier; `close` ends it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def verify_certificate(self, bundle: Bundle, root: bytes, *, digest: bytes, now: datetime) -> Certified:
        """As `_sigstore.verify_certificate`; raises VerifierFailedError besides."""
        answer = self._ask(Question(fields=_fields(bundle), root=root, digest=digest, now=now.isoformat()))
        if not answer.identity or not answer.issuer or answer.times is not None:
            raise self._failed("it named no signer")
        return Certified(identity=answer.identity, issuer=answer.issuer)

    def verify_evidence(
        self, bundle: Bundle, root: bytes, *, key: bytes, digest: bytes, now: datetime
    ) -> tuple[datetime, ...]:
        """As `_sigstore.verify_evidence`; raises VerifierFailedError besides."""
        question = Question(fields=_fields(bundle), root=root, digest=digest, now=now.isoformat(), key=key)
        answer = self._ask(question)
        if answer.times is None or answer.identity is not None or answer.issuer is not None:
            raise self._failed("it named no times")
        try:
            times = tuple(datetime.fromisoformat(each) for each in answer.times)
        except ValueError:
            raise self._failed("it named times that are none") from None
        if any(each.tzinfo is None for each in times):
            raise self._failed("it named times without a zone")
        return times

    def close(self) -> None:
        """End the child; the next question starts another one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # it has nothing to finish
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()

    def _ask(self, question: Question) -> Answer:
        deadline = time.monotonic() + SECONDS
        data = msgspec.json.encode(question)
        try:
            process = self._running()
            assert process.stdin is not None  # noqa: S101 - started with pipes
            assert process.stdout is not None  # noqa: S101 - started with pipes
            _write(process.stdin.fileno(), len(data).to_bytes(SIZE, "big") + data, deadline)
            size = int.from_bytes(_read(process.stdout.fileno(), SIZE, deadline), "big")
            if size > MAX_ANSWER:
                raise self._failed(f"it wanted to say {size} bytes")
            answer = msgspec.json.decode(_read(process.stdout.fileno(), size, deadline), type=Answer)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self._failed(f"it did not say what it should: {type(error).__name__}") from error
        except TimeoutError as error:
            raise self._failed(f"it said nothing for {SECONDS:g} s") from error
        except OSError as error:
            raise self._failed(f"it ended: {error.strerror or error}") from error
        if answer.refused is not None:
            raise SignatureError(answer.refused[:1000])
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
            self._process = subprocess.Popen(  # noqa: S603 - our own program, without a shell
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None  # noqa: S101 - just asked for
                os.set_blocking(pipe.fileno(), False)
        return self._process

    def _failed(self, why: str) -> VerifierFailedError:
        self.close()  # whatever it says later must not be taken for the answer to another question
        return VerifierFailedError(
            f"expected the verifier of certificates to answer; {why}; nothing is accepted, it is tried again"
        )


def _fields(bundle: Bundle) -> bytes:
    return msgspec.json.encode(bundle.fields)


def _write(descriptor: int, data: bytes, deadline: float) -> None:
    while data:
        _await(descriptor, select.POLLOUT, deadline)
        with contextlib.suppress(BlockingIOError):
            data = data[os.write(descriptor, data) :]


def _read(descriptor: int, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        _await(descriptor, select.POLLIN, deadline)
        with contextlib.suppress(BlockingIOError):
            part = os.read(descriptor, size - len(data))
            if not part:
                raise OSError(0, "the pipe is closed")
            data += part
    return data


def _await(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError


_current: Child | None = None


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside this block a child verifies certificates; it starts when it is needed and ends with the block."""
    global _current  # noqa: PLW0603 - passes do not run side by side
    outer, child = _current, Child(COMMAND)
    _current = child
    try:
        yield
    finally:
        _current = outer
        child.close()


def current() -> Child | None:
    """The child of the `apart` block that this is in, None outside of one."""
    return _current
