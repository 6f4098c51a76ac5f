# SPDX-License-Identifier: Apache-2.0
"""What will hurt before long although all is well now: what ends soon, and a disk that is nearly full.

Warnings change neither exit code nor reason of a pass. What ended longer ago than the same span is not told any more:
keys whose window is over stay in configurations, for packages that were signed before.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import trust
from reconciler.config import HttpsRepository, KeyRule, read_protected
from reconciler.errors import ConfigError, ExitCode, StateError
from reconciler.status import Expiry, Finding, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.config import Config
    from reconciler.reconcile._parts import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is to come.

    Attributes:
        expiry: what ends next.
        disk_free: free share of the state directory's file system, 0..1; None where it cannot be asked.
    """

    warnings: tuple[Finding, ...]
    expiry: Expiry | None
    disk_free: float | None


def look_ahead(parts: Parts) -> Ahead:
    """Everything that deserves a warning now."""
    limits, now = parts.config.warn, parts.clock.now()
    span = timedelta(seconds=limits.expires_within)
    if parts.memo.ends is None:
        parts.memo.ends = tuple(trust_ends(parts.config))
    ends = sorted(end for end in (*parts.memo.ends, *_certificates(parts.config)) if end[0] > now - span)
    found = [_ending(at, what, over=at <= now) for at, what in ends if at <= now + span]
    free = None
    with suppress(StateError):
        free = parts.state.free_share()
    if free is not None and free < limits.disk_free:
        message = (
            f"less than {100 * limits.disk_free:g}% of the file system of {parts.state.directory} is free "
            "(warn.diskFree); without space nothing new is begun"
        )
        found.append(Finding(reason="DiskNearlyFull", message=message, exit_code=ExitCode.OK))
    nearest = Expiry(what=ends[0][1], at=ends[0][0].isoformat(timespec="seconds")) if ends else None
    return Ahead(warnings=tuple(found), expiry=nearest, disk_free=free)


def _ending(at: datetime, what: str, *, over: bool) -> Finding:
    when = at.isoformat(timespec="seconds")
    if over:
        return Finding(reason="Expired", message=f"{what} ended at {when}", exit_code=ExitCode.OK)
    return Finding(reason="ExpiresSoon", message=f"{what} ends at {when}; replace it before", exit_code=ExitCode.OK)


def trust_ends(config: Config) -> Iterator[tuple[datetime, str]]:
    """What of the trust material ends; roots that cannot be read were refused with the configuration."""
    for rule in config.trust.signers:
        if isinstance(rule, KeyRule) and rule.not_after is not None:
            yield rule.not_after, f"key of signer {rule.name}"
    for name, root in sorted(config.trust.roots.items()):
        with suppress(ConfigError):
            end = trust.trust_root_end(root)
            if end is not None:
                yield end, f"trust root {name}"
    for end, principals in trust.allowed_signers_ends(config.trust.commits.allowed_signers):
        yield end, f"allowed signer {clean(principals, 60)}"


def _certificates(config: Config) -> Iterator[tuple[datetime, str]]:
    """Read at each pass, because they rotate; one that cannot be read is told by the next contact."""
    auth = config.source.auth
    files = [(auth.client_cert_file, "client certificate"), (auth.ca_file, "CA certificate")]
    files += [(each.ca_file, "CA certificate") for each in config.repositories if isinstance(each, HttpsRepository)]
    for path, what in dict.fromkeys(files):
        if path is not None:
            with suppress(ConfigError):
                # While an authority is changed the file holds two, and the old one may stay in it for years.
                for end in trust.certificate_ends(read_protected(Path(path), secret=False)):
                    yield end, f"{what} {path}"
