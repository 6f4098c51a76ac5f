# SPDX-License-Identifier: Apache-2.0
"""Objects that no compiler writes: each check of the reader refuses the one thing that it is there for."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from reconciler.elf import Btf, Object, read_object
from reconciler.elf import _limits as limits
from reconciler.elf._maps import read_map
from reconciler.errors import ElfError
from tests.elf_objects import PRELUDE, PROGRAM, BtfBuilder, compile_c, patch, run_on, section_headers, section_of

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = (
    PRELUDE
    + """
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64); }
    array SEC(".maps");
const volatile __u32 first = 1;
const volatile __u32 second = 2;
static volatile __u32 third = 3;
__u32 zero;
extern int LINUX_KERNEL_VERSION __kconfig;
SEC("xdp") int other(struct xdp_md *ctx)
{
    return first + second + third + zero + LINUX_KERNEL_VERSION + (bpf_map_lookup_elem(&array, &zero) != 0);
}
"""
    + PROGRAM
)

OBJECT, DATA_SECTION, VARIABLE = 1, 15, 14


@pytest.fixture(scope="module")
def good() -> bytes:
    return compile_c(SOURCE)


def read(data: bytes) -> Object:
    return read_object(data, name="h.o")


def refusal(data: bytes) -> str:
    with pytest.raises(ElfError) as caught:
        read(data)
    assert str(caught.value).startswith("h.o: ")
    return str(caught.value)


def section_field(name: str, field: int, value: int) -> Callable[[bytes], bytes]:
    """Overwrite one field of a section header: 0 name, 1 type, 2 flags, 4 offset, 5 size, 6 link."""
    offsets, layouts = (0, 4, 8, 16, 24, 32, 40), ["<I", "<I", "<Q", "<Q", "<Q", "<Q", "<I"]
    return lambda data: patch(data, section_headers(data)[name][0] + offsets[field], layouts[field], value)


def header(offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: patch(data, offset, layout, value)


def symbol(name: str, field: int, value: int) -> Callable[[bytes], bytes]:
    """Overwrite one field of a symbol: 0 name, 1 info, 3 section, 4 value, 5 size."""

    def change(data: bytes) -> bytes:
        offsets, layouts = (0, 4, 5, 6, 8, 16), ["<I", "<B", "<B", "<H", "<Q", "<Q"]
        table = section_headers(data)[".symtab"]
        strings = section_of(data, ".strtab")
        for at in range(table[5], table[5] + table[6], 24):
            (text,) = struct.unpack_from("<I", data, at)
            if strings[text:].split(b"\0", 1)[0] == name.encode():
                return patch(data, at + offsets[field], layouts[field], value)
        raise AssertionError(name)

    return change


def rename(old: str, new: str) -> Callable[[bytes], bytes]:
    """Overwrite a name in the string table by one of the same length."""
    assert len(old) == len(new)

    def change(data: bytes) -> bytes:
        at = data.index(b"\0" + old.encode() + b"\0", section_headers(data)[".strtab"][5])
        return data[: at + 1] + new.encode() + data[at + 1 + len(old) :]

    return change


def placed(section: str, index: int, field: int, value: int) -> Callable[[bytes], bytes]:
    """Overwrite one field of a variable in a BTF data section: 0 type, 1 offset, 2 size."""

    def change(data: bytes) -> bytes:
        return patch(data, data_section_at(data, section) + 12 + 12 * index + 4 * field, "<I", value)

    return change


def data_section_at(data: bytes, name: str) -> int:
    at, _text = next((at, text) for kind, at, text in btf_types(data) if kind == DATA_SECTION and text == name.encode())
    return at


def btf_types(data: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, offset in the object and name of each type."""
    sizes = {1: 4, 3: 12, 14: 4, 17: 4}
    per_entry = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    begin = section_headers(data)[".BTF"][5]
    _types, length, strings, _strings = struct.unpack_from("<IIII", data, begin + 8)
    at, end, found = begin + 24, begin + 24 + length, []
    while at < end:
        name, info, _value = struct.unpack_from("<III", data, at)
        kind = info >> 24 & 0x1F
        text = data[begin + 24 + strings + name :].split(b"\0", 1)[0]
        found.append((kind, at, text))
        at += 12 + sizes.get(kind, 0) + per_entry.get(kind, 0) * (info & 0xFFFF)
    return found


def type_word(kind: int, name: str, word: int, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = next(at for k, at, text in btf_types(data) if (k, text) == (kind, name.encode()))
        return patch(data, at + 4 * word, "<I", value)

    return change


def type_id(data: bytes, kind: int, name: str) -> int:
    return next(i for i, (k, _at, text) in enumerate(btf_types(data), 1) if (k, text) == (kind, name.encode()))


def btf_header(offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: patch(data, section_headers(data)[".BTF"][5] + offset, layout, value)


def test_the_object_that_is_altered_here_is_good(good: bytes) -> None:
    obj = read(good)
    assert [program.name for program in obj.programs] == ["other", "prog"]
    assert [variable.name for variable in obj.globals] == ["zero", "third", "first", "second"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "expected an ELF object"),
        (lambda data: data[:63], "expected an ELF object"),
        (lambda data: b"MZ" + data, "expected an ELF object"),
        (lambda data: data + bytes(limits.MAX_OBJECT_BYTES), "expected an object of at most 16777216 bytes"),
        (header(4, "<B", 1), "expected ELF class 64, little endian, version 1, got 1, 1, 1"),
        (header(5, "<B", 0), "expected ELF class 64, little endian, version 1, got 2, 0, 1"),
        (header(5, "<B", 2), "expected a little-endian object"),
        (header(6, "<B", 0), "expected ELF class 64, little endian, version 1, got 2, 1, 0"),
        (header(16, "<H", 2), "expected a relocatable object (ET_REL), got e_type 2"),
        (header(18, "<H", 62), "expected an object for eBPF (e_machine 247), got 62"),
        (header(58, "<H", 40), "section headers of 64 bytes"),
        (header(60, "<H", 0), "expected 1 to 4096 section headers of 64 bytes, got 0"),
        (header(60, "<H", 4097), "expected 1 to 4096 section headers of 64 bytes, got 4097"),
        (header(60, "<H", 4096), "section table: expected 262144 bytes"),
        (header(40, "<Q", 1 << 63), "section table: expected"),
        (header(62, "<H", 2), "string table (e_shstrndx), got 2"),
        (header(62, "<H", 0xFFFF), "string table (e_shstrndx), got 65535"),
        (section_field(".BTF", 4, 1 << 40), "section .BTF: expected"),
        (section_field(".BTF", 5, 1 << 63), "section .BTF: expected"),
        (section_field("xdp", 0, 1 << 31), "expected a name inside the string table"),
        (section_field(".BTF", 0, 0), "expected a .BTF section, got none"),
        (section_field(".BTF", 1, 8), "section .BTF: expected contents (SHT_PROGBITS), got type 8"),
        (section_field("license", 1, 7), "section license: expected contents (SHT_PROGBITS), got type 7"),
        (section_field(".data", 2, 0x802), "section .data: expected it uncompressed"),
        (section_field(".symtab", 1, 1), "expected one symbol table, got 0"),
        (section_field(".strtab", 1, 2), "expected the number of the section names' string table"),
        (section_field(".symtab", 6, 3), "symbol table: expected the number of its string table, got 3"),
        (section_field(".symtab", 6, 4096), "symbol table: expected the number of its string table, got 4096"),
        (section_field(".symtab", 5, 25), "symbols of 24 bytes, got a table of 25 bytes"),
        (symbol("first", 0, 1 << 31), "expected a name inside the string table"),
        (symbol("first", 3, 0xFE00), "symbol first: expected one of"),
    ],
)
def test_container(good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refusal(change(good))


def test_names_must_end_and_be_printable(good: bytes) -> None:
    assert r"expected a name of printable ASCII characters, got b'fi\nst'" in refusal(rename("first", "fi\nst")(good))
    begin, size = section_headers(good)[".strtab"][5:7]
    endless = good[:begin] + b"x" * size + good[begin + size :]
    assert "expected a name of at most 511 characters that ends inside its string table" in refusal(endless)


def test_two_sections_of_one_name_would_be_read_differently_by_libbpf(good: bytes) -> None:
    name = section_headers(good)[".rodata"][1]
    assert "expected one section .rodata, got two" in refusal(section_field(".data", 0, name)(good))


def test_two_symbol_tables(good: bytes) -> None:
    assert "expected one symbol table, got 2" in refusal(section_field(".llvm_addrsig", 1, 2)(good))


def test_reserved_and_undefined_symbols_are_skipped(good: bytes) -> None:
    for number in (0, 0xFFF1):
        obj = read(symbol("LICENSE", 3, number)(good))
        assert obj.license == "Dual BSD/GPL"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (symbol("prog", 5, 0), "program prog: expected whole instructions, got 0 bytes"),
        (symbol("prog", 5, 12), "program prog: expected whole instructions, got 12 bytes"),
        (symbol("prog", 4, 4), "program prog: expected whole instructions"),
        (symbol("prog", 5, 1 << 62), "program prog: expected it inside the"),
        (symbol("prog", 4, 1 << 62), "program prog: expected it inside the"),
        (symbol("prog", 4, 8), "overlap"),
        (symbol("prog", 1, 2), "program prog: expected a global function, got a static one in xdp"),
        (rename("other", "ot-er"), "program 'ot-er': expected a C identifier of at most 128 characters"),
        (section_field("xdp", 1, 8), "program other: expected code in section xdp, got none"),
    ],
)
def test_programs(good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refusal(change(good))


def test_program_names_are_unique() -> None:
    data = compile_c(PRELUDE + 'SEC("xdp") int one(void *c) { return 0; } SEC("tc") int two(void *c) { return 0; }')
    assert "expected one program two, got 2" in refusal(rename("one", "two")(data))


def test_too_many_programs() -> None:
    many = "".join(f'SEC("xdp") int p{i}(void *c) {{ return 0; }}' for i in range(limits.MAX_PROGRAMS + 1))
    assert "expected at most 256 programs" in refusal(compile_c(PRELUDE + many))


def test_too_many_maps() -> None:
    many = "".join(f'struct {{ __uint(type, 2); }} m{i} SEC(".maps");' for i in range(limits.MAX_MAPS + 1))
    assert "expected at most 256 maps, got 257" in refusal(compile_c(PRELUDE + many + PROGRAM))


def test_too_many_globals() -> None:
    many = "".join(f"const volatile char g{i} = {i % 100};" for i in range(limits.MAX_GLOBALS + 1))
    assert "expected at most 4096 global variables" in refusal(compile_c(PRELUDE + many + PROGRAM))


def test_data_sections_that_lie_over_each_other_cannot_multiply_memory() -> None:
    source = "".join(f'const volatile char g{i} SEC(".rodata.{i}") = 1;' for i in range(5))
    data = compile_c(PRELUDE + source + PROGRAM) + bytes(limits.MAX_DATA_BYTES)
    for i in range(3):
        data = section_field(f".rodata.{i}", 5, limits.MAX_DATA_BYTES)(data)
    assert len(read(data).globals) == 5
    whole = section_field(".rodata.3", 5, limits.MAX_DATA_BYTES)(data)
    assert "expected at most 16777216 bytes of data sections together" in refusal(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (section_field("license", 5, 3), "section license: expected a name of at most"),
        (section_field("license", 5, 0), "section license: expected a name inside the string table of 0 bytes"),
        (lambda data: data.replace(b"Dual BSD/GPL", b"\0ual BSD/GPL"), "section license: expected 1 to 63 characters"),
        (lambda data: data.replace(b"Dual BSD/GPL", b"Dual\tBSD/GPL"), "section license: expected a name of printable"),
    ],
)
def test_license(good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refusal(change(good))


def test_long_license() -> None:
    source = PRELUDE + f'SEC("xdp") int p(void *c) {{ return 0; }} char l[] SEC("license") = "{"x" * 64}";'
    assert "section license: expected 1 to 63 characters, got 64" in refusal(compile_c(source))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (symbol("first", 4, 4), "overlap"),
        (symbol("second", 4, 1 << 60), "section .rodata: expected variables inside 8 bytes"),
        (symbol("second", 5, 8), "variable second: expected 4 bytes as BTF says, its symbol says 8"),
        (symbol("second", 3, 1), "variable second: expected one global symbol in .rodata, got 0"),
        (symbol("second", 1, OBJECT), "variable second: expected one global symbol in .rodata, got 1"),
        (rename("second", "secont"), "variable second: expected one global symbol in .rodata, got 0"),
        (placed(".rodata", 0, 2, 8), "variable first: expected 8 bytes as BTF says, its symbol says 4"),
        (placed(".rodata", 0, 0, 1), "section .rodata: expected variables, got"),
        (placed(".kconfig", 0, 0, 1), "section .kconfig: expected variables and functions, got"),
        (placed(".data", 0, 1, 4), "variable third: expected it at byte 0 as its symbol says, BTF says 4"),
        (placed(".data", 0, 2, 8), "variable third: expected it at byte 0 as its symbol says, BTF says 0"),
        (type_word(VARIABLE, "first", 2, 0), "variable first: expected a type that has a size, got void"),
        (type_word(VARIABLE, "first", 3, 2), "section .rodata: expected variables, got variable first"),
        (type_word(VARIABLE, "first", 3, 3), "expected the linkage 0, 1 or 2 of variable first, got 3"),
        (section_field(".rodata", 0, 0), "section .rodata: expected it in the object, but only BTF describes it"),
        (section_field(".rodata", 1, 8), "section .rodata: expected it in the object, but only BTF describes it"),
        (section_field(".bss", 1, 1), "section .bss: expected it in the object, but only BTF describes it"),
        (section_field(".bss", 5, 1 << 40), "section .bss: expected at most 4194304 bytes, got 1099511627776"),
        (section_field(".maps", 0, 0), "section .maps: expected it in the object, but only BTF describes it"),
        (symbol("array", 4, 8), "section .maps: expected variables inside"),
    ],
)
def test_variables(good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refusal(change(good))


def test_a_variable_smaller_than_its_type(good: bytes) -> None:
    wide = type_word(VARIABLE, "first", 2, type_id(good, 8, "__u64"))(good)
    assert "variable first: expected 8 bytes for its type, got 4" in refusal(wide)


def test_maps_that_only_the_object_knows(good: bytes) -> None:
    hidden = type_word(DATA_SECTION, ".maps", 0, 0)(good)
    assert "section .maps: expected BTF of its variables, got none" in refusal(hidden)


def test_an_empty_maps_section_is_none(good: bytes) -> None:
    hidden = type_word(DATA_SECTION, ".maps", 0, 0)(good)
    assert read(section_field(".maps", 5, 0)(hidden)).maps == ()


def test_map_names_become_pins(good: bytes) -> None:
    strange = good.replace(b"\0array\0", b"\0ar/ay\0")
    assert "map 'ar/ay': expected a C identifier" in refusal(strange)


def test_two_data_sections_of_one_name(good: bytes) -> None:
    name = struct.unpack_from("<I", good, data_section_at(good, ".rodata"))[0]
    assert "expected one BTF data section .rodata, got two" in refusal(type_word(DATA_SECTION, ".data", 0, name)(good))


def test_a_linked_object_without_symbols_of_variables_is_read_by_its_types(good: bytes) -> None:
    linked = run_on(good, "bpftool", "gen", "object", "{out}", "{in}")
    assert read(symbol("first", 1, 0)(linked)).globals == read(linked).globals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (section_field(".BTF", 5, 23), "expected a BTF header of 24 bytes, got 23"),
        (btf_header(0, "<H", 0x9FEB), "expected little-endian BTF, got big-endian BTF"),
        (btf_header(0, "<H", 0), "expected BTF of version 1 without flags"),
        (btf_header(2, "<B", 2), "expected BTF of version 1 without flags"),
        (btf_header(3, "<B", 1), "expected BTF of version 1 without flags"),
        (btf_header(4, "<I", 20), "BTF: expected an aligned header"),
        (btf_header(4, "<I", 1 << 31), "BTF: expected an aligned header"),
        (btf_header(8, "<I", 1), "BTF: expected an aligned header"),
        (btf_header(12, "<I", 1 << 31), "BTF: expected types and strings inside"),
        (btf_header(16, "<I", 1 << 31), "BTF: expected types and strings inside"),
        (btf_header(20, "<I", 0), "BTF: expected a string table that begins and ends with a NUL"),
        (btf_header(20, "<I", 2), "BTF: expected a string table that begins and ends with a NUL"),
        (btf_header(16, "<I", 8), "BTF: expected a string table that begins and ends with a NUL"),
    ],
)
def test_types_header(good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refusal(change(good))


def test_too_much_btf(good: bytes) -> None:
    padded = good + bytes(limits.MAX_BTF_BYTES + 1)
    grown = section_field(".BTF", 5, limits.MAX_BTF_BYTES + 1)(section_field(".BTF", 4, len(good))(padded))
    assert "expected at most 4194304 bytes of BTF, got 4194305" in refusal(grown)


def btf_refusal(builder: BtfBuilder) -> str:
    with pytest.raises(ElfError) as caught:
        Btf.read(builder.data())
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "value", "words", "vlen", "message"),
    [
        (0, 0, (), 0, "BTF type 1: expected a kind of 1 to 19, got 0"),
        (20, 0, (), 0, "BTF type 1: expected a kind of 1 to 19, got 20"),
        (2, 2, (), 0, "BTF type 1: expected a type below 2, got 2"),
        (3, 0, (9, 0, 0), 0, "BTF type 1: expected a type below 2, got 9"),
        (8, 9, (), 0, "BTF type 1: expected a type below 2, got 9"),
        (10, 9, (), 0, "BTF type 1: expected a type below 2, got 9"),
        (13, 0, (0, 9), 1, "BTF type 1: expected a type below 2, got 9"),
        (14, 9, (0,), 0, "BTF type 1: expected a type below 2, got 9"),
        (15, 0, (9, 0, 0), 1, "BTF type 1: expected a type below 2, got 9"),
        (4, 4, (0, 9, 0), 1, "BTF type 1: expected a type below 2, got 9"),
        (4, 4, (0, 0, 33), 1, "BTF type 1: expected a member inside 4 bytes, got one at bit 33"),
        (4, 4, (1 << 20, 0, 0), 1, "BTF type 1: expected a name inside the string table"),
        (4, 4, (), 1, "BTF type 1: expected 12 more bytes of BTF for 1 entries, got 0"),
        (1, 4, (), 0, "BTF type 1: expected 4 more bytes of BTF, got 0"),
        (1, 3, (24,), 0, "BTF type 1: expected an integer of 1 to 16 bytes, got 24 bits in 3 bytes"),
        (1, 4, (0,), 0, "BTF type 1: expected an integer of 1 to 16 bytes, got 0 bits in 4 bytes"),
        (1, 4, (4 << 16 | 32,), 0, "BTF type 1: expected an integer of 1 to 16 bytes, got 32 bits in 4 bytes"),
        (6, 3, (), 0, "BTF type 1: expected an enumeration of 1, 2, 4 or 8 bytes, got 3"),
        (19, 3, (), 0, "BTF type 1: expected an enumeration of 1, 2, 4 or 8 bytes, got 3"),
        (16, 5, (), 0, "BTF type 1: expected a floating-point number of 2 to 16 bytes, got 5"),
    ],
)
def test_types(kind: int, value: int, words: tuple[int, ...], vlen: int, message: str) -> None:
    builder = BtfBuilder()
    builder.add(kind, "", value, *words, vlen=vlen)
    assert message in btf_refusal(builder)


def test_types_end_in_the_middle_of_one(good: bytes) -> None:
    builder = BtfBuilder()
    builder.integer("int", 4)
    data = bytearray(builder.data())
    struct.pack_into("<I", data, 12, 8)
    with pytest.raises(ElfError, match="BTF type 1: expected 12 more bytes of BTF, got 8"):
        Btf.read(bytes(data))


def test_every_kind_is_known() -> None:
    builder = BtfBuilder()
    number = builder.integer("int", 4, 1)
    builder.add(7, "later", 0, flag=True)
    builder.add(12, "func", builder.add(13, "", number, 0, number, vlen=1))
    builder.add(17, "tag", number, 0xFFFFFFFF)
    builder.add(18, "user", number)
    builder.add(11, "", builder.pointer(number))
    builder.add(16, "double", 8)
    btf = Btf.read(builder.data())
    assert [btf.describe(i) for i in range(1, len(btf))] == [
        "int",
        "union later",
        "function",
        "function func",
        "function tag",
        "int",
        "int *",
        "int *",
        "double",
    ]


def test_too_many_types() -> None:
    builder = BtfBuilder()
    builder.pointer(0)
    data = bytearray(builder.data())
    body = bytes(data[24:36]) * limits.MAX_TYPES
    struct.pack_into("<III", data, 12, len(body), len(body), 1)
    with pytest.raises(ElfError, match="expected at most 65536 BTF types"):
        Btf.read(bytes(data[:24]) + body + b"\0")


def test_names_that_overlap_cannot_multiply_memory() -> None:
    strings = b"\0" + (b"x" * 500 + b"\0") * 120
    types = b"".join(struct.pack("<III", 1 + i, 8 << 24, 0) for i in range(60000))
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    with pytest.raises(ElfError, match="BTF: expected names of at most 8388608 characters together"):
        Btf.read(head + types + strings)


def map_refusal(builder: BtfBuilder, type_id: int) -> str:
    with pytest.raises(ElfError) as caught:
        read_map(Btf.read(builder.data()), "m", type_id)
    return str(caught.value)


def test_maps_that_are_no_structs() -> None:
    builder = BtfBuilder()
    number = builder.integer("int", 4)
    union = builder.composite("", 8, ("type", builder.pointer(builder.array(number, 1)), 0), union=True)
    assert "map m: expected a struct with __uint and __type, got int" in map_refusal(builder, number)
    assert "map m: expected a struct with __uint and __type, got union {…}" in map_refusal(builder, union)


def test_maps_that_name_a_field_twice() -> None:
    builder = BtfBuilder()
    number = builder.integer("int", 4)
    one, two = (builder.pointer(builder.array(number, count)) for count in (1, 2))
    pointer = builder.pointer(number)
    numbers = builder.composite("", 16, ("type", one, 0), ("type", two, 64))
    keys = builder.composite("", 16, ("key", pointer, 0), ("key", pointer, 64))
    assert "map m: type: expected type 1 as said before, got 2" in map_refusal(builder, numbers)
    assert "map m: key: expected it once, got it twice" in map_refusal(builder, keys)
