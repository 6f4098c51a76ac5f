# SPDX-License-Identifier: Apache-2.0
"""The seam to the kernel: what the rest may ask of it, as one protocol.

`kernel.linux` implements it with `bpf(2)`, libbpf, netlink and bpffs; `tests/sim` holds a fake that passes the same
conformance suite. Nothing outside this package touches a system call, and nothing in here decides anything: each
method does one thing, completely or not at all ("a step that fails leaves nothing of itself"), and raises, or for a
batch of steps gives as the error of its `Progress`:

* `StaleError` when a compare-and-swap lost or an object is no longer the planned one (observe again),
* `OccupiedError` when a foreign program holds a single-slot hook,
* `NotSupportedError` when this kernel cannot do it, `VerifierError` when a program was rejected,
* `DrainError` when no grace period could be waited for, `KernelError` otherwise.

Invariants: pin paths are relative to the pin directory of the implementation; a pin is made before the call that
creates it returns; the main thread never changes its network namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from reconciler.errors import ReconcilerError
from reconciler.model import (
    Attach,
    Attachment,
    ChangeMode,
    Detach,
    Evict,
    Features,
    Generation,
    HookPoint,
    HookState,
    Identity,
    LoadedGeneration,
    OwnedAttachment,
    Package,
    PinKind,
    Snapshot,
    Switch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

S = TypeVar("S")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a snapshot looks at.

    Attributes:
        namespaces: names ("host", or file names in /run/netns) whose interfaces and hooks are read.
        interfaces: when given, only hooks of interfaces with these names or globs are read in detail, by namespace;
            hooks that hold an attachment of ours are always read.
    """

    namespaces: tuple[str, ...] = ("host",)
    interfaces: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStats:
    """Sum over CPUs of one stats map: counter name to (packets, bytes)."""

    chain: str
    member: str
    counters: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Generic[T_co]):
    """How far a batch of steps came: in order, up to the first that failed.

    Attributes:
        done: what each step that took effect made; they stand.
        error: of the step after them, which left nothing of itself; later ones were not tried.
    """

    done: tuple[T_co, ...]
    error: ReconcilerError | None = None


def in_order(call: Callable[[S], T_co], steps: Iterable[S]) -> Progress[T_co]:
    """Each step by `call`, as `Progress` has it."""
    done: list[T_co] = []
    for step in steps:
        try:
            done.append(call(step))
        except ReconcilerError as error:
            return Progress(done=tuple(done), error=error)
    return Progress(done=tuple(done))


class Kernel(Protocol):
    """One host's kernel, and one pin directory on its bpffs."""

    def close(self) -> None:
        """Release every descriptor. Idempotent; nothing is detached."""

    def boot_id(self) -> str:
        """The kernel's boot id."""

    def features(self) -> Features:
        """Probed features, cached for the process."""

    def snapshot(self, scope: Scope) -> Snapshot:
        """Read interfaces, hooks, programs, links and our pins. Never raises for objects that vanish meanwhile."""

    def read_hook(self, point: HookPoint) -> HookState:
        """Read one hook again (settled or not). Raises KernelError ENODEV when its interface is gone."""

    def load(self, generation: Generation, packages: Mapping[str, Package]) -> LoadedGeneration:
        """Load, join, fill, freeze and pin; nothing of it stays when it fails.

        Args:
            generation: every pin path in it must be free, except those of maps with `reuse`.
            packages: by digest.
        """

    def unload(self, pins: tuple[str, ...]) -> None:
        """Unpin paths and the folders that become empty; what does not exist is fine. Without paths: ours, if empty."""

    def attach(self, steps: Sequence[Attach], first: Mapping[str, Identity]) -> Progress[OwnedAttachment]:
        """Attach the pinned first program of each step's generation, if it is the one in `first`, by generation.

        For XDP with mode auto: native, and generic only where the driver has none (EOPNOTSUPP).
        """

    def switch(self, steps: Sequence[Switch], first: Mapping[str, Identity]) -> Progress[OwnedAttachment]:
        """Replace atomically, comparing with `step.program`; `first` as in `attach`."""

    def change_mode(self, step: ChangeMode, first: Identity) -> tuple[OwnedAttachment, float]:
        """Detach and attach in another mode; returns the attachment and the seconds without any program."""

    def detach(self, steps: Sequence[Detach]) -> Progress[None]:
        """Unlink its pin, and detach at once. A link that is gone or defunct already is fine, its pin goes."""

    def evict(self, step: Evict) -> None:
        """Remove a foreign attachment after reading it again; StaleError when it is not the planned one any more."""

    def repin(self, path: str, kind: PinKind, identity: Identity) -> None:
        """Pin an existing object of ours again."""

    def drain(self) -> str:
        """Wait one grace period; returns the way ("membarrier" or "map-in-map")."""

    def first_program(self, generation: str) -> Identity:
        """Identity of the first program of a pinned generation."""

    def expedite(self) -> AbstractContextManager[bool]:
        """Expedited grace periods for a batch, restored at the end; yields whether it took effect."""

    def grace_setting(self) -> int | None:
        """The value of rcu_expedited now, None where it cannot be read or must not be touched (journaled first)."""

    def restore_grace(self, value: int) -> None:
        """After a crash: write `value` back, if the file still reads 1."""

    def stats(self, generation: LoadedGeneration) -> Iterator[MemberStats]:
        """Counters of every member that has a stats map."""

    def not_alive(
        self, attachments: Sequence[OwnedAttachment], first: Mapping[str, Identity]
    ) -> tuple[OwnedAttachment, ...]:
        """Those that are not there, or do not run exactly the program in `first`, by generation."""


__all__ = ["Attachment", "Kernel", "MemberStats", "Progress", "Scope", "in_order"]
