# SPDX-License-Identifier: Apache-2.0
"""The host's configuration as values. Durations are seconds, shares are 0..1, sizes are bytes."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from reconciler.config.signers import Revoked, SignerRule
from reconciler.model import HOST_NETNS, AttachKind, HookKind, Json

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Credentials, as absolute paths: what rotates is read at each contact and never kept.

    Attributes:
        proxy: "http://HOST:PORT".
    """

    token_file: str | None = None
    ca_file: str | None = None
    proxy: str | None = None
    proxy_auth_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    ssh_key_file: str | None = None
    known_hosts_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """Where the manifests come from.

    Attributes:
        url: https://, ssh:// or (with `allow_file`) file://; without credentials.
        ref: fully qualified.
        repository: what `reconciler.yaml` must be called, None for anything.
        minimum_commit: full commit id, lower-case hex.
        interval: seconds between two polls.
        drift_interval: seconds between two comparisons with the kernel.
        confirm_timeout: seconds within which the source must answer after a switch.
        stale_after: seconds without contact after which the source is stale.
        timeout: seconds for one contact.
    """

    url: str
    ref: str = "refs/heads/main"
    repository: str | None = None
    auth: Auth = field(default_factory=Auth)
    allow_file: bool = False
    minimum_commit: str | None = None
    interval: float = 300.0
    drift_interval: float = 30.0
    confirm_timeout: float = 30.0
    stale_after: float = 86400.0
    timeout: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRepository:
    """Packages in a folder of this host; `path` is absolute."""

    name: str
    path: str
    type: Literal["folder"] = "folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsRepository:
    """Packages on a web server; `url` has no trailing slash, the files are absolute paths."""

    name: str
    url: str
    ca_file: str | None = None
    token_file: str | None = None
    type: Literal["https"] = "https"


Repository: TypeAlias = FolderRepository | HttpsRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTrust:
    """Who may sign commits.

    Attributes:
        allowed_signers: content of the allowed signers file (ssh-keygen(1)); empty allows nobody.
        revoked: content of the revocation file, if any.
        unsafe_allow_unsigned: accept commits whoever made them.
    """

    allowed_signers: bytes = b""
    revoked: bytes | None = None
    unsafe_allow_unsigned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whom this host trusts; the default trusts nobody.

    Attributes:
        roots: name to the content of a sigstore trusted_root.json.
        on_revoked: whether running programs that are revoked stay or leave their hooks.
    """

    commits: CommitTrust = field(default_factory=CommitTrust)
    signers: tuple[SignerRule, ...] = ()
    roots: Mapping[str, bytes] = field(default_factory=dict)
    revoked: Revoked = field(default_factory=Revoked)
    on_revoked: Literal["keep", "detach"] = "keep"


class SecureMode(enum.StrEnum):
    """What happens to programs that nobody declared."""

    OFF = "off"
    AUDIT = "audit"
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A program of others that stays. Every condition that is given must hold; at least one names the program.

    Attributes:
        hooks: kinds of hook, empty for all.
        attach: ways of attaching, empty for all.
        program_name: glob on the name that the kernel holds (at most 15 characters).
        tag: 16 hex digits.
        filter_name: glob on the name of the clsact filter.
    """

    name: str
    why: str
    owner: str
    hooks: tuple[HookKind, ...] = ()
    attach: tuple[AttachKind, ...] = ()
    program_name: str | None = None
    tag: str | None = None
    filter_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureConfig:
    """Secure mode.

    Attributes:
        tolerations: all rules in force, those of the named sets that ship first.
        namespaces: network namespaces that are watched besides those of chains.
        interfaces: names or globs that are watched besides those of chains.
        max_evictions: per pass.
    """

    mode: SecureMode = SecureMode.AUDIT
    tolerations: tuple[Toleration, ...] = ()
    namespaces: tuple[str, ...] = (HOST_NETNS,)
    interfaces: tuple[str, ...] = ("*",)
    max_evictions: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """How much one pass may remove.

    Attributes:
        count: attachments, None for no such limit.
        share: of the attachments owned, 0..1.
    """

    count: int | None = None
    share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The local control socket.

    Attributes:
        path: None: `control.sock` in `Paths.run`.
        mode: permission bits.
        group: name of a group, None for root's.
    """

    path: str | None = None
    mode: int = 0o600
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where metrics go.

    Attributes:
        textfile: path that is replaced atomically after each pass.
        listen: "ADDRESS:PORT", a loopback address.
    """

    textfile: str | None = None
    listen: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warn:
    """When to warn before something hurts.

    Attributes:
        expires_within: seconds before the end of a certificate, a key's window or a trust root.
        disk_free: share of the state directory's file system that should be free, 0..1.
    """

    expires_within: float = 30 * 86400.0
    disk_free: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Directories; `pins` is on bpffs and holds no dots."""

    state: str = "/var/lib/reconciler"
    pins: str = "/sys/fs/bpf/reconciler"
    run: str = "/run/reconciler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One host's configuration.

    Attributes:
        host_name: overrides the system's host name.
        labels: what selectors of chains are compared with.
    """

    source: SourceConfig
    host_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    repositories: tuple[Repository, ...] = ()
    trust: Trust = field(default_factory=Trust)
    secure: SecureConfig = field(default_factory=SecureConfig)
    guardrail: Guardrail = field(default_factory=Guardrail)
    expedite: Literal["auto", "never"] = "auto"
    control: Control = field(default_factory=Control)
    metrics: Metrics = field(default_factory=Metrics)
    warn: Warn = field(default_factory=Warn)
    paths: Paths = field(default_factory=Paths)

    @property
    def control_path(self) -> str:
        """Absolute path of the control socket."""
        return self.control.path or f"{self.paths.run}/control.sock"


def trust_digest(config: Config) -> str:
    """sha256 hex over whom the host trusts and what it tolerates: equal policy, equal id, whatever the file looks like.

    The order of rules counts (the first that matches gives the name), the order of revocations does not.
    """
    trust, secure = config.trust, config.secure
    return hashlib.sha256(msgspec.json.encode(_plain([trust, secure]), order="sorted")).hexdigest()


def _plain(value: object) -> Json:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.hex()
        case frozenset():
            return [*sorted(map(str, value))]
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case _ if hasattr(value, "isoformat"):
            return str(value.isoformat())
        case _:
            names: Mapping[str, object] = value.__dataclass_fields__  # type: ignore[attr-defined]  # all others are dataclasses
            kind = type(value).__name__
            return {"": kind, **{name: _plain(getattr(value, name)) for name in names}}
