# SPDX-License-Identifier: Apache-2.0
"""The composition root: from a configuration to the real objects, each with one owner."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.config import FolderRepository as FolderConfig
from reconciler.config import KeyRule, load_config, trust_digest
from reconciler.errors import ConfigError, Diagnostic, InputError, NotSupportedError
from reconciler.model import HostFacts
from reconciler.reconcile import Parts
from reconciler.source import Source, SourceAuth, SourceLimits, SourceSettings, open_source
from reconciler.state import open_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.config import Config
    from reconciler.kernel.linux import LinuxKernel
    from reconciler.model import Package, PackageRef
    from reconciler.packages import Cache
    from reconciler.source import BlobReader


class SystemClock:
    """The real time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def host_facts(config: Config) -> HostFacts:
    """Who this host is: its configured name, else what the kernel says."""
    return HostFacts(name=config.host_name or socket.gethostname(), labels=config.labels)


def machine_id() -> str:
    """Something stable about this machine, for the phase of its polls."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def make_source(config: Config) -> Source:
    """The Git source with its local repository below the state directory."""
    auth = config.source.auth
    settings = SourceSettings(
        url=config.source.url,
        ref=config.source.ref,
        auth=SourceAuth(
            token_file=_path(auth.token_file),
            ca_file=_path(auth.ca_file),
            proxy=auth.proxy,
            proxy_auth_file=_path(auth.proxy_auth_file),
            client_cert_file=_path(auth.client_cert_file),
            client_key_file=_path(auth.client_key_file),
            ssh_key_file=_path(auth.ssh_key_file),
            known_hosts_file=_path(auth.known_hosts_file),
        ),
        allow_file=config.source.allow_file,
        limits=SourceLimits(resolve_timeout=config.source.timeout),
    )
    return open_source(settings, Path(config.paths.state) / "git")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredPackages:
    """`reconcile.PackageSource` over the repositories and the trust of the configuration."""

    config: Config
    cache: Cache

    def ensure(
        self, refs: tuple[PackageRef, ...], *, blobs: BlobReader, running: frozenset[str], now: datetime
    ) -> dict[str, Package]:
        from reconciler import packages  # noqa: PLC0415  # the archive and trust code is only needed with packages

        repositories: dict[str, packages.Repository] = {"git": packages.GitRepository(blobs)}
        for entry in self.config.repositories:
            if isinstance(entry, FolderConfig):
                repositories[entry.name] = packages.FolderRepository(Path(entry.path))
            else:
                repositories[entry.name] = packages.HttpsRepository(
                    entry.url, ca_file=_path(entry.ca_file), token_file=_path(entry.token_file)
                )
        return self.cache.ensure(
            refs,
            repositories=repositories,
            trust=self.config.trust,
            running=running,
            policy_id=trust_digest(self.config),
            now=now,
        )

    def prune(self, keep: frozenset[str]) -> None:
        self.cache.prune(keep)


def make_packages(config: Config) -> ConfiguredPackages:
    """Package repositories, the content-addressed store and the cache of this process."""
    from reconciler.packages import Cache, Store  # noqa: PLC0415

    return ConfiguredPackages(config=config, cache=Cache(Store(Path(config.paths.state) / "packages")))


def check_trust(config: Config) -> None:
    """Keys and trust roots are readable now, not only when the first package is verified.

    Raises:
        ConfigError: names every one that is not.
    """
    from reconciler import trust  # noqa: PLC0415  # cryptography costs 50 ms that reading verbs need not pay

    findings = []
    for rule in config.trust.signers:
        if isinstance(rule, KeyRule):
            findings += _finding(trust.load_public_key, rule.key_pem, f"key of signer {rule.name}")
    for name, root in sorted(config.trust.roots.items()):
        findings += _finding(trust.trust_root_end, root, f"trust root {name}")
    if findings:
        raise ConfigError(tuple(findings))


def _finding(read: Callable[[bytes], object], data: bytes, what: str) -> list[Diagnostic]:
    try:
        read(data)
    except InputError as error:
        return [Diagnostic(message=f"{what}: {error}")]
    return []


def make_kernel(config: Config) -> LinuxKernel:
    """The real kernel; needs root."""
    if os.geteuid() != 0:
        raise NotSupportedError("open the kernel", 1, "expected uid 0 (or its capabilities); run it with sudo")
    from reconciler.kernel.linux import LinuxKernel  # noqa: PLC0415  # pyroute2 takes half of a short verb's time

    return LinuxKernel(pin_dir=Path(config.paths.pins), expedite=config.expedite)


@contextmanager
def open_parts(
    config: Config, *, unsafe_first_use: bool = False, wait: bool = False, emit: Callable[[Mapping[str, object]], None]
) -> Iterator[Parts]:
    """All real objects, closed at the end whatever happens.

    Raises:
        LockedError: an agent or another command works on this host.
        ReconcilerError: one of them cannot be had.
    """
    check_trust(config)
    with ExitStack() as stack:
        state = open_state(Path(config.paths.state), wait=wait)
        stack.callback(state.close)
        kernel = make_kernel(config)
        stack.callback(kernel.close)
        source = make_source(config)
        stack.callback(source.close)
        yield Parts(
            config=config,
            facts=host_facts(config),
            kernel=kernel,
            state=state,
            source=source,
            packages=make_packages(config),
            clock=SystemClock(),
            kernel_release=os.uname().release,
            emit=emit,
            unsafe_first_use=unsafe_first_use,
        )


def emit_json(record: Mapping[str, object]) -> None:
    """Events of the agent: JSON lines on stdout. A log that takes nothing (a full disk, a pipe's end) stops no pass."""
    with suppress(OSError):
        sys.stdout.write(json.dumps(record, ensure_ascii=True) + "\n")
        sys.stdout.flush()


def emit_nothing(record: Mapping[str, object]) -> None:
    """One-shot commands print their result instead of events."""


__all__ = [
    "ConfiguredPackages",
    "SystemClock",
    "emit_json",
    "emit_nothing",
    "host_facts",
    "load_config",
    "machine_id",
    "make_kernel",
    "make_packages",
    "make_source",
    "open_parts",
]
