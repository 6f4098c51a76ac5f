# SPDX-License-Identifier: Apache-2.0
"""From chains and packages to the exact content of a generation: bytes of globals, entries of maps, pin paths.

Invariant: equal content gives an equal digest, and anything that changes what the kernel would run changes it. Pins of
the generation itself are no part of the content; paths of carried maps are (they contain chain, member and layout).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, assert_never

from reconciler import elf
from reconciler.errors import Diagnostic, ElfError, EncodingError
from reconciler.model import (
    MAX_CHAIN_MEMBERS,
    TC_VERDICTS,
    XDP_VERDICTS,
    Chain,
    Features,
    Generation,
    GlobalValue,
    HookKind,
    HookPoint,
    MapRole,
    MapUse,
    Member,
    MemberLoad,
    OnBroken,
    Package,
    ProgramSpec,
    StateScope,
    Support,
    TcEnd,
    TcHook,
    XdpHook,
    digest_of,
    encode_json,
    family_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.model import Json, MapEntry, MapSpec, ParamSpec

NAME_DIGITS: Final = 32
"""Hex digits of a digest in a name: 128 bits, far below bpffs' limit of 255 bytes for a name."""

SHOWN_ENTRIES: Final = 6
"""Entries of a map that a plan spells out; longer ones are told apart by a digest."""

NEXT_BIT: Final = 31
"""The bit of chain_proceed that stands for verdict -1 (TCX_NEXT / TC_ACT_UNSPEC): bpf/include/chain.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a generation consists of, before it has a name; `members` carry pins of carried maps only."""

    digest: str
    kind: HookKind
    members: tuple[MemberLoad, ...]


@lru_cache(maxsize=256)
def read_object(data: bytes, name: str) -> elf.Object:
    """`elf.read_object`, once per object and process."""
    return elf.read_object(data, name=name)


def instantiate(content: Content, number: int, existing: frozenset[str]) -> Generation:
    """The generation `<digest>_<number>` with all its pins; carried maps whose pin exists are reused."""
    name = f"{content.digest[:NAME_DIGITS]}_{number}"
    members = []
    for index, member in enumerate(content.members):
        maps = []
        for map_index, use in enumerate(member.maps):
            match use.role:
                case MapRole.NEXT:
                    maps.append(replace(use, pin=f"gen/{name}/n{index:02}"))
                case MapRole.CONFIG:
                    maps.append(replace(use, pin=f"gen/{name}/c{index:02}_{map_index:02}"))
                case MapRole.STATE | MapRole.STATS:
                    maps.append(replace(use, reuse=use.pin in existing))
                case _:
                    assert_never(use.role)
        members.append(replace(member, pin=f"gen/{name}/p{index:02}", maps=tuple(maps)))
    return Generation(name=name, digest=content.digest, kind=content.kind, members=tuple(members))


def compile_chains(
    chains: tuple[Chain, ...],
    point: HookPoint,
    packages: Mapping[str, Package],
    features: Features,
) -> tuple[Content | None, tuple[Diagnostic, ...]]:
    """The content for `chains` (in order of priority) on `point`, and everything that is wrong with them."""
    flat = [(chain, index, member) for chain in chains for index, member in enumerate(chain.members)]
    findings = list(_joint_findings(chains, len(flat)))
    broken = OnBroken.DROP if any(chain.on_broken is OnBroken.DROP for chain in chains) else OnBroken.PASS
    members: list[MemberLoad] = []
    sections: dict[str, str] = {}
    for position, (chain, index, member) in enumerate(flat):
        where = f"/spec/members/{index}"
        compiler = _MemberCompiler(
            chain=chain,
            member=member,
            point=point,
            package=packages[member.package.digest],
            place=_Place(last=position == len(flat) - 1, broken=broken, pointer=where),
        )
        load = compiler.load(features)
        findings += compiler.findings
        if load is not None:
            members.append(load)
            sections.setdefault(compiler.section, f"{chain.name}/{member.name}")
    if len(sections) > 1:
        places = ", ".join(f'{who} is in section "{section}"' for section, who in sorted(sections.items()))
        findings.append(
            _finding(chains[0], "/spec/members", f"expected all members of a hook in one section, got: {places}")
        )
    if findings:
        return None, tuple(findings)
    kind = point.kind
    content = [replace(load, settings={}) for load in members]
    digest = digest_of({"kind": kind, "members": content, "format": 1})
    return Content(digest=digest, kind=kind, members=tuple(members)), ()


def _joint_findings(chains: tuple[Chain, ...], total: int) -> Iterator[Diagnostic]:
    if total > MAX_CHAIN_MEMBERS:
        names = ", ".join(chain.name for chain in chains)
        limit = f"{MAX_CHAIN_MEMBERS} members on one hook (the kernel's tail-call limit)"
        message = f"expected at most {limit}, got {total} in {names}"
        yield _finding(chains[-1], "/spec/members", message)
    first = chains[0]
    for other in chains[1:]:
        if other.hook.shared != first.hook.shared:
            fields = " and ".join(first.hook.shared)
            message = f"expected the same {fields} as chain {first.name} on the same hook, got another"
            yield _finding(other, "/spec/hook", message)


def _finding(chain: Chain, pointer: str, message: str) -> Diagnostic:
    return Diagnostic(message=f"chain {chain.name}: {message}", file=chain.file or None, pointer=pointer)


def end_verdict(chain: Chain) -> int:
    """`chain_end` of the hook: what a packet gets that every member let through."""
    match chain.hook:
        case XdpHook():
            return XDP_VERDICTS["pass"]
        case TcHook(end=TcEnd.PASS):
            return TC_VERDICTS["ok"]
        case TcHook():
            return TC_VERDICTS["next"]
        case _:
            assert_never(chain.hook)


def broken_verdict(kind: HookKind, broken: OnBroken) -> int:
    """`chain_broken` of the hook."""
    return family_of(kind).broken[broken]


def verdicts(kind: HookKind) -> Mapping[str, int]:
    """Verdict names valid on a hook, aliases included."""
    return family_of(kind).spellings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a member stands: whether anything follows it on the hook, and where in its manifest it is written."""

    last: bool
    broken: OnBroken
    pointer: str


class _MemberCompiler:
    """One member to one `MemberLoad`; collects every finding instead of stopping at the first."""

    def __init__(
        self,
        *,
        chain: Chain,
        member: Member,
        point: HookPoint,
        package: Package,
        place: _Place,
    ) -> None:
        self.chain = chain
        self.member = member
        self.point = point
        self.package = package
        self.last = place.last
        self.broken = place.broken
        self.pointer = place.pointer
        self.findings: list[Diagnostic] = []
        self.section = ""

    def fail(self, message: str, pointer: str = "") -> None:
        text = f"member {self.member.name}: {message}"
        self.findings.append(_finding(self.chain, self.pointer + pointer, text))

    def load(self, features: Features) -> MemberLoad | None:
        program = next((spec for spec in self.package.manifest.programs if spec.name == self.member.program), None)
        if program is None:
            known = ", ".join(spec.name for spec in self.package.manifest.programs)
            self.fail(
                f"expected a program of package {self.package.ref.name} ({known}), got {self.member.program}",
                "/program",
            )
            return None
        self._check_program(program, features)
        try:
            obj = read_object(self.package.objects[program.object], program.object)
        except (ElfError, KeyError) as error:
            self.fail(f"object {program.object}: {error}")
            return None
        self.section = next((found.section for found in obj.programs if found.name == program.name), "")
        values = (*self._params(obj), *self._contract(obj, program))
        maps = tuple(self._maps(obj))
        if self.findings:
            return None
        return MemberLoad(
            chain=self.chain.name,
            member=self.member.name,
            package=self.package.ref.digest,
            object=program.object,
            program=program.name,
            type=program.type,
            pin="",
            globals=tuple(sorted(values, key=lambda value: (value.section, value.offset))),
            maps=maps,
            settings=self._settings(program),
        )

    def _settings(self, program: ProgramSpec) -> dict[str, str]:
        ref, member = self.member.package, self.member
        settings = {"package": f"{ref.name}-{ref.version} {ref.digest[:19]}", "program": program.name}
        settings["proceedOn"] = " ".join(member.proceed_on if member.proceed_on is not None else program.proceed_on)
        for spec in self.package.manifest.params:
            value = member.params.get(spec.name, spec.default)
            if value is not None:
                settings[spec.name] = f"{_short(value)} {spec.unit}" if spec.unit else _short(value)
        for name, entries in member.maps.items():
            pairs = [f"{_short(entry.key)}={_short(entry.value)}" for entry in entries]
            shown = " ".join(pairs) if len(pairs) <= SHOWN_ENTRIES else f"digest {digest_of(pairs)[:8]}"
            settings[name] = f"{len(pairs)} entries ({shown})" if len(pairs) != 1 else f"1 entry ({shown})"
        return settings

    def _check_program(self, program: ProgramSpec, features: Features) -> None:
        if self.point.kind not in program.hooks:
            allowed = ", ".join(program.hooks)
            self.fail(
                f"expected a program for {self.point.kind}, got {program.name}, which is for {allowed}", "/program"
            )
        for feature in self.package.manifest.features:
            if features.get(feature) is Support.NO:
                self.fail(
                    f"package {self.package.ref.name} needs the kernel feature {feature}, which this host lacks",
                    "/package",
                )
        if program.contract:
            return
        if not self.last:
            self.fail(
                f"program {program.name} does not follow the chain contract, so it can only be the last member",
                "/program",
            )
        if self.member.proceed_on is not None and set(self.member.proceed_on) != set(program.proceed_on):
            declared = ", ".join(program.proceed_on)
            self.fail(
                f"expected the package's own proceedOn ({declared}), got another that it cannot honour", "/proceedOn"
            )

    # --- globals -----------------------------------------------------------------------------------------

    def _params(self, obj: elf.Object) -> Iterator[GlobalValue]:
        specs = {spec.name: spec for spec in self.package.manifest.params}
        for name in self.member.params:
            if name not in specs:
                known = ", ".join(sorted(specs)) or "none"
                self.fail(
                    f"expected a parameter of package {self.package.ref.name} ({known}), got {name}", f"/params/{name}"
                )
        for spec in specs.values():
            value = self._param(obj, spec)
            if value is not None:
                yield value

    def _param(self, obj: elf.Object, spec: ParamSpec) -> GlobalValue | None:
        value = self.member.params.get(spec.name, spec.default)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            low, high = spec.minimum, spec.maximum
            if (low is not None and value < low) or (high is not None and value > high):
                unit = f" {spec.unit}" if spec.unit else ""
                self.fail(f"{spec.name}: expected {low}..{high}{unit}, got {value}", f"/params/{spec.name}")
                return None
        variable = next((found for found in obj.globals if found.name == spec.name), None)
        if variable is None:
            self.fail(f"{spec.name}: the object has no such global", f"/params/{spec.name}")
            return None
        try:
            data = elf.encode(obj.btf, variable.type_id, value, where=spec.name, format=spec.format)
        except EncodingError as error:
            self.fail(str(error), f"/params/{spec.name}")
            return None
        return GlobalValue(name=spec.name, section=variable.section, offset=variable.offset, value=data)

    def _contract(self, obj: elf.Object, program: ProgramSpec) -> Iterator[GlobalValue]:
        if not program.contract:
            return
        values = {
            "chain_proceed": self._mask(program).to_bytes(4, "little"),
            "chain_last": int(self.last).to_bytes(4, "little"),
            "chain_end": end_verdict(self.chain).to_bytes(4, "little", signed=True),
            "chain_broken": broken_verdict(self.point.kind, self.broken).to_bytes(4, "little", signed=True),
        }
        variables = {found.name: found for found in obj.globals}
        for name, data in values.items():
            if name not in variables:
                self.fail(f"program {program.name} says it follows the chain contract, but the object lacks {name}")
                continue
            yield GlobalValue(name=name, section=variables[name].section, offset=variables[name].offset, value=data)

    def _mask(self, program: ProgramSpec) -> int:
        names = self.member.proceed_on if self.member.proceed_on is not None else program.proceed_on
        known = verdicts(self.point.kind)
        mask = 0
        for index, name in enumerate(names):
            if name not in known:
                self.fail(
                    f"expected a verdict of {self.point.kind} ({', '.join(known)}), got {name}", f"/proceedOn/{index}"
                )
                continue
            mask |= 1 << (NEXT_BIT if known[name] < 0 else known[name])
        return mask

    # --- maps --------------------------------------------------------------------------------------------

    def _maps(self, obj: elf.Object) -> Iterator[MapUse]:
        specs = {spec.name: spec for spec in self.package.manifest.maps}
        for name in self.member.maps:
            if name not in specs or specs[name].role is not MapRole.CONFIG:
                known = ", ".join(sorted(s.name for s in specs.values() if s.role is MapRole.CONFIG)) or "none"
                self.fail(
                    f"expected a config map of package {self.package.ref.name} ({known}), got {name}", f"/maps/{name}"
                )
        present = {found.name for found in obj.maps}
        for spec in specs.values():
            if spec.name not in present:
                continue
            match spec.role:
                case MapRole.CONFIG:
                    yield MapUse(name=spec.name, role=spec.role, pin="", entries=self._entries(obj, spec))
                case MapRole.NEXT:
                    yield MapUse(name=spec.name, role=spec.role, pin="")
                case MapRole.STATE | MapRole.STATS:
                    yield self._carried(obj, spec)
                case _:
                    assert_never(spec.role)

    def _carried(self, obj: elf.Object, spec: MapSpec) -> MapUse:
        layout = elf.layout_digest(elf.map_layout(obj, spec.name, spec.state_version))
        key = f"{self.chain.name}/{self.member.name}/{spec.name}"
        if self.chain.state_scope is StateScope.INTERFACE:
            key = f"{key}@{self.point.scope}"
        return MapUse(name=spec.name, role=spec.role, pin=state_pin(key, layout), key=key, layout=layout)

    def _entries(self, obj: elf.Object, spec: MapSpec) -> tuple[tuple[bytes, bytes], ...]:
        declared = self.member.maps.get(spec.name, ())
        definition = next(found for found in obj.maps if found.name == spec.name)
        if len(declared) > definition.max_entries:
            self.fail(
                f"map {spec.name}: expected at most {definition.max_entries} entries, got {len(declared)}",
                f"/maps/{spec.name}/entries",
            )
        entries: dict[bytes, bytes] = {}
        for index, entry in enumerate(declared):
            pointer = f"/maps/{spec.name}/entries/{index}"
            pair = self._entry(obj, spec, definition, entry, pointer)
            if pair is None:
                continue
            if pair[0] in entries:
                self.fail(f"map {spec.name}: the key {entry.key!r} stands twice", f"{pointer}/key")
            entries[pair[0]] = pair[1]
        return tuple(sorted(entries.items()))

    def _entry(
        self, obj: elf.Object, spec: MapSpec, definition: elf.MapDef, entry: MapEntry, pointer: str
    ) -> tuple[bytes, bytes] | None:
        if definition.key_type_id is None or definition.value_type_id is None:
            self.fail(f"map {spec.name} has no BTF types, so entries cannot be declared", pointer)
            return None
        try:
            key = elf.encode(
                obj.btf, definition.key_type_id, entry.key, where=f"{spec.name}.key", format=spec.key_format
            )
            value = elf.encode(
                obj.btf, definition.value_type_id, entry.value, where=f"{spec.name}.value", format=spec.value_format
            )
        except EncodingError as error:
            self.fail(str(error), pointer)
            return None
        return key, value


def _short(value: Json) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()


def state_pin(key: str, layout: str) -> str:
    """Path of a carried map: the same path means the same map, so it is reused."""
    text = f"{key}\0{layout}".encode()
    return f"state/{hashlib.sha256(text).hexdigest()[:NAME_DIGITS]}"
