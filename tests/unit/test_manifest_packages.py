# SPDX-License-Identifier: Apache-2.0
"""package.yaml: values, what is refused, and its agreement with the objects in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler import manifest
from reconciler.elf import Object, read_object
from reconciler.errors import PackageError
from reconciler.model import HookKind, MapRole, MapSpec, PackageManifest, ParamSpec, ProgramSpec
from tests.elf_objects import PRELUDE, PROGRAM, compile_c

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.parent.name for path in ROOT.glob("bpf/*/package.yaml"))


def package(**spec: object) -> dict[str, Any]:
    """A package of one XDP program outside the contract; `spec` replaces whole fields, None takes them out."""
    fields: dict[str, object] = {"license": "GPL-2.0-only", "programs": [program()], **spec}
    kept = {key: value for key, value in fields.items() if value is not None}
    head = {"apiVersion": "reconciler/v1alpha1", "kind": "Package", "metadata": {"name": "p", "version": "1.0.0"}}
    return {**head, "spec": kept}


def program(**fields: object) -> dict[str, Any]:
    base = {
        "name": "prog",
        "type": "xdp",
        "object": "p.bpf.o",
        "hooks": ["xdp"],
        "proceedOn": ["pass"],
        "contract": False,
    }
    return {**base, **fields}


def parse(document: object) -> PackageManifest:
    return manifest.parse_package(json.dumps(document).encode(), file="package.yaml")


# --- values ------------------------------------------------------------------------------------------------


def test_a_package_with_everything() -> None:
    found = parse(
        package(
            description="limits",
            programs=[
                program(description="drops", contract=True),
                program(name="tc", type="tc", hooks=["tc-egress", "tc-ingress"], proceedOn=["pass", "next"]),
            ],
            maps=[
                {"name": "next", "role": "next"},
                {"name": "ports", "role": "config", "keyFormat": "port-be", "valueFormat": "bytes", "meaning": "limit"},
                {"name": "flows", "role": "state", "stateVersion": 3, "description": "d"},
            ],
            params=[
                {
                    "name": "rate",
                    "description": "d",
                    "unit": "1/s",
                    "default": 5,
                    "minimum": 1,
                    "maximum": 9,
                    "weakens": "higher",
                },
                {"name": "mac", "description": "d", "format": "mac"},
            ],
            features=["tcx", "btf"],
        )
    )
    assert found == PackageManifest(
        name="p",
        version="1.0.0",
        license="GPL-2.0-only",
        description="limits",
        programs=(
            ProgramSpec(
                name="prog",
                type="xdp",
                object="p.bpf.o",
                hooks=(HookKind.XDP,),
                proceed_on=("pass",),
                description="drops",
            ),
            ProgramSpec(
                name="tc",
                type="tc",
                object="p.bpf.o",
                hooks=(HookKind.TC_INGRESS, HookKind.TC_EGRESS),
                proceed_on=("next", "ok"),
                contract=False,
            ),
        ),
        maps=(
            MapSpec(name="next", role=MapRole.NEXT),
            MapSpec(name="ports", role=MapRole.CONFIG, key_format="port-be", value_format="bytes", meaning="limit"),
            MapSpec(name="flows", role=MapRole.STATE, state_version=3, description="d"),
        ),
        params=(
            ParamSpec(name="rate", description="d", unit="1/s", default=5, minimum=1, maximum=9, weakens="higher"),
            ParamSpec(name="mac", description="d", format="mac"),
        ),
        features=("btf", "tcx"),
    )


def test_a_package_with_nothing_optional() -> None:
    found = parse(package())
    assert (found.maps, found.params, found.features, found.description) == ((), (), (), "")


@pytest.mark.parametrize(
    ("spec", "finding"),
    [
        ({"license": None}, "expected the field 'license', got none; add it (at /spec)"),
        ({"license": ""}, "expected an SPDX licence expression, got '' (at /spec/license)"),
        ({"programs": []}, "expected at least 1 item, got 0 (at /spec/programs)"),
        ({"programs": [program(object="../a.o")]}, "expected a file name without folders, got '../a.o'"),
        (
            {"programs": [program(), program()]},
            "expected each name once, got 'prog' again; drop one (at /spec/programs/1/name)",
        ),
        (
            {"programs": [program(hooks=["tc-ingress"])]},
            "expected a hook for programs of type xdp ('xdp'), got 'tc-ingress'",
        ),
        (
            {"programs": [program(type="tc", hooks=["tc-egress", "xdp"])]},
            "expected a hook for programs of type tc ('tc-ingress' or 'tc-egress'), got 'xdp' (at /spec/programs/0/ho",
        ),
        ({"programs": [program(proceedOn=["shot"])]}, "expected a verdict of xdp ('aborted', 'drop',"),
        (
            {"programs": [program(type="tc", hooks=["tc-egress"], proceedOn=["tx"])]},
            "expected a verdict of tc ('next', 'ok',",
        ),
        (
            {"programs": [program(type="tc", hooks=["tc-egress"], proceedOn=["drop", "shot"])]},
            "expected each verdict once, got 'shot' again (at /spec/programs/0/proceedOn/1)",
        ),
        ({"maps": [{"name": "a", "role": "cache"}]}, "expected 'config', 'state', 'stats' or 'next', got 'cache'"),
        ({"maps": [{"name": "a", "role": "state"}] * 2}, "expected each name once, got 'a' again"),
        (
            {"maps": [{"name": "a", "role": "stats", "stateVersion": 2}]},
            "expected stateVersion for maps of role state only, got one for role stats; remove it",
        ),
        ({"params": [{"name": "a"}]}, "expected the field 'description', got none"),
        ({"params": [{"name": "a", "description": ""}]}, "expected a description, got ''"),
        (
            {"params": [{"name": "chain_last", "description": "d"}]},
            "expected a parameter of the package, got 'chain_last', which the reconciler sets (at /spec/params/0/name)",
        ),
        (
            {"params": [{"name": "a", "description": "d", "minimum": 2, "maximum": 1}]},
            "expected minimum <= maximum, got 2 and 1",
        ),
        (
            {"params": [{"name": "a", "description": "d", "minimum": 2, "default": 1}]},
            "expected a default of at least 2, got 1 (at /spec/params/0/default)",
        ),
        (
            {"params": [{"name": "a", "description": "d", "minimum": 2, "maximum": 3, "default": 4}]},
            "expected a default from 2 to 3, got 4",
        ),
        (
            {"params": [{"name": "a", "description": "d", "maximum": 3, "default": 4}]},
            "expected a default of at most 3, got 4",
        ),
        (
            {"params": [{"name": "a", "description": "d", "maximum": 3, "default": True}]},
            "expected an integer where minimum or maximum is given, got true (at /spec/params/0/default)",
        ),
        (
            {"maps": [{"name": "m", "role": "config", "meaning": "deny", "weakens": "higher"}]},
            "expected weakens with meaning limit only, got it with 'deny'; remove it (at /spec/maps/0/weakens)",
        ),
        (
            {"maps": [{"name": "m", "role": "config", "verdicts": {"A": "allow"}}]},
            "expected verdicts with meaning verdict only, got it with nothing; remove it (at /spec/maps/0/verdicts)",
        ),
        (
            {"maps": [{"name": "m", "role": "config", "meaning": "verdict"}]},
            "expected verdicts with meaning verdict, got none; say which values allow and which deny",
        ),
        (
            {"maps": [{"name": "m", "role": "state", "meaning": "allow"}]},
            "expected a meaning for maps of role config only, got one for role state; remove it",
        ),
        (
            {"maps": [{"name": "m", "role": "config", "meaning": "limit", "zeroIs": "rate"}]},
            "expected a parameter of this package, got 'rate' (at /spec/maps/0/zeroIs)",
        ),
    ],
)
def test_what_is_wrong_in_a_package_is_said_once_and_in_place(spec: dict[str, Any], finding: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse(package(**spec))
    assert len(caught.value.findings) == 1
    assert finding in str(caught.value)


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b"", "package.yaml:1:1: expected at least one document, got an empty file"),
        (b"[]", "package.yaml:1:1: expected a mapping of kind Package, got a list"),
        (json.dumps(package() | {"kind": "Chain"}).encode(), "expected 'Package' here, got 'Chain'"),
        (
            json.dumps(package()).encode() + b"\n---\na: 1",
            "package.yaml:3:1: expected one document, got several; keep one",
        ),
    ],
)
def test_what_is_no_package_is_refused(data: bytes, finding: str) -> None:
    with pytest.raises(PackageError) as caught:
        manifest.parse_package(data, file="package.yaml")
    assert str(caught.value).startswith(finding) or finding in str(caught.value)


# --- against the objects -----------------------------------------------------------------------------------

MAP = 'struct {{ __uint(type, {type}); __uint(max_entries, {size}); {key}; {value}; }} {name} SEC(".maps");\n'
CONTRACT = """
const volatile __u32 chain_proceed = 0;
const volatile __u32 chain_last = 1;
const volatile __s32 chain_end = 0;
const volatile __s32 chain_broken = 0;
"""


def c_map(name: str, kind: str, size: int = 8, key: str = "__u32", value: str = "__u32") -> str:
    return MAP.format(
        name=name, type=f"BPF_MAP_TYPE_{kind}", size=size, key=f"__type(key, {key})", value=f"__type(value, {value})"
    )


NEXT = c_map("next", "PROG_ARRAY", 1)
COUNTER = "struct counter { __u64 packets; __u64 bytes; };\n"
STATS = COUNTER + c_map("stats", "PERCPU_ARRAY", 6, value="struct counter")
USE = 'SEC("xdp") int prog(struct xdp_md *ctx) { return XDP_PASS; }\n'


def deep(kind: str, name: str) -> str:
    """A variable in more structs than anybody reads."""
    return "struct { " * 40 + kind + " x;" + "".join(f" }} s{n};" for n in range(39)) + f" }} {name}"


def compiled(declarations: str, name: str = "p.bpf.o") -> Object:
    return read_object(compile_c(PRELUDE + declarations + PROGRAM), name=name)


def check(spec: dict[str, Any], *declarations: str) -> list[str]:
    """Findings about a package of one object."""
    found = manifest.check_package(parse(package(**spec)), {"p.bpf.o": compiled("".join(declarations))})
    return [str(finding) for finding in found]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_packages_that_ship_agree_with_their_objects(name: str) -> None:
    found = manifest.parse_package((ROOT / "bpf" / name / "package.yaml").read_bytes(), file="package.yaml")
    source = ROOT / "bpf" / name / f"{name}.bpf.c"
    data = compile_c(source.read_text(), f"-I{ROOT / 'bpf' / 'include'}", f"-I{source.parent}")
    assert found.name == name
    assert manifest.check_package(found, {f"{name}.bpf.o": read_object(data, name=name)}) == ()


def test_there_are_packages_that_ship() -> None:
    assert {"ratelimit", "firewall", "flowcount"} <= set(SHIPPED)


CONTRACT_SPEC = {
    "programs": [program(contract=True)],
    "maps": [{"name": "next", "role": "next"}, {"name": "stats", "role": "stats"}],
}


def test_a_package_by_the_contract_agrees() -> None:
    assert check(CONTRACT_SPEC, CONTRACT, NEXT, STATS) == []


@pytest.mark.parametrize(
    ("declarations", "finding"),
    [
        (NEXT + STATS, "p.bpf.o: expected the global chain_proceed of the contract, got 0; include chain.h, or say"),
        (
            CONTRACT.replace("__u32 chain_last", "__u64 chain_last") + NEXT + STATS,
            "expected chain_last to be const volatile __u32, got __u64",
        ),
        (
            CONTRACT.replace("__s32 chain_end", "__u32 chain_end") + NEXT + STATS,
            "expected chain_end to be const volatile __s32, got __u32",
        ),
        (
            CONTRACT.replace("const volatile __s32 chain_broken = 0", "__s32 chain_broken = 1") + NEXT + STATS,
            "expected chain_broken to be const volatile __s32",
        ),
        (
            CONTRACT.replace("__u32 chain_proceed = 0", "struct { __u32 x; } chain_proceed") + NEXT + STATS,
            "expected chain_proceed to be const volatile __u32, got struct",
        ),
        (
            CONTRACT.replace("__u32 chain_last = 1", deep("__u32", "chain_last")) + NEXT + STATS,
            "expected chain_last to be const volatile __u32, got struct",
        ),
        (CONTRACT + STATS, "expected the map 'next' of the contract, got none; include chain.h"),
    ],
)
def test_a_program_that_says_contract_has_all_of_it(declarations: str, finding: str) -> None:
    assert any(finding in each for each in check(CONTRACT_SPEC, declarations))


def test_the_contract_needs_next_to_be_declared_with_its_role() -> None:
    undeclared = {**CONTRACT_SPEC, "maps": [{"name": "stats", "role": "stats"}]}
    found = check(undeclared, CONTRACT, NEXT, STATS)
    assert len(found) == 2
    assert (
        "expected the map 'next' with role next among the maps, got none; declare it (at /spec/programs/0)" in found[0]
    )
    assert "expected every map to be declared, got 'next'; add it to maps with its role (at /spec)" in found[1]
    wrong = {**CONTRACT_SPEC, "maps": [{"name": "stats", "role": "stats"}, {"name": "next", "role": "state"}]}
    found = check(wrong, CONTRACT, NEXT, STATS)
    assert any("expected role state for a map of data, got PROG_ARRAY (at /spec/maps/1)" in each for each in found)


@pytest.mark.parametrize(
    ("spec", "finding"),
    [
        ({"programs": [program(object="q.bpf.o")]}, "expected one of the package's objects (p.bpf.o), got 'q.bpf.o'"),
        (
            {"programs": [program(name="main")]},
            "program main: expected a program of p.bpf.o (prog), got none of that name",
        ),
        (
            {"programs": [program(type="tc", hooks=["tc-egress"], proceedOn=[])]},
            "program prog: expected section 'tc' for type tc, got 'xdp' (at /spec/programs/0)",
        ),
        (
            {"maps": [{"name": "m", "role": "state"}]},
            "expected a map 'm' in the objects, got none; remove it here (at /spec/maps/0/name)",
        ),
        (
            {"params": [{"name": "x", "description": "d"}]},
            "parameter x: expected a global of that name in the objects, got none",
        ),
    ],
)
def test_what_is_declared_is_there(spec: dict[str, Any], finding: str) -> None:
    assert any(finding in each for each in check(spec))


def test_what_is_there_is_declared() -> None:
    found = check(
        {},
        'SEC("tc") int other(struct __sk_buff *ctx) { return 0; }\n',
        c_map("hidden", "HASH"),
        "const volatile __u32 knob = 1; const __u32 constant = 2; __u32 counter = 3;\n",
    )
    assert found == [
        "p.bpf.o: expected every program to be declared, got 'other'; add it to programs (at /spec)",
        "p.bpf.o: expected every map to be declared, got 'hidden'; add it to maps with its role (at /spec)",
        "p.bpf.o: expected every const volatile global to be declared, got 'knob'; add it to params (at /spec)",
    ]


def test_an_object_without_a_declared_program_is_refused() -> None:
    objects = {"p.bpf.o": compiled(""), "q.bpf.o": compiled("", "q.bpf.o")}
    found = [str(finding) for finding in manifest.check_package(parse(package()), objects)]
    assert (
        found[0]
        == "q.bpf.o: expected objects of declared programs only, got one that no program uses; remove it (at /spec)"
    )


@pytest.mark.parametrize(
    ("role", "declaration", "finding"),
    [
        ("next", c_map("m", "PROG_ARRAY", 1), "expected role next for a PROG_ARRAY of one slot named 'next'"),
        (
            "stats",
            COUNTER + c_map("m", "ARRAY", 6, value="struct counter"),
            "expected role stats for a PERCPU_ARRAY of 6",
        ),
        (
            "stats",
            COUNTER + c_map("m", "PERCPU_ARRAY", 5, value="struct counter"),
            "expected role stats for a PERCPU_ARRAY",
        ),
        (
            "stats",
            c_map("m", "PERCPU_ARRAY", 6, value="__u64"),
            "expected role stats for a PERCPU_ARRAY of 6 entries of two",
        ),
        (
            "stats",
            "struct c { __u64 a; __s64 b; };" + c_map("m", "PERCPU_ARRAY", 6, value="struct c"),
            "expected role stats for a PERCPU_ARRAY of 6 entries of two u64 (packets, bytes), got another map",
        ),
        (
            "stats",
            "typedef __u32 four[4];" + c_map("m", "PERCPU_ARRAY", 6, value="four"),
            "expected role stats for a PERCPU",
        ),
        (
            "stats",
            "struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 6); __uint(key_size, 4); "
            '__uint(value_size, 16); } m SEC(".maps");',
            "expected role stats for a PERCPU_ARRAY",
        ),
        (
            "stats",
            "typedef "
            + deep("__u64", "deep").replace(" x;", " x; __u64 y;")
            + ";"
            + c_map("m", "PERCPU_ARRAY", 6, value="deep"),
            "expected role stats for a PERCPU_ARRAY",
        ),
        ("config", c_map("m", "LRU_HASH"), "expected role config for HASH, ARRAY, LPM_TRIE only, got map type 9"),
        ("config", c_map("m", "PERCPU_ARRAY"), "expected role config for HASH, ARRAY, LPM_TRIE only, got map type 6"),
        (
            "config",
            "struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 6); __uint(key_size, 4); "
            '__type(value, __u32); } m SEC(".maps");',
            "expected __type(key, …) so that manifests can be read by BTF, got a size only",
        ),
        ("state", c_map("m", "PROG_ARRAY", 4), "expected role state for a map of data, got PROG_ARRAY"),
        (
            "state",
            "struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 6); __type(key, __u32); "
            '__type(value, __u32); __uint(pinning, LIBBPF_PIN_BY_NAME); } m SEC(".maps");',
            "expected no pinning in the object, got some; remove it, the reconciler owns pin paths",
        ),
    ],
)
def test_a_role_needs_its_kind_of_map(role: str, declaration: str, finding: str) -> None:
    found = check({"maps": [{"name": "m", "role": role}]}, declaration)
    assert len(found) == 1
    assert found[0].startswith("p.bpf.o: map m: ")
    assert finding in found[0]
    assert found[0].endswith("(at /spec/maps/0)")


@pytest.mark.parametrize("kind", ["HASH", "ARRAY", "PERCPU_HASH", "PERCPU_ARRAY", "LRU_HASH", "LRU_PERCPU_HASH"])
def test_maps_of_data_can_hold_state(kind: str) -> None:
    assert check({"maps": [{"name": "m", "role": "state"}]}, c_map("m", kind)) == []


@pytest.mark.parametrize(
    ("formats", "key", "finding"),
    [
        ({"keyFormat": "port"}, "__u16", "expected keyFormat to be one of ipv4, ipv6, ip, cidr"),
        ({"keyFormat": "mac"}, "__u16", "expected a key that manifests can write, got an error: "),
        ({"valueFormat": "ipv6"}, "__u16", "expected a value that manifests can write, got an error: "),
    ],
)
def test_formats_of_config_maps_fit_their_types(formats: dict[str, str], key: str, finding: str) -> None:
    found = check({"maps": [{"name": "m", "role": "config", **formats}]}, c_map("m", "HASH", key=key))
    assert len(found) == 1
    assert finding in found[0]


def test_config_maps_with_formats_agree() -> None:
    spec = {"maps": [{"name": "m", "role": "config", "keyFormat": "port-be", "valueFormat": "ipv4"}]}
    assert check(spec, c_map("m", "HASH", key="__u16", value="__be32")) == []


def param(**fields: object) -> dict[str, Any]:
    return {"params": [{"name": "rate", "description": "d", **fields}]}


@pytest.mark.parametrize(
    ("spec", "declaration", "finding"),
    [
        (param(default=7), "const volatile __u32 rate = 1;", None),
        (param(default=7, minimum=0, maximum=4294967295), "const volatile __u32 rate = 1;", None),
        (param(default="02:00:00:00:00:01", format="mac"), "const volatile __u8 rate[6];", None),
        (param(minimum=1, maximum=5), "const volatile __u32 rate = 5;", None),
        (param(), "const volatile __u32 rate = 5;", None),
        (
            param(),
            "__u32 rate = 5;",
            "parameter rate: p.bpf.o: expected a const volatile global, got another one in .data",
        ),
        (param(default=-1), "const volatile __u32 rate = 1;", "default: expected"),
        (param(default="fast"), "const volatile __u32 rate = 1;", "default: expected"),
        (param(default=7, maximum=1 << 32), "const volatile __u32 rate = 1;", "maximum: expected"),
        (param(default=7, minimum=-1), "const volatile __u32 rate = 1;", "minimum: expected"),
        (param(minimum=1, maximum=5), "const volatile __u32 rate = 6;", "expected an initial value from 1 to 5, got 6"),
        (param(minimum=1), "const volatile __u32 rate = 0;", "expected an initial value of at least 1, got 0"),
        (param(minimum=0), "const volatile _Bool rate = 0;", "expected"),
        (param(format="speed"), "const volatile __u32 rate = 1;", "expected format to be one of ipv4,"),
        (param(format="mac"), "const volatile __u32 rate = 1;", "mac"),
    ],
)
def test_parameters_fit_their_globals(spec: dict[str, Any], declaration: str, finding: str | None) -> None:
    found = check(spec, declaration)
    if finding is None:
        assert found == []
    else:
        assert any(finding in each and each.endswith("(at /spec/params/0)") for each in found)


def test_two_static_parameters_of_one_name_are_both_held_to_the_declaration() -> None:
    objects = {
        "p.bpf.o": compiled("const volatile __u32 rate = 1;"),
        "q.bpf.o": compiled("const volatile __u8 rate = 1;", "q.bpf.o"),
    }
    found = manifest.check_package(
        parse(package(programs=[program(), program(name="prog2", object="q.bpf.o")], **param(default=300))), objects
    )
    assert any("parameter rate: q.bpf.o: default: expected" in str(each) for each in found)
    assert not any("parameter rate: p.bpf.o" in str(each) for each in found)
