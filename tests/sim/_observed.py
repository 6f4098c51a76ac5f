# SPDX-License-Identifier: Apache-2.0
"""The reading half of the protocol on the fake kernel. Nothing in here changes what it reads, but for one thing:
a snapshot takes descriptors of pinned tail-call arrays, as the agent does to keep them from being flushed.
"""

from __future__ import annotations

import errno
import fnmatch
from typing import TYPE_CHECKING

from reconciler.errors import KernelError
from reconciler.kernel import MemberStats, Scope
from reconciler.model import (
    AttachKind,
    Features,
    HookKind,
    HookPoint,
    HookState,
    Identity,
    Interface,
    Link,
    LoadedGeneration,
    MapRole,
    ObservedMap,
    OwnedAttachment,
    Pin,
    PinKind,
    Program,
    Snapshot,
    Support,
    content_digest,
)
from tests.sim._faults import Faults
from tests.sim._foreign import ForeignActivity
from tests.sim._objects import MAP_PROG_ARRAY, Device, FakeLink, FakeMap, FakeProgram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Observed(ForeignActivity):
    """What our process sees of the machine.

    Attributes:
        incomplete: snapshots say that a walk did not finish.
    """

    def __init__(self, *, features: Features, id_limit: int) -> None:
        super().__init__(id_limit=id_limit)
        self.forced_features = features
        self.faults = Faults()
        self.incomplete = False

    def boot_id(self) -> str:
        return f"00000000-0000-4000-8000-{self.boot:012d}"

    def features(self) -> Features:
        self.faults.alive()
        return self.forced_features

    @property
    def _tcx(self) -> bool:
        return self.forced_features.tcx is Support.YES

    def snapshot(self, scope: Scope) -> Snapshot:
        self.faults.alive()
        self._hold_arrays()
        namespaces = {name: self.namespaces[name] for name in scope.namespaces if name in self.namespaces}
        names = {inode: name for name, inode in namespaces.items()}
        devices = [device for device in self.devices.values() if device.netns in names]
        points = [self.point_of(device, kind) for device in devices for kind in HookKind if self._wanted(scope, device)]
        points += [point for point in self._own_points() if point not in points and point.netns_inode in names]
        return Snapshot(
            boot_id=self.boot_id(),
            features=self.forced_features,
            interfaces=tuple(
                Interface(
                    netns=names[device.netns],
                    netns_inode=device.netns,
                    ifindex=device.ifindex,
                    name=device.name,
                )
                for device in devices
            ),
            hooks={point: self._state(point) for point in points},
            programs={number: _program(program) for number, program in self.programs.items()},
            links={number: _link(link) for number, link in self.links.items()},
            pins=tuple(sorted(Pin(path=path, kind=key[0], id=key[1]) for path, key in self.pins.items())),
            folders=tuple(
                sorted(each for each in self.folders if not any(pin.startswith(f"{each}/") for pin in self.pins))
            ),
            maps=self._own_maps(),
            namespaces=namespaces,
            missing=tuple(name for name in scope.namespaces if name not in self.namespaces),
            complete=not self.incomplete,
            bpffs_id=self.bpffs_id,
        )

    def _wanted(self, scope: Scope, device: Device) -> bool:
        if scope.interfaces is None:
            return True
        name = next(name for name, inode in self.namespaces.items() if inode == device.netns)
        return any(fnmatch.fnmatchcase(device.name, glob) for glob in scope.interfaces.get(name, ()))

    def _own_points(self) -> list[HookPoint]:
        """All hooks of the interfaces that hold something of ours."""
        pinned = set(self.pins.values())
        found = []
        for device in self.devices.values():
            points = [self.point_of(device, kind) for kind in HookKind]
            keys = [
                key
                for point in points
                for seen in self.attachments(point)
                for key in ((PinKind.LINK, seen.link_id or 0), (PinKind.PROGRAM, seen.program_id))
            ]
            if not pinned.isdisjoint(keys):
                found += points
        return found

    def _own_maps(self) -> dict[int, ObservedMap]:
        return {
            number: _observed(self.maps[number], config=path.startswith("gen/") and path.split("/")[-1][0] == "c")
            for path, (kind, number) in sorted(self.pins.items(), key=lambda item: item[0].startswith("gen/"))
            if kind is PinKind.MAP
        }

    def _state(self, point: HookPoint) -> HookState:
        device = self._device_at(point)
        tc = point.kind is not HookKind.XDP
        attachments = self.attachments(point)
        if not self._tcx:
            attachments = tuple(
                seen for seen in attachments if seen.kind not in {AttachKind.TCX_LINK, AttachKind.TCX_PROG}
            )
        return HookState(
            point=point,
            attachments=attachments,
            revision=device.tcx[point.kind].revision if tc and self._tcx else None,
            settled=point not in self.unsettled,
            clsact=device.qdisc if tc else "none",
        )

    def read_hook(self, point: HookPoint) -> HookState:
        self.faults.alive()
        return self._state(self.point_of(self._device_at(point), point.kind))

    def first_program(self, generation: str) -> Identity:
        self.faults.alive()
        program = self._pinned_program(generation)
        return Identity(id=program.id, load_time=program.load_time)

    def _pinned_program(self, generation: str) -> FakeProgram:
        path = f"gen/{generation}/p00"
        kind, number = self.pins.get(path, (PinKind.MAP, 0))
        if kind is not PinKind.PROGRAM:
            raise KernelError(f"BPF_OBJ_GET {path}", errno.ENOENT, "no program is pinned there")
        return self.programs[number]

    def stats(self, generation: LoadedGeneration) -> Iterator[MemberStats]:
        self.faults.alive()
        for use in generation.maps:
            if use.role is MapRole.STATS and self.pins.get(use.pin) == (PinKind.MAP, use.id):
                yield MemberStats(chain=use.chain, member=use.member, counters=self.maps[use.id].totals())

    def not_alive(
        self, attachments: Sequence[OwnedAttachment], first: Mapping[str, Identity]
    ) -> tuple[OwnedAttachment, ...]:
        self.faults.alive()
        return tuple(owned for owned in attachments if not self._alive(owned, first[owned.generation]))

    def _alive(self, owned: OwnedAttachment, first: Identity) -> bool:
        try:
            attachments = self._state(owned.point).attachments
        except KernelError:
            return False
        return self._runs(first) and any(
            (seen.kind, seen.link_id, seen.filter, seen.program_id)
            == (owned.kind, owned.link_id, owned.filter, first.id)
            for seen in attachments
        )

    def _runs(self, identity: Identity) -> bool:
        program = self.programs.get(identity.id)
        return program is not None and identity.load_time == program.load_time

    def _hold_arrays(self) -> None:
        for key in self.pins.values():
            if key[0] is PinKind.MAP and self.maps[key[1]].type == MAP_PROG_ARRAY:
                self.descriptors.add(key)


def _program(program: FakeProgram) -> Program:
    return Program(
        id=program.id,
        type=program.type,
        name=program.name,
        tag=program.tag,
        load_time=program.load_time,
        map_ids=program.map_ids,
    )


def _link(link: FakeLink) -> Link:
    ifindex = link.device.ifindex if link.device is not None else 0
    return Link(id=link.id, type=link.type, program_id=link.program_id, ifindex=ifindex)


def _observed(map_: FakeMap, *, config: bool) -> ObservedMap:
    return ObservedMap(
        id=map_.id,
        type=map_.type,
        key_size=map_.key_size,
        value_size=map_.value_size,
        max_entries=map_.max_entries,
        flags=map_.flags,
        frozen=map_.frozen,
        slot=map_.slot,
        content=content_digest(tuple(map_.entries.items())) if config else None,
    )
