# SPDX-License-Identifier: Apache-2.0
"""Packages: what `package.yaml` says, and a package whose every check passed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from reconciler.model._desired import HookKind, Json, PackageRef
from reconciler.model._families import ProgramType

Meaning: TypeAlias = Literal["allow", "deny", "limit", "verdict"]
KeyKind: TypeAlias = Literal["cidr", "port", "protocol"]
Effect: TypeAlias = Literal["allow", "deny"]
Direction: TypeAlias = Literal["higher", "lower"]


class MapRole(enum.StrEnum):
    """What a map is for; decides what happens to it when a generation is replaced (reference: docs/packages.md)."""

    CONFIG = "config"
    STATE = "state"
    STATS = "stats"
    NEXT = "next"


STATS_COUNTERS = ("seen", "passed", "dropped", "redirected", "aborted", "broken")
"""Indexes of every `stats` map, in order; each value is {u64 packets, u64 bytes} per CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program of a package.

    Attributes:
        name: function symbol in the object.
        type: "xdp" or "tc".
        object: file name of the object in the archive.
        hooks: hook kinds on which it may be used.
        proceed_on: the verdicts after which it goes on by default.
        contract: whether it honours the globals chain_proceed, chain_last, chain_end, chain_broken and has `next`.
    """

    name: str
    type: ProgramType
    object: str
    hooks: tuple[HookKind, ...]
    proceed_on: tuple[str, ...]
    contract: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSpec:
    """One map of a package.

    Attributes:
        state_version: raised by the author when the meaning (not the layout) of a state map changes.
        key_format: hint for `elf.encode` ("cidr", "port-be", ...), or None to infer from BTF.
        value_format: likewise.
        meaning: what an entry does to the packets that its key names; None: not said. For reviews only, like the rest.
        key: what the key is; for a struct, `key_fields` says it of members.
        verdicts: value to what it does, for meaning "verdict".
        weakens: which direction of the value lets more packets through, for meaning "limit".
        zero_is: the parameter that stands in where a value is 0.
    """

    name: str
    role: MapRole
    state_version: int = 1
    key_format: str | None = None
    value_format: str | None = None
    meaning: Meaning | None = None
    key: KeyKind | None = None
    key_fields: Mapping[str, KeyKind] = field(default_factory=dict)
    verdicts: Mapping[str, Effect] = field(default_factory=dict)
    weakens: Direction | None = None
    zero_is: str | None = None
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One parameter: a `const volatile` global of the object.

    Attributes:
        format: hint for `elf.encode`, or None.
        default: None means that the object's own initial value stands.
        meaning: what the value does to the packets that it names, None: not said.
        kind: what the value is.
        weakens: which direction lets more packets through, None when neither.
        verdicts: value to what it does.
    """

    name: str
    description: str
    unit: str | None = None
    format: str | None = None
    default: Json = None
    minimum: int | None = None
    maximum: int | None = None
    meaning: Meaning | None = None
    kind: KeyKind | None = None
    weakens: Direction | None = None
    verdicts: Mapping[str, Effect] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageManifest:
    """`package.yaml`."""

    name: str
    version: str
    license: str
    programs: tuple[ProgramSpec, ...]
    maps: tuple[MapSpec, ...] = ()
    params: tuple[ParamSpec, ...] = ()
    features: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Signer:
    """Who signed, as verified.

    Attributes:
        name: the policy entry that matched.
        identity: certificate identity, key fingerprint ("SHA256:...") or principal.
        issuer: OIDC issuer for certificates, "key" for keys, "ssh" for commits.
        not_after: the end of the validity that applies (RFC 3339), if any.
    """

    name: str
    identity: str
    issuer: str
    not_after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package whose digest, signature, archive and objects were checked; objects may reach libbpf.

    Attributes:
        objects: file name in the archive to the object's bytes.
        revoked: why what already runs may stay but nothing new may start, None normally.
        untrusted: the same, when nobody revoked it but nobody vouches for it any more either; never a reason to detach.
    """

    ref: PackageRef
    manifest: PackageManifest
    objects: Mapping[str, bytes]
    signer: Signer
    revoked: str | None = None
    untrusted: str | None = None
