# SPDX-License-Identifier: Apache-2.0
"""Generations of the test member (progs/member.bpf.c), as `plan` would make them."""

from __future__ import annotations

import functools
import hashlib
import struct
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler.model import (
    Generation,
    GlobalValue,
    HookKind,
    MapRole,
    MapUse,
    MemberLoad,
    Package,
    PackageManifest,
    PackageRef,
    Signer,
)
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = support.PROGS / "member.bpf.c"
DEFINES = {HookKind.XDP: "HOOK_XDP", HookKind.TC_INGRESS: "HOOK_TC", HookKind.TC_EGRESS: "HOOK_TC"}
PASS = {HookKind.XDP: 2, HookKind.TC_INGRESS: -1, HookKind.TC_EGRESS: -1}
DROP = {HookKind.XDP: 1, HookKind.TC_INGRESS: 2, HookKind.TC_EGRESS: 2}
PROCEED = {HookKind.XDP: 1 << 2, HookKind.TC_INGRESS: 1 << 31, HookKind.TC_EGRESS: 1 << 31}
FORMATS = {
    "chain_proceed": "=I",
    "chain_last": "=I",
    "chain_end": "=i",
    "chain_broken": "=i",
    "verdict": "=i",
    "mark_offset": "=I",
    "mark": "=B",
}


@functools.cache
def rodata_offsets(data: bytes) -> Mapping[str, int]:
    """Where each `const volatile` global of an object lies in .rodata."""
    lines = subprocess.run(["llvm-nm", "-"], input=data, capture_output=True, check=True).stdout.decode().splitlines()
    symbols = [line.split() for line in lines]
    return {name: int(value, 16) for value, kind, name in symbols if kind == "R"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDef:
    """One member; `values` are globals, `deny` UDP ports, `nets` prefixes, `table` is the first entry of the array."""

    name: str
    program: str = "member"
    values: Mapping[str, int] = field(default_factory=dict)
    deny: tuple[int, ...] = ()
    nets: tuple[str, ...] = ()
    table: int = 0


def net_key(prefix: str) -> bytes:
    address, bits = prefix.split("/")
    return struct.pack("=I", int(bits)) + bytes(int(part) for part in address.split("."))


def package(kind: HookKind, define: str | None = None) -> Package:
    """The test member as a verified package."""
    data = support.compile_program(SOURCE, define or DEFINES[kind])
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Package(
        ref=PackageRef(name="member", version="1.0.0", digest=digest),
        manifest=PackageManifest(name="member", version="1.0.0", license="GPL-2.0-only", programs=()),
        objects={"member.o": data},
        signer=Signer(name="test", identity="test", issuer="key"),
    )


def generation(  # what a generation depends on
    kind: HookKind,
    members: tuple[MemberDef, ...],
    *,
    text: str = "a",
    number: int = 0,
    reuse: bool = False,
    chain: str = "chain",
    define: str | None = None,
) -> tuple[Generation, Mapping[str, Package]]:
    """A generation and its packages, by digest."""
    made = package(kind, define)
    digest = hashlib.sha256(repr((kind, members, text, chain)).encode()).hexdigest()
    name = f"{digest[:32]}_{number}"
    loads = tuple(
        _member(kind, made, name, index, member, chain=chain, last=index == len(members) - 1, reuse=reuse)
        for index, member in enumerate(members)
    )
    return Generation(name=name, digest=digest, kind=kind, members=loads), {made.ref.digest: made}


def _member(
    kind: HookKind, made: Package, name: str, index: int, member: MemberDef, *, chain: str, last: bool, reuse: bool
) -> MemberLoad:
    values = {
        "chain_proceed": PROCEED[kind],
        "chain_last": int(last),
        "chain_end": PASS[kind],
        "chain_broken": DROP[kind],
        "verdict": PASS[kind],
        **member.values,
    }
    offsets = rodata_offsets(made.objects["member.o"])
    prefix = f"gen/{name}"
    table = tuple((struct.pack("=I", key), struct.pack("=I", member.table if key == 0 else 0)) for key in range(4))
    configs = {
        "deny": tuple((struct.pack("=H", port), struct.pack("=I", 1)) for port in member.deny),
        "nets": tuple((net_key(prefix_), struct.pack("=I", 1)) for prefix_ in member.nets),
        "table": table,
    }
    return MemberLoad(
        chain=chain,
        member=member.name,
        package=made.ref.digest,
        object="member.o",
        program=member.program,
        type="xdp" if kind is HookKind.XDP else "tc",
        pin=f"{prefix}/p{index:02}",
        globals=tuple(
            GlobalValue(name=key, section=".rodata", offset=offsets[key], value=struct.pack(FORMATS[key], value))
            for key, value in values.items()
        ),
        maps=(
            MapUse(name="next", role=MapRole.NEXT, pin=f"{prefix}/n{index:02}"),
            _carried(chain, member.name, "stats", MapRole.STATS, reuse=reuse),
            _carried(chain, member.name, "hits", MapRole.STATE, reuse=reuse),
            *(
                MapUse(name=map_, role=MapRole.CONFIG, pin=f"{prefix}/c{index:02}_{place:02}", entries=entries)
                for place, (map_, entries) in enumerate(configs.items())
            ),
        ),
    )


def _carried(chain: str, member: str, name: str, role: MapRole, *, reuse: bool) -> MapUse:
    key = f"{chain}/{member}/{name}"
    path = "state/" + hashlib.sha256(key.encode()).hexdigest()[:32]
    return MapUse(name=name, role=role, pin=path, reuse=reuse, key=key, layout="1")
