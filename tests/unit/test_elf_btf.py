# SPDX-License-Identifier: Apache-2.0
"""Descriptions and structure of types, layouts of maps, and walks over types that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.elf import Btf, decode, encode, layout_digest, map_layout, read_object
from reconciler.errors import ElfError, EncodingError
from tests.elf_objects import BtfBuilder, compile_program

STRUCTS = """
struct inner { __u16 a; };
typedef struct { __be32 addr; } anonymous_t;
struct outer {
    const struct inner *pointer;
    struct inner array[2][3];
    union { __u8 x; struct { __u8 y; } z; };
    enum state { ON, OFF } state;
    enum { A } unnamed;
    __u32 bits : 3;
    _Bool flag;
    anonymous_t address;
    int (*call)(void *);
    double real;
};
struct wide { __u8 m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12; };
"""


def type_of(declaration: str) -> tuple[Btf, int]:
    obj = read_object(compile_program(STRUCTS + f"volatile {declaration};"), name="t.o")
    found = obj.find_global("v")
    assert found is not None
    return obj.btf, found.type_id


@pytest.mark.parametrize(
    ("declaration", "text"),
    [
        ("__u32 v", "__u32"),
        ("const __u32 v[2][3]", "__u32[2][3]"),
        ("struct inner *v", "struct inner *"),
        ("struct inner v", "struct inner"),
        ("union { int a; } v", "union {…}"),
        ("enum { X } v", "enum"),
        ("enum state v", "enum state"),
        ("anonymous_t v", "anonymous_t"),
        ("int (*v)(void *)", "function *"),
        ("void *v", "void *"),
        ("struct ghost *v", "struct ghost *"),
        ("double v", "double"),
    ],
)
def test_describe(declaration: str, text: str) -> None:
    btf, type_id = type_of(declaration)
    assert btf.describe(type_id) == text


def test_describe_what_no_value_has() -> None:
    obj = read_object(compile_program("int v = 1;"), name="t.o")
    texts = {obj.btf.describe(type_id) for type_id in range(len(obj.btf))}
    assert {"variable v", "section .data", "function prog", "void"} <= texts


@pytest.mark.parametrize(
    ("declaration", "text"),
    [
        ("__u32 v", "__u32"),
        ("struct { int a; } v", "struct { int a; }"),
        ("anonymous_t v", "anonymous_t { __be32 addr; }"),
        (
            "struct outer v",
            "struct outer { struct inner * pointer; struct inner array[2][3]; union {…}; enum state state; "
            "enum unnamed; __u32 bits:3; _Bool flag; anonymous_t address; function * call; double real; }",
        ),
        ("struct wide v", f"struct wide {{ {' '.join(f'__u8 m{i};' for i in range(12))} … }}"),
    ],
)
def test_definition(declaration: str, text: str) -> None:
    btf, type_id = type_of(declaration)
    assert btf.definition(type_id) == text


def test_structure_holds_what_decides_about_sharing_bytes() -> None:
    btf, type_id = type_of("struct outer v")
    u8 = {"kind": "int", "size": 1, "signed": False}
    assert btf.structure(type_id) == {
        "kind": "struct",
        "size": btf.size(type_id),
        "members": [
            member("pointer", 0, {"kind": "pointer", "to": "struct inner"}),
            member(
                "array",
                64,
                {
                    "kind": "array",
                    "count": 2,
                    "element": {
                        "kind": "array",
                        "count": 3,
                        "element": {
                            "kind": "struct",
                            "size": 2,
                            "members": [member("a", 0, {"kind": "int", "size": 2, "signed": False})],
                        },
                    },
                },
            ),
            member(
                "",
                160,
                {
                    "kind": "union",
                    "size": 1,
                    "members": [
                        member("x", 0, u8),
                        member("z", 0, {"kind": "struct", "size": 1, "members": [member("y", 0, u8)]}),
                    ],
                },
            ),
            member("state", 192, {"kind": "enum", "size": 4, "signed": False, "values": {"ON": 0, "OFF": 1}}),
            member("unnamed", 224, {"kind": "enum", "size": 4, "signed": False, "values": {"A": 0}}),
            member("bits", 256, {"kind": "int", "size": 4, "signed": False}, bits=3),
            member("flag", 264, {"kind": "bool", "size": 1}),
            member(
                "address",
                288,
                {
                    "kind": "struct",
                    "size": 4,
                    "members": [member("addr", 0, {"kind": "int", "size": 4, "signed": False})],
                },
            ),
            member("call", 320, {"kind": "pointer", "to": "function"}),
            member("real", 384, {"kind": "float", "size": 8}),
        ],
    }


def member(name: str, offset: int, structure: dict[str, Any], bits: int = 0) -> dict[str, Any]:
    return {"name": name, "offset": offset, "bits": bits, "type": structure}


MAP = """
{types}
struct {{ __uint(type, {type}); __uint(max_entries, {entries}); __uint(map_flags, {flags});
         __type(key, {key}); __type(value, {value}); }} {name} SEC(".maps");
"""
SAME: dict[str, Any] = {
    "types": "struct value { __u64 packets; __u64 bytes; };",
    "type": "BPF_MAP_TYPE_HASH",
    "entries": 8,
    "flags": 0,
    "key": "__u32",
    "value": "struct value",
    "name": "state",
}


def digest(version: int = 1, **changes: Any) -> str:
    fields = SAME | changes
    obj = read_object(compile_program(MAP.format(**fields)), name="m.o")
    return layout_digest(map_layout(obj, fields["name"], version))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"key": "const unsigned int"},
        {"key": "__be32"},
        {"types": "struct renamed { __u64 packets; __u64 bytes; };", "value": "struct renamed"},
        {"types": "typedef unsigned long long big; struct value { big packets; big bytes; };"},
        {"types": "int before; struct before { int a; } also; struct value { __u64 packets; __u64 bytes; };"},
    ],
)
def test_layouts_that_are_equal(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"type": "BPF_MAP_TYPE_LRU_HASH"},
        {"entries": 9},
        {"flags": "BPF_F_NO_PREALLOC"},
        {"key": "int"},
        {"key": "__u64"},
        {"types": "struct value { __u64 bytes; __u64 packets; };"},
        {"types": "struct value { __u64 packets; __u64 octets; };"},
        {"types": "struct value { __u64 packets; __s64 bytes; };"},
        {"types": "struct value { struct bpf_spin_lock lock; __u64 bytes; };"},
        {"types": "enum e { X }; struct value { __u64 packets; enum e bytes; };"},
        {"types": "enum e { Y }; struct value { __u64 packets; enum e bytes; };"},
    ],
)
def test_layouts_that_differ(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_a_layout_is_printable() -> None:
    obj = read_object(compile_program(MAP.format(**SAME)), name="m.o")
    layout = map_layout(obj, "state", 3)
    assert isinstance(layout, dict)
    assert {key: layout[key] for key in ("type", "keySize", "valueSize", "maxEntries", "flags", "stateVersion")} == {
        "type": 1,
        "keySize": 4,
        "valueSize": 16,
        "maxEntries": 8,
        "flags": 0,
        "stateVersion": 3,
    }


def test_maps_of_sizes_only_have_no_structure() -> None:
    source = 'struct { __uint(type, 1); __uint(key_size, 4); __uint(value_size, 8); } raw SEC(".maps");'
    layout = map_layout(read_object(compile_program(source), name="m.o"), "raw")
    assert isinstance(layout, dict)
    assert (layout["key"], layout["value"], layout["keySize"], layout["valueSize"]) == (None, None, 4, 8)


def test_a_map_that_is_not_there() -> None:
    with pytest.raises(ElfError, match=r"m\.o: expected a map among none, got state"):
        map_layout(read_object(compile_program(""), name="m.o"), "state")


class Nonsense:
    """Types that no compiler writes."""

    def __init__(self) -> None:
        builder = BtfBuilder()
        self.byte = builder.integer("unsigned char", 1)
        self.int = builder.integer("int", 4, 1)
        self.endless_typedef = builder.add(8, "again", builder.count + 1)
        self.endless_array = builder.array(builder.count + 1, 2)
        self.endless_pointer = builder.pointer(builder.count + 1)
        self.own_member = builder.composite("self", 8, ("self", builder.count + 1, 0))
        self.own_anonymous = builder.composite("hidden", 8, ("", builder.count + 1, 0))
        self.own_choice = builder.composite("choice", 8, ("", builder.count + 1, 0), union=True)
        self.large = builder.array(builder.array(self.int, 1 << 20), 1 << 20)
        self.many_nothings = builder.array(builder.composite("nothing", 0), 0xFFFFFFFF)
        self.five_megabytes = builder.array(self.byte, 5 << 20)
        self.twins = builder.composite("twins", 8, ("a", self.int, 0), ("a", self.int, 32))
        self.outside = builder.composite("outside", 4, ("a", self.int, 16))
        self.crooked = builder.composite("crooked", 8, ("a", self.int, 3))
        self.empty = builder.composite("empty", 4, ("f", builder.add(13, "", 0), 0))
        self.unnamed_int = builder.composite("unnamed", 4, ("", self.int, 0))
        self.real_bits = builder.composite("real", 8, ("r", builder.add(16, "double", 8), 8 << 24), flag=True)
        self.wide_bits = builder.composite("broad", 8, ("w", self.byte, 9 << 24), flag=True)
        self.old_bits = builder.add(1, "old", 4, 3)
        self.tiny_enum = builder.add(6, "tiny", 1, builder.string("BIG"), 1000, vlen=1)
        self.function = builder.add(13, "", 0)
        self.forward = builder.add(7, "later", 0)
        nested = self.int
        for _level in range(40):
            nested = builder.composite("", 4, ("n", nested, 0))
        self.deep = nested
        tower = self.int
        for _level in range(40):
            tower = builder.array(tower, 1)
        self.tower = tower
        bomb = self.int
        for level in range(30):
            bomb = builder.composite(f"b{level}", 4, ("x", bomb, 0), ("y", bomb, 0))
        self.bomb = bomb
        block = builder.array(self.byte, 4 << 20)
        self.overlapping = builder.composite(
            "overlapping", 4 << 20, *((f"m{number}", block, 0) for number in range(1000))
        )
        self.unions = builder.array(
            builder.composite("u", 0, ("e", builder.array(self.int, 0), 0), union=True), 1 << 20
        )
        self.btf = Btf.read(builder.data())


@pytest.fixture(scope="module")
def nonsense() -> Nonsense:
    return Nonsense()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endless_typedef", "expected at most 32 typedefs and qualifiers in a row"),
        ("endless_array", "expected an array of at most 32 dimensions"),
        ("tower", "expected an array of at most 32 dimensions"),
        ("large", "expected a type of at most 4294967295 bytes"),
        ("function", "expected a type that has a size, got function"),
        ("forward", "expected a type that has a size, got struct later"),
    ],
)
def test_sizes_of_nonsense(nonsense: Nonsense, name: str, message: str) -> None:
    with pytest.raises(ElfError) as caught:
        nonsense.btf.size(getattr(nonsense, name))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endless_typedef", "expected at most 32 typedefs"),
        ("endless_array", "expected at most 32 types inside each other"),
        ("own_member", "expected at most 32 types inside each other"),
        ("own_anonymous", "expected at most 32 types inside each other"),
        ("deep", "expected at most 32 types inside each other"),
        ("bomb", "expected at most 65536 members and elements"),
        ("empty", "expected a type that has a size, got function"),
    ],
)
def test_structure_of_nonsense(nonsense: Nonsense, name: str, message: str) -> None:
    with pytest.raises(ElfError) as caught:
        nonsense.btf.structure(getattr(nonsense, name))
    assert message in str(caught.value)


def test_structure_of_old_bitfields(nonsense: Nonsense) -> None:
    assert nonsense.btf.structure(nonsense.old_bits) == {
        "kind": "int",
        "size": 4,
        "signed": False,
        "offset": 0,
        "bits": 3,
    }


def test_describing_nonsense_never_fails(nonsense: Nonsense) -> None:
    for type_id in (-1, *range(len(nonsense.btf)), len(nonsense.btf)):
        assert len(nonsense.btf.describe(type_id)) < 200
        assert len(nonsense.btf.definition(type_id)) < 1000


@pytest.mark.parametrize("type_id", [-1, 1 << 40])
def test_types_that_are_not_there(nonsense: Nonsense, type_id: int) -> None:
    for call in (nonsense.btf.type, nonsense.btf.size, nonsense.btf.structure, nonsense.btf.qualifiers):
        with pytest.raises(ElfError, match="expected a BTF type below"):
            call(type_id)
    with pytest.raises(EncodingError, match="v: expected a BTF type below"):
        encode(nonsense.btf, type_id, 1, where="v")
    with pytest.raises(EncodingError, match="expected a BTF type below"):
        decode(nonsense.btf, type_id, b"")


def test_qualifiers_of_nonsense(nonsense: Nonsense) -> None:
    assert nonsense.btf.qualifiers(nonsense.endless_typedef) == frozenset()


def nest(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _level in range(depth):
        value = {"n": value}
    return {"n": value}


def own(depth: int) -> dict[str, Any]:
    value: Any = {}
    for _level in range(depth):
        value = {"self": value}
    return {"self": value}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("endless_typedef", 1, "v: BTF type"),
        ("own_member", own(40), "expected at most 32 types inside each other"),
        ("own_anonymous", {}, "expected at most 32 types inside each other"),
        ("own_choice", {}, "expected at most 32 types inside each other"),
        ("deep", nest(39), "expected at most 32 types inside each other"),
        ("five_megabytes", "0x", "v: expected a type of at most 4194304 bytes, got unsigned char[5242880]"),
        ("twins", {"a": 1}, "v: expected members of different names in twins"),
        ("outside", {"a": 1}, "v.a: expected a inside its struct of 4 bytes"),
        ("crooked", {"a": 1}, "v.a: expected a inside its struct of 8 bytes"),
        ("real_bits", {"r": 1}, "v.r: expected a bitfield of an integer type, got double"),
        ("wide_bits", {"w": 1}, "v.w: expected a bitfield of an integer type, got unsigned char"),
        ("old_bits", 1, "v: bitfields as old compilers write them are not supported"),
        ("tiny_enum", "BIG", 'v: expected a value of 8 bits, but "BIG" is 1000'),
        ("function", 1, "v: expected a type that has a size, got function"),
        ("empty", {"f": 1}, "v.f: expected a type that has values, got function"),
        ("many_nothings", [], "v: expected a list of 4294967295, got a list of 0"),
    ],
)
def test_encoding_nonsense(nonsense: Nonsense, name: str, value: Any, message: str) -> None:
    with pytest.raises(EncodingError) as caught:
        encode(nonsense.btf, getattr(nonsense, name), value, where="v")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_member", "expected at most 32 types inside each other"),
        ("own_anonymous", "expected at most 32 types inside each other"),
        ("own_choice", "expected at most 32 types inside each other"),
        ("deep", "expected at most 32 types inside each other"),
        ("bomb", "expected at most 65536 members and elements"),
        ("many_nothings", "expected at most 65536 members and elements"),
        ("overlapping", "expected at most 65536 members and elements"),
        ("unions", "expected at most 65536 members and elements"),
        ("outside", "expected a inside its struct of 4 bytes"),
        ("crooked", "expected a inside its struct of 8 bytes"),
        ("real_bits", "expected a bitfield of an integer type, got double"),
    ],
)
def test_decoding_nonsense(nonsense: Nonsense, name: str, message: str) -> None:
    type_id = getattr(nonsense, name)
    with pytest.raises(EncodingError) as caught:
        decode(nonsense.btf, type_id, bytes(nonsense.btf.size(type_id)))
    assert message in str(caught.value)


def test_unnamed_members_that_are_no_structs_are_padding(nonsense: Nonsense) -> None:
    assert encode(nonsense.btf, nonsense.unnamed_int, {}, where="v") == bytes(4)
    assert decode(nonsense.btf, nonsense.unnamed_int, b"\1\2\3\4") == {}


def test_formats_do_not_loop_on_nonsense(nonsense: Nonsense) -> None:
    with pytest.raises(EncodingError, match="expected a member missing"):
        encode(nonsense.btf, nonsense.own_anonymous, {}, where="v", format={"missing": "mac"})
    with pytest.raises(EncodingError, match="format mac does not fit"):
        encode(nonsense.btf, nonsense.own_member, {}, where="v", format={"self.self.self": "mac"})
    with pytest.raises(EncodingError, match="expected a member missing"):
        encode(nonsense.btf, nonsense.tower, [], where="v", format={"missing": "mac"})
    with pytest.raises(EncodingError, match="format text does not fit"):
        encode(nonsense.btf, nonsense.tower, [], where="v", format="text")
    with pytest.raises(EncodingError, match="expected an array of at most 32 dimensions"):
        encode(nonsense.btf, nonsense.tower, [], where="v", format="ipv4")
