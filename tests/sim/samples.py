# SPDX-License-Identifier: Apache-2.0
"""Generations and packages for the fake kernel, which looks at the values and at `REJECT`, not at real ELF."""

from __future__ import annotations

import hashlib
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

if TYPE_CHECKING:
    from collections.abc import Mapping

SIGNER = Signer(name="test", identity="test", issuer="key")


def package(name: str, content: bytes = b"") -> Package:
    """A package of one object, `name`.bpf.o, that holds `content`."""
    digest = "sha256:" + hashlib.sha256(name.encode() + content).hexdigest()
    return Package(
        ref=PackageRef(name=name, version="1.0.0", digest=digest),
        manifest=PackageManifest(name=name, version="1.0.0", license="GPL", programs=()),
        objects={f"{name}.bpf.o": content},
        signer=SIGNER,
    )


def generation(
    members: int = 2, *, kind: HookKind = HookKind.XDP, text: str = "a", number: int = 0, reuse: bool = False
) -> tuple[Generation, Mapping[str, Package]]:
    """A generation of one chain; `text` goes into its digest, `reuse` carries the state and stats over."""
    packages = [package(f"member{index}", text.encode()) for index in range(members)]
    digest = hashlib.sha256(f"{kind} {members} {text}".encode()).hexdigest()
    name = f"{digest[:32]}_{number}"
    loads = tuple(
        MemberLoad(
            chain="chain",
            member=f"member{index}",
            package=one.ref.digest,
            object=f"member{index}.bpf.o",
            program=f"member{index}",
            type="xdp" if kind is HookKind.XDP else "tc",
            pin=f"gen/{name}/p{index:02}",
            globals=(_global("chain_last", int(index == members - 1)),),
            maps=_maps(name, kind, index, text=text, reuse=reuse),
        )
        for index, one in enumerate(packages)
    )
    return Generation(name=name, digest=digest, kind=kind, members=loads), {one.ref.digest: one for one in packages}


def _global(name: str, value: int) -> GlobalValue:
    return GlobalValue(name=name, section=".rodata", offset=0, value=value.to_bytes(4, "little", signed=True))


def _maps(name: str, kind: HookKind, index: int, *, text: str, reuse: bool) -> tuple[MapUse, ...]:
    kept = {role: hashlib.sha256(f"{kind} {index} {role}".encode()).hexdigest()[:32] for role in MapRole}
    entry = (b"port", text.encode().ljust(4)[:4])
    keys = {role: f"chain/member{index}/{role}" for role in (MapRole.STATE, MapRole.STATS)}
    return (
        MapUse(name="next", role=MapRole.NEXT, pin=f"gen/{name}/n{index:02}"),
        MapUse(name="ports", role=MapRole.CONFIG, pin=f"gen/{name}/c{index:02}_00", entries=(entry,)),
        *(
            MapUse(name=str(role), role=role, pin=f"state/{kept[role]}", reuse=reuse, key=key, layout="1")
            for role, key in keys.items()
        ),
    )
