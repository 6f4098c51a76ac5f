# SPDX-License-Identifier: Apache-2.0
"""The verb review: what a change does, for whom, and what gets weaker. No privileges, network, host or kernel."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from reconciler import review as reviews
from reconciler import trust
from reconciler._words import clean
from reconciler.cli._archives import PackageReader, bundle_of
from reconciler.cli._output import note, say
from reconciler.cli._tree import plain_file, read_file, read_tree
from reconciler.errors import ExitCode, InputError, SourceError
from reconciler.source import Clone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.cli._group import Context
    from reconciler.model import PackageRef
    from reconciler.plan import HostRecord
    from reconciler.source import BlobReader

COLOURS: Final = {
    reviews.Severity.HIGH: "red",
    reviews.Severity.MEDIUM: "yellow",
    reviews.Severity.LOW: "cyan",
    reviews.Severity.INFO: None,
}
SEVERITIES: Final = [severity.value for severity in reviews.Severity]
DATE: Final = "%Y-%m-%d"
GARBAGE_AFTER: Final = 500_000
"""New objects between two looks for garbage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Both sides as bytes, and where their packages are read."""

    base: reviews.Tree
    head: reviews.Tree
    blobs: tuple[BlobReader, BlobReader] = field(repr=False)
    kind: reviews.Kind
    problem: str | None = None


class _Date(click.ParamType[str]):
    """A day, as acknowledgements spell it."""

    name = "YYYY-MM-DD"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return datetime.strptime(value, DATE).replace(tzinfo=UTC).strftime(DATE)
        except ValueError:
            self.fail(f"expected a date such as 2026-12-31, got {value[:40]!r}", param, ctx)


@click.command()
@click.argument("base", default="HEAD")
@click.argument("head", default=None, required=False)
@click.option("--worktree", is_flag=True, help="Review the files of the work tree instead of a commit.")
@click.option(
    "--repository", "folder", type=click.Path(path_type=Path), default=Path(), help="The clone.  [default: .]"
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "markdown", "sarif"]),
    help="What is printed.  [default: table]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write JSON to this file.")
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path), help="Also write a comment to this file.")
@click.option("--sarif", "sarif_file", type=click.Path(path_type=Path), help="Also write SARIF to this file.")
@click.option(
    "--snapshots", type=click.Path(path_type=Path), help="Folder of records of `observe --record`: hosts as they are."
)
@click.option(
    "--from",
    "document",
    type=click.Path(path_type=Path),
    help="Show the review in this JSON file.",
)
@click.option("--fail-on", type=click.Choice(SEVERITIES), help="Exit 2 if a finding is at least so severe.")
@click.option("--now", type=_Date(), help="Date for acknowledgements.  [default: today, UTC]")
@click.pass_obj
def review(  # noqa: PLR0913 - one for each option
    context: Context,
    *,
    base: str,
    head: str | None,
    worktree: bool,
    folder: Path,
    output: Literal["table", "json", "markdown", "sarif"] | None,
    json_file: Path | None,
    markdown_file: Path | None,
    sarif_file: Path | None,
    snapshots: Path | None,
    document: Path | None,
    fail_on: str | None,
    now: str | None,
) -> int:
    """What merging HEAD into BASE changes: for which hosts, on which hooks, and what gets weaker.

    Exit 0 whenever a review was made; 2 only with --fail-on; 1 when none could be made.
    """
    if document is not None:
        if worktree or head is not None or snapshots is not None or now is not None:
            raise click.UsageError("expected either --from, or what is to be reviewed, got both; leave one out")
        made = reviews.from_json(read_file(document, reviews.MAX_DOCUMENT_BYTES), file=str(document))
    else:
        made = _review(base, head, worktree=worktree, folder=folder, snapshots=snapshots, now=now)
    texts = {
        "json": lambda: reviews.to_json(made),
        "markdown": lambda: reviews.render_markdown(made),
        "sarif": lambda: reviews.to_json_text(reviews.render_sarif(made, version=metadata.version("ebpf-reconciler"))),
    }
    for name, file in (("json", json_file), ("markdown", markdown_file), ("sarif", sarif_file)):
        if file is not None:
            _write(file, texts[name]())
    chosen = output or context.output
    if chosen == "table":
        for line, severity in reviews.render_text(made):
            say(click.style(line, fg=COLOURS[severity]) if severity is not None else line)
    else:
        click.echo(texts[chosen](), nl=False)
    worst = made.worst
    if fail_on is not None and worst is not None and worst.rank <= reviews.Severity(fail_on).rank:
        return ExitCode.CHANGES
    return ExitCode.OK


def _review(
    base: str, head: str | None, *, worktree: bool, folder: Path, snapshots: Path | None, now: str | None
) -> reviews.Review:
    if worktree and head is not None:
        raise click.UsageError("expected either HEAD or --worktree, got both; leave one out")
    if not worktree and head is None:
        message = "expected two commits, BASE and HEAD, or --worktree, got neither"
        raise click.UsageError(f"{message}; for a branch, `reconciler review origin/main HEAD`")
    hosts = tuple(reviews.group_of(record) for record in _records(snapshots)) if snapshots is not None else ()
    date = now or datetime.now(UTC).strftime(DATE)
    with _little_garbage(), Clone(folder) as clone:
        sides = _worktree(clone, folder, base) if head is None else _commits(clone, base, head)
        reading = reviews.read(sides.base, sides.head)
        again = {ref for ref in reading.kept if ref.repository == "git" and _signed_anew(ref, sides)}
        reader = PackageReader(reading.signers, reading.roots, reading.exchanged | again)
        with trust.apart():  # bundles of HEAD are hostile, and the libraries that read certificates large
            looked = tuple(
                {ref: found for ref in refs | again if (found := reader.read(ref, blobs)) is not None}
                for refs, blobs in zip(reading.refs, sides.blobs, strict=True)
            )
        return reviews.make(
            reading, (looked[0], looked[1]), kind=sides.kind, now=date, problem=sides.problem, hosts=hosts
        )


@contextlib.contextmanager
def _little_garbage() -> Iterator[None]:
    """Values of two trees are many, have no cycles and stay: looking for garbage takes a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(GARBAGE_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _signed_anew(ref: PackageRef, sides: _Sides) -> bool:
    """Whether the signature of a package that stays is another one."""
    old, new = (bundle_of(ref, blobs) for blobs in sides.blobs)
    return old != new


def _records(folder: Path) -> Iterator[HostRecord]:
    from reconciler.cli._offline import read_record  # noqa: PLC0415  # brings more along than a review needs

    files = sorted(folder.glob("*.json"))
    if not files:
        what = "no such file" if not folder.is_dir() else "none"
        message = f"{folder}: expected a folder with records of hosts (*.json), got {what}"
        raise InputError(f"{message}; `reconciler observe --record FILE` writes one on a host")
    for path in files:
        yield read_record(path)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"{path}: expected a file that can be written, got an error: {error.strerror}; name another"
        raise InputError(message) from error


# --- the two sides -----------------------------------------------------------------------------------------


def _commits(clone: Clone, base: str, head: str) -> _Sides:
    old, new = clone.resolve(base), clone.resolve(head)
    merge = clone.merge(old, new)
    if merge.base == new:
        # Right after a merge this is so; it is also what happens when the two are swapped.
        what = "are one commit" if old == new else "were compared, and BASE holds all of HEAD already"
        note(f"note: BASE ({clean(base, 80)}) and HEAD ({clean(head, 80)}) {what}: nothing is left to be merged")
    if merge.tree is None:
        # What would be merged is not known, so the branch stands for itself, from where it started.
        one, other = clone.commit(merge.base), clone.commit(new)
        kind: reviews.Kind = "branch"
        problem = f"conflicts in {', '.join(merge.conflicts) or 'some files'}"
    else:
        one, other, problem = clone.commit(old), clone.merged(merge, new), None
        kind = "commits" if merge.base == old else "merge"
    return _Sides(
        base=reviews.Tree(name=one.commit, files=one.files, problems=one.problems),
        head=reviews.Tree(name=other.commit, files=other.files, problems=other.problems),
        blobs=(one.blobs, other.blobs),
        kind=kind,
        problem=problem,
    )


def _worktree(clone: Clone, folder: Path, base: str) -> _Sides:
    one = clone.commit(clone.resolve(base))
    root = clone.work_tree(folder)
    files, problems = read_tree(root, folders=("chains", "hosts"))

    def blob(path: str, limit: int) -> bytes | None:
        if not plain_file(root, path):
            return None
        with (root / path).open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise SourceError(f"{path}: expected at most {limit} bytes, got more", reason="SourceTooLarge")
        return data

    return _Sides(
        base=reviews.Tree(name=one.commit, files=one.files, problems=one.problems),
        head=reviews.Tree(name="worktree", files=files, problems=problems),
        blobs=(one.blobs, blob),
        kind="worktree",
    )
