# SPDX-License-Identifier: Apache-2.0
"""The verb verify: who signed the source's new commits and their packages, or one archive, under this host's policy.

It adopts nothing and changes nothing but the local copy of the source. Nothing that it finds valid is applied by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from reconciler import manifest, packages, reconcile, trust
from reconciler.cli import _tree
from reconciler.cli._compose import host_facts, make_packages, make_source
from reconciler.cli._output import progress, say, say_json, table
from reconciler.config import trust_digest
from reconciler.errors import (
    GuardrailError,
    HistoryError,
    ReconcilerError,
    RevokedError,
)
from reconciler.model import STATE_VERSION, SourceRecord
from reconciler.source import Ancestry
from reconciler.state import decode_record, read_file
from reconciler.status import EXIT_PRECEDENCE, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.cli._group import Context
    from reconciler.config import Config
    from reconciler.model import PackageRef, Signer
    from reconciler.source import Checkout, Source

SHOWN: Final = 12
"""Digits of a commit's id in a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of verifying one thing.

    Attributes:
        kind: "commit", "history", "manifests", "package".
        reason: "Verified", or the reason code of the refusal.
    """

    kind: str
    name: str
    reason: str
    message: str
    exit_code: int = 0
    signer: Signer | None = None


@click.command()
@click.option("--archive", type=click.Path(path_type=Path), help="Verify this package instead of the source.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Its signature.  [default: ARCHIVE.sigstore.json]")
@click.pass_obj
def verify(context: Context, *, archive: Path | None, bundle: Path | None) -> int:
    """Who signed what the source advertises, or one package. Exit 3: refused."""
    if archive is not None:
        beside = archive.with_name(archive.name + packages.BUNDLE_SUFFIX)
        verdicts = [_archive(context.config, archive, bundle or beside)]
    elif bundle is not None:
        raise click.UsageError("--bundle needs --archive")
    else:
        with progress("asking the source"):
            verdicts = list(_source(context.config))
    worst = min((verdict.exit_code for verdict in verdicts), key=_rank)
    if context.output == "json":
        say_json({"exitCode": worst, "policy": trust_digest(context.config), "verdicts": verdicts})
    else:
        _print(verdicts)
    return worst


def _rank(code: int) -> int:
    return [int(each) for each in EXIT_PRECEDENCE].index(code)


def _print(verdicts: list[Verdict]) -> None:
    rows = []
    for verdict in verdicts:
        who = f"{verdict.signer.name} {verdict.signer.identity}" if verdict.signer is not None else ""
        rows.append((verdict.kind, verdict.name, verdict.reason, who))
    table(("WHAT", "NAME", "VERDICT", "SIGNED BY"), rows)
    for verdict in verdicts:
        if verdict.exit_code:
            say(f"{verdict.reason}: {clean(verdict.message, 2000)}")


def _refused(kind: str, name: str, error: ReconcilerError) -> Verdict:
    return Verdict(kind=kind, name=name, reason=error.reason, message=str(error), exit_code=int(error.exit_code))


def _verified(kind: str, name: str, signer: Signer | None) -> Verdict:
    return Verdict(kind=kind, name=name, reason="Verified", message="", signer=signer)


# --- one archive -------------------------------------------------------------------------------------------


def _archive(config: Config, archive: Path, bundle: Path) -> Verdict:
    """Digest and name come from the archive itself, so this says who signed it and not that a commit wants it."""
    data = _tree.read_file(archive, packages.MAX_ARCHIVE_BYTES)
    signature = _tree.read_file(bundle, packages.MAX_BUNDLE_BYTES)
    digest = packages.digest_of(data)
    parsed, _ = packages.open_archive(data, file=str(archive))
    name = f"{parsed.name} {parsed.version} {digest}"
    try:
        signer = trust.verify_package(
            data,
            signature,
            package=parsed.name,
            rules=config.trust.signers,
            roots=config.trust.roots,
            now=datetime.now(UTC),
        )
        reason = trust.check_revoked(config.trust.revoked, digest=digest, signer=signer)
        if reason is not None:
            raise RevokedError(f"package {parsed.name} {parsed.version}: {reason}")
    except ReconcilerError as error:
        return _refused("package", name, error)
    return _verified("package", name, signer)


# --- the source --------------------------------------------------------------------------------------------


def _source(config: Config) -> Iterator[Verdict]:
    source = make_source(config)
    try:
        head = source.resolve()
        source.fetch(head)
        base, history = _base(config, source, head)
        yield history
        yield from _commits(config, source, base, head)
        yield from _content(config, source.checkout(head))
    finally:
        source.close()


def _base(config: Config, source: Source, head: str) -> tuple[str | None, Verdict]:
    """After which commit everything is new, and whether the head follows it."""
    data = read_file(Path(config.paths.state) / "source.json")
    record = SourceRecord() if data is None else decode_record(data, SourceRecord, STATE_VERSION, "source.json")
    old = record.applied.id if record.applied is not None else config.source.minimum_commit
    what = "what was applied last" if record.applied is not None else "source.minimumCommit"
    if old is None:
        error = GuardrailError("expected source.minimumCommit in the configuration, got none", reason="NoMinimumCommit")
        return None, _refused("history", head[:SHOWN], error)
    name = f"{old[:SHOWN]}..{head[:SHOWN]}"
    ancestry = source.ancestry(old, head)
    if ancestry in (Ancestry.EQUAL, Ancestry.DESCENDANT):
        return old, _verified("history", name, None)
    refusal = HistoryError(f"expected a head that descends from {what} ({old}), got {head}, which is {ancestry}")
    return None if ancestry is Ancestry.UNKNOWN else old, _refused("history", name, refusal)


def _commits(config: Config, source: Source, base: str | None, head: str) -> Iterator[Verdict]:
    commits = source.new_commits(base, head) if base is not None else (head,)
    for commit in commits or (head,):
        try:
            signer = trust.verify_commit(
                source.read_commit(commit),
                commit=commit,
                allowed_signers=config.trust.commits.allowed_signers,
                revoked=config.trust.commits.revoked,
                now=datetime.now(UTC),
            )
        except ReconcilerError as error:
            yield _refused("commit", commit[:SHOWN], error)
        else:
            yield _verified("commit", commit[:SHOWN], signer)


def _content(config: Config, checkout: Checkout) -> Iterator[Verdict]:
    """The manifests for this host, and every package that they name."""
    try:
        desired = manifest.parse(checkout.files, host=host_facts(config), problems=checkout.problems)
    except ReconcilerError as error:
        yield _refused("manifests", checkout.commit[:SHOWN], error)
        return
    sources = make_packages(config)
    for ref in reconcile.package_refs(desired):
        try:
            found = sources.ensure((ref,), blobs=checkout.blobs, running=frozenset(), now=datetime.now(UTC))
        except ReconcilerError as error:
            yield _refused("package", _name(ref), error)
        else:
            yield _verified("package", _name(ref), found[ref.digest].signer)


def _name(ref: PackageRef) -> str:
    return f"{ref.name} {ref.version} {ref.digest}"
