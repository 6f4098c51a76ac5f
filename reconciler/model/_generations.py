# SPDX-License-Identifier: Apache-2.0
"""Generations: what is loaded together, and what loading left in the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.model._desired import HookKind
from reconciler.model._families import ProgramType
from reconciler.model._observed import Identity
from reconciler.model._packages import MapRole


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalValue:
    """Bytes of one read-only global, written into its section before load.

    Attributes:
        offset: bytes from the start of the section.
    """

    name: str
    section: str
    offset: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MapUse:
    """One map of one member of a generation.

    Attributes:
        pin: path relative to the pin directory.
        reuse: an existing pinned map is used (state and stats carried over); else it is created.
        entries: (key, value) bytes in kernel layout, config maps only.
        lock_program: BPF_F_RDONLY_PROG where the type allows it, config maps only.
        key: for state and stats: "chain/member/map[@netns/interface]", the identity across layouts.
        layout: digest of the layout and stateVersion, state and stats only.
    """

    name: str
    role: MapRole
    pin: str
    reuse: bool = False
    entries: tuple[tuple[bytes, bytes], ...] = ()
    key: str = ""
    layout: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLoad:
    """One program of a generation, with everything that its load depends on.

    Attributes:
        package: digest of the package, "sha256:...".
        object: file name of the object in the package.
        pin: path of the program's pin.
        settings: what the manifest says, in words, for plans and history; no part of the content's digest.
    """

    chain: str
    member: str
    package: str
    object: str
    program: str
    type: ProgramType
    pin: str
    globals: tuple[GlobalValue, ...]
    maps: tuple[MapUse, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A fresh load of all members of all chains of one hook, joined by tail calls.

    Attributes:
        name: "<digest>_<n>": 32 hex digits of `digest`, and a number that tells reloads of the same content apart.
        digest: sha256 hex over the content (packages, programs, globals, entries, map identities).
    """

    name: str
    digest: str
    kind: HookKind
    members: tuple[MemberLoad, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProgram:
    """A program of a loaded generation; `settings` as in MemberLoad."""

    pin: str
    identity: Identity
    chain: str
    member: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMap:
    """A map of a loaded generation; `content` as in ObservedMap, config maps only."""

    pin: str
    id: int
    role: MapRole
    chain: str
    member: str
    name: str
    key: str = ""
    layout: str = ""
    content: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGeneration:
    """What loading a generation left in the kernel; goes into the inventory."""

    name: str
    digest: str
    kind: HookKind
    programs: tuple[LoadedProgram, ...]
    maps: tuple[LoadedMap, ...]
