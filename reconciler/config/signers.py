# SPDX-License-Identifier: Apache-2.0
"""Who may sign packages, and what is revoked: values of the host's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRule:
    """A public key that may sign packages.

    Attributes:
        packages: globs on the package name.
        key_pem: SubjectPublicKeyInfo, PEM (P-256 or Ed25519).
        not_before: a *verified* signing time must not be earlier.
        not_after: a *verified* signing time must not be later.
        tlog: whether the bundle must carry an entry of a transparency log.
        root: name of the trusted root that log entries and timestamps are checked with.
    """

    name: str
    packages: tuple[str, ...]
    key_pem: bytes
    not_before: datetime | None = None
    not_after: datetime | None = None
    tlog: Literal["required", "optional"] = "optional"
    root: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRule:
    """A certificate identity that may sign packages; identity *and* issuer are both mandatory.

    Attributes:
        packages: globs on the package name.
        identity: exact, or a glob in which `*` stands for anything but "/"; always matched in full.
        issuer: exact OIDC issuer.
        root: name of the trusted root.
    """

    name: str
    packages: tuple[str, ...]
    identity: str
    issuer: str
    root: str


SignerRule: TypeAlias = KeyRule | IdentityRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What is refused whoever signed it.

    Attributes:
        digests: "sha256:..." of packages.
        keys: fingerprints, "SHA256:<base64 without padding of sha256(SPKI DER)>".
        identities: certificate identities, exact.
    """

    digests: frozenset[str] = field(default_factory=frozenset)
    keys: frozenset[str] = field(default_factory=frozenset)
    identities: frozenset[str] = field(default_factory=frozenset)
