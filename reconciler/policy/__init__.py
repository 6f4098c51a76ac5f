# SPDX-License-Identifier: Apache-2.0
"""Who may sign what, what is tolerated, and what on a watched hook is ours, tolerated or foreign.

Pure. An empty policy allows nothing: no rule for a package means that nobody may sign it. Nothing in a repository
widens any of this; all of it comes from the host's own configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from reconciler._documents import parse_glob
from reconciler.model import AttachKind, Attachment, HookPoint, Identity, RemovalMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.config import SecureConfig, Toleration
    from reconciler.model import Program, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """An attachment on a watched hook that nobody declared.

    Attributes:
        tolerated_by: name of the toleration that lets it be, None when it is foreign.
        method: how it can be removed.
    """

    point: HookPoint
    attachment: Attachment
    program: Identity
    program_name: str
    tolerated_by: str | None
    method: RemovalMethod

    @property
    def identity(self) -> tuple[str, str, int, int, int | None]:
        """Equal in two snapshots exactly if it is the same program, attached in the same way."""
        return (self.point.key, self.attachment.kind, self.program.id, self.program.load_time, self.attachment.link_id)


def removal_method(kind: AttachKind) -> RemovalMethod:
    """How a foreign attachment of this kind is removed."""
    match kind:
        case AttachKind.XDP_LINK | AttachKind.TCX_LINK:
            return RemovalMethod.LINK_DETACH
        case AttachKind.XDP_NETLINK:
            return RemovalMethod.NETLINK
        case AttachKind.TCX_PROG:
            return RemovalMethod.PROG_DETACH
        case AttachKind.CLSACT_FILTER:
            return RemovalMethod.FILTER_DELETE
        case _:
            assert_never(kind)


def watched(secure: SecureConfig, point: HookPoint, declared: frozenset[tuple[int, int]]) -> bool:
    """Whether secure mode looks at this hook: its interface is configured, or a chain declares something there.

    Args:
        declared: (namespace inode, ifindex) of interfaces on which chains are declared.
    """
    if point.device in declared:
        return True
    return point.netns in secure.namespaces and any(_matches(glob, point.interface) for glob in secure.interfaces)


def classify(
    snapshot: Snapshot, ours: Mapping[HookPoint, Attachment], secure: SecureConfig, declared: frozenset[HookPoint]
) -> tuple[Stranger, ...]:
    """Every attachment on a watched hook that is not ours, in a stable order.

    Args:
        ours: our own attachment on each hook.
        declared: hooks on which chains are declared.
    """
    strangers = []
    interfaces = frozenset(point.device for point in declared)
    for point in sorted(point for point, state in snapshot.hooks.items() if state.attachments):
        state = snapshot.hooks[point]
        if not watched(secure, state.point, interfaces):
            continue
        for attachment in state.attachments:
            if ours.get(point) == attachment:
                continue
            program = snapshot.programs.get(attachment.program_id)
            strangers.append(
                Stranger(
                    point=state.point,
                    attachment=attachment,
                    program=program.identity if program else Identity(id=attachment.program_id),
                    program_name=program.name if program else "",
                    tolerated_by=_tolerated_by(secure.tolerations, state.point, attachment, program),
                    method=removal_method(attachment.kind),
                )
            )
    return tuple(strangers)


def _tolerated_by(
    tolerations: tuple[Toleration, ...], point: HookPoint, attachment: Attachment, program: Program | None
) -> str | None:
    return next((rule.name for rule in tolerations if tolerates(rule, point, attachment, program)), None)


def tolerates(rule: Toleration, point: HookPoint, attachment: Attachment, program: Program | None) -> bool:
    """Whether every condition that the rule gives holds; a rule without conditions tolerates nothing."""
    conditions = []
    if rule.hooks:
        conditions.append(point.kind in rule.hooks)
    if rule.attach:
        conditions.append(attachment.kind in rule.attach)
    if rule.program_name is not None:
        conditions.append(program is not None and _matches(rule.program_name, program.name))
    if rule.tag is not None:
        conditions.append(program is not None and program.tag == rule.tag)
    if rule.filter_name is not None:
        conditions.append(attachment.name is not None and _matches(rule.filter_name, attachment.name))
    return bool(conditions) and all(conditions)


def _matches(glob: str, text: str) -> bool:
    return parse_glob(glob).matches(text)


# --- identities of signers -----------------------------------------------------------------------------------


def matches_identity(pattern: str, identity: str) -> bool:
    """Whether an identity is the one of a rule; `*` stands for anything but "/", and all of it must match.

    Linear in both lengths: who signs chooses the identity, and must not choose the time this takes.
    """
    wanted, got = pattern.split("/"), identity.split("/")
    return len(wanted) == len(got) and all(map(_matches_segment, wanted, got))


def _matches_segment(pattern: str, text: str) -> bool:
    first, *others = pattern.split("*")
    if not others:
        return text == first
    *middle, last = others
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    place, end = len(first), len(text) - len(last)
    for part in middle:
        # Leftmost is best: it leaves the most for the parts that follow.
        found = text.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True
