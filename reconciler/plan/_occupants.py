# SPDX-License-Identifier: Apache-2.0
"""Wanted hooks that somebody else holds: which occupant is displaced, and why the others are left where they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler.config import SecureMode
from reconciler.model import AttachKind, DriftKind, HookKind
from reconciler.plan._observed import our_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.config import SecureConfig
    from reconciler.model import Attachment, HookPoint, HookState
    from reconciler.policy import Stranger


@dataclass(slots=True)
class Occupants:
    """What is not ours on wanted hooks.

    Attributes:
        strangers: everything that is not ours, in a stable order.
        confirmed: foreign attachments that enforce mode may remove, by hook.
        displaced: hooks whose occupant the plan displaces; they count as evictions.
    """

    secure: SecureConfig
    strangers: tuple[Stranger, ...]
    confirmed: Mapping[HookPoint, tuple[Stranger, ...]]
    displaced: set[HookPoint] = field(default_factory=set)

    def displaceable(self, state: HookState) -> Attachment | None:
        """The foreign XDP program that our switch takes the hook from; counted from now on."""
        found = self.confirmed.get(state.point, ())
        if state.point.kind is not HookKind.XDP or len(state.attachments) != 1 or not found:
            return None
        if len(self.displaced) >= self.secure.max_evictions:
            return None
        self.displaced.add(state.point)
        return found[0].attachment

    def refusal(self, kind: AttachKind, state: HookState) -> tuple[DriftKind, str] | None:
        """Why nothing of ours can be attached there now; None when it can."""
        if kind is AttachKind.XDP_LINK and state.attachments:
            return self._held(state)
        if kind is not AttachKind.CLSACT_FILTER:
            return None
        if state.clsact == "ingress":
            return DriftKind.OCCUPIED, "a foreign ingress qdisc holds the place of clsact; remove it first"
        place = our_filter(state.point.kind)
        if any(found.filter == place for found in state.attachments):
            return DriftKind.OCCUPIED, "a foreign filter has our priority and handle; remove it first"
        return None

    def _held(self, state: HookState) -> tuple[DriftKind, str]:
        occupant = state.attachments[0]
        holds = f"foreign program {occupant.program_id} ({occupant.kind}) holds the hook"
        known = (each for each in self.strangers if (each.point, each.attachment) == (state.point, occupant))
        rule = next((each.tolerated_by for each in known), None)
        if rule is not None:
            return DriftKind.OCCUPIED, f"{holds}, and the toleration {rule} lets it be"
        if self.secure.mode is not SecureMode.ENFORCE:
            return DriftKind.OCCUPIED, f"{holds}; detach it, or use secureMode enforce"
        if state.point in self.confirmed:
            return DriftKind.OCCUPIED, f"{holds}; displaced by a later pass (maxEvictions)"
        return DriftKind.CONTESTED, f"{holds} and was not seen twice in this pass; displaced as soon as it stays"
