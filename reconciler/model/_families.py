# SPDX-License-Identifier: Apache-2.0
"""Types of programs: the sections they come from, and the words and numbers for what they return.

What differs between types of programs, and is no system call, stands here and nowhere else: a new type is one more
`ProgramFamily`, a new kind of hook one more branch of `family_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from reconciler.model._desired import HookKind, OnBroken

ProgramType: TypeAlias = Literal["xdp", "tc"]

XDP_VERDICTS: Final[Mapping[str, int]] = {"aborted": 0, "drop": 1, "pass": 2, "tx": 3, "redirect": 4}
"""enum xdp_action (include/uapi/linux/bpf.h)."""

TC_VERDICTS: Final[Mapping[str, int]] = {
    "next": -1,
    "ok": 0,
    "reclassify": 1,
    "shot": 2,
    "pipe": 3,
    "stolen": 4,
    "queued": 5,
    "repeat": 6,
    "redirect": 7,
    "trap": 8,
}
"""TC_ACT_* (include/uapi/linux/pkt_cls.h); -1 is TCX_NEXT and TC_ACT_UNSPEC."""

TC_ALIASES: Final[Mapping[str, str]] = {"pass": "ok", "drop": "shot", "unspec": "next"}
"""Spellings accepted on tc, so that one manifest style fits both hooks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFamily:
    """What all programs of one type have in common.

    Attributes:
        sections: names of ELF sections; libbpf takes the type from them, and the members of a hook must agree in one.
        verdicts: what a program may return, name to number.
        aliases: further spellings of verdicts.
        broken: what `chain_broken` is for each value of `onBroken`.
    """

    type: ProgramType
    sections: tuple[str, ...]
    verdicts: Mapping[str, int]
    aliases: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[OnBroken, int]

    @property
    def kinds(self) -> tuple[HookKind, ...]:
        """The kinds of hook on which these programs run."""
        return tuple(kind for kind in HookKind if family_of(kind) is self)

    @property
    def spellings(self) -> Mapping[str, int]:
        """Every name by which a manifest may call a verdict, and its number."""
        return {**self.verdicts, **{alias: self.verdicts[name] for alias, name in self.aliases.items()}}

    def verdict(self, spelling: str) -> str | None:
        """The one name of a verdict, None if there is none that is spelled like that."""
        name = self.aliases.get(spelling, spelling)
        return name if name in self.verdicts else None


XDP_FAMILY: Final = ProgramFamily(
    type="xdp",
    sections=("xdp", "xdp.frags"),
    verdicts=XDP_VERDICTS,
    broken={OnBroken.DROP: XDP_VERDICTS["drop"], OnBroken.PASS: XDP_VERDICTS["pass"]},
)
TC_FAMILY: Final = ProgramFamily(
    type="tc",
    sections=("tc",),
    verdicts=TC_VERDICTS,
    aliases=TC_ALIASES,
    broken={OnBroken.DROP: TC_VERDICTS["shot"], OnBroken.PASS: TC_VERDICTS["ok"]},
)

FAMILIES: Final[Mapping[str, ProgramFamily]] = {family.type: family for family in (XDP_FAMILY, TC_FAMILY)}
"""By the program's type, as package.yaml writes it; a chain's `hook.type` is the type of the programs it takes."""


def family_of(kind: HookKind) -> ProgramFamily:
    """The programs that run on a kind of hook."""
    match kind:
        case HookKind.XDP:
            return XDP_FAMILY
        case HookKind.TC_INGRESS | HookKind.TC_EGRESS:
            return TC_FAMILY
        case _:
            assert_never(kind)
