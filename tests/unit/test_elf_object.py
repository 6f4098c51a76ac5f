# SPDX-License-Identifier: Apache-2.0
"""Objects as clang writes them, against libbpf and bpftool as second opinions."""

from __future__ import annotations

import ctypes
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from reconciler.elf import Btf, GlobalVar, Object, read_object
from reconciler.errors import ElfError
from tests.elf_objects import PRELUDE, PROGRAM, compile_c, compile_program, run_on, strip

MAPS = """
struct key { __u32 prefixlen; __u8 data[4]; };
struct value { __u64 packets; __u64 bytes; };
struct { __uint(type, BPF_MAP_TYPE_LPM_TRIE); __uint(max_entries, 1024); __uint(map_flags, BPF_F_NO_PREALLOC);
         __type(key, struct key); __type(value, struct value); } nets SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 6); __type(key, __u32);
         __type(value, struct value); } stats SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __uint(key_size, sizeof(__u32));
         __uint(value_size, sizeof(__u32)); } next SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
typedef struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, const __u16);
         __type(value, char[16]); __uint(value_size, 16); __uint(numa_node, 0); } named_t;
named_t named SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_BLOOM_FILTER); __uint(max_entries, 8); __type(value, __u64);
         __uint(map_extra, 3); __uint(pinning, LIBBPF_PIN_BY_NAME); } bloom SEC(".maps");
"""

GLOBALS = """
const volatile __u32 limit = 7;
const volatile __u64 wide = 9;
const volatile __u16 ports[3] = {1, 2, 3};
const __u8 table[3] = {4, 5, 6};
static const volatile __u16 quiet = 3;
static volatile int hidden = 5;
int counter;
int preset = 11;
static volatile __u64 first, second;
const volatile char label[8] SEC(".rodata.labels") = "abc";
int apart SEC(".data.apart") = 12;
extern int LINUX_KERNEL_VERSION __kconfig;
extern const void bpf_prog_active __ksym;

SEC("tc") int on_tc(struct __sk_buff *skb)
{
    void *value = bpf_map_lookup_elem(&next, &counter);
    first += limit + wide + ports[preset & 1] + table[counter & 1] + quiet + hidden + (value != 0);
    second += first + LINUX_KERNEL_VERSION + label[1] + apart + (__u64)&bpf_prog_active;
    static int calls;
    return calls++ + second;
}
SEC("xdp.frags") int on_frags(struct xdp_md *ctx) { return XDP_DROP; }
static __attribute__((noinline)) int helper(void *ctx) { return bpf_get_prandom_u32(); }
SEC("xdp") int second_xdp(struct xdp_md *ctx) { return helper(ctx); }
"""

SOURCE = PRELUDE + MAPS + GLOBALS + PROGRAM


@pytest.fixture(params=["as compiled", "stripped", "linked"])
def data(request: pytest.FixtureRequest) -> bytes:
    compiled = compile_c(SOURCE)
    match request.param:
        case "stripped":
            return strip(compiled)
        case "linked":
            return run_on(compiled, "bpftool", "gen", "object", "{out}", "{in}")
        case _:
            return compiled


class Libbpf:
    """What libbpf says of an object that it opened, not loaded."""

    def __init__(self, data: bytes) -> None:
        self._lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, result in {
            "bpf_object__open_mem": ctypes.c_void_p,
            "bpf_object__btf": ctypes.c_void_p,
            "bpf_object__next_map": ctypes.c_void_p,
            "bpf_object__next_program": ctypes.c_void_p,
            "btf__raw_data": ctypes.c_void_p,
            "bpf_map__name": ctypes.c_char_p,
            "bpf_map__map_extra": ctypes.c_uint64,
            "bpf_program__name": ctypes.c_char_p,
            "bpf_program__section_name": ctypes.c_char_p,
            "bpf_program__insn_cnt": ctypes.c_size_t,
        }.items():
            getattr(self._lib, name).restype = result
        self._lib.libbpf_set_print(None)
        self._object = ctypes.c_void_p(self._lib.bpf_object__open_mem(data, ctypes.c_size_t(len(data)), None))
        assert self._object.value, f"libbpf refused the object, errno {ctypes.get_errno()}"

    def close(self) -> None:
        self._lib.bpf_object__close(self._object)

    def call(self, name: str, *arguments: ctypes.c_void_p) -> Any:
        return getattr(self._lib, name)(*arguments)

    def _walk(self, name: str) -> list[ctypes.c_void_p]:
        found: list[ctypes.c_void_p] = []
        at = self.call(name, self._object, ctypes.c_void_p(None))
        while at:
            found.append(ctypes.c_void_p(at))
            at = self.call(name, self._object, found[-1])
        return found

    def maps(self) -> list[ctypes.c_void_p]:
        return self._walk("bpf_object__next_map")

    def programs(self) -> list[ctypes.c_void_p]:
        return self._walk("bpf_object__next_program")

    def btf(self) -> bytes:
        """The BTF after libbpf has put offsets and sizes into its data sections."""
        size = ctypes.c_uint32()
        btf = ctypes.c_void_p(self._lib.bpf_object__btf(self._object))
        raw = self._lib.btf__raw_data(btf, ctypes.byref(size))
        return ctypes.string_at(raw, size.value)


def read(data: bytes) -> Object:
    return read_object(data, name="test.o")


def variable(data: bytes, name: str) -> GlobalVar:
    found = read(data).find_global(name)
    assert found is not None
    return found


def test_libbpf_agrees_on_maps(data: bytes) -> None:
    libbpf = Libbpf(data)
    theirs = {
        libbpf.call("bpf_map__name", each).decode(): (
            *(
                libbpf.call(f"bpf_map__{what}", each)
                for what in ("type", "key_size", "value_size", "max_entries", "map_flags", "map_extra")
            ),
            libbpf.call("bpf_map__btf_key_type_id", each) or None,
            libbpf.call("bpf_map__btf_value_type_id", each) or None,
        )
        for each in libbpf.maps()
        if b"." not in libbpf.call("bpf_map__name", each)
    }
    libbpf.close()
    ours = {
        each.name: (
            each.type,
            each.key_size,
            each.value_size,
            each.max_entries,
            each.flags,
            each.extra,
            each.key_type_id,
            each.value_type_id,
        )
        for each in read(data).maps
    }
    assert set(ours) == {"bloom", "events", "named", "nets", "next", "stats"}
    assert ours == theirs


def test_libbpf_agrees_on_programs(data: bytes) -> None:
    libbpf = Libbpf(data)
    theirs = {
        (
            libbpf.call("bpf_program__name", each).decode(),
            libbpf.call("bpf_program__section_name", each).decode(),
            libbpf.call("bpf_program__insn_cnt", each) * 8,
        )
        for each in libbpf.programs()
    }
    libbpf.close()
    ours = {(each.name, each.section, each.size) for each in read(data).programs}
    assert {(name, section) for name, section, _size in ours} == {
        ("prog", "xdp"),
        ("second_xdp", "xdp"),
        ("on_frags", "xdp.frags"),
        ("on_tc", "tc"),
    }
    assert ours == theirs


def test_libbpf_agrees_on_where_variables_lie(data: bytes) -> None:
    libbpf = Libbpf(data)
    fixed = Btf.read(libbpf.btf())
    libbpf.close()
    theirs = {
        (section.name, fixed.describe(placed.type_id).removeprefix("variable "), placed.offset, placed.size)
        for section in fixed.data_sections().values()
        if section.name.startswith((".rodata", ".data", ".bss"))
        for placed in section.variables
    }
    ours = {(each.section, each.name, each.offset, each.size) for each in read(data).globals}
    assert {section for section, *_rest in ours} == {".rodata", ".rodata.labels", ".data", ".data.apart", ".bss"}
    assert ours == theirs


def test_globals_have_their_initial_bytes(data: bytes) -> None:
    initial = {each.name: each.initial for each in read(data).globals}
    assert initial == {
        "limit": b"\7\0\0\0",
        "wide": b"\x09" + bytes(7),
        "ports": b"\1\0\2\0\3\0",
        "table": b"\4\5\6",
        "quiet": b"\3\0",
        "hidden": b"\5\0\0\0",
        "counter": bytes(4),
        "preset": b"\x0b\0\0\0",
        "first": bytes(8),
        "second": bytes(8),
        "on_tc.calls": bytes(4),
        "label": b"abc".ljust(8, b"\0"),
        "apart": b"\x0c\0\0\0",
    }


def test_const_volatile_is_what_a_package_may_tune(data: bytes) -> None:
    assert {each.name for each in read(data).globals if each.tunable} == {"limit", "wide", "ports", "quiet", "label"}


def test_the_rest_of_the_object(data: bytes) -> None:
    obj = read(data)
    assert (obj.name, obj.license) == ("test.o", "Dual BSD/GPL")
    assert obj.sha256 == hashlib.sha256(data).hexdigest()
    assert obj.externals == ("LINUX_KERNEL_VERSION", "bpf_prog_active")
    assert obj.find_program("on_tc") in obj.programs
    assert obj.find_program("helper") is None
    assert obj.find_map("missing") is None
    assert obj.find_global("missing") is None
    bloom = obj.find_map("bloom")
    assert bloom is not None
    assert (bloom.pinning, bloom.numa_node) == (1, None)


def test_stripping_changes_nothing_but_the_digest() -> None:
    whole, stripped = read(compile_c(SOURCE)), read(strip(compile_c(SOURCE)))
    assert whole.sha256 != stripped.sha256
    assert (whole.programs, whole.maps, whole.globals) == (stripped.programs, stripped.maps, stripped.globals)


def test_bpftool_agrees_on_every_type(data: bytes) -> None:
    theirs = json.loads(run_on(data, "bpftool", "-j", "btf", "dump", "file", "{in}"))["types"]
    btf = read(data).btf
    assert len(btf) == len(theirs) + 1
    for each in theirs:
        check_type(btf, each)


def check_type(btf: Btf, theirs: dict[str, Any]) -> None:
    ours = btf.type(theirs["id"])
    if theirs["kind"] not in ("PTR", "ARRAY", "CONST", "VOLATILE", "FUNC_PROTO"):
        name = theirs["name"] if theirs["name"] != "(anon)" else ""
        assert getattr(ours, "name", None) == name
    for field, key in {"size": "size", "type_id": "type_id", "count": "nr_elems", "bits": "nr_bits"}.items():
        if hasattr(ours, field) and key in theirs:
            assert getattr(ours, field) == theirs[key]
    if theirs["kind"] in ("STRUCT", "UNION"):
        assert [(m.name, m.type_id, m.offset) for m in getattr(ours, "members", ())] == [
            (m["name"] if m["name"] != "(anon)" else "", m["type_id"], m["bits_offset"]) for m in theirs["members"]
        ]
    if theirs["kind"] in ("ENUM", "ENUM64"):
        assert list(getattr(ours, "values", ())) == [(v["name"], v["val"]) for v in theirs["values"]]
    if theirs["kind"] == "DATASEC":
        assert [(v.type_id, v.offset, v.size) for v in getattr(ours, "variables", ())] == [
            (v["type_id"], v["offset"], v["size"]) for v in theirs["vars"]
        ]


def test_an_object_without_maps_globals_and_license() -> None:
    obj = read(compile_c(PRELUDE + 'SEC("xdp") int prog(void *ctx) { return 2; }'))
    assert (obj.maps, obj.globals, obj.externals, obj.license) == ((), (), (), None)


def test_core_relocations_are_no_obstacle() -> None:
    source = """
struct task { int pid; } __attribute__((preserve_access_index));
SEC("kprobe/x") int prog(struct pt_regs *ctx)
{
    struct task *t = (void *)ctx;
    return __builtin_preserve_access_index(t->pid);
}
"""
    data = compile_c(PRELUDE + source)
    assert [each.section for each in read(data).programs] == ["kprobe/x"]


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (
            "struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); };"
            "struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 1); __type(key, int);"
            '__array(values, struct inner); } outer SEC(".maps");',
            "map outer: values: expected a map without `values`",
        ),
        (
            'struct { __uint(max_entries, 1); } untyped SEC(".maps");',
            "map untyped: expected a map type",
        ),
        (
            'struct { __uint(type, 1); __uint(colour, 1); } odd SEC(".maps");',
            "map odd: colour: expected a field that libbpf knows, got colour",
        ),
        (
            'struct { __uint(type, 1); struct { int a; }; } odd SEC(".maps");',
            "map odd: : expected a field that libbpf knows, got an anonymous one",
        ),
        (
            'struct { __uint(type, 1); __uint(key_size, 8); __type(key, int); } twice SEC(".maps");',
            "map twice: key: expected key_size 8 as said before, got 4",
        ),
        (
            'struct { __uint(type, 1); struct ghost *key; } ghost SEC(".maps");',
            "map ghost: key: expected a type that has a size, got struct ghost",
        ),
        (
            'struct { __uint(type, 1); int key; } plain SEC(".maps");',
            "map plain: key: expected __type(key, …), got int",
        ),
        (
            'struct { int type; } plain SEC(".maps");',
            "map plain: type: expected __uint(type, …), got int",
        ),
        (
            'struct { int *type; } plain SEC(".maps");',
            "map plain: type: expected __uint(type, …), got int *",
        ),
        (
            'static struct { __uint(type, 1); __uint(max_entries, 1); } mine SEC(".maps");'
            'SEC("tc") int use(void *ctx) { return bpf_map_lookup_elem(&mine, ctx) != 0; }',
            "map mine: expected a global variable, got a static one",
        ),
        (
            'struct bpf_map_def { int type; }; struct bpf_map_def old SEC("maps") = {1};',
            'expected maps in section ".maps", got section "maps"',
        ),
        (
            'SEC("tc") static int mine(void *ctx) { return 0; } void *use = mine;',
            "program mine: expected a global function, got a static one in tc",
        ),
        ("const volatile char big[5 << 20] = {1};", "section .rodata: expected at most 4194304 bytes"),
    ],
)
def test_refused_with_the_name_of_what_is_wrong(declaration: str, message: str) -> None:
    with pytest.raises(ElfError) as caught:
        read(compile_program(declaration))
    assert message in str(caught.value)
    assert str(caught.value).startswith("test.o: ")


def test_two_static_variables_of_one_name_cannot_be_told_apart() -> None:
    one = compile_c(PRELUDE + 'static const volatile int mine = 1; SEC("xdp") int a(void *c) { return mine; }')
    two = compile_c(PRELUDE + 'static const volatile int mine = 2; SEC("tc") int b(void *c) { return mine; }')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two.o"
        path.write_bytes(two)
        obj = read(run_on(one, "bpftool", "gen", "object", "{out}", "{in}", str(path)))
    assert [each.initial for each in obj.globals] == [b"\1\0\0\0", b"\2\0\0\0"]
    with pytest.raises(ElfError, match="expected one variable mine, got 2"):
        obj.find_global("mine")


def test_big_endian_objects_are_refused_by_their_byte_order() -> None:
    with pytest.raises(ElfError, match="expected a little-endian object, got a big-endian one"):
        read(compile_c(PRELUDE + PROGRAM, "-target", "bpfeb"))


def test_objects_without_types_are_refused() -> None:
    with pytest.raises(ElfError, match=r"expected a \.BTF section, got none: compile with -g"):
        read(compile_c(PRELUDE + PROGRAM, "-g0"))


def test_objects_for_the_host_are_refused() -> None:
    with pytest.raises(ElfError, match="expected an object for eBPF"):
        read(run_on(b"int a;", "sh", "-c", "clang -x c -c {in} -o {out}"))


def test_stripped_symbols_are_refused() -> None:
    with pytest.raises(ElfError, match="expected one symbol table, got 0"):
        read(run_on(compile_c(PRELUDE + PROGRAM), "llvm-objcopy", "--strip-all", "{in}", "{out}"))
