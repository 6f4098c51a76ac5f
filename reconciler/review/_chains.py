# SPDX-License-Identifier: Apache-2.0
"""One chain before and after: every difference as a line, and what of it matters as a note.

Nothing here depends on hosts; what a selector or a glob loses on real ones is asked of `Fleet`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from reconciler.model import FAMILIES, OnBroken, TcEnd, TcHook, XdpHook, encode_record
from reconciler.review._effects import Effects, Note, Sided, compare_settings
from reconciler.review._signers import SHOWN_DIGEST, compare_signers, package_words
from reconciler.review._state import state_losses
from reconciler.review._values import ChainChange, Line, ReviewPackage
from reconciler.review._words import hook_words, member_text, member_words, selector_words, yes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.model import Chain, Health, Hook, Member
    from reconciler.review._fleet import Fleet
    from reconciler.review._values import Packages


STOPPING: Final = frozenset({"aborted", "drop", "shot"})
"""Verdicts by which a member refuses a packet."""
PASSING: Final = frozenset({"pass", "ok", "next"})
"""Verdicts by which a member lets a packet through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A chain on both sides; None where there is none. `renamed`: the two have different names and equal content."""

    before: Chain | None
    after: Chain | None
    renamed: bool = False

    @property
    def chain(self) -> Chain:
        """The newer one."""
        chain = self.after or self.before
        assert chain is not None  # noqa: S101 - a pair has at least one
        return chain


@dataclass(slots=True)
class Compared:
    """What came of comparing a pair."""

    change: Literal["added", "removed", "moved", "changed"]
    lines: list[Line] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def line(self, what: str, before: object, after: object, detail: str = "") -> None:
        """A difference of the chain itself."""
        self.lines.append(Line(what=what, before=_words(before), after=_words(after), detail=detail))

    def note(self, rule: str, message: str, pointer: str) -> None:
        """A finding of the chain itself."""
        self.notes.append(Note(id=rule, message=message, pointer=pointer))


def _words(value: object) -> str | None:
    return None if value is None else str(value)


def content(chain: Chain) -> bytes:
    """Everything of a chain that hosts look at: equal bytes, equal chain."""
    return encode_record(replace(chain, file="", acknowledge=()))


def pairs(before: Mapping[str, Chain], after: Mapping[str, Chain]) -> tuple[Pair, ...]:
    """The chains that differ, by name; a removed one and an added one of equal content are one that was renamed."""
    gone = {name: chain for name, chain in before.items() if name not in after}
    new = {name: chain for name, chain in after.items() if name not in before}
    found = []
    nameless = {
        content(replace(chain, name="", priority=0)): name for name, chain in sorted(gone.items(), reverse=True)
    }
    for chain in (new[name] for name in sorted(new)):
        old = nameless.pop(content(replace(chain, name="", priority=0)), None)
        found.append(Pair(before=gone.pop(old) if old is not None else None, after=chain, renamed=old is not None))
    found += [Pair(before=chain, after=None) for chain in gone.values()]
    found += [
        Pair(before=chain, after=after[name])
        for name, chain in before.items()
        # Files that do not change are read once, so most chains are the same object.
        if name in after and chain is not after[name] and content(chain) != content(after[name])
    ]
    return tuple(sorted(found, key=lambda pair: pair.chain.name))


def compare_chain(pair: Pair, old: Packages, new: Packages, fleet: Fleet) -> tuple[ChainChange, tuple[Note, ...]]:
    """Lines and notes of one chain.

    Args:
        pair: the chain on both sides.
        old: packages of BASE.
        new: packages of HEAD.
        fleet: what the groups say about hosts and interfaces.
    """
    before, after = pair.before, pair.after
    if before is None or after is None:
        done = _one_sided(pair, new)
    else:
        done = Compared("moved" if _moved(before.hook, after.hook) else "changed")
        if pair.renamed:
            done.line("name", before.name, after.name)
        if before.priority != after.priority:
            done.line("priority", before.priority, after.priority)
        _hook(before, after, done, fleet)
        _selector(before, after, done, fleet)
        _fields(before, after, done)
        _health(before.health, after.health, done)
        _members(before, after, old, new, done)
    chain = pair.chain
    change = ChainChange(
        name=chain.name,
        change=done.change,
        file=chain.file,
        hook=hook_words(chain.hook),
        before=member_words(before),
        after=member_words(after),
        lines=tuple(done.lines),
    )
    return change, tuple(done.notes)


def _one_sided(pair: Pair, new: Packages) -> Compared:
    chain = pair.chain
    if pair.after is None:
        done = Compared("removed")
        who = ", ".join(member.name for member in chain.members)
        done.note("RV010", f"the chain is removed from {hook_words(chain.hook)}; {who} no longer run there", "")
        return done
    done = Compared("added")
    if chain.on_broken is OnBroken.PASS:
        done.note("RV015", "onBroken is pass: a packet passes when a tail call fails", "/spec/onBroken")
    for member in chain.members:
        done.lines.append(_added(member, new))
    return done


def _added(member: Member, packages: Packages) -> Line:
    detail = package_words(member.package, _package(member, packages))
    return Line(what="member", after=member_text(member), member=member.name, detail=detail)


# --- the chain's own fields --------------------------------------------------------------------------------


def _moved(before: Hook, after: Hook) -> bool:
    return (before.kind, before.netns) != (after.kind, after.netns)


def _hook(before: Chain, after: Chain, done: Compared, fleet: Fleet) -> None:
    old, new = before.hook, after.hook
    if _moved(old, new) or old.interfaces != new.interfaces:
        lost, gained, same = fleet.interfaces(before, after)
        detail = "; ".join(
            part
            for part in (
                f"gains {', '.join(gained)}" if gained else "",
                f"loses {', '.join(lost)}" if lost else "",
                "the same interfaces" if same else "",
            )
            if part
        )
        done.line("hook", hook_words(old), hook_words(new), detail)
        if lost:
            done.note("RV012", f"no longer on {', '.join(lost)} ({old.kind})", "/spec/hook")
    if isinstance(old, XdpHook) and isinstance(new, XdpHook) and old.mode != new.mode:
        done.line("mode", old.mode, new.mode)
        done.note("RV031", f"mode {old.mode} → {new.mode}: the hook is empty for a moment", "/spec/hook/mode")
    if isinstance(old, TcHook) and isinstance(new, TcHook) and old.end != new.end:
        done.line("end", old.end, new.end)
        if new.end is TcEnd.PASS:
            done.note("RV024", "end is pass: packets skip every other tc program behind the chain", "/spec/hook/end")


def _selector(before: Chain, after: Chain, done: Compared, fleet: Fleet) -> None:
    if before.hosts == after.hosts:
        return
    lost, gained = fleet.hosts(before.hosts, after.hosts)
    detail = "; ".join(
        part
        for part in (f"gains {', '.join(gained)}" if gained else "", f"loses {', '.join(lost)}" if lost else "")
        if part
    )
    done.line("hosts", selector_words(before.hosts), selector_words(after.hosts), detail)
    if lost:
        done.note("RV013", f"no longer for {', '.join(lost)}", "/spec/hosts")


def _fields(before: Chain, after: Chain, done: Compared) -> None:
    if before.on_broken != after.on_broken:
        done.line("onBroken", before.on_broken, after.on_broken)
        if after.on_broken is OnBroken.PASS:
            done.note("RV015", "onBroken is pass: a packet passes when a tail call fails", "/spec/onBroken")
    if before.state_scope != after.state_scope:
        done.line("stateScope", before.state_scope, after.state_scope)


def _health(before: Health, after: Health, done: Compared) -> None:
    if before == after:
        return
    weaker = []
    if before.source != after.source:
        done.line("health.source", yes(before.source), yes(after.source))
        weaker += ["the source is no longer asked after a switch"] if before.source else []
    old, new = {check.connect: check for check in before.tcp}, {check.connect: check for check in after.tcp}
    for connect in sorted(old | new):
        was, now = old.get(connect), new.get(connect)
        if was == now:
            continue
        done.line(f"health.tcp {connect}", was and f"{was.within:g} s", now and f"{now.within:g} s")
        if was is not None and (now is None or now.within > was.within):
            weaker.append(f"tcp {connect} {'is no longer checked' if now is None else 'may take longer'}")
    was_stats = {(check.member, check.counter): check for check in before.stats}
    now_stats = {(check.member, check.counter): check for check in after.stats}
    for key in sorted(was_stats | now_stats):
        one, other = was_stats.get(key), now_stats.get(key)
        if one == other:
            continue
        name = f"{key[0]} {key[1]}"
        done.line(
            f"health.stats {name}",
            one and f"below {one.below:.0%} over {one.over:g} s",
            other and f"below {other.below:.0%} over {other.over:g} s",
        )
        if one is not None and (other is None or other.below > one.below or other.over < one.over):
            weaker.append(f"stats {name} {'is no longer checked' if other is None else 'is checked less'}")
    if weaker:
        done.note("RV016", "; ".join(weaker), "/spec/health")


# --- members -----------------------------------------------------------------------------------------------


def _members(before: Chain, after: Chain, old: Packages, new: Packages, done: Compared) -> None:
    was = {member.name: member for member in before.members}
    now = {member.name: member for member in after.members}
    renamed = _renamed(was, now)
    for name, member in was.items():
        if name not in now and name not in renamed:
            done.lines.append(Line(what="member", before=member_text(member), member=name))
            done.notes.append(
                Note(id="RV011", message=f"{member_text(member)} is removed", member=name, pointer="/spec/members")
            )
    origins = {later: earlier for earlier, later in renamed.items()}
    for index, member in enumerate(after.members):
        origin = was.get(origins.get(member.name, member.name))
        effects = Effects(member=member.name, pointer=f"/spec/members/{index}")
        if origin is None:
            effects.lines.append(_added(member, new))
        else:
            if origin.name != member.name:
                effects.lines.append(Line(what="name", before=origin.name, after=member.name, member=member.name))
            last = index == len(after.members) - 1
            _member(_sided(origin, old), _sided(member, new), effects, hook=after.hook, last=last)
            lost = state_losses((before, origin, _package(origin, old)), (after, member, _package(member, new)))
            for rule, message in lost:
                effects.note(rule, message, "/package")
            compare_signers(_package(origin, old), _package(member, new), effects)
        done.lines += effects.lines
        done.notes += effects.notes
    _order([name for name in was if name in now], [name for name in now if name in was], done)


def _renamed(was: Mapping[str, Member], now: Mapping[str, Member]) -> dict[str, str]:
    """Old name to new name of members that differ in nothing else."""
    free = {encode_record(replace(member, name="")): name for name, member in now.items() if name not in was}
    found = {}
    for name, member in was.items():
        if name not in now:
            later = free.pop(encode_record(replace(member, name="")), None)
            if later is not None:
                found[name] = later
    return found


def _package(member: Member, packages: Packages) -> ReviewPackage | None:
    found = packages.get(member.package)
    return found if isinstance(found, ReviewPackage) else None


def _sided(member: Member, packages: Packages) -> Sided:
    package = _package(member, packages)
    return Sided(member, package.manifest if package is not None else None)


def _member(was: Sided, now: Sided, effects: Effects, *, hook: Hook, last: bool) -> None:
    old, new = was.member, now.member
    _packages(old, new, effects)
    compare_settings(was, now, effects)
    _proceed(was, now, effects, hook=hook, last=last)
    if old.allow_state_loss != new.allow_state_loss:
        effects.lines.append(
            Line(
                what="allowStateLoss",
                before=yes(old.allow_state_loss),
                after=yes(new.allow_state_loss),
                member=new.name,
            )
        )


def _packages(old: Member, new: Member, effects: Effects) -> None:
    one, other = old.package, new.package
    if old.program != new.program:
        effects.lines.append(Line(what="program", before=old.program, after=new.program, member=new.name))
        effects.note("RV036", f"program {old.program} → {new.program}", "/program")
    if one == other:
        return
    effects.lines.append(
        Line(
            what="package",
            before=f"{one.name}-{one.version} {one.digest[:SHOWN_DIGEST]}",
            after=f"{other.name}-{other.version} {other.digest[:SHOWN_DIGEST]}",
            member=new.name,
        )
    )
    if one.name != other.name:
        effects.note("RV036", f"package {one.name} → {other.name}", "/package/name")
    elif one.version == other.version and one.digest != other.digest:
        effects.note("RV035", f"{one.name} {one.version} has another digest than before", "/package/digest")
    elif version_key(other.version) < version_key(one.version):
        effects.note("RV023", f"{one.name} {one.version} → {other.version}", "/package/version")


def version_key(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Orders semantic versions (semver.org 11); build metadata does not count."""
    core, _, pre = version.partition("+")[0].partition("-")
    parts = tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in pre.split(".") if pre)
    return tuple(int(number) for number in core.split(".")), not pre, parts


def _proceed(was: Sided, now: Sided, effects: Effects, *, hook: Hook, last: bool) -> None:
    old, new = _verdicts(was), _verdicts(now)
    if old is None or new is None:
        old, new = was.member.proceed_on, now.member.proceed_on
    if old == new:
        return
    effects.lines.append(Line(what="proceedOn", before=_listed(old), after=_listed(new), member=effects.member))
    if old is None or new is None:
        effects.note("RV040", f"proceedOn {_listed(old)} → {_listed(new)}, and the package is not known", "/proceedOn")
        return
    spellings = FAMILIES[hook.type]
    gained = {spellings.verdict(name) or name for name in new} - {spellings.verdict(name) or name for name in old}
    lost = set(old) - set(new)
    if stopping := sorted(gained & STOPPING):
        effects.note(
            "RV021", f"a packet with verdict {', '.join(stopping)} now goes on to the next member", "/proceedOn"
        )
    if not last and (passing := sorted(lost & PASSING)):
        effects.note("RV028", f"a packet with verdict {', '.join(passing)} now skips the members behind", "/proceedOn")


def _verdicts(side: Sided) -> tuple[str, ...] | None:
    if side.member.proceed_on is not None:
        return side.member.proceed_on
    if side.manifest is None:
        return None
    return next((spec.proceed_on for spec in side.manifest.programs if spec.name == side.member.program), None)


def _listed(verdicts: tuple[str, ...] | None) -> str:
    return "the package's default" if verdicts is None else ", ".join(verdicts) or "nothing"


def _order(old: list[str], new: list[str], done: Compared) -> None:
    if old != new:
        done.line("order", ", ".join(old), ", ".join(new))
        done.note("RV034", f"members run as {', '.join(new)}, before as {', '.join(old)}", "/spec/members")
