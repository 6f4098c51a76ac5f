# SPDX-License-Identifier: Apache-2.0
"""What one execution of a plan knows and changes, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from reconciler.model import Inventory, StepFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.errors import ReconcilerError
    from reconciler.kernel import Kernel
    from reconciler.model import (
        CheckHealth,
        Drift,
        HookPoint,
        Identity,
        LoadedGeneration,
        OwnedAttachment,
        Package,
        Step,
    )


class Journal(Protocol):
    """Where intentions are made durable before they become facts."""

    def journal(self, boot_id: str, event: str, *, force: bool = True, **fields: object) -> None:
        """Append one record; with `force` it and all before it are on disk afterwards. Raises StateError."""


class HealthChecks(Protocol):
    """What must hold between the switch and the point of no return."""

    def check(self, step: CheckHealth, inventory: Inventory) -> None:
        """Raises HealthError naming what does not hold."""


@dataclass(slots=True)
class Run:
    """Everything that one execution changes.

    Attributes:
        undo: what was done and can be taken back, with the attachment that was there before.
        contested: keys of hooks on which a race was lost.
        drained: no packet can be in anything that was superseded or detached.
    """

    kernel: Kernel
    packages: Mapping[str, Package]
    journal: Journal
    checks: HealthChecks
    boot_id: str
    generations: dict[str, LoadedGeneration]
    attachments: dict[HookPoint, OwnedAttachment]
    leftovers: set[str]
    undo: list[tuple[Step, OwnedAttachment | None]] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)
    survivors: list[Drift] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    contested: set[str] = field(default_factory=set)
    skipped: list[StepFailure] = field(default_factory=list)
    undo_failures: list[StepFailure] = field(default_factory=list)
    gaps: dict[str, float] = field(default_factory=dict)
    committed: bool = False
    drained: bool = True
    bpffs_id: int = 0

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        *,
        kernel: Kernel,
        packages: Mapping[str, Package],
        journal: Journal,
        checks: HealthChecks,
    ) -> Self:
        """A run that begins with `inventory`."""
        return cls(
            kernel=kernel,
            packages=packages,
            journal=journal,
            checks=checks,
            boot_id=inventory.boot_id,
            generations={generation.name: generation for generation in inventory.generations},
            attachments={owned.point: owned for owned in inventory.attachments},
            leftovers=set(inventory.leftovers),
            bpffs_id=inventory.bpffs_id,
        )

    def inventory(self) -> Inventory:
        """What is owned now."""
        return Inventory(
            boot_id=self.boot_id,
            generations=tuple(self.generations[name] for name in sorted(self.generations)),
            attachments=tuple(self.attachments[point] for point in sorted(self.attachments)),
            leftovers=tuple(sorted(self.leftovers)),
            bpffs_id=self.bpffs_id,
        )

    def write(self, event: str, *, force: bool = True, **fields: object) -> None:
        """One record of the journal. Raises StateError."""
        self.journal.journal(self.boot_id, event, force=force, **fields)

    def first(self, generation: str) -> Identity:
        """The program that a hook runs which has this generation: the recorded one, else what is pinned."""
        loaded = self.generations.get(generation)
        if loaded is not None and loaded.programs:
            return loaded.programs[0].identity
        return self.kernel.first_program(generation)

    def in_use(self, generation: str) -> bool:
        """Whether a hook runs it."""
        return any(owned.generation == generation for owned in self.attachments.values())


def failure(step: Step, error: ReconcilerError) -> StepFailure:
    """An error of a step, as the outcome tells it."""
    return StepFailure(step=step, reason=error.reason, message=str(error), disposition=error.disposition.value)
