# SPDX-License-Identifier: Apache-2.0
"""Loading and unloading, and pins."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import KernelError, StaleError, VerifierError
from reconciler.model import (
    HookKind,
    Identity,
    MapRole,
    PinKind,
)
from tests.conformance.lab import (
    Scene,
    first,
    pins_of,
)
from tests.conformance.suite._common import assert_runs, eventually

if TYPE_CHECKING:
    from tests.conformance.lab import Lab


def test_load_pins_exactly_the_named_paths(lab: Lab) -> None:
    before = lab.pins()
    loaded = lab.load()
    assert lab.pins() - before == set(pins_of(loaded))
    assert all(pin.kind is PinKind.PROGRAM for pin in lab.look().pins if "/p" in pin.path)
    assert lab.kernel.first_program(loaded.name) == first(loaded)


def test_load_tells_what_it_made(lab: Lab) -> None:
    wanted, packages = lab.generation()
    loaded = lab.kernel.load(wanted, packages)
    seen = lab.look()
    assert (loaded.name, loaded.digest, loaded.kind) == (wanted.name, wanted.digest, lab.way.kind)
    assert [(each.chain, each.member, each.pin) for each in loaded.programs] == [
        (each.chain, each.member, each.pin) for each in wanted.members
    ]
    assert [(each.pin, each.role, each.name) for each in loaded.maps] == [
        (use.pin, use.role, use.name) for member in wanted.members for use in member.maps
    ]
    ids = {pin.path: pin.id for pin in seen.pins}
    assert [each.id for each in loaded.maps] == [ids[each.pin] for each in loaded.maps]
    for each in loaded.programs:
        assert ids[each.pin] == each.identity.id
        assert seen.programs[each.identity.id].identity == each.identity
        assert seen.programs[each.identity.id].type == ("xdp" if lab.way.kind is HookKind.XDP else "tc")


def test_members_are_joined_filled_and_frozen(lab: Lab) -> None:
    loaded = lab.load(3)
    maps = lab.look().maps
    slots = [maps[each.id].slot for each in loaded.maps if each.role is MapRole.NEXT]
    assert slots == [loaded.programs[1].identity.id, loaded.programs[2].identity.id, None]
    assert all(maps[each.id].frozen for each in loaded.maps if each.role in {MapRole.NEXT, MapRole.CONFIG})
    assert not any(maps[each.id].frozen for each in loaded.maps if each.role in {MapRole.STATE, MapRole.STATS})


def test_the_content_of_config_maps_is_told(lab: Lab) -> None:
    one, same, other = lab.load(text="a"), lab.load(text="a", number=1, reuse=True), lab.load(text="b", reuse=True)
    seen = lab.look().maps
    contents = []
    for loaded in (one, same, other):
        configs = [each for each in loaded.maps if each.role is MapRole.CONFIG]
        assert [each.content for each in configs] == [seen[each.id].content for each in configs]
        contents.append([each.content for each in configs])
    assert contents[0] == contents[1] != contents[2]
    assert all(each.content is None for each in one.maps if each.role is not MapRole.CONFIG)


def test_nobody_changes_tail_calls_and_declared_entries(lab: Lab) -> None:
    loaded = lab.load()
    assert {lab.write_to_map(each.pin) for each in loaded.maps if each.role is MapRole.NEXT} == {errno.EPERM}
    assert {lab.write_to_map(each.pin) for each in loaded.maps if each.role is MapRole.CONFIG} == {errno.EPERM}
    assert {lab.write_to_map(each.pin) for each in loaded.maps if each.role is MapRole.STATE} == {0}


def test_reuse_carries_state_and_stats_over_and_nothing_else(lab: Lab) -> None:
    old, new = lab.load(), lab.load(text="b", reuse=True)
    for before, after in zip(old.maps, new.maps, strict=True):
        kept = before.role in {MapRole.STATE, MapRole.STATS}
        assert (before.id == after.id, before.pin == after.pin) == (kept, kept)


def test_reuse_of_a_map_that_is_gone_fails_and_leaves_nothing(lab: Lab) -> None:
    before = lab.pins()
    with pytest.raises(KernelError):
        lab.load(reuse=True)
    assert lab.pins() == before


def test_a_taken_path_fails_and_leaves_nothing(lab: Lab) -> None:
    loaded = lab.load()
    before, identity = lab.pins(), lab.kernel.first_program(loaded.name)
    with pytest.raises(KernelError):
        lab.load()
    assert lab.pins() == before
    assert lab.kernel.first_program(loaded.name) == identity


def test_a_rejected_member_fails_with_its_log_and_leaves_nothing(lab: Lab) -> None:
    before = lab.pins()
    programs = set(lab.look().programs)
    wanted, packages = lab.generation(broken=True)
    with pytest.raises(VerifierError) as caught:
        lab.kernel.load(wanted, packages)
    assert "invalid" in caught.value.log
    assert lab.pins() == before
    # Others on this machine load programs too: what matters is what was new right after it, and stays.
    names = {member.program[:15] for member in wanted.members}
    new = {number for number, program in lab.look().programs.items() if program.name in names} - programs
    assert eventually(lambda: not new & set(lab.look().programs))
    with pytest.raises(KernelError):
        lab.kernel.first_program(wanted.name)


def test_a_package_that_is_not_there_fails_and_leaves_nothing(lab: Lab) -> None:
    before = lab.pins()
    wanted, _ = lab.generation()
    with pytest.raises(KernelError):
        lab.kernel.load(wanted, {})
    assert lab.pins() == before


def test_unload_removes_and_does_not_mind_what_is_gone(lab: Lab) -> None:
    before = lab.pins()
    loaded = lab.load()
    lab.kernel.unload((*pins_of(loaded), "gen/never_0/p00"))
    assert lab.pins() == before
    ids = {each.identity.id for each in loaded.programs}
    assert eventually(lambda: not ids & set(lab.look().programs))
    lab.kernel.unload(pins_of(loaded))
    lab.load()


def test_a_pin_that_somebody_removed_is_made_again(lab: Lab) -> None:
    scene = Scene.make(lab)
    array = next(each for each in scene.loaded.maps if each.role is MapRole.NEXT)
    program = scene.loaded.programs[0]
    wanted = [(array.pin, PinKind.MAP, Identity(id=array.id)), (program.pin, PinKind.PROGRAM, program.identity)]
    for path, kind, identity in wanted:
        lab.unpin(path)
        assert path not in lab.pins()
        lab.kernel.repin(path, kind, identity)
        assert {pin.id for pin in lab.look().pins if (pin.path, pin.kind) == (path, kind)} == {identity.id}
    assert_runs(lab, scene.point, scene.loaded)


def test_pinning_what_is_gone_is_stale(lab: Lab) -> None:
    loaded = lab.load()
    program = loaded.programs[0]
    lab.kernel.unload(pins_of(loaded))
    assert eventually(lambda: program.identity.id not in lab.look().programs)
    with pytest.raises(StaleError):
        lab.kernel.repin(program.pin, PinKind.PROGRAM, program.identity)


def test_pinning_another_program_of_that_id_is_stale(lab: Lab) -> None:
    loaded = lab.load()
    program = loaded.programs[0]
    older = replace(program.identity, load_time=program.identity.load_time - 1)
    lab.unpin(loaded.programs[1].pin)
    with pytest.raises(StaleError):
        lab.kernel.repin(loaded.programs[1].pin, PinKind.PROGRAM, older)
