# SPDX-License-Identifier: Apache-2.0
"""Values against bytes: what clang writes for a C initialiser is what `encode` must write for the same value."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

from reconciler.elf import Btf, Object, decode, encode, read_object
from reconciler.errors import EncodingError
from tests.elf_objects import BtfBuilder, compile_program

TYPES = """
enum verdict { DROP = 1, PASS = 2, NEGATIVE = -3 };
enum wide { SMALL = 1, HUGE = 0x1234567890ULL };
enum packed { ONE = 1, TWO = 200 } __attribute__((packed));
struct ports { __be16 from; __be16 to; };
struct flags { __u8 a : 1; __u8 b : 3; __u16 : 4; __s16 c : 5; _Bool d : 1; __u32 rest; enum verdict e : 4; };
struct nested { struct { __u8 x; __u8 _pad[3]; __u32 y; }; struct ports ports[2]; };
union address { __be32 v4; struct in6_addr v6; };
struct mixed { __u8 family; union { __be32 v4; __u8 v6[16]; struct { __u32 low, high; }; }; __u16 tail; };
struct lpm4 { __u32 prefixlen; __be32 addr; };
struct lpm6 { __u32 prefixlen; struct in6_addr addr; };
struct lpm_bytes { __u32 prefix_len; __u8 data[16]; };
struct lpm_other { __u32 length; __u8 data[4]; };
struct locked { struct bpf_spin_lock lock; __u32 count; };
struct flexible { __u32 count; __u32 items[]; };
typedef const volatile __be16 port_t;
typedef char word_t[4];
"""

# Declaration and value; the initialiser is in the declaration.
EXACT: list[tuple[str, Any]] = [
    ("const volatile __u8 v = 255;", 255),
    ("const volatile __s8 v = -128;", -128),
    ("const volatile char v = -1;", -1),
    ("const volatile __u16 v = 0x1234;", 0x1234),
    ("const volatile __s16 v = -2;", -2),
    ("const volatile __u32 v = 4000000000;", 4000000000),
    ("const volatile int v = -5;", -5),
    ("const volatile __u64 v = 0xffffffffffffffffULL;", 0xFFFFFFFFFFFFFFFF),
    ("const volatile long v = -7;", -7),
    ("const volatile __uint128_t v = ((__uint128_t)0x0102030405060708ULL << 64) | 9;", 0x0102030405060708 << 64 | 9),
    ("const volatile __int128_t v = -9;", -9),
    ("const volatile _Bool v = 1;", True),
    ("const volatile _Bool v = 0;", False),
    ("const volatile enum verdict v = PASS;", "PASS"),
    ("const volatile enum verdict v = NEGATIVE;", "NEGATIVE"),
    ("const volatile enum packed v = TWO;", "TWO"),
    ('const volatile char v[8] = "abc";', "abc"),
    ("const volatile char v[4] = {'a', 'b', 'c', 'd'};", [97, 98, 99, 100]),
    ('const volatile word_t v = "xyz";', "xyz"),
    ("const volatile unsigned char v[3] = {1, 2, 255};", "0x0102ff"),
    ("const volatile signed char v[2] = {-1, 2};", "0xff02"),
    ("const volatile __u32 v[3] = {1, 2, 3};", [1, 2, 3]),
    ("const volatile __u16 v[2][3] = {{1, 2, 3}, {4, 5, 6}};", [[1, 2, 3], [4, 5, 6]]),
    ('const volatile char v[2][4] = {"a", "bcd"};', ["a", "bcd"]),
    ("const volatile port_t v = 0x5000;", 80),
    ("const volatile __be32 v = 0x0100000a;", "10.0.0.1"),
    ("const volatile __be64 v = 0x0100000000000000ULL;", 1),
    ("const volatile struct in_addr v = {0x0100000a};", "10.0.0.1"),
    ("const volatile struct in6_addr v = {.in6_u.u6_addr8 = {0x20, 1, 0xd, 0xb8, [15] = 1}};", "2001:db8::1"),
    ("const volatile struct ports v = {0x5000, 0xbb01};", {"from": 80, "to": 443}),
    (
        "const volatile struct flags v = {1, 5, -9, 1, 77, NEGATIVE};",
        {"a": 1, "b": 5, "c": -9, "d": True, "rest": 77, "e": "NEGATIVE"},
    ),
    (
        "const volatile struct nested v = {{1, {}, 2}, {{0x5000, 0}, {0, 0x5000}}};",
        {"x": 1, "y": 2, "ports": [{"from": 80, "to": 0}, {"from": 0, "to": 80}]},
    ),
    ("const volatile union address v = {.v6.in6_u.u6_addr8 = {[15] = 1}};", {"v6": "::1"}),
    (
        "const volatile struct mixed v = {6, {.v6 = {1, [15] = 2}}, 3};",
        {"family": 6, "v6": "0x01" + "00" * 14 + "02", "tail": 3},
    ),
    ("const volatile struct lpm4 v = {8, 0x0000000a};", "10.0.0.0/8"),
    ("const volatile struct lpm6 v = {32, {.in6_u.u6_addr8 = {0x20, 1, 0xd, 0xb8}}};", "2001:db8::/32"),
    ("const volatile struct lpm_bytes v = {128, {[15] = 1}};", "::1/128"),
    ("const volatile struct lpm_other v = {8, {10}};", {"length": 8, "data": "0x0a000000"}),
    ("const volatile struct { __u8 a; __u64 b; } v = {1, 2};", {"a": 1, "b": 2}),
    ("const volatile struct {} v = {};", {}),
    ("const volatile struct locked v = {.count = 5};", {"count": 5}),
    ("const volatile struct flexible v = {3};", {"count": 3, "items": []}),
    ("const volatile struct { __u8 reserved; __u8 used; } v = {9, 1};", {"reserved": 9, "used": 1}),
]

# Other ways to write a value; `decode` answers with the way above.
OTHER: list[tuple[str, Any]] = [
    ("const volatile enum verdict v = PASS;", 2),
    ("const volatile enum verdict v = NEGATIVE;", -3),
    ("const volatile __be32 v = 0x0100000a;", 0x0A000001),
    ("const volatile struct in_addr v = {0x0100000a};", {"s_addr": "10.0.0.1"}),
    ("const volatile struct in_addr v = {0x0100000a};", {"s_addr": 0x0A000001}),
    ("const volatile struct in6_addr v = {.in6_u.u6_addr8 = {[15] = 1}};", {"in6_u": {"u6_addr32": [0, 0, 0, 1]}}),
    ("const volatile unsigned char v[3] = {1, 2, 255};", [1, 2, 255]),
    ('const volatile char v[4] = "abc";', [97, 98, 99, 0]),
    ("const volatile struct lpm4 v = {8, 0x0000000a};", {"prefixlen": 8, "addr": "10.0.0.0"}),
    ("const volatile union address v = {.v4 = 0x0100000a};", {"v4": "10.0.0.1"}),
    ("const volatile union address v = {.v4 = 0x0100000a};", "0x0a000001" + "00" * 12),
    ("const volatile struct mixed v = {4, {.v4 = 0x0100000a}, 3};", {"family": 4, "v4": "10.0.0.1", "tail": 3}),
    ("const volatile struct mixed v = {4, {.low = 1, .high = 2}, 3};", {"family": 4, "high": 2, "low": 1, "tail": 3}),
    (
        "const volatile struct nested v = {{1, {9, 8, 7}, 2}, {}};",
        {"x": 1, "_pad": [9, 8, 7], "y": 2, "ports": [{"from": 0, "to": 0}] * 2},
    ),
    ("const volatile struct flexible v = {3};", {"count": 3}),
    ("const volatile __u16 v[2] = {1, 2};", (1, 2)),
]

# Declaration, format, value.
FORMATS: list[tuple[str, Any, Any]] = [
    ("const volatile __u32 v = 0x0100000a;", "ipv4", "10.0.0.1"),
    ("const volatile __u8 v[4] = {10, 0, 0, 1};", "ipv4", "10.0.0.1"),
    ("const volatile __u32 v[2] = {0x0100000a, 0x0200000a};", "ipv4", ["10.0.0.1", "10.0.0.2"]),
    ("const volatile __u8 v[16] = {[15] = 1};", "ipv6", "::1"),
    ("const volatile __u32 v[4] = {[3] = 0x01000000};", "ipv6", "::1"),
    ("const volatile __u8 v[2][16] = {{[15] = 1}, {}};", "ipv6", ["::1", "::"]),
    ("const volatile __u32 v = 0x0100000a;", "ip", "10.0.0.1"),
    ("const volatile __u8 v[16] = {[10] = 255, [11] = 255, [12] = 10, [15] = 1};", "ip", "10.0.0.1"),
    ("const volatile __u8 v[16] = {[15] = 1};", "ip", "::1"),
    (
        "const volatile union address v = {.v6.in6_u.u6_addr8 = {[15] = 1}};",
        {"v6": "bytes"},
        {"v6": "0x" + "00" * 15 + "01"},
    ),
    ("const volatile struct lpm_other v = {8, {10}};", "cidr", "10.0.0.0/8"),
    ("const volatile struct lpm_bytes v = {104, {[10] = 255, [11] = 255, [12] = 10}};", "cidr-mapped", "10.0.0.0/8"),
    ("const volatile struct lpm_bytes v = {64, {[1] = 9}};", "cidr-mapped", "9::/64"),
    ("const volatile struct lpm4 v = {8, 0x0000000a};", {"addr": "ipv4"}, "10.0.0.0/8"),
    ("const volatile __u8 v[6] = {2, [5] = 1};", "mac", "02:00:00:00:00:01"),
    (
        "const volatile struct { __u8 mac[6]; __u16 z; } v = {{2, [5] = 1}, 5};",
        {"mac": "mac"},
        {"mac": "02:00:00:00:00:01", "z": 5},
    ),
    ("const volatile __u32 v = 0x0100000a;", "bytes", "0x0a000001"),
    ("const volatile struct ports v = {0x5000, 0xbb01};", "bytes", "0x005001bb"),
    ('const volatile __u8 v[8] = "eth0";', "text", "eth0"),
    ('const volatile __u8 v[2][8] = {"eth0", "eth1"};', "text", ["eth0", "eth1"]),
    ("const volatile __u16 v = 0x5000;", "port-be", 80),
    ("const volatile __u16 v = 0x5000;", "be16", 80),
    ("const volatile __u16 v[2] = {0x5000, 0xbb01};", "port-be", [80, 443]),
    ("const volatile __u32 v = 0x01000000;", "be32", 1),
    ("const volatile __be32 v = 0x01000000;", "be32", 1),
    ("const volatile __u64 v = 0x0100000000000000ULL;", "be64", 1),
    (
        "const volatile struct ports v[2] = {{0x5000, 0}, {0, 0x5000}};",
        {"from": "port-be", "to": "bytes"},
        [{"from": 80, "to": "0x0000"}, {"from": 0, "to": "0x0050"}],
    ),
    (
        "const volatile struct { struct { __u32 a; } in[2]; } v = {{{0x0100000a}, {0}}};",
        {"in.a": "ipv4"},
        {"in": [{"a": "10.0.0.1"}, {"a": "0.0.0.0"}]},
    ),
    (
        "const volatile struct mixed v = {6, {.v6 = {[15] = 2}}, 3};",
        {"v6": "ipv6"},
        {"family": 6, "v6": "::2", "tail": 3},
    ),
]


@functools.cache
def all_declarations() -> tuple[dict[str, str], Object]:
    """Every declaration above, each `v` under a name of its own, in one object: clang runs once."""
    declarations = [declaration for declaration, *_rest in (*EXACT, *OTHER, *FORMATS)]
    declarations += [f"volatile {declaration}" for declaration, *_rest in (*REFUSED, *FOREIGN)]
    names = {declaration: f"v{number}" for number, declaration in enumerate(dict.fromkeys(declarations))}
    source = "\n".join(re.sub(r"\bv\b", name, declaration) for declaration, name in names.items())
    return names, read_object(compile_program(TYPES + source), name="v.o")


def load(declaration: str) -> tuple[Object, int, bytes]:
    names, obj = all_declarations()
    name = names.get(declaration)
    if name is None:
        name, obj = "v", read_object(compile_program(TYPES + declaration), name="v.o")
    found = obj.find_global(name)
    assert found is not None
    return obj, found.type_id, found.initial


@pytest.mark.parametrize(("declaration", "value"), EXACT)
def test_clang_writes_the_same_bytes(declaration: str, value: Any) -> None:
    obj, type_id, initial = load(declaration)
    size = obj.btf.size(type_id)
    assert encode(obj.btf, type_id, value, where="v") == initial[:size]
    assert decode(obj.btf, type_id, initial[:size]) == value


@pytest.mark.parametrize(("declaration", "value"), OTHER)
def test_other_ways_to_write_it(declaration: str, value: Any) -> None:
    obj, type_id, initial = load(declaration)
    assert encode(obj.btf, type_id, value, where="v") == initial
    again = decode(obj.btf, type_id, initial)
    assert encode(obj.btf, type_id, again, where="v") == initial


@pytest.mark.parametrize(("declaration", "format", "value"), FORMATS)
def test_formats(declaration: str, format: Any, value: Any) -> None:  # noqa: A002
    obj, type_id, initial = load(declaration)
    assert encode(obj.btf, type_id, value, where="v", format=format) == initial
    assert decode(obj.btf, type_id, initial, format=format) == value


def test_a_boolean_is_no_integer_and_an_integer_is_no_boolean() -> None:
    for declaration, value in (("__u8 v;", True), ("_Bool v;", 1), ("_Bool v;", 0), ("enum verdict v;", True)):
        obj, type_id, _initial = load(declaration)
        with pytest.raises(EncodingError):
            encode(obj.btf, type_id, value, where="v")


# Declaration, format, value, message.
REFUSED: list[tuple[str, Any, Any, str]] = [
    ("__u32 v;", None, 5000000000, "params.max: expected an integer in 0..4294967295, got 5000000000"),
    ("__u32 v;", None, -1, "params.max: expected an integer in 0..4294967295, got -1"),
    ("__s8 v;", None, 128, "params.max: expected an integer in -128..127, got 128"),
    ("__u8 v;", None, 256, "expected an integer in 0..255, got 256"),
    ("__u8 v;", None, 1.0, "expected an integer in 0..255, got a float"),
    ("__u8 v;", None, None, "expected an integer in 0..255, got null"),
    ("__u8 v;", None, {}, "expected an integer in 0..255, got a mapping"),
    ("__u8 v;", None, [], "expected an integer in 0..255, got a list of 0"),
    ("__u8 v;", None, "1\n", 'expected an integer in 0..255, got "1\\n"'),
    ("__u8 v;", None, 1 << 4000, "expected an integer in 0..255, got an integer of 4001 bits"),
    ("__uint128_t v;", None, 1 << 128, "expected an integer in 0.."),
    ("__be16 v;", None, 65536, "expected an integer in 0..65535, got 65536"),
    ("__be16 v;", None, "1.2.3.4", 'expected an integer, got "1.2.3.4"'),
    ("__be32 v;", None, "::1", 'expected an IPv4 address such as "192.0.2.1", got "::1"'),
    ("_Bool v;", None, "true", 'expected true or false, got "true"'),
    ("enum verdict v;", None, "STAY", 'expected one of DROP (1), PASS (2), NEGATIVE (-3), got "STAY"'),
    ("enum verdict v;", None, 7, "expected one of DROP (1), PASS (2), NEGATIVE (-3), got 7"),
    ("enum verdict v;", None, [], "expected one of DROP (1)"),
    ("char v[4];", None, "abcd", "expected text of at most 3 bytes (one more is for the NUL), got 4"),
    ("char v[4];", None, "ä€", "expected text of at most 3 bytes (one more is for the NUL), got 5"),
    ("char v[4];", None, "a\0", "expected text without NUL characters"),
    ("char v[4];", None, "\ud800", "expected text that UTF-8 can hold, got a lone surrogate"),
    ("char v[4];", None, [1, 2, 3], "expected a list of 4, got a list of 3"),
    ("char v[4];", None, 5, "expected a list of 4, got 5"),
    ("__u8 v[4];", None, "0x0102", "expected 4 bytes, got 2"),
    ("__u8 v[4];", None, "0x010", 'expected bytes such as "0x0a000001", got "0x010"'),
    ("__u8 v[4];", None, "abcd", 'expected bytes such as "0x0a000001", got "abcd"'),
    ("__u8 v[4];", None, "a" * 70, f'got "{"a" * 60}" and 10 more'),
    ("__u32 v[2];", None, [1, 2, 3], "expected a list of 2, got a list of 3"),
    ("__u32 v[2];", None, "0x01", 'expected a list of 2, got "0x01"'),
    ("_Bool v[2];", None, "0x0101", "expected a list of 2"),
    ("__u32 v[2];", None, [1, "x"], 'params.max[1]: expected an integer in 0..4294967295, got "x"'),
    ("struct ports v;", None, {"from": 1}, "params.max.to: expected __be16, got nothing"),
    ("struct ports v;", None, {"from": 1, "to": 65536}, "params.max.to: expected an integer in 0..65535, got 65536"),
    ("struct ports v;", None, {"from": 1, "to": 2, "via": 3}, 'params.max: expected members among from, to, got "via"'),
    ("struct ports v;", None, {1: 2}, "expected members among from, to, got 1"),
    ("struct ports v;", None, [1, 2], "expected a mapping for struct ports, got a list of 2"),
    ("struct ports v;", None, "0x00000000", "expected a mapping for struct ports"),
    ("struct nested v;", None, {"x": 1, "ports": []}, "params.max.y: expected __u32, got nothing"),
    ("struct flags v;", None, {"a": 2, "b": 0, "c": 0, "d": False, "rest": 0, "e": 1}, "params.max.a: expected an int"),
    (
        "struct flags v;",
        None,
        {"a": 1, "b": 0, "c": 16, "d": False, "rest": 0, "e": 1},
        "an integer in -16..15, got 16",
    ),
    ("struct flags v;", None, {"a": 1, "b": 0, "c": 0, "d": 1, "rest": 0, "e": 1}, "params.max.d: expected true"),
    ("struct { enum verdict e : 1; } v;", None, {"e": "PASS"}, 'expected a value of 1 bits, but "PASS" is 2'),
    ("struct { __be16 e : 4; } v;", None, {"e": 1}, "bitfields in network byte order are not supported"),
    ("union address v;", None, {}, "expected one member of the union (v4, v6), got none"),
    ("union address v;", None, {"v4": 1, "v6": "::"}, 'expected one member of the union (v4, v6), got "v4", "v6"'),
    ("union address v;", None, {"v5": 1}, 'expected members among v4, v6, got "v5"'),
    ("union address v;", None, "0x00", "expected 16 bytes, got 1"),
    ("union address v;", None, 5, "expected a mapping for union address, got 5"),
    (
        "struct mixed v;",
        None,
        {"family": 4, "tail": 1},
        "expected one member of the union (v4, v6, low, high), got none",
    ),
    ("struct mixed v;", None, {"family": 4, "tail": 1, "v4": 0, "low": 1}, 'got "v4", "low"'),
    ("struct mixed v;", None, {"family": 4, "tail": 1, "low": 1}, "params.max.high: expected __u32, got nothing"),
    (
        "struct lpm4 v;",
        None,
        "10.0.0.1/8",
        'expected "10.0.0.0/8", got "10.0.0.1/8": bits after the prefix length are set',
    ),
    ("struct lpm4 v;", None, "10.0.0.1", 'expected an address and prefix length such as "10.0.0.0/8", got "10.0.0.1"'),
    ("struct lpm4 v;", None, "10.0.0.0/33", "expected an address and prefix length"),
    ("struct lpm4 v;", None, "10.0.0.0/08", "expected an address and prefix length"),
    ("struct lpm4 v;", None, "10.0.0.0/255.0.0.0", "expected an address and prefix length"),
    ("struct lpm4 v;", None, "10.0.0/8", "expected an address and prefix length"),
    ("struct lpm4 v;", None, "::/8", 'expected an IPv4 prefix, got "::/8"'),
    ("struct lpm6 v;", None, "10.0.0.0/8", 'expected an IPv6 prefix, got "10.0.0.0/8"; the format cidr-mapped would'),
    ("struct lpm6 v;", "cidr", 5, "expected an address and prefix length such as"),
    ("struct in6_addr v;", None, "fe80::1%eth0", "expected an IPv6 address"),
    ("struct in6_addr v;", None, "10.0.0.1", 'expected an IPv6 address such as "2001:db8::1", got "10.0.0.1"'),
    ("__u8 v[16];", "ipv6", "10.0.0.1", "expected an IPv6 address"),
    ("__u8 v[16];", "ip", "ten", 'expected an address such as "192.0.2.1", got "ten"'),
    ("__u32 v;", "ip", "::1", "expected an IPv4 address"),
    ("__u32 v;", "ipv4", "010.0.0.1", "expected an IPv4 address"),
    ("__u32 v;", "ipv4", 167772161, 'expected an IPv4 address such as "192.0.2.1", got 167772161'),
    ("__u8 v[6];", "mac", "02:00:00:00:00", "expected a MAC address"),
    ("__u8 v[6];", "mac", "0200.0000.0001", "expected a MAC address"),
    ("__u8 v[8];", "text", 5, "expected text, got 5"),
    ("__u16 v;", "port-be", "http", 'expected an integer in 0..65535, got "http"'),
    ("struct locked v;", None, {"lock": {}, "count": 1}, "the kernel keeps struct bpf_spin_lock for itself"),
    ("struct bpf_spin_lock v;", None, {}, "the kernel keeps struct bpf_spin_lock for itself"),
    ("void *v;", None, 0, "expected a type without pointers, got void *"),
    ("struct { void *p; } v;", None, {"p": 0}, "params.max.p: expected a type without pointers, got void *"),
    ("double v;", None, 1.0, "floating-point numbers are not supported, got double"),
    ("__u32 v;", "ipv5", "x", "expected a format among ipv4, ipv6, ip, cidr, cidr-mapped, mac, bytes, text, port-be"),
    ("__u32 v;", {"": 5}, "x", "expected a format among"),
    ("__u16 v;", "ipv4", "1.2.3.4", "format ipv4 does not fit __u16"),
    ("_Bool v[4];", "ipv4", "1.2.3.4", "format ipv4 does not fit _Bool[4]"),
    ("struct ports v;", {"from": "mac"}, {}, "format mac does not fit __be16 of from"),
    (
        "struct ports v;",
        {"via": "mac"},
        {},
        "format mac: expected a member via in struct ports { __be16 from; __be16 to; }",
    ),
    ("struct ports v;", "cidr", {}, "format cidr does not fit struct ports"),
    ("struct { __s32 prefixlen; __be32 addr; } v;", "cidr", "10.0.0.0/8", "format cidr does not fit struct {"),
    ("struct { __u32 prefixlen : 6; __be32 addr; } v;", "cidr", "10.0.0.0/8", "format cidr does not fit struct {"),
    ("struct { __u32 prefixlen; _Bool addr[4]; } v;", "cidr", "10.0.0.0/8", "format cidr does not fit struct {"),
    ("struct { __u32 prefixlen; __u8 addr[8]; } v;", "cidr", "10.0.0.0/8", "format cidr does not fit struct {"),
    ("struct lpm4 v;", "cidr-mapped", "10.0.0.0/8", "format cidr-mapped does not fit struct lpm4"),
    ("__u32 v;", "text", "x", "format text does not fit __u32"),
    ("_Bool v;", "be16", 1, "format be16 does not fit _Bool"),
    ("__u32 v;", "be16", 1, "format be16 does not fit __u32"),
]


@pytest.mark.parametrize(("declaration", "format", "value", "message"), REFUSED)
def test_refused_with_the_field_and_what_was_expected(
    declaration: str,
    format: Any,  # noqa: A002
    value: Any,
    message: str,
) -> None:
    obj, type_id, _initial = load("volatile " + declaration)
    with pytest.raises(EncodingError) as caught:
        encode(obj.btf, type_id, value, where="params.max", format=format)
    assert message in str(caught.value)
    assert str(caught.value).startswith("params.max")


# Declaration, format, bytes, value: bytes that no manifest would produce, as a kernel may hold them.
FOREIGN: list[tuple[str, Any, str, Any]] = [
    ("enum verdict v;", None, "09000000", 9),
    ("enum verdict v;", None, "fdffffff", "NEGATIVE"),
    ("char v[4];", None, "61626364", [97, 98, 99, 100]),
    ("char v[4];", None, "61006200", [97, 0, 98, 0]),
    ("char v[4];", None, "ff000000", [-1, 0, 0, 0]),
    ("__u8 v[4];", "text", "ff000000", "0xff000000"),
    ("_Bool v;", None, "02", True),
    ("void *v;", None, "0100000000000000", "0x0100000000000000"),
    ("double v;", None, "0100000000000000", "0x0100000000000000"),
    ("struct lpm4 v;", None, "080000000a000001", {"prefixlen": 8, "addr": "10.0.0.1"}),
    ("struct lpm4 v;", None, "210000000a000001", {"prefixlen": 33, "addr": "10.0.0.1"}),
    ("struct lpm4 v;", "cidr", "210000000a000001", "0x210000000a000001"),
    (
        "struct lpm_bytes v;",
        "cidr-mapped",
        "00000000" + "00" * 10 + "ffff0a000000",
        "0x00000000" + "00" * 10 + "ffff0a000000",
    ),
    ("struct locked v;", None, "0100000002000000", {"count": 2}),
    ("union { __u8 a; struct { __u8 pad; __u8 b; }; } v;", None, "0001", {"b": 1}),
    ("union { __u8 a; struct { __u8 x; __u16 b; } in; } v;", None, "01020300", "0x01020300"),
    ("union { __u8 a; struct { __u8 x; __u16 b; } in; } v;", None, "01000300", {"in": {"x": 1, "b": 3}}),
    ("union { void *p; __u32 a; } v;", None, "0100000000000000", "0x0100000000000000"),
    ("union {} v;", None, "", "0x"),
    ("struct { __u8 pad : 4; __u8 a : 4; } v;", None, "10", {"a": 1}),
    ("struct { __u8 pad : 4; __u8 a : 4; } v;", None, "13", {"pad": 3, "a": 1}),
]


@pytest.mark.parametrize(("declaration", "format", "data", "value"), FOREIGN)
def test_whatever_the_kernel_holds_is_shown(
    declaration: str,
    format: Any,  # noqa: A002
    data: str,
    value: Any,
) -> None:
    obj, type_id, _initial = load("volatile " + declaration)
    assert decode(obj.btf, type_id, bytes.fromhex(data), format=format) == value


def test_decode_wants_exactly_the_bytes_of_the_type() -> None:
    obj, type_id, _initial = load("struct ports v;")
    with pytest.raises(EncodingError, match="struct ports: expected 4 bytes, got 3"):
        decode(obj.btf, type_id, b"abc")


def test_where_may_be_empty() -> None:
    obj, type_id, _initial = load("struct ports v;")
    with pytest.raises(EncodingError, match=r"^from: expected an integer"):
        encode(obj.btf, type_id, {"from": "x", "to": 1}, where="")


def test_enumerations_of_64_bits() -> None:
    builder = BtfBuilder()
    words = [builder.string("LOW"), 1, 0, builder.string("HIGH"), 0x34567890, 0x12]
    unsigned = builder.add(19, "wide", 8, *words, vlen=2)
    signed = builder.add(19, "wide", 8, builder.string("MINUS"), -1, -1, vlen=1, flag=True)
    btf = Btf.read(builder.data())
    assert encode(btf, unsigned, "HIGH", where="v") == (0x1234567890).to_bytes(8, "little")
    assert encode(btf, signed, "MINUS", where="v") == b"\xff" * 8
    assert decode(btf, signed, b"\xff" * 8) == "MINUS"
    assert decode(btf, unsigned, b"\xff" * 8) == (1 << 64) - 1


def test_long_enumerations_are_abridged() -> None:
    obj, type_id, _initial = load("enum many { " + ", ".join(f"E{i}" for i in range(20)) + " } v;")
    with pytest.raises(EncodingError, match=re.escape('E7 (7), …, got "E20"')):
        encode(obj.btf, type_id, "E20", where="v")
