# SPDX-License-Identifier: Apache-2.0
"""Every error of the reconciler, split by whose fault it is.

An error says four things: what was expected, what was got, where, and what to do about it. `reason` is a
stable CamelCase code (it is shown in `status`, in events and as a metric label, so it never holds data), and
`disposition` is all that the loop needs to decide about a retry. The module holds no logic beyond that.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Disposition(enum.StrEnum):
    """What the loop does after an error; nothing else decides about retries."""

    RETRY = "retry"
    """Try again at once, with fresh observations: something moved under us."""
    BACKOFF = "backoff"
    """Try again later, with growing pauses: the world is temporarily not as needed."""
    STALLED = "stalled"
    """Trying again cannot help until somebody changes the input (a commit, the configuration)."""


class ExitCode(enum.IntEnum):
    """Exit codes, the same for every verb (docs/architecture.md)."""

    OK = 0
    ERROR = 1
    CHANGES = 2
    SIGNATURE = 3
    GUARDRAIL = 4
    SUSPENDED = 5
    ROLLED_BACK = 6
    STALE = 7
    USAGE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding about one place of an input.

    Attributes:
        message: lower case, expected before got, ends with what to do where that is not obvious.
        file: path inside the repository or on the host, None when the finding is about no file.
        line: 1-based, None when unknown.
        column: 1-based, None when unknown.
        pointer: JSON pointer (RFC 6901) of the value inside its YAML document.
    """

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    pointer: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        pointer = f" (at {self.pointer})" if self.pointer else ""
        return f"{place}: {self.message}{pointer}" if place else f"{self.message}{pointer}"

    def within(self, file: str) -> Diagnostic:
        """The same finding, placed in `file`."""
        return replace(self, file=file)


class ReconcilerError(Exception):
    """Base of all errors that the reconciler raises on purpose."""

    reason: str = "Error"
    disposition: Disposition = Disposition.BACKOFF
    exit_code: ExitCode = ExitCode.ERROR

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The findings behind this error, at least one."""
        return (Diagnostic(message=str(self)),)


# --- the input is wrong: somebody has to change it ---------------------------------------------------------


class InputError(ReconcilerError):
    """A manifest, package or configuration is not acceptable; carries all findings at once."""

    reason = "InvalidInput"
    disposition = Disposition.STALLED

    def __init__(self, findings: tuple[Diagnostic, ...] | str, *, reason: str | None = None) -> None:
        self.findings = (Diagnostic(message=findings),) if isinstance(findings, str) else findings
        super().__init__("\n".join(str(finding) for finding in self.findings), reason=reason)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All findings, in the order of the input."""
        return self.findings


class ManifestError(InputError):
    """The repository's manifests are not acceptable."""

    reason = "InvalidManifest"


class ConfigError(InputError):
    """The host's own configuration is not acceptable."""

    reason = "InvalidConfig"


class PackageError(InputError):
    """An archive, its package.yaml or its objects are not acceptable."""

    reason = "InvalidPackage"


class ElfError(PackageError):
    """An object is not an ELF/BTF file within the limits that the reader accepts."""

    reason = "InvalidObject"


class EncodingError(InputError):
    """A value does not fit its BTF type; names the field."""

    reason = "InvalidValue"


class PlanError(InputError):
    """The desired state is well-formed but cannot be honoured here (a proceedOn, a layout, a limit)."""

    reason = "PlanRefused"


# --- somebody is not trusted -------------------------------------------------------------------------------


class TrustError(ReconcilerError):
    """A signature, an identity or a digest is not what the host's policy demands."""

    reason = "NotTrusted"
    disposition = Disposition.STALLED
    exit_code = ExitCode.SIGNATURE


class SignatureError(TrustError):
    """No valid signature over exactly these bytes."""

    reason = "BadSignature"


class IdentityError(TrustError):
    """A valid signature, by somebody whom the policy does not allow."""

    reason = "IdentityRefused"


class DigestError(TrustError):
    """The bytes do not have the digest that the manifest pins."""

    reason = "DigestMismatch"


class RevokedError(TrustError):
    """The digest, key or identity is on the host's list of revoked ones."""

    reason = "Revoked"


# --- a guardrail stands ------------------------------------------------------------------------------------


class GuardrailError(ReconcilerError):
    """Refused to protect the host; somebody with root may decide otherwise, on record."""

    reason = "GuardrailRefused"
    disposition = Disposition.STALLED
    exit_code = ExitCode.GUARDRAIL


class HistoryError(GuardrailError):
    """The source's head does not follow what this host applied before."""

    reason = "HistoryRewritten"


class TamperError(GuardrailError):
    """State on this host was lost or altered while programs of ours are in the kernel."""

    reason = "StateLost"


class SuspendedError(ReconcilerError):
    """New commits are suspended by an operator."""

    reason = "Suspended"
    disposition = Disposition.STALLED
    exit_code = ExitCode.SUSPENDED


class RolledBackError(ReconcilerError):
    """A change was applied, found unhealthy and taken back."""

    reason = "RolledBack"
    disposition = Disposition.STALLED
    exit_code = ExitCode.ROLLED_BACK


# --- the world is not as needed ----------------------------------------------------------------------------


class SourceError(ReconcilerError):
    """The Git source cannot be reached or read.

    Attributes:
        retry_after: seconds that the source asks for before the next try; None: it did not say.
    """

    reason = "SourceUnavailable"
    retry_after: float | None = None


class StaleSourceError(SourceError):
    """The source was not reached for longer than the configured limit."""

    reason = "SourceStale"
    exit_code = ExitCode.STALE


class RepositoryError(ReconcilerError):
    """A package repository cannot be reached or does not hold the package."""

    reason = "PackageUnavailable"


class StateError(ReconcilerError):
    """The state directory cannot be read or written."""

    reason = "StateUnavailable"


class StateVersionError(StateError):
    """The state was written by a newer agent; this one must not touch anything."""

    reason = "StateTooNew"
    disposition = Disposition.STALLED


class LockedError(StateError):
    """Another process holds the lock of this host."""

    reason = "Locked"


# --- the kernel --------------------------------------------------------------------------------------------


class KernelError(ReconcilerError):
    """A system call failed.

    Attributes:
        errno: the kernel's error number, 0 when libbpf gave none.
        call: what was tried, for example "BPF_LINK_CREATE xdp on eth0".
    """

    reason = "KernelRefused"

    def __init__(self, call: str, errno: int, detail: str = "", *, reason: str | None = None) -> None:
        self.call = call
        self.errno = errno
        super().__init__(f"{call}: {detail or 'failed'} (errno {errno})", reason=reason)


class VerifierError(KernelError):
    """The eBPF verifier rejected a program; the whole log is kept.

    Attributes:
        log: the verifier's log, unabridged.
    """

    reason = "VerifierRejected"
    disposition = Disposition.STALLED

    def __init__(self, call: str, errno: int, summary: str, log: str) -> None:
        self.log = log
        super().__init__(call, errno, summary)


class NotSupportedError(KernelError):
    """This kernel cannot do it (probed, not guessed from a version)."""

    reason = "NotSupported"
    disposition = Disposition.STALLED


class StaleError(KernelError):
    """A compare-and-swap lost: the hook is not as it was when the plan was made."""

    reason = "Stale"
    disposition = Disposition.RETRY


class OccupiedError(KernelError):
    """Somebody else's program holds a single-slot hook."""

    reason = "HookOccupied"


class DrainError(KernelError):
    """No grace period could be waited for, so the old generation stays."""

    reason = "DrainFailed"


class HealthError(ReconcilerError):
    """A health check between the switch and the point of no return failed."""

    reason = "Unhealthy"
