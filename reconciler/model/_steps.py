# SPDX-License-Identifier: Apache-2.0
"""Steps: a closed union of what `apply` can do, named by pins and identities, never by descriptors."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from reconciler.model._desired import Health, XdpMode
from reconciler.model._generations import Generation
from reconciler.model._observed import AttachKind, Attachment, FilterId, HookPoint, Identity, PinKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load a generation and pin it; nothing is attached."""

    generation: Generation
    reason: str
    step: Literal["load"] = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Attach a generation to a hook that holds nothing of ours.

    Attributes:
        pin: link pin to create, None for clsact filters.
        filter: filter to create, clsact only.
        revision: expected tcx revision.
        mode: requested XDP mode.
        make_qdisc: a clsact qdisc must be created first.
        displace: the foreign occupant (XDP, enforce) that the switch itself removes.
    """

    point: HookPoint
    generation: str
    kind: AttachKind
    reason: str
    pin: str | None = None
    filter: FilterId | None = None
    revision: int | None = None
    mode: XdpMode = XdpMode.AUTO
    make_qdisc: bool = False
    displace: Attachment | None = None
    step: Literal["attach"] = "attach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Replace one generation by another on a hook, in one atomic step.

    Attributes:
        old: name of the generation that is attached now.
        program: identity of its first program: the comparison of the compare-and-swap.
    """

    point: HookPoint
    generation: str
    old: str
    program: Identity
    kind: AttachKind
    reason: str
    pin: str | None = None
    link_id: int | None = None
    filter: FilterId | None = None
    step: Literal["switch"] = "switch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMode:
    """Detach and attach again in another XDP mode: a declared gap that the kernel forces."""

    point: HookPoint
    generation: str
    old: str
    pin: str
    link_id: int
    mode: XdpMode
    old_mode: XdpMode
    reason: str
    step: Literal["change-mode"] = "change-mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Wait until no packet can be inside a superseded generation; one grace period for the whole batch."""

    reason: str = "packets in flight leave the old generation"
    step: Literal["drain"] = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckHealth:
    """Everything in `checks` must hold; only for changed desired state, never for repairs.

    Attributes:
        attachments: hooks whose links must be alive with the planned generation.
        checks: the chains' own checks, by chain name.
    """

    generations: Mapping[str, str]
    """Hook key to the generation that must run there."""
    checks: Mapping[str, Health]
    source: bool
    step: Literal["check-health"] = "check-health"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointOfNoReturn:
    """From here on nothing is undone."""

    step: Literal["point-of-no-return"] = "point-of-no-return"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """Take our attachment off a hook: detach, then unlink the pin (never the other way round)."""

    point: HookPoint
    kind: AttachKind
    generation: str
    reason: str
    pin: str | None = None
    link_id: int | None = None
    filter: FilterId | None = None
    remove_qdisc: bool = False
    step: Literal["detach"] = "detach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repin:
    """Pin an object of ours again whose pin somebody removed."""

    path: str
    kind: PinKind
    identity: Identity
    reason: str
    step: Literal["repin"] = "repin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """Unpin a generation that nothing uses any more."""

    generation: str
    pins: tuple[str, ...]
    reason: str
    step: Literal["unload"] = "unload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpin:
    """Unpin single paths: state nobody declares any more, defunct links, orphans of a crash."""

    pins: tuple[str, ...]
    reason: str
    step: Literal["unpin"] = "unpin"


class RemovalMethod(enum.StrEnum):
    """How a foreign attachment can be removed."""

    LINK_DETACH = "link-detach"
    NETLINK = "netlink"
    PROG_DETACH = "prog-detach"
    FILTER_DELETE = "filter-delete"
    NOT_POSSIBLE = "not-possible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Remove a foreign attachment from a watched hook."""

    point: HookPoint
    attachment: Attachment
    program: Identity
    method: RemovalMethod
    reason: str
    revision: int | None = None
    step: Literal["evict"] = "evict"


Step: TypeAlias = (
    Load
    | Attach
    | Switch
    | ChangeMode
    | Drain
    | CheckHealth
    | PointOfNoReturn
    | Detach
    | Repin
    | Unload
    | Unpin
    | Evict
)
