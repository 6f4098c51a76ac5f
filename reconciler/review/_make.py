# SPDX-License-Identifier: Apache-2.0
"""Puts a review together; the package's docstring says from what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler import manifest
from reconciler.config import Guardrail
from reconciler.review._chains import Pair, compare_chain
from reconciler.review._effects import Effects
from reconciler.review._fleet import Fleet, Hosts, cohorts, may_select
from reconciler.review._hooks import ChainNote, Compiler, compare_hooks, guardrail, missing_features
from reconciler.review._paper import group_differences
from reconciler.review._rules import RULES, Family
from reconciler.review._signers import compare_signers, judge_signers
from reconciler.review._values import Cohort, Finding, Kind, Packages, Review, ReviewPackage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.errors import Diagnostic
    from reconciler.model import Acknowledgement, Chain, HostGroup, Member, PackageRef
    from reconciler.review._effects import Note
    from reconciler.review._reading import Reading, Side

MAX_NAMES = 8
"""Host names of a cohort that the document lists."""


def make(
    reading: Reading,
    packages: tuple[Packages, Packages],
    *,
    kind: Kind,
    now: str,
    problem: str | None = None,
    hosts: tuple[HostGroup, ...] = (),
) -> Review:
    """The review of a change.

    Args:
        reading: BASE and HEAD.
        packages: of each side, at least those of `reading.refs`.
        kind: how HEAD's side came about.
        now: RFC 3339 date that acknowledgements are compared with.
        problem: why BASE and HEAD do not merge, if so.
        hosts: recorded hosts, besides the groups of both sides.
    """
    maker = _Maker(reading, packages, kind, now, problem)
    if hosts:
        maker.fleet = Fleet(tuple(sorted((*maker.fleet.groups, *hosts), key=lambda group: group.name)))
    return maker.make()


class _Maker:
    """Collects findings of all parts, places them, and sorts them."""

    def __init__(
        self, reading: Reading, packages: tuple[Packages, Packages], kind: Kind, now: str, problem: str | None
    ) -> None:
        self.base, self.head, self.changed = reading.base, reading.head, reading.changed
        self.old, self.new = packages
        self.kind, self.now = kind, now
        self.findings: dict[Finding, None] = {}
        self.shared: dict[tuple[str | None, ...], Finding] = {}
        self.fleet = Fleet(_both(self.base.groups.groups, self.head.groups.groups))
        self.hosts_of: dict[str, tuple[str, ...]] = {}
        self.problem = problem

    def make(self) -> Review:
        base, head, changed = self.base, self.head, self.changed
        names = frozenset(chain.name for pair in changed for chain in (pair.before, pair.after) if chain is not None)
        hosts = cohorts(self.fleet, base.chains, head.chains, names)
        self._place_chains(hosts, names)
        self._readable()
        self._packages()
        self._paper()
        lines = []
        for pair in changed:
            change, notes = compare_chain(pair, self.old, self.new, self.fleet)
            lines.append(replace(change, hosts=self.hosts_of.get(pair.chain.name, ())))
            for note in notes:
                self._add(note, pair)
        self._resigned(names)
        looked = self._cohorts(hosts, names)
        return Review(
            base=base.tree.name,
            head=head.tree.name,
            kind=self.kind,
            now=self.now,
            findings=self._settle(),
            chains=tuple(lines),
            cohorts=looked,
            on_paper=bool(self.fleet.groups),
        )

    # --- whole trees ---------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self.problem is not None:
            self._say("RV006", self.problem)
        for finding in self.head.validation.findings:
            empty = finding.message == manifest.NO_CHAIN
            self._say("RV009" if empty else "RV001", _message(finding), finding, hosts=self._concerned(finding))
        for finding in self.base.validation.findings:
            self._say("RV043", _message(finding), finding)
        for finding in self.head.groups.findings:
            self._say("RV055", _message(finding), finding)
        if (
            self.head.validation.allow_empty
            and not self.base.validation.allow_empty
            and self.base.validation.repository
        ):
            self._say("RV025", "allowEmpty is true: a commit without chains takes everything off", at="reconciler.yaml")

    def _concerned(self, finding: Diagnostic) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for side in (self.base, self.head):
            for name, chain in side.chains.items():
                if chain.file == finding.file:
                    found.update(dict.fromkeys(self.hosts_of.get(name, ())))
        return tuple(sorted(found))

    def _packages(self) -> None:
        """Packages of changed chains that cannot be had."""
        old = {member.package for chain in self.base.chains.values() for member in chain.members}
        for chain in self.head.chains.values():
            for index, member in enumerate(chain.members):
                ref = member.package
                found = self.new.get(ref)
                place = self._place(chain.name, f"/spec/members/{index}/package")
                if isinstance(found, str):
                    self._say(
                        "RV002", f"{ref.name} {ref.version}: {found}", place, chain=chain.name, member=member.name
                    )
                elif found is None and ref.repository != "git" and ref not in old:
                    message = f"{ref.name} {ref.version} lies in the repository {ref.repository}"
                    self._say("RV041", message, place, chain=chain.name, member=member.name)

    def _resigned(self, changed: frozenset[str]) -> None:
        """Packages of chains that do not change and that somebody else signs than before."""
        for name, chain in self.head.chains.items():
            if name in changed:
                continue
            for index, member in enumerate(chain.members):
                before, after = self.old.get(member.package), self.new.get(member.package)
                if isinstance(before, ReviewPackage) and isinstance(after, ReviewPackage):
                    effects = Effects(member=member.name, pointer=f"/spec/members/{index}")
                    compare_signers(before, after, effects)
                    for note in effects.notes:
                        self._say(
                            note.id, note.message, self._place(name, note.pointer), chain=name, member=member.name
                        )

    # --- groups and acknowledgements -----------------------------------------------------------------------

    def _paper(self) -> None:
        old = {group.name: group for group in self.base.groups.groups}
        new = {group.name: group for group in self.head.groups.groups}
        for name in sorted({*old, *new}):
            before, after = old.get(name), new.get(name)
            if before is None and after is not None:
                self._say("RV054", f"group {name} is added", at=after.file, hosts=(name,))
            elif before is not None and (after is None or _said(before) != _said(after)):
                word = "removed" if after is None else f"changed ({group_differences(before, after)})"
                message = f"group {name} is {word}; both versions were reviewed"
                self._say("RV053", message, at=before.file, hosts=(name,))
        self._roots()
        for name in sorted({*self.base.chains, *self.head.chains}):
            one, other = self.base.chains.get(name), self.head.chains.get(name)
            self._acknowledgements(one.acknowledge if one else (), other.acknowledge if other else (), name)
        self._acknowledgements(self.base.validation.acknowledge, self.head.validation.acknowledge, "")

    def _roots(self) -> None:
        """Trust roots that HEAD changes: they are read from BASE, so nothing else would say so."""
        users: dict[str, set[str]] = {}
        for side in (self.base, self.head):
            for group in side.groups.groups:
                for rule in group.policy.signers or ():
                    if rule.root is not None:
                        users.setdefault(rule.root, set()).add(group.name)
        for path, groups in sorted(users.items()):
            old, new = self.base.tree.files.get(path), self.head.tree.files.get(path)
            if old != new:
                word = "added" if old is None else "removed" if new is None else "changed"
                message = f"the trust root {path} is {word}; signatures were verified with what BASE has"
                self._say("RV053", message, at=path, hosts=tuple(sorted(groups)))

    def _acknowledgements(
        self, before: tuple[Acknowledgement, ...], after: tuple[Acknowledgement, ...], chain: str
    ) -> None:
        place = self._place(chain, "/spec/acknowledge") if chain else None
        at = None if chain else "reconciler.yaml"
        for each in after:
            words = f"{each.finding} until {each.until}: {each.why}"
            if each.finding not in RULES:
                self._say("RV056", f"{each.finding} is no finding", place, at=at, chain=chain)
            elif each not in before:
                self._say("RV050", words, place, at=at, chain=chain)
            elif each.until < self.now:
                self._say("RV052", words, place, at=at, chain=chain)
        for each in before:
            if each not in after:
                self._say("RV051", f"{each.finding} until {each.until}: {each.why}", place, at=at, chain=chain)

    # --- cohorts -------------------------------------------------------------------------------------------

    def _place_chains(self, hosts: tuple[Hosts, ...], changed: frozenset[str]) -> None:
        found: dict[str, dict[str, None]] = {}
        for each in hosts:
            for chain in (*each.before, *each.after):
                found.setdefault(chain.name, {})[each.group.name if each.group else each.name] = None
        self.hosts_of = {name: tuple(sorted(groups)) for name, groups in found.items()}
        for name in sorted(changed & self.head.chains.keys()):
            chain = self.head.chains[name]
            if self.fleet.groups and not any(may_select(chain.hosts, group) for group in self.fleet.groups):
                self._say("RV037", "selects no host of any group", self._place(name, "/spec/hosts"), chain=name)

    def _cohorts(self, hosts: tuple[Hosts, ...], changed: frozenset[str]) -> tuple[Cohort, ...]:
        compilers = Compiler(self.old), Compiler(self.new)
        self._unverified()
        refused = {
            name for finding in self.findings if finding.id in ("RV001", "RV009") for name in finding.hosts or ("",)
        }
        found = []
        same = (self.base.validation.repository, self.base.validation.allow_empty) == (
            self.head.validation.repository,
            self.head.validation.allow_empty,
        )
        for each in hosts:
            group = each.group.name if each.group else each.name
            after = self._digest(self.head, each.after)
            before = after if same and not any(one.name in changed for one in (*each.before, *each.after)) else None
            before = before or self._digest(self.base, each.before)
            told, notes = compare_hooks(each, changed, compilers)
            extra = guardrail(each, Guardrail().share)
            every = [*notes, *missing_features(each, changed, self.new), *([extra] if extra else [])]
            every += judge_signers(each, self.new)
            for note in every:
                self._add_placed(note, group)
            if (
                not each.certain
                and each.group is not None
                and any(chain.hosts.names and chain.name in changed for chain in (*each.before, *each.after))
            ):
                self._say("RV044", f"group {group} gives no names, and chains select by name", hosts=(group,))
            valid = not refused & {"", group} and each.certain
            found.append(
                Cohort(
                    name=each.name,
                    count=each.count,
                    names=each.names[:MAX_NAMES],
                    digest=after if valid else None,
                    before=before if each.certain else None,
                    hooks=told,
                    policy=each.group.policy.id if each.group else None,
                    secure_mode=each.group.secure_mode if each.group else None,
                    tolerations=each.group.policy.tolerations if each.group else None,
                    labels=each.group.labels if each.group else each.labels,
                    chains=len(each.after),
                )
            )
        return tuple(found)

    def _digest(self, side: Side, chains: tuple[Chain, ...]) -> str | None:
        if side.validation.repository is None:
            return None
        desired = manifest.desired_of(side.validation.repository, chains, allow_empty=side.validation.allow_empty)
        return manifest.state_digest(desired)

    def _unverified(self) -> None:
        """Packages that no chain of BASE has and whose signature nobody could verify."""
        old = {member.package.digest for chain in self.base.chains.values() for member in chain.members}
        found: dict[PackageRef, list[tuple[str, Member, int]]] = {}
        for name, chain in sorted(self.head.chains.items()):
            for index, member in enumerate(chain.members):
                if member.package.digest not in old:
                    found.setdefault(member.package, []).append((name, member, index))
        for ref, places in found.items():
            name, member, index = places[0]
            package = self.new.get(ref)
            if isinstance(package, ReviewPackage) and not package.verified:
                who = "no bundle" if package.signer is None else f"the bundle claims {package.signer.identity}"
                why = package.refusal or "nothing here could verify it"
                message = f"{ref.name} {ref.version}: {who}, and {why}"
                place = self._place(name, f"/spec/members/{index}/package")
                hosts = {group for chain, _, _ in places for group in self.hosts_of.get(chain, ())}
                self._say("RV042", message, place, chain=name, member=member.name, hosts=tuple(sorted(hosts)))

    # --- findings ------------------------------------------------------------------------------------------

    def _place(self, chain: str, pointer: str) -> Diagnostic | None:
        document = self.head.documents.get(chain) or self.base.documents.get(chain)
        return document.finding("", pointer) if document is not None else None

    def _say(  # noqa: PLR0913 - where a finding stands has many parts, and callers name them
        self,
        rule: str,
        message: str,
        place: Diagnostic | None = None,
        *,
        at: str | None = None,
        chain: str = "",
        member: str = "",
        hosts: tuple[str, ...] | None = None,
    ) -> Finding:
        finding = Finding(
            id=rule,
            message=message,
            chain=chain,
            member=member,
            file=place.file if place is not None else at,
            line=place.line if place is not None else None,
            column=place.column if place is not None else None,
            hosts=self.hosts_of.get(chain, ()) if hosts is None else hosts,
        )
        self.findings[finding] = None
        return finding

    def _add(self, note: Note, pair: Pair) -> None:
        place = self._place(pair.chain.name, note.pointer)
        self._say(note.id, note.message, place, chain=pair.chain.name, member=note.member)

    def _add_placed(self, placed: ChainNote, group: str) -> None:
        """A finding of one cohort; the same one of several is one finding with all of them."""
        note = placed.note
        place = self._place(placed.chain, note.pointer) if placed.chain else None
        key = (note.id, note.message, placed.chain, note.member, place.file if place else None)
        known = self.shared.get(key)
        if known is None:
            known = self._say(note.id, note.message, place, chain=placed.chain, member=note.member, hosts=(group,))
        elif group not in known.hosts:
            del self.findings[known]
            known = replace(known, hosts=tuple(sorted({*known.hosts, group})))
            self.findings[known] = None
        self.shared[key] = known

    def _settle(self) -> tuple[Finding, ...]:
        """Acknowledged where both sides say so, and in order."""
        settled = [replace(finding, acknowledged=self._acknowledged(finding)) for finding in self.findings]
        return tuple(sorted(settled, key=_order))

    def _acknowledged(self, finding: Finding) -> Acknowledgement | None:
        one, other = self.base.chains.get(finding.chain), self.head.chains.get(finding.chain)
        before: Iterable[Acknowledgement] = one.acknowledge if one else ()
        after: Iterable[Acknowledgement] = other.acknowledge if other else ()
        if other is None:
            # What is about no chain of HEAD is accepted in reconciler.yaml.
            before, after = self.base.validation.acknowledge, self.head.validation.acknowledge
        for each in after:
            if each in before and each.finding == finding.id and each.until >= self.now:
                return each
        return None


def _both(base: tuple[HostGroup, ...], head: tuple[HostGroup, ...]) -> tuple[HostGroup, ...]:
    """Every group of either side; one that HEAD changes is there as both say it."""
    old = {group.name: group for group in base}
    found = [*base]
    for group in head:
        before = old.get(group.name)
        if before is None:
            found.append(group)
        elif _said(before) != _said(group):
            found.append(replace(group, name=f"{group.name} (as HEAD says)"))
    return tuple(sorted(found, key=lambda group: group.name))


def _said(group: HostGroup) -> HostGroup:
    return replace(group, file="")


def _message(finding: Diagnostic) -> str:
    return f"{finding.message}{f' (at {finding.pointer})' if finding.pointer else ''}"


def _order(finding: Finding) -> tuple[object, ...]:
    return (
        finding.acknowledged is not None,
        finding.severity.rank,
        # What gets weaker comes first.
        RULES[finding.id].family is not Family.WEAKER,
        finding.id,
        finding.chain,
        finding.member,
        finding.message,
        finding.file or "",
        finding.line or 0,
    )
