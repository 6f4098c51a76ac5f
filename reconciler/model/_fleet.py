# SPDX-License-Identifier: Apache-2.0
"""The fleet on paper: what a reviewer's machine must know of hosts that it cannot see. It grants nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Somebody knows of a finding and accepts it for a while.

    Attributes:
        finding: id of the finding, such as "RV019".
        why: for the record.
        until: RFC 3339 date, the last day on which it counts.
    """

    finding: str
    why: str
    until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperSigner:
    """A signer rule of the policy that a group is reviewed against; a key or an identity with its issuer.

    Attributes:
        packages: globs on the package name.
        key: fingerprint, "SHA256:…", None for an identity.
        public_key: PEM of the same key, None when only the fingerprint is known.
        root: path in the repository of the trusted_root.json for this identity, None when none is given.
    """

    name: str
    packages: tuple[str, ...]
    key: str | None = None
    public_key: str | None = None
    identity: str | None = None
    issuer: str | None = None
    root: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperPolicy:
    """The policy of a group's hosts, as its repository believes it to be.

    Attributes:
        id: the policy id that the hosts print in `status`; None: not said.
        signers: who may sign packages; None: not said, so signers are not judged.
        tolerations: sets that the hosts name, sorted (of a recorded host the rules); None: not said.
    """

    id: str | None = None
    signers: tuple[PaperSigner, ...] | None = None
    tolerations: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """A program of others on an XDP hook, which takes one only, as a recorded host has it.

    Attributes:
        program: its name as the kernel holds it, "" when it has none.
        tolerated_by: name of the toleration that lets it be, None when it is foreign.
    """

    netns: str
    interface: str
    program: str
    tolerated_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGroup:
    """Hosts that are alike.

    Attributes:
        count: how many hosts; that of `names` where they are given.
        names: host names, sorted; empty when only their number is known.
        interfaces: network namespace to the names of its interfaces; empty: not known.
        features: kernel feature to whether the hosts have it; others are not known.
        secure_mode: "off", "audit" or "enforce"; None: not said.
        occupants: what others have on XDP hooks; None: not known.
        guardrail_share: 0..1, None: the default of hosts.
        file: path in the repository, for messages.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    names: tuple[str, ...] = ()
    interfaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    features: Mapping[str, bool] = field(default_factory=dict)
    secure_mode: str | None = None
    policy: PaperPolicy = field(default_factory=PaperPolicy)
    guardrail_count: int | None = None
    guardrail_share: float | None = None
    occupants: tuple[Occupant, ...] | None = None
    file: str = ""
