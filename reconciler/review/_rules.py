# SPDX-License-Identifier: Apache-2.0
"""Every finding that a review can have: id, severity, condition and reason, as data.

docs/findings.md is generated from this. An id is never given to something else; a rule that is dropped
leaves its number unused.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Severity(enum.StrEnum):
    """How much a finding matters, most first."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the most severe."""
        return [*Severity].index(self)


class Family(enum.StrEnum):
    """What a finding is about."""

    BLOCKED = "blocked"
    """Hosts would not take this commit."""
    WEAKER = "weaker"
    """More gets through, or less is checked."""
    RISK = "risk"
    """It costs something, or may not work."""
    UNKNOWN = "unknown"
    """The review cannot tell."""
    PAPER = "paper"
    """About groups and acknowledgements themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of finding.

    Attributes:
        title: a few words.
        condition: when it is raised.
        reason: why a reviewer wants to know.
    """

    id: str
    family: Family
    severity: Severity
    title: str
    condition: str
    reason: str


def _rule(row: tuple[str, Family, Severity, str, str, str]) -> Rule:
    number, family, severity, title, condition, reason = row
    return Rule(id=number, family=family, severity=severity, title=title, condition=condition, reason=reason)


_B, _W, _R, _U, _P = Family.BLOCKED, Family.WEAKER, Family.RISK, Family.UNKNOWN, Family.PAPER
_HIGH, _MEDIUM, _LOW, _INFO = Severity.HIGH, Severity.MEDIUM, Severity.LOW, Severity.INFO

RULES: Final[Mapping[str, Rule]] = {
    row[0]: _rule(row)
    for row in (
        # --- hosts would refuse it
        (
            "RV001",
            _B,
            _HIGH,
            "invalid manifest",
            "a file of HEAD has a finding of `validate`",
            "hosts that it concerns refuse the whole commit and stay at the one before",
        ),
        (
            "RV002",
            _B,
            _HIGH,
            "package refused",
            "an archive is missing, has another digest, cannot be read, or its package.yaml does not fit its objects",
            "hosts refuse the commit",
        ),
        (
            "RV003",
            _B,
            _HIGH,
            "chain cannot be honoured",
            "the package lacks the program, parameter or map, a value does"
            " not fit its type, or the hook has too many members",
            "hosts refuse the commit when they plan it",
        ),
        (
            "RV004",
            _B,
            _HIGH,
            "signer not allowed",
            "no signer rule of the group's policy accepts the package",
            "hosts with this policy refuse the commit",
        ),
        (
            "RV005",
            _B,
            _HIGH,
            "kernel feature missing",
            "a package needs a feature that the group lacks",
            "these hosts refuse the commit",
        ),
        (
            "RV006",
            _B,
            _HIGH,
            "does not merge",
            "BASE and HEAD have conflicts",
            "what would be merged is not known; the branch is reviewed against the commit that it started from",
        ),
        (
            "RV007",
            _B,
            _HIGH,
            "state would be lost and nobody allowed it",
            "a state map's layout or stateVersion changes without `allowStateLoss: true`",
            "hosts refuse the commit when they plan it",
        ),
        (
            "RV008",
            _B,
            _MEDIUM,
            "guardrail",
            "the commit removes more of a host than the group's guardrail allows",
            "hosts stop until somebody runs `apply --confirm`",
        ),
        (
            "RV009",
            _B,
            _HIGH,
            "no chain left",
            "HEAD has no chain at all and does not say `allowEmpty`",
            "hosts refuse an empty repository",
        ),
        # --- weaker
        ("RV010", _W, _HIGH, "chain removed", "a chain of BASE is not in HEAD", "its programs leave their hooks"),
        (
            "RV011",
            _W,
            _HIGH,
            "member removed",
            "a member of a chain is gone",
            "what it stopped is not stopped any more",
        ),
        (
            "RV012",
            _W,
            _HIGH,
            "fewer hooks covered",
            "interfaces, a direction or a namespace that a chain was on are not covered by it any more",
            "traffic there is not filtered by this chain",
        ),
        ("RV013", _W, _HIGH, "fewer hosts covered", "a chain's selector loses hosts", "these hosts drop the chain"),
        (
            "RV014",
            _W,
            _HIGH,
            "hook left empty",
            "a hook that ran programs of ours runs none",
            "nothing of ours filters there any more",
        ),
        (
            "RV015",
            _W,
            _HIGH,
            "onBroken: pass",
            "`onBroken` goes from drop to pass, or a new chain starts with pass",
            "a packet passes when a tail call fails",
        ),
        (
            "RV016",
            _W,
            _MEDIUM,
            "health checks weakened",
            "`health.source` becomes false, a check is removed, waits longer or has a higher limit",
            "a bad change is found later or not at all, and not taken back",
        ),
        ("RV017", _W, _HIGH, "allows more", "entries that allow are added, or cover more", "more gets through"),
        ("RV018", _W, _HIGH, "denies less", "entries that deny are removed, or cover less", "more gets through"),
        (
            "RV019",
            _W,
            _HIGH,
            "limit raised",
            "a limit goes in the direction that the package says weakens, or an entry that limits is removed",
            "more gets through",
        ),
        (
            "RV020",
            _W,
            _HIGH,
            "parameter weakened",
            "a parameter goes in the direction that the package says weakens",
            "more gets through",
        ),
        (
            "RV021",
            _W,
            _HIGH,
            "verdict goes on",
            "`proceedOn` gains a verdict that stopped a packet (drop, shot, aborted)",
            "a packet that the member refused goes on to the next one",
        ),
        (
            "RV022",
            _W,
            _MEDIUM,
            "signer changed",
            "a package is signed by another identity or issuer than before, be it the same bytes",
            "somebody else vouches for the program",
        ),
        (
            "RV023",
            _W,
            _MEDIUM,
            "package downgraded",
            "a member gets a lower version",
            "fixes of the newer version are gone",
        ),
        (
            "RV024",
            _W,
            _MEDIUM,
            "end: pass",
            "a tc chain's `end` goes from next to pass",
            "packets skip every other tc program behind the chain",
        ),
        (
            "RV025",
            _W,
            _MEDIUM,
            "empty repository allowed",
            "`allowEmpty` becomes true",
            "a commit without chains takes everything off the hosts",
        ),
        (
            "RV026",
            _W,
            _MEDIUM,
            "declaration changed",
            "package.yaml says something else than before about what a map or parameter means",
            "what counts as weaker is said by the package; both sayings were applied",
        ),
        (
            "RV027",
            _W,
            _HIGH,
            "verdict loosened",
            "an entry's or a default verdict goes from deny to allow",
            "more gets through",
        ),
        (
            "RV028",
            _W,
            _HIGH,
            "later members skipped",
            "`proceedOn` loses a verdict that let a packet on (pass, ok, next)",
            "members behind no longer see these packets",
        ),
        # --- cost and risk
        (
            "RV030",
            _R,
            _MEDIUM,
            "state lost",
            "a state map's layout or stateVersion changes and the manifest allows it, or a chain or member was renamed",
            "what the program remembered starts anew",
        ),
        (
            "RV031",
            _R,
            _LOW,
            "mode of XDP changes",
            "`mode` of a chain changes",
            "the hook is without a program for a moment: the kernel cannot switch modes in one step",
        ),
        (
            "RV032",
            _R,
            _LOW,
            "long chain",
            "a hook has more than 26 of the 33 members that the kernel allows",
            "further members will be refused soon",
        ),
        (
            "RV033",
            _R,
            _LOW,
            "interface not there",
            "a chain names interfaces that no host of the group has",
            "the chain stays pending there",
        ),
        (
            "RV034",
            _R,
            _LOW,
            "order changed",
            "members or chains of a hook run in another order",
            "an earlier verdict ends the chain, so order decides which one counts",
        ),
        (
            "RV035",
            _R,
            _MEDIUM,
            "same version, other content",
            "a package's digest changes and its version does not",
            "nobody can tell by the version what runs",
        ),
        (
            "RV036",
            _R,
            _LOW,
            "other program",
            "a member runs another program of its package, or another package",
            "its parameters and maps may mean something else",
        ),
        (
            "RV037",
            _R,
            _LOW,
            "no host selected",
            "a chain selects no host of any group",
            "it runs nowhere, as far as the groups say",
        ),
        (
            "RV038",
            _R,
            _LOW,
            "hook held by others",
            "a recorded host has a program of others on an XDP hook that HEAD covers for the first time",
            "the hook takes one program: that one is displaced, or the chain stays pending there",
        ),
        (
            "RV039",
            _R,
            _INFO,
            "hook may be held by others",
            "HEAD covers an XDP hook for the first time, and the group says its secure mode",
            "the hook takes one program: what others have there is displaced, or the chain stays pending",
        ),
        # --- unknown
        (
            "RV040",
            _U,
            _LOW,
            "unknown effect",
            "a parameter or map changes about which package.yaml declares nothing",
            "whether more gets through cannot be told",
        ),
        (
            "RV041",
            _U,
            _LOW,
            "package not looked at",
            "a package lies in another repository than the commit",
            "its declarations, signer and objects are not known here",
        ),
        (
            "RV042",
            _U,
            _MEDIUM,
            "signer not verified",
            "no signature was checked: no group of BASE has its key or trust root, it does not hold, or there is none",
            "who signed is what the bundle claims",
        ),
        (
            "RV043",
            _U,
            _MEDIUM,
            "base cannot be read",
            "a file of BASE has a finding of `validate`",
            "its chains are compared with nothing",
        ),
        (
            "RV044",
            _U,
            _LOW,
            "hosts cannot be told apart",
            "a chain selects by names and a group only counts its hosts",
            "it may run on some, all or none of them",
        ),
        # --- the paper itself
        (
            "RV050",
            _P,
            _MEDIUM,
            "acknowledgement added",
            "HEAD has an acknowledgement that BASE lacks",
            "it silences nothing in this change; it will from the next one on",
        ),
        (
            "RV051",
            _P,
            _INFO,
            "acknowledgement removed",
            "BASE has an acknowledgement that HEAD lacks",
            "it silences nothing in this change",
        ),
        ("RV052", _P, _LOW, "acknowledgement expired", "`until` lies before now", "it silences nothing any more"),
        (
            "RV053",
            _P,
            _MEDIUM,
            "group changed",
            "HEAD changes or removes a HostGroup, or a trust root that one names",
            "the fleet on paper is what is reviewed against; both versions were applied",
        ),
        (
            "RV054",
            _P,
            _INFO,
            "group added",
            "HEAD has a HostGroup that BASE lacks",
            "it describes hosts, it grants nothing",
        ),
        (
            "RV055",
            _P,
            _MEDIUM,
            "group cannot be read",
            "a file below hosts/ has a finding",
            "its hosts are not reviewed",
        ),
        (
            "RV056",
            _P,
            _LOW,
            "acknowledgement of nothing",
            "an acknowledgement names a finding that does not exist",
            "it silences nothing",
        ),
    )
}
"""By id, in order."""
