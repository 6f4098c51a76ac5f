# SPDX-License-Identifier: Apache-2.0
"""Loading: what is frozen, what is carried over, what is refused, and that a failure leaves nothing."""

from __future__ import annotations

import errno
import struct
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.errors import KernelError, StaleError, VerifierError
from reconciler.kernel import Scope, _bpf
from reconciler.kernel._load import summarize
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import (
    MAX_CHAIN_MEMBERS,
    Generation,
    HookKind,
    Identity,
    MapRole,
    MemberLoad,
    Package,
    PinKind,
    content_digest,
)
from tests.kernel import generations, support
from tests.kernel.generations import MemberDef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

KINDS = (HookKind.XDP, HookKind.TC_INGRESS)
FULL = MemberDef(name="one", deny=(7, 9), nets=("192.0.2.0/24", "10.0.0.0/8"), table=5)


@pytest.fixture
def kernel(pins: Path) -> Iterator[LinuxKernel]:
    with closing(LinuxKernel(pin_dir=pins)) as made:
        yield made


def change(wanted: Generation, index: int, how: Callable[[MemberLoad], MemberLoad]) -> Generation:
    members = list(wanted.members)
    members[index] = how(members[index])
    return replace(wanted, members=tuple(members))


def refused(kernel: LinuxKernel, pins: Path, wanted: Generation, packages: Mapping[str, Package]) -> KernelError:
    before = sorted(path for path in pins.rglob("*"))
    with pytest.raises(KernelError) as caught:
        kernel.load(wanted, packages)
    assert sorted(path for path in pins.rglob("*")) == before
    return caught.value


# === frozen ================================================================================================


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["next", "deny", "nets", "table"])
@pytest.mark.parametrize("way", ["id", "pin"])
def test_frozen_maps_refuse_update_and_delete(
    kernel: LinuxKernel, pins: Path, kind: HookKind, name: str, way: str
) -> None:
    loaded = kernel.load(*generations.generation(kind, (FULL, MemberDef(name="two"))))
    place = next(item for item in loaded.maps if (item.member, item.name) == ("one", name))
    opened = _bpf.map_by_id(place.id) if way == "id" else _bpf.obj_get(f"{pins}/{place.pin}")
    with _bpf.closing(opened) as descriptor:
        facts = _bpf.map_info(descriptor)
        value = bytes(facts.value_size)
        if name == "next":
            with (
                _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program,
                pytest.raises(PermissionError),
            ):
                _bpf.map_update(descriptor, bytes(4), program.to_bytes(4, "little"))
        for key in (bytes(facts.key_size), *_bpf.map_keys(descriptor, facts.key_size)):
            with pytest.raises(PermissionError):
                _bpf.map_update(descriptor, key, value)
            with pytest.raises(PermissionError):
                _bpf.map_delete(descriptor, key)


def test_config_maps_hold_exactly_the_declared_entries(kernel: LinuxKernel, pins: Path) -> None:
    wanted, packages = generations.generation(HookKind.XDP, (FULL,))
    loaded = kernel.load(wanted, packages)
    for use, item in zip(wanted.members[0].maps, loaded.maps, strict=True):
        if use.role is MapRole.CONFIG:
            with _bpf.closing(_bpf.obj_get(f"{pins}/{use.pin}")) as descriptor:
                facts = _bpf.map_info(descriptor)
                assert sorted(_bpf.map_entries(descriptor, facts)) == sorted(use.entries)
            assert item.content == content_digest(use.entries)
            assert facts.flags & _bpf.BPF_F_RDONLY_PROG
    trie = next(item for item in loaded.maps if item.name == "nets")
    assert kernel.snapshot(Scope(namespaces=())).maps[trie.id].flags == _bpf.BPF_F_RDONLY_PROG | 1  # NO_PREALLOC


def test_every_entry_of_a_large_map_is_in_its_digest(kernel: LinuxKernel) -> None:
    ports = tuple(range(1, 65))
    loaded = kernel.load(*generations.generation(HookKind.XDP, (MemberDef(name="one", deny=ports),)))
    item = next(item for item in loaded.maps if item.name == "deny")
    assert item.content == content_digest(tuple((struct.pack("=H", port), struct.pack("=I", 1)) for port in ports))


def test_state_and_stats_stay_writable_and_unmarked(kernel: LinuxKernel) -> None:
    loaded = kernel.load(*generations.generation(HookKind.XDP, (FULL,)))
    seen = kernel.snapshot(Scope(namespaces=())).maps
    for item in loaded.maps:
        if item.role in {MapRole.STATE, MapRole.STATS}:
            assert (seen[item.id].frozen, seen[item.id].flags, seen[item.id].content) == (False, 0, None)


# === next arrays ===========================================================================================


def test_the_last_member_has_an_empty_frozen_array(kernel: LinuxKernel) -> None:
    loaded = kernel.load(*generations.generation(HookKind.XDP, (FULL, MemberDef(name="two"))))
    seen = kernel.snapshot(Scope(namespaces=())).maps
    slots = [(seen[item.id].slot, seen[item.id].frozen) for item in loaded.maps if item.role is MapRole.NEXT]
    assert slots == [(loaded.programs[1].identity.id, True), (None, True)]


def test_an_array_whose_pin_is_removed_keeps_its_slot_while_the_agent_lives(kernel: LinuxKernel, pins: Path) -> None:
    loaded = kernel.load(*generations.generation(HookKind.XDP, (FULL, MemberDef(name="two"))))
    array = next(item for item in loaded.maps if item.role is MapRole.NEXT)
    (pins / array.pin).unlink()
    kernel.drain()
    kernel.repin(array.pin, PinKind.MAP, Identity(id=array.id))
    assert kernel.snapshot(Scope(namespaces=())).maps[array.id].slot == loaded.programs[1].identity.id


def test_the_next_agent_holds_the_arrays_from_its_first_snapshot(kernel: LinuxKernel, pins: Path) -> None:
    loaded = kernel.load(*generations.generation(HookKind.XDP, (FULL, MemberDef(name="two"))))
    array = next(item for item in loaded.maps if item.role is MapRole.NEXT)
    kernel.close()
    with closing(LinuxKernel(pin_dir=pins)) as following:
        following.snapshot(Scope(namespaces=()))
        (pins / array.pin).unlink()
        following.drain()
        following.repin(array.pin, PinKind.MAP, Identity(id=array.id))
        assert following.snapshot(Scope(namespaces=())).maps[array.id].slot == loaded.programs[1].identity.id


def test_unloading_gives_the_arrays_up(kernel: LinuxKernel) -> None:
    loaded = kernel.load(*generations.generation(HookKind.XDP, (FULL, MemberDef(name="two"))))
    array = next(item for item in loaded.maps if item.role is MapRole.NEXT)
    kernel.unload((*(item.pin for item in loaded.programs), *(item.pin for item in loaded.maps)))
    assert support.eventually(lambda: array.id not in set(_bpf.next_ids(_bpf.Cmd.MAP_GET_NEXT_ID)))
    with pytest.raises(StaleError):
        kernel.repin(array.pin, PinKind.MAP, Identity(id=array.id))


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_chain_loads(kernel: LinuxKernel, kind: HookKind) -> None:
    members = tuple(MemberDef(name=f"m{index}") for index in range(MAX_CHAIN_MEMBERS))
    loaded = kernel.load(*generations.generation(kind, members))
    assert len(loaded.programs) == MAX_CHAIN_MEMBERS


def test_frags_programs_load_together(kernel: LinuxKernel) -> None:
    members = (FULL, MemberDef(name="two"))
    loaded = kernel.load(*generations.generation(HookKind.XDP, members, define="HOOK_XDP_FRAGS"))
    assert len(loaded.programs) == 2


# === refused, and nothing left =============================================================================


def test_members_that_cannot_be_joined_leave_nothing(kernel: LinuxKernel, pins: Path) -> None:
    plain, packages = generations.generation(HookKind.XDP, (FULL, MemberDef(name="two")))
    frags, more = generations.generation(HookKind.XDP, (FULL, MemberDef(name="two")), define="HOOK_XDP_FRAGS")
    mixed = change(plain, 1, lambda _: replace(frags.members[1], maps=plain.members[1].maps))
    error = refused(kernel, pins, mixed, {**packages, **more})
    assert error.errno == errno.EINVAL
    assert "join chain/one to chain/two" in str(error)


def test_new_state_maps_go_and_carried_ones_stay_when_a_load_fails(kernel: LinuxKernel, pins: Path) -> None:
    loaded = kernel.load(*generations.generation(HookKind.XDP, (FULL,)))
    state = [item for item in loaded.maps if item.role in {MapRole.STATE, MapRole.STATS}]
    wanted, packages = generations.generation(HookKind.XDP, (FULL, MemberDef(name="two", program="broken")), text="b")
    wanted = change(
        wanted,
        0,
        lambda member: replace(
            member,
            maps=tuple(replace(use, reuse=use.role in {MapRole.STATE, MapRole.STATS}) for use in member.maps),
        ),
    )
    assert isinstance(refused(kernel, pins, wanted, packages), VerifierError)
    seen = kernel.snapshot(Scope(namespaces=())).maps
    assert {item.id for item in state} <= set(seen)


def test_a_rejected_program_is_summarized_in_one_line_with_the_whole_log(kernel: LinuxKernel, pins: Path) -> None:
    error = refused(kernel, pins, *generations.generation(HookKind.XDP, (MemberDef(name="one", program="broken"),)))
    assert isinstance(error, VerifierError)
    assert "invalid access to packet" in str(error)
    assert "\n" not in str(error)
    assert error.log.count("\n") > 50
    assert "processed" in error.log


@pytest.mark.parametrize(
    ("kind", "change_member", "said"),
    [
        (HookKind.XDP, {"program": "absent"}, "no program absent"),
        (HookKind.XDP, {"object": "absent.o"}, "no object absent.o"),
        (HookKind.XDP, {"type": "tc"}, "expected section tc, got xdp"),
        (HookKind.TC_INGRESS, {"type": "xdp"}, "expected section xdp or xdp.frags, got tc"),
        (HookKind.XDP, {"pin": "gen/../../x"}, "without dots"),
        (HookKind.XDP, {"pin": "/sys/fs/bpf/x"}, "relative"),
    ],
)
def test_what_does_not_fit_the_package_is_said(
    kernel: LinuxKernel, pins: Path, kind: HookKind, change_member: dict[str, Any], said: str
) -> None:
    wanted, packages = generations.generation(kind, (FULL,))
    error = refused(kernel, pins, change(wanted, 0, lambda member: replace(member, **change_member)), packages)
    assert said in str(error)


@pytest.mark.parametrize(
    ("section", "offset", "said"),
    [(".rodata", 100_000, "at 100000"), (".rodata", -1, "at -1"), (".absent", 0, ".absent"), (".maps", 0, ".maps")],
)
def test_globals_outside_their_section_are_refused(
    kernel: LinuxKernel, pins: Path, section: str, offset: int, said: str
) -> None:
    wanted, packages = generations.generation(HookKind.XDP, (FULL,))

    def moved(member: MemberLoad) -> MemberLoad:
        first, *others = member.globals
        return replace(member, globals=(*others, replace(first, section=section, offset=offset)))

    assert said in str(refused(kernel, pins, change(wanted, 0, moved), packages))


@pytest.mark.parametrize(
    ("entries", "number"),
    [
        (((b"\1\0", b"\0\0\0\0"), (b"\1\0", b"\1\0\0\0")), errno.EEXIST),
        (((b"\1", b"\0\0\0\0"),), errno.EINVAL),
        (((b"\1\0", b"\0\0\0"),), errno.EINVAL),
        (tuple((struct.pack("=H", port), b"\0\0\0\0") for port in range(1000)), errno.E2BIG),
    ],
    ids=["twice", "short key", "short value", "too many"],
)
def test_entries_that_do_not_fit_are_refused(
    kernel: LinuxKernel, pins: Path, entries: tuple[tuple[bytes, bytes], ...], number: int
) -> None:
    wanted, packages = generations.generation(HookKind.XDP, (FULL,))

    def filled(member: MemberLoad) -> MemberLoad:
        maps = tuple(replace(use, entries=entries) if use.name == "deny" else use for use in member.maps)
        return replace(member, maps=maps)

    error = refused(kernel, pins, change(wanted, 0, filled), packages)
    assert error.errno == number
    assert "chain/one map deny" in str(error)


def test_a_map_that_was_not_declared_is_not_made(kernel: LinuxKernel, pins: Path) -> None:
    wanted, packages = generations.generation(HookKind.XDP, (FULL,))

    def without(member: MemberLoad) -> MemberLoad:
        return replace(member, maps=tuple(use for use in member.maps if use.name != "hits"))

    error = refused(kernel, pins, change(wanted, 0, without), packages)
    assert isinstance(error, VerifierError)
    assert "hits" in error.log


def test_a_map_that_the_object_lacks_is_named(kernel: LinuxKernel, pins: Path) -> None:
    wanted, packages = generations.generation(HookKind.XDP, (FULL,))

    def more(member: MemberLoad) -> MemberLoad:
        return replace(member, maps=(*member.maps, replace(member.maps[0], name="absent", pin="gen/x/c99")))

    assert "no map absent" in str(refused(kernel, pins, change(wanted, 0, more), packages))


def test_garbage_is_no_object(kernel: LinuxKernel, pins: Path) -> None:
    wanted, packages = generations.generation(HookKind.XDP, (FULL,))
    garbage = {digest: replace(package, objects={"member.o": b"garbage"}) for digest, package in packages.items()}
    assert "not a proper ELF" in str(refused(kernel, pins, wanted, garbage))


# === the summary of a verifier log =========================================================================


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("0: R1=ctx() R10=fp0\n1: (95) exit\nR0 !read_ok\nprocessed 2 insns (limit 1000000)\n", "R0 !read_ok"),
        (
            "; x = 1; @ a.c:1\nfrom 1 to 3: R0=1\n3: (85) call\nback-edge from insn 7 to 3\n",
            "back-edge from insn 7 to 3",
        ),
        ("a\nb\nc\nverification time 5 usec\nstack depth 8\n", "b; c"),
        ("", "rejected without a reason"),
    ],
)
def test_the_last_meaningful_lines_are_the_summary(log: str, line: str) -> None:
    assert summarize(log) == line
