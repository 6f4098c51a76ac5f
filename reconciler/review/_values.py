# SPDX-License-Identifier: Apache-2.0
"""What goes into a review and what comes out: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from reconciler.model import Acknowledgement
from reconciler.review._rules import RULES, Severity

if TYPE_CHECKING:
    from reconciler.errors import Diagnostic
    from reconciler.model import PackageManifest, PackageRef, Signer

FORMAT_VERSION = 1
"""Of the JSON document."""


# --- in ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPackage:
    """An archive whose digest is the pinned one, read without libbpf.

    Attributes:
        objects: file name in the archive to the object's bytes.
        signer: who signed, as far as the bundle says; None without a bundle.
        verified: the signature was checked and is valid for `signer`.
        roots: paths of the trust roots of BASE under which its certificate holds.
        refusal: why it does not hold under one that was tried.
    """

    ref: PackageRef
    manifest: PackageManifest
    objects: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    signer: Signer | None = None
    verified: bool = False
    roots: frozenset[str] = frozenset()
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One side of a review, as bytes.

    Attributes:
        name: the commit's id, or what stands for it ("worktree").
        files: reconciler.yaml and everything below chains/ and hosts/.
        problems: what the reader of the tree refused.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    problems: tuple[Diagnostic, ...] = ()


Packages: TypeAlias = "Mapping[PackageRef, ReviewPackage | str]"
"""By reference; a text says why one cannot be had. Those of other repositories than the commit's are left out."""

Kind: TypeAlias = Literal["commits", "merge", "branch", "worktree"]
"""How HEAD's side came about: HEAD descends from BASE; their merge; HEAD alone since they do not merge; files."""


# --- out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a reviewer should know.

    Attributes:
        message: one sentence; holds text from the repository, so renderers escape it.
        hosts: groups (or selectors) that it concerns, sorted; empty: no host in particular.
        acknowledged: by what, None while it counts.
    """

    id: str
    message: str
    chain: str = ""
    member: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    hosts: tuple[str, ...] = ()
    acknowledged: Acknowledgement | None = None

    @property
    def severity(self) -> Severity:
        """Of its rule."""
        return RULES[self.id].severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One difference of a chain.

    Attributes:
        what: the field or the thing, such as "priority" or "rate".
        before: as text, None if it was not there.
        after: likewise.
        detail: unit, default, coverage or a list of entries, in words.
    """

    what: str
    before: str | None = None
    after: str | None = None
    member: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainChange:
    """A chain that is not as it was.

    Attributes:
        change: "moved" is another hook, with whatever else changed besides.
        before: its members in order, each "NAME (PACKAGE-VERSION)"; empty if there was none.
        hosts: groups (or selectors) that have it on either side.
    """

    name: str
    change: Literal["added", "removed", "moved", "changed"]
    file: str
    hook: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HookChange:
    """A hook of a cohort whose programs change.

    Attributes:
        hook: such as "eth0 xdp"; a glob stands for itself where interfaces are not known.
        before: "CHAIN/MEMBER" in the order in which they run.
        changes: one for each member, as the plan of a host would say it; empty where packages are not known.
    """

    hook: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    changes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Hosts of a group that select the same chains on both sides.

    Attributes:
        name: the group, or the selector in words.
        count: how many hosts, None if nobody says.
        names: some of their names.
        digest: state digest at HEAD, as these hosts print it; None when HEAD is not valid for them.
        before: state digest at BASE.
        policy: id of the policy reviewed against.
        secure_mode: of these hosts, None if nobody says.
        tolerations: sets that they name, or rules of a recorded host; None if nobody says.
        labels: that these hosts have, at least.
        chains: how many chains they select at HEAD.
    """

    name: str
    count: int | None
    names: tuple[str, ...]
    digest: str | None
    before: str | None
    hooks: tuple[HookChange, ...] = ()
    policy: str | None = None
    secure_mode: str | None = None
    tolerations: tuple[str, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    chains: int = 0

    @property
    def changed(self) -> bool:
        """Whether these hosts get something else than they have."""
        return self.digest != self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """The whole document.

    Attributes:
        now: RFC 3339 date that acknowledgements were compared with.
        findings: most severe first; acknowledged ones last.
        on_paper: whether there are groups; otherwise selectors stand for them.
    """

    base: str
    head: str
    kind: Kind
    now: str
    findings: tuple[Finding, ...] = ()
    chains: tuple[ChainChange, ...] = ()
    cohorts: tuple[Cohort, ...] = ()
    on_paper: bool = False
    version: int = FORMAT_VERSION

    @property
    def open(self) -> tuple[Finding, ...]:
        """Findings that nobody acknowledged."""
        return tuple(finding for finding in self.findings if finding.acknowledged is None)

    @property
    def worst(self) -> Severity | None:
        """The highest severity among the findings that count."""
        return min((finding.severity for finding in self.open), key=lambda each: each.rank, default=None)

    @property
    def empty(self) -> bool:
        """Nothing changes for anybody, and there is nothing to say."""
        return not (self.findings or self.chains or any(cohort.changed for cohort in self.cohorts))
