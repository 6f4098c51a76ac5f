# SPDX-License-Identifier: Apache-2.0
"""The files of one commit → what one host shall run, or every finding that concerns this host.

Which findings concern a host: those about `reconciler.yaml` concern all; those about a file below chains/ concern the
hosts that its new *or* its previous version selects. Where the new version's selector cannot be read, the previous one
decides alone; a file that is new and cannot be read concerns every host. If the previous version could not be read
either, this host has adopted it without minding, so it does not mind now. Nothing else stops a host. It follows that
a commit which was adopted can be read again with itself as the previous one, whatever has become of other hosts' files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

from reconciler import _documents
from reconciler._documents import Effort, EffortError
from reconciler.errors import Diagnostic, ManifestError
from reconciler.manifest._chains import ReadChain, acknowledgements, check_head, read_chain
from reconciler.manifest._select import hooks_meet, hosts_meet, selects
from reconciler.model import (
    MAX_CHAIN_MEMBERS,
    Chain,
    DesiredState,
    HookKind,
    HostFacts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reconciler._documents import Document
    from reconciler.model import Acknowledgement

REPOSITORY_FILE = "reconciler.yaml"
NO_CHAIN = "expected at least one chain below chains/, got none; set spec.allowEmpty if every host shall detach all"
"""The one finding about a whole repository, by which it is known: other messages may quote any part of it."""
CHAINS_FOLDER = "chains/"
CHAINS = "chains"
"""The folder itself: where the reader of the Git tree reports what concerns every file in it, such as a limit."""
SUFFIXES = (".yaml", ".yml")
"""Files below chains/ that hold manifests."""
IGNORED_SUFFIXES = (".md", ".txt")
IGNORED_NAMES = frozenset({".gitkeep", ".gitignore", ".gitattributes", "CODEOWNERS", "OWNERS", "README"})
"""Files below chains/ that may be there without being manifests; any other file is a finding, since it may be a
manifest whose name was mistyped."""
MAX_CONFLICTS = 100
"""Findings between chains that are reported; the others are found once these are mended."""
MAX_COMPARISONS = 2_000_000
"""Work to find chains that can meet (`Effort`): some seconds. Globs that begin or end differently take next to none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A repository, for every host.

    Attributes:
        repository: its name, None when it cannot be read.
        chains: all that have no findings of their own, in the order of files and documents.
        documents: that of each chain, for findings that only a package or another commit can bring up.
        acknowledge: what is accepted about no chain in particular.
    """

    findings: tuple[Diagnostic, ...]
    repository: str | None
    allow_empty: bool
    chains: tuple[Chain, ...]
    documents: tuple[Document, ...] = ()
    acknowledge: tuple[Acknowledgement, ...] = ()


@dataclass(slots=True)
class _File:
    """A file below chains/ as read."""

    findings: list[Diagnostic] = field(default_factory=list)
    chains: list[ReadChain] = field(default_factory=list)
    readable: bool = True
    """Every selector of the file is known."""

    def selects(self, host: HostFacts) -> bool:
        return any(chain.selector is not None and selects(chain.selector, host) for chain in self.chains)


Known: TypeAlias = "dict[tuple[str, bytes], _File]"


def parse(
    files: Mapping[str, bytes],
    *,
    host: HostFacts,
    problems: tuple[Diagnostic, ...] = (),
    previous: Mapping[str, bytes] | None = None,
    previous_problems: tuple[Diagnostic, ...] = (),
) -> DesiredState:
    """What the commit wants on `host`.

    Args:
        files: path to content: `reconciler.yaml` and everything below `chains/`; other paths are passed over.
        host: who this host is.
        problems: what the reader of the Git tree could not give (links, files too large): such files are unreadable.
        previous: the files of the commit that this host applied last, None at the first start. To read that commit
            itself again: its own files.
        previous_problems: what the reader of the Git tree could not give of that commit.

    Raises:
        ManifestError: with every finding that concerns this host.
    """
    read = _read_files(files, problems)
    findings = _everywhere(problems, previous or {})
    about, repository_findings = _read_repository(files, problems)
    findings += repository_findings
    before = None if previous is None else _Before(previous, previous_problems, host)
    for path, file in read.items():
        if file.findings and (file.selects(host) or (before.minds(path, file) if before else not file.readable)):
            findings += file.findings
    mine = [chain for chain in _chains(read) if selects(chain.chain.hosts, host)]
    findings += _conflicts(mine, one_host=True)
    findings += _empty(read, about)
    if findings or about.name is None:
        raise ManifestError(tuple(findings))
    return desired_of(about.name, (chain.chain for chain in mine), allow_empty=about.allow_empty)


def desired_of(repository: str, chains: Iterable[Chain], *, allow_empty: bool) -> DesiredState:
    """The desired state of one host that `chains` select, in canonical order."""
    kinds = list(HookKind)
    ordered = sorted(chains, key=lambda c: (kinds.index(c.hook.kind), c.priority, c.name))
    return DesiredState(repository=repository, chains=tuple(ordered), allow_empty=allow_empty)


def state_digest(desired: DesiredState) -> str:
    """Of the canonical desired state of one host: globs unexpanded, nothing that is for people only."""
    from reconciler.model import digest_of_builtins, record_builtins  # noqa: PLC0415  # who only checks needs no digest

    plain = record_builtins(desired)
    for chain in plain["chains"]:
        chain["file"] = ""
        del chain["acknowledge"]
    return digest_of_builtins(plain)


def parse_all(
    files: Mapping[str, bytes], *, problems: tuple[Diagnostic, ...] = (), known: Known | None = None
) -> Validation:
    """The repository for every host, with every finding; what `validate` shows.

    Args:
        files: as for `parse`.
        problems: as for `parse`.
        known: files that were read before, by path and content; what is read now is added. Reading is what takes time.
    """
    read = _read_files(files, problems, known)
    about, findings = _read_repository(files, problems)
    findings += _everywhere(problems, {})
    for file in read.values():
        findings += file.findings
    chains = list(_chains(read))
    findings += _conflicts(chains, one_host=False)
    findings += _empty(read, about)
    return Validation(
        findings=tuple(findings),
        repository=about.name,
        allow_empty=about.allow_empty,
        chains=tuple(chain.chain for chain in chains),
        documents=tuple(chain.source.document for chain in chains),
        acknowledge=about.acknowledge,
    )


# --- files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """`reconciler.yaml`; `name` is None when it cannot be read."""

    name: str | None = None
    allow_empty: bool = False
    acknowledge: tuple[Acknowledgement, ...] = ()


def _read_repository(files: Mapping[str, bytes], problems: tuple[Diagnostic, ...]) -> tuple[_About, list[Diagnostic]]:
    findings = [problem for problem in problems if problem.file == REPOSITORY_FILE]
    data = files.get(REPOSITORY_FILE)
    if data is None:
        if not findings:
            message = "expected a document of kind Repository, got no such file; `reconciler init` writes one"
            findings.append(Diagnostic(message=message, file=REPOSITORY_FILE))
        return _About(), findings
    documents, read_findings = _documents.read_documents(data, file=REPOSITORY_FILE)
    findings += read_findings
    for document in documents[1:]:
        findings.append(document.finding("expected one document, got several; chains lie below chains/"))
    for document in documents[:1]:
        findings += check_head(document, "Repository") or _documents.validate(document, "Repository")
    if findings:
        return _About(), findings
    value: Any = documents[0].value
    spec = value.get("spec", {})
    name, allow_empty = value["metadata"]["name"], spec.get("allowEmpty", False)
    return _About(name=name, allow_empty=allow_empty, acknowledge=acknowledgements(spec)), findings


def _read_files(
    files: Mapping[str, bytes], problems: tuple[Diagnostic, ...], known: Known | None = None
) -> dict[str, _File]:
    """Every file below chains/, by path in order, also those that only a problem tells of."""
    known = {} if known is None else known
    read: dict[str, _File] = {}
    for path in filter(_is_manifest, files):
        key = (path, files[path])
        file = known.get(key) or _read_file(path, files[path])
        read[path] = known[key] = file
    for problem in problems:
        if problem.file is not None and _is_manifest(problem.file):
            file = read.get(problem.file, _File())
            # Not in place: the same bytes may be known from another tree, which has no such problem.
            read[problem.file] = _File(findings=[*file.findings, problem], chains=file.chains, readable=False)
    return dict(sorted(read.items()))


def _everywhere(problems: Iterable[Diagnostic], previous: Mapping[str, bytes]) -> list[Diagnostic]:
    """Problems behind which any manifest may be hidden: they stop every host."""
    hidden = []  # otherwise a file that was not read would be taken for a removal
    for problem in problems:
        path = problem.file
        if path is None or path == CHAINS:
            hidden.append(problem)
        elif path.startswith(CHAINS_FOLDER) and not _is_manifest(path):
            # Its name alone would be passed over, but manifests were below it.
            hidden += [problem] if any(before.startswith(f"{path}/") for before in previous) else []
    return hidden


def _is_manifest(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path.startswith(CHAINS_FOLDER) and name not in IGNORED_NAMES and not name.endswith(IGNORED_SUFFIXES)


def _read_file(path: str, data: bytes) -> _File:
    if not path.endswith(SUFFIXES):
        message = f"expected a file that ends in {' or '.join(SUFFIXES)}, got another; rename it, or move it elsewhere"
        return _File(findings=[Diagnostic(message=message, file=path)], readable=False)
    documents, findings = _documents.read_documents(data, file=path)
    chains = [read_chain(document) for document in documents]
    return _File(
        findings=[*findings, *(finding for chain in chains for finding in chain.findings)],
        chains=chains,
        # After an error of syntax there may be further documents that nobody has seen.
        readable=bool(documents) and all(chain.selector for chain in chains) and not _cut_short(findings),
    )


def _cut_short(findings: Iterable[Diagnostic]) -> bool:
    # Findings inside a document have a pointer; those about the file or its syntax have none.
    return any(finding.pointer is None for finding in findings)


class _Before:
    """The commit that a host applied last, as far as it decides about a file that does not select the host now."""

    def __init__(self, files: Mapping[str, bytes], problems: tuple[Diagnostic, ...], host: HostFacts) -> None:
        self._files = files
        self._problems = frozenset(problem.file for problem in problems)
        self._host = host

    def minds(self, path: str, file: _File) -> bool:
        """Whether findings about `file` concern the host because of the previous version."""
        if path in self._problems:
            return False
        if path not in self._files:
            return not file.readable
        return _read_file(path, self._files[path]).selects(self._host)


# --- rules between chains ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A chain and where it stands."""

    chain: Chain
    source: ReadChain

    def finding(self, message: str, pointer: str) -> Diagnostic:
        return self.source.document.finding(message, pointer)


def _chains(read: Mapping[str, _File]) -> Iterable[_Placed]:
    for file in read.values():
        for source in file.chains:
            if source.chain is not None:
                yield _Placed(chain=source.chain, source=source)


def _conflicts(chains: Iterable[_Placed], *, one_host: bool) -> list[Diagnostic]:
    """Findings between two chains, each at the later one; `one_host`: all of them are for one host already.

    Both their number and the work for pairs that may meet are limited: both grow with the square of the chains.
    """
    placed = list(chains)
    findings: list[Diagnostic] = []
    first: dict[str, _Placed] = {}
    for one in placed:
        earlier = first.setdefault(one.chain.name, one)
        if earlier is not one:
            message = f"expected each chain name once, got {one.chain.name!r} again; it stands in {earlier.chain.file}"
            findings.append(one.finding(f"{message} already; rename one", "/metadata/name"))
    by_place: dict[tuple[HookKind, str], list[_Placed]] = {}
    for one in placed:
        by_place.setdefault((one.chain.hook.kind, one.chain.hook.netns), []).append(one)
    effort = Effort(MAX_COMPARISONS)
    for group in by_place.values():
        for a, b in _candidates(group):
            try:
                findings += _conflict(a, b, effort, one_host=one_host)
            except EffortError:
                message = "expected fewer chains of equal priority with wildcards, got more than can be compared"
                return [*findings, b.finding(f"{message}; give them different priorities", "/spec/priority")]
            if len(findings) >= MAX_CONFLICTS:
                return findings
    return findings


def _candidates(group: list[_Placed]) -> list[tuple[_Placed, _Placed]]:
    """The pairs that may disagree, in the order of all pairs, of which a thousand chains have 500,000."""
    found: set[tuple[int, int]] = set()
    by_priority: dict[int, list[int]] = {}
    by_shared: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, one in enumerate(group):
        by_priority.setdefault(one.chain.priority, []).append(index)
        by_shared.setdefault(tuple(one.chain.hook.shared.items()), []).append(index)
    for alike in by_priority.values():
        found.update(combinations(alike, 2))
    for one_way, another in combinations(by_shared.values(), 2):
        found.update((min(a, b), max(a, b)) for a in one_way for b in another)
    longest = sorted(range(len(group)), key=lambda index: -len(group[index].chain.members))
    for place, a in enumerate(longest):
        for b in longest[place + 1 :]:
            if len(group[a].chain.members) + len(group[b].chain.members) <= MAX_CHAIN_MEMBERS:
                break
            found.add((min(a, b), max(a, b)))
    return [(group[a], group[b]) for a, b in sorted(found)]


def _conflict(a: _Placed, b: _Placed, effort: Effort, *, one_host: bool) -> Iterable[Diagnostic]:
    mine, others = a.chain.hosts.match_labels, b.chain.hosts.match_labels
    if not one_host and any(others.get(label, value) != value for label, value in mine.items()):
        return  # most pairs: chains of different hosts
    disagreements = list(_disagreements(a.chain, b.chain))
    # Whether they can meet is the costly question, so it comes last.
    if not disagreements or not hooks_meet(a.chain.hook, b.chain.hook, effort):
        return
    if not one_host and not hosts_meet(a.chain.hosts, b.chain.hosts, effort):
        return
    other = f"chain {a.chain.name!r} ({a.chain.file}), which can run on the same hook"
    for pointer, message in disagreements:
        yield b.finding(message.format(other=other), pointer)


def _disagreements(a: Chain, b: Chain) -> Iterable[tuple[str, str]]:
    if a.priority == b.priority:
        yield "/spec/priority", f"expected another priority than that of {{other}}, got {b.priority} too; change one"
    for (name, x), (_, y) in zip(a.hook.shared.items(), b.hook.shared.items(), strict=True):
        if x != y:
            yield "/spec/hook", f"expected {name} {str(x)!r} like {{other}}, got {str(y)!r}; make them agree"
    together = len(a.members) + len(b.members)
    if together > MAX_CHAIN_MEMBERS:
        yield "/spec/members", f"expected at most {MAX_CHAIN_MEMBERS} members with {{other}}, got {together}; drop some"


def _empty(read: Mapping[str, _File], about: _About) -> list[Diagnostic]:
    # Where reconciler.yaml cannot be read, nobody knows whether that is allowed; its own finding stops every host.
    if about.name is None or about.allow_empty or any(file.chains or file.findings for file in read.values()):
        return []
    return [Diagnostic(message=NO_CHAIN, file=REPOSITORY_FILE)]
