# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes: whatever they are, `reconciler.elf` returns or raises its own errors, within its limits.

And the inverse: what `encode` wrote, `decode` reads, for every type that can be described.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconciler.elf import Btf, Object, decode, encode, layout_digest, map_layout, read_object
from reconciler.errors import ElfError, EncodingError
from tests.elf_objects import PRELUDE, PROGRAM, BtfBuilder, compile_c, section_headers, section_of, strip

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE: Final = (
    PRELUDE
    + """
struct key { __u32 prefixlen; __u8 data[16]; };
struct value { __u64 packets; union { __be32 v4; struct in6_addr v6; }; char name[8]; enum { A, B } kind; __u8 b : 3; };
struct { __uint(type, BPF_MAP_TYPE_LPM_TRIE); __uint(max_entries, 9); __uint(map_flags, BPF_F_NO_PREALLOC);
         __type(key, struct key); __type(value, struct value); } nets SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __uint(key_size, 4);
         __uint(value_size, 4); } next SEC(".maps");
const volatile __u32 limit = 7;
const volatile __u16 ports[2][3] = {{1, 2, 3}};
const volatile struct value preset = {1};
const volatile _Bool on = 1;
static volatile __int128_t wide = 5;
__u64 counter;
extern int LINUX_KERNEL_VERSION __kconfig;
SEC("tc") int other(struct __sk_buff *skb)
{
    counter += limit + ports[counter & 1][0] + preset.packets + on + wide + LINUX_KERNEL_VERSION;
    return bpf_map_lookup_elem(&nets, &counter) != 0 || bpf_map_lookup_elem(&next, &counter) != 0;
}
"""
    + PROGRAM
)
INTERESTING: Final = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    1 << 24,
    1 << 31,
    0xFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
)

thorough = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def whole() -> bytes:
    return compile_c(SOURCE)


@functools.cache
def small() -> bytes:
    return strip(whole())


def use(obj: Object) -> None:
    """Ask everything that can be asked of an object."""
    for type_id in range(len(obj.btf)):
        assert len(obj.btf.describe(type_id)) < 20000
        obj.btf.definition(type_id)
        with contextlib.suppress(ElfError):
            obj.btf.structure(type_id)
    for each in obj.maps:
        with contextlib.suppress(ElfError):
            layout_digest(map_layout(obj, each.name))
    for variable in obj.globals:
        assert len(variable.initial) == variable.size
        convert(obj.btf, variable.type_id, variable.initial)


def convert(btf: Btf, type_id: int, data: bytes) -> None:
    with contextlib.suppress(ElfError, EncodingError):
        value = decode(btf, type_id, data[: btf.size(type_id)])
        encode(btf, type_id, value, where="v")


def survives(data: bytes) -> None:
    refused, obj = read_or_refuse(data)
    assert (refused is None) == (obj is not None)
    if refused is not None:
        assert refused.startswith("fuzz.o: ")
        assert refused.isprintable()
    if obj is not None:
        use(obj)


def read_or_refuse(data: bytes) -> tuple[str | None, Object | None]:
    try:
        return None, read_object(data, name="fuzz.o")
    except ElfError as error:
        return str(error), None


def hot_ranges() -> list[tuple[int, int]]:
    """Where a changed byte changes what is read: headers, symbols, names and types."""
    headers = section_headers(small())
    table = min(header[0] for header in headers.values())
    ranges = [(0, 64), (table, table + 64 * len(headers))]
    for name in (".symtab", ".strtab", ".BTF", ".BTF", ".BTF", ".rodata", ".maps", "license"):
        begin, size = headers[name][5:7]
        ranges.append((begin, begin + size))
    return ranges


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[int, str, int]]:
    changes = []
    for _number in range(draw(st.integers(1, 8))):
        begin, end = draw(st.sampled_from(hot_ranges()))
        layout = draw(st.sampled_from(("<B", "<H", "<I", "<Q")))
        size = struct.calcsize(layout)
        at = draw(st.integers(begin, end - 1))
        aligned = draw(st.booleans())
        at = min(at - at % size if aligned else at, len(small()) - size)
        value = draw(st.one_of(st.sampled_from(INTERESTING), st.integers(0, 1 << 64)))
        changes.append((at, layout, value & ((1 << 8 * size) - 1)))
    return changes


@thorough
@given(mutations())
def test_changed_objects(changes: list[tuple[int, str, int]]) -> None:
    data = bytearray(small())
    for at, layout, value in changes:
        struct.pack_into(layout, data, at, value)
    survives(bytes(data))


@settings(thorough, max_examples=100)
@given(st.floats(0, 1), st.booleans())
def test_truncated_objects(share: float, padded: bool) -> None:
    length = int(share * len(whole()))
    survives(whole()[:length] + bytes(len(whole()) - length if padded else 0))


@settings(thorough, max_examples=150)
@given(st.data())
def test_objects_with_pieces_moved(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 200))
    source, target = (data.draw(st.integers(0, len(small()) - size)) for _which in range(2))
    survives(small()[:target] + small()[source : source + size] + small()[target + size :])


@settings(thorough, max_examples=150)
@given(st.binary(max_size=200))
@example(b"\x7fELF")
def test_any_bytes(data: bytes) -> None:
    survives(data)
    survives(small()[:64] + data)
    with contextlib.suppress(ElfError):
        Btf.read(section_of(small(), ".BTF")[:24] + data)


# Types that refer to each other at random: most are nonsense, none may hurt.


@st.composite
def random_types(draw: st.DrawFn) -> Btf:
    builder = BtfBuilder()
    count = draw(st.integers(1, 12))
    reference = st.integers(0, count)
    names = st.sampled_from(("", "a", "b", "pad", "in6_addr", "in_addr", "__be32", "char", "bpf_timer", "prefixlen"))
    small = st.integers(0, 17)
    for _number in range(count):
        kind = draw(st.sampled_from((1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 10, 13, 16, 19)))
        name = draw(names)
        match kind:
            case 1:
                builder.integer(name, draw(st.sampled_from((1, 2, 4, 8, 16))), draw(st.integers(0, 7)))
            case 3:
                builder.array(draw(reference), draw(st.one_of(small, st.just(0xFFFFFFFF))))
            case 4 | 5:
                size = draw(small)
                flag = draw(st.booleans())
                members = [
                    (draw(names), draw(reference), draw(st.integers(0, 8 * size)))
                    for _member in range(draw(st.integers(0, 4)))
                ]
                builder.composite(name, size, *members, union=kind == 5, flag=flag)
            case 6:
                builder.add(6, name, draw(st.sampled_from((1, 4, 8))), builder.string("X"), draw(small), vlen=1)
            case 16:
                builder.add(16, name, 8)
            case 19:
                builder.add(19, name, 8, builder.string("X"), draw(small), 1, vlen=1)
            case 13:
                builder.add(13, "", draw(reference))
            case _:
                builder.add(kind, name, draw(reference))
    return Btf.read(builder.data())


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("10.0.0.0/8")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(("a", "b", "pad", "prefixlen", "s_addr")), inner, max_size=4),
    ),
    max_leaves=12,
)
formats = st.one_of(
    st.none(),
    st.sampled_from(("ipv4", "ipv6", "ip", "cidr", "cidr-mapped", "mac", "bytes", "text", "be16", "be32", "odd")),
    st.dictionaries(
        st.sampled_from(("", "a", "a.b", "b.a", ".")), st.sampled_from(("ipv4", "mac", "bytes")), max_size=2
    ),
)


@thorough
@given(random_types(), values, formats, st.binary(min_size=0, max_size=64))
def test_types_that_make_no_sense(btf: Btf, value: Any, form: Any, data: bytes) -> None:
    for type_id in range(len(btf) + 1):
        assert len(btf.describe(type_id)) < 2000
        btf.definition(type_id)
        with contextlib.suppress(ElfError):
            btf.structure(type_id)
        with contextlib.suppress(EncodingError):
            assert len(encode(btf, type_id, value, where="v", format=form)) == btf.size(type_id)
        with contextlib.suppress(ElfError):
            size = btf.size(type_id)
            with contextlib.suppress(EncodingError):
                decode(btf, type_id, data.ljust(min(size, 1000), b"\0")[:size], format=form)


# Types that make sense, with their values.


@dataclass(frozen=True, kw_only=True)
class Case:
    """A type as it is made in a builder, its size, and values of it."""

    make: Callable[[BtfBuilder], int]
    size: int
    values: st.SearchStrategy[Any]


def integer_case(size: int, *, signed: bool) -> Case:
    low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
    return Case(make=lambda b: b.integer(f"i{size}", size, int(signed)), size=size, values=st.integers(low, high))


def network_case(size: int) -> Case:
    return Case(
        make=lambda b: b.add(8, f"__be{8 * size}", b.integer("u", size)),
        size=size,
        values=st.ip_addresses(v=4).map(str) if size == 4 else st.integers(0, (1 << 8 * size) - 1),
    )


def enum_case(size: int, names: dict[str, int]) -> Case:
    def make(builder: BtfBuilder) -> int:
        words = [word for name, value in names.items() for word in (builder.string(name), value)]
        return builder.add(6, "e", size, *words, vlen=len(names), flag=True)

    return Case(make=make, size=size, values=st.sampled_from(sorted(names)))


def make_in6_addr(builder: BtfBuilder) -> int:
    return builder.composite("in6_addr", 16, ("u", builder.array(builder.integer("unsigned char", 1), 16), 0))


def make_lpm(builder: BtfBuilder, size: int) -> int:
    address = builder.array(builder.integer("unsigned char", 1), size)
    return builder.composite("", 4 + size, ("prefixlen", builder.integer("u", 4), 0), ("data", address, 32))


def networks(version: Literal[4, 6]) -> st.SearchStrategy[str]:
    bits = 32 if version == 4 else 128

    def network(address: Any, length: int) -> str:
        number = int(address) >> bits - length << bits - length
        return f"{type(address)(number)}/{length}"

    return st.builds(network, st.ip_addresses(v=version), st.integers(0, bits))


LEAVES: Final = st.one_of(
    st.builds(lambda size, signed: integer_case(size, signed=signed), st.sampled_from((1, 2, 4, 8, 16)), st.booleans()),
    st.just(Case(make=lambda b: b.integer("_Bool", 1, 4), size=1, values=st.booleans())),
    st.sampled_from((2, 4, 8)).map(network_case),
    st.just(enum_case(4, {"MINUS": -1, "ZERO": 0, "MANY": 77})),
    st.just(enum_case(1, {"small()": 5, "LARGE": 100})),
    st.just(Case(make=make_in6_addr, size=16, values=st.ip_addresses(v=6).map(str))),
    st.just(Case(make=lambda b: make_lpm(b, 4), size=8, values=networks(4))),
    st.just(Case(make=lambda b: make_lpm(b, 16), size=20, values=networks(6))),
    st.integers(0, 9).map(
        lambda count: Case(
            make=lambda b: b.array(b.integer("unsigned char", 1), count),
            size=count,
            values=st.binary(min_size=count, max_size=count).map(lambda data: f"0x{data.hex()}"),
        )
    ),
    st.just(
        Case(
            make=lambda b: b.array(b.integer("char", 1, 1), 9),
            size=9,
            values=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=2),
        )
    ),
)


def array_of(inner: Case, count: int) -> Case:
    lists = st.lists(inner.values, min_size=count, max_size=count)
    as_array = Case(make=lambda b: b.array(inner.make(b), count), size=count * inner.size, values=lists)
    # Arrays of bytes have their own way of being written.
    return inner if inner.size == 1 else as_array


def struct_of(inner: list[Case], gap: int, *, anonymous: bool) -> Case:
    offsets, at = [], 0
    for case in inner:
        offsets.append(at)
        at += case.size + gap
    size = at + gap

    def make(builder: BtfBuilder) -> int:
        members = [(f"m{i}", case.make(builder), 8 * offsets[i]) for i, case in enumerate(inner)]
        made = builder.composite("s", size, *members)
        return builder.composite("o", size, ("", made, 0)) if anonymous else made

    return Case(make=make, size=size, values=st.fixed_dictionaries({f"m{i}": c.values for i, c in enumerate(inner)}))


def union_of(inner: list[Case]) -> Case:
    # The widest member comes back; the others are shown through it.
    widest = max(inner, key=lambda case: case.size)

    def make(builder: BtfBuilder) -> int:
        members = [(f"m{i}", case.make(builder), 0) for i, case in enumerate(inner)]
        return builder.composite("u", widest.size, *members, union=True)

    index = next(i for i, case in enumerate(inner) if case is widest)
    return Case(make=make, size=widest.size, values=widest.values.map(lambda value: {f"m{index}": value}))


def bitfields_of(widths: list[int], *, signed: bool) -> Case:
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    size = (sum(widths) + 7) // 8

    def make(builder: BtfBuilder) -> int:
        number = builder.integer("n", 4, int(signed))
        members = [(f"b{i}", number, width << 24 | offsets[i]) for i, width in enumerate(widths)]
        return builder.composite("f", size, *members, flag=True)

    ranges = {
        f"b{i}": st.integers(-(1 << width - 1), (1 << width - 1) - 1) if signed else st.integers(0, (1 << width) - 1)
        for i, width in enumerate(widths)
    }
    return Case(make=make, size=size, values=st.fixed_dictionaries(ranges))


CASES: Final = st.recursive(
    st.one_of(
        LEAVES,
        st.builds(
            lambda widths, signed: bitfields_of(widths, signed=signed),
            st.lists(st.integers(1, 32), min_size=1, max_size=5),
            st.booleans(),
        ),
    ),
    lambda inner: st.one_of(
        st.builds(array_of, inner, st.integers(0, 3)),
        st.builds(
            lambda cases, gap, anonymous: struct_of(cases, gap, anonymous=anonymous),
            st.lists(inner, max_size=4),
            st.integers(0, 3),
            st.booleans(),
        ),
        st.builds(union_of, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=8,
)


@thorough
@given(CASES, st.data())
def test_what_was_encoded_is_decoded(case: Case, data: st.DataObject) -> None:
    builder = BtfBuilder()
    type_id = builder.add(10, "", case.make(builder))
    btf = Btf.read(builder.data())
    value = data.draw(case.values)
    encoded = encode(btf, type_id, value, where="v")
    assert len(encoded) == btf.size(type_id) == case.size
    decoded = decode(btf, type_id, encoded)
    assert decoded == value or encode(btf, type_id, decoded, where="v") == encoded


@thorough
@given(CASES, st.data())
def test_bytes_of_a_value_as_bytes(case: Case, data: st.DataObject) -> None:
    builder = BtfBuilder()
    type_id = case.make(builder)
    btf = Btf.read(builder.data())
    raw = data.draw(st.binary(min_size=case.size, max_size=case.size))
    text = decode(btf, type_id, raw, format="bytes")
    assert encode(btf, type_id, text, where="v", format="bytes") == raw
    convert(btf, type_id, raw)
