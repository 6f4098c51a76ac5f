# SPDX-License-Identifier: Apache-2.0
"""Loading a generation into the fake kernel, in the real order: create, fill, freeze, load, join, freeze, pin."""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Protocol, TypeVar

from reconciler.errors import KernelError, VerifierError
from reconciler.model import (
    STATS_COUNTERS,
    Generation,
    Identity,
    LoadedGeneration,
    LoadedMap,
    LoadedProgram,
    MapRole,
    MapUse,
    MemberLoad,
    Package,
    PinKind,
    content_digest,
)
from tests.sim._objects import (
    F_RDONLY_PROG,
    MAP_HASH,
    MAP_PERCPU_ARRAY,
    MAP_PROG_ARRAY,
    FakeMap,
    FakeProgram,
    ObjectKey,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.sim._world import World

Result = TypeVar("Result")

REJECT = b"REJECT"
"""An object that holds these bytes is refused by the fake's verifier."""

PASS_ON = -1
"""TCX_NEXT and TC_ACT_UNSPEC: any other `chain_end` on tc ends the hook for the packet."""


class Primitive(Protocol):
    """Runs one state-changing primitive; faults strike in here."""

    def __call__(self, what: str, action: Callable[[], Result]) -> Result: ...


class Loader:
    """One load; nothing of it stays when it fails."""

    def __init__(self, world: World, do: Primitive, generation: Generation, packages: Mapping[str, Package]) -> None:
        self._world = world
        self._do = do
        self._generation = generation
        self._packages = packages
        self._pinned: list[str] = []
        self._maps: list[LoadedMap] = []
        self._made: list[tuple[str, ObjectKey]] = []

    def load(self) -> LoadedGeneration:
        self._check_paths()
        before = set(self._world.descriptors)
        try:
            programs = self._load_members()
            self._join(programs)
            for path, key in [*self._made, *self._pins_of(programs)]:
                self._do("pin", lambda path=path, key=key: self._world._pin(path, key))  # type: ignore[misc]
                self._pinned.append(path)
        except KernelError:
            for path in reversed(self._pinned):
                self._do("unpin", lambda path=path: self._world.pins.pop(path))  # type: ignore[misc]
            self._world.descriptors &= before
            raise
        else:
            arrays = {(PinKind.MAP, map_.id) for map_ in self._maps if map_.role is MapRole.NEXT}
            self._world.descriptors = before | arrays
            return self._result(programs)
        finally:
            self._world._collect()

    def _check_paths(self) -> None:
        uses = [use for member in self._generation.members for use in member.maps]
        fresh = [use.pin for use in uses if not use.reuse] + [member.pin for member in self._generation.members]
        for path in fresh:
            if path in self._world.pins or fresh.count(path) > 1:
                raise KernelError(f"BPF_OBJ_PIN {path}", errno.EEXIST, "the path exists")
        for use in uses:
            if use.reuse and self._world.pins.get(use.pin, (None, 0))[0] is not PinKind.MAP:
                raise KernelError(f"BPF_OBJ_GET {use.pin}", errno.ENOENT, "the map to carry over is gone")

    # --- members -----------------------------------------------------------------------------------------

    def _load_members(self) -> list[FakeProgram]:
        members = self._generation.members
        return [self._load_member(member, last=index == len(members) - 1) for index, member in enumerate(members)]

    def _load_member(self, member: MemberLoad, *, last: bool) -> FakeProgram:
        maps = [(use, self._map(member, use)) for use in member.maps]
        package = self._packages.get(member.package)
        data = package.objects.get(member.object) if package is not None else None
        if data is None:
            raise KernelError(f"load {member.chain}/{member.member}", errno.ENOENT, f"no object {member.object}")
        if REJECT in data:
            log = f"func#0 @0\nR1 invalid mem access 'scalar'\nprocessed 7 insns\n{member.program} rejected\n"
            raise VerifierError(f"BPF_PROG_LOAD {member.program}", errno.EACCES, "R1 invalid mem access 'scalar'", log)
        by_role = {use.role: map_.id for use, map_ in maps}
        settings = {value.name: int.from_bytes(value.value, "little", signed=True) for value in member.globals}
        end = settings.get("chain_end", PASS_ON)

        def action() -> FakeProgram:
            program = self._world._add_program(
                type=member.type,
                name=member.program[:15],
                tag=hashlib.sha256(data + member.program.encode()).hexdigest()[:16],
                map_ids=tuple(map_.id for _, map_ in maps),
                generation=self._generation.name,
                chain=member.chain,
                member=member.member,
                last=bool(settings.get("chain_last", last)),
                stops=self._generation.kind != "xdp" and end != PASS_ON,
                next_map=by_role.get(MapRole.NEXT),
                stats_map=by_role.get(MapRole.STATS),
            )
            self._world.descriptors.add((PinKind.PROGRAM, program.id))
            return program

        return self._do("prog-load", action)

    def _map(self, member: MemberLoad, use: MapUse) -> FakeMap:
        world = self._world
        if use.reuse:
            map_ = world.maps[world.pins[use.pin][1]]
        else:

            def create() -> FakeMap:
                made = _blank(world._new_id(PinKind.MAP), use)
                world.maps[made.id] = made
                world.descriptors.add((PinKind.MAP, made.id))
                return made

            map_ = self._do("map-create", create)
            self._made.append((use.pin, (PinKind.MAP, map_.id)))
        if use.role is MapRole.CONFIG:
            self._do("map-fill", lambda: map_.entries.update(use.entries))
            self._do("freeze", lambda: setattr(map_, "frozen", True))
        content = content_digest(tuple(map_.entries.items())) if use.role is MapRole.CONFIG else None
        self._maps.append(
            LoadedMap(
                pin=use.pin,
                id=map_.id,
                role=use.role,
                chain=member.chain,
                member=member.member,
                name=use.name,
                key=use.key,
                layout=use.layout,
                content=content,
            )
        )
        return map_

    def _join(self, programs: list[FakeProgram]) -> None:
        for index, program in enumerate(programs):
            if program.next_map is None:
                continue
            array = self._world.maps[program.next_map]
            if index + 1 < len(programs):
                following = programs[index + 1].id
                self._do("slot-set", lambda array=array, following=following: setattr(array, "slot", following))  # type: ignore[misc]
            self._do("freeze", lambda array=array: setattr(array, "frozen", True))  # type: ignore[misc]
        self._world.wholes[self._generation.name] = tuple((prog.chain, prog.member) for prog in programs)

    # --- results -----------------------------------------------------------------------------------------

    def _pins_of(self, programs: list[FakeProgram]) -> list[tuple[str, ObjectKey]]:
        # The first program last: a generation whose p00 is pinned is whole.
        pairs = zip(self._generation.members, programs, strict=True)
        return [(member.pin, (PinKind.PROGRAM, program.id)) for member, program in pairs][::-1]

    def _result(self, programs: list[FakeProgram]) -> LoadedGeneration:
        return LoadedGeneration(
            name=self._generation.name,
            digest=self._generation.digest,
            kind=self._generation.kind,
            programs=tuple(
                LoadedProgram(
                    pin=member.pin,
                    identity=Identity(id=program.id, load_time=program.load_time),
                    chain=member.chain,
                    member=member.member,
                )
                for member, program in zip(self._generation.members, programs, strict=True)
            ),
            maps=tuple(self._maps),
        )


def _blank(number: int, use: MapUse) -> FakeMap:
    match use.role:
        case MapRole.NEXT:
            return FakeMap(id=number, type=MAP_PROG_ARRAY)
        case MapRole.STATS:
            return FakeMap(id=number, type=MAP_PERCPU_ARRAY, value_size=16, max_entries=len(STATS_COUNTERS))
        case MapRole.CONFIG:
            key, value = use.entries[0] if use.entries else (bytes(4), bytes(4))
            return FakeMap(
                id=number,
                type=MAP_HASH,
                key_size=len(key),
                value_size=len(value),
                max_entries=1024,
                flags=F_RDONLY_PROG,
            )
        case MapRole.STATE:
            return FakeMap(id=number, type=MAP_HASH, key_size=16, value_size=8, max_entries=4096)
