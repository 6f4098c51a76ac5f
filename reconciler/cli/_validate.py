# SPDX-License-Identifier: Apache-2.0
"""The verb validate: everything that is wrong with a work tree or a file, offline and without privileges.

It says what a host would say, as far as that can be said without a host: manifests, archives in packages/, and whether
each package can honour what the chains ask of it. Who signed what is for `verify`: here nobody is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler import _documents, manifest, packages, plan
from reconciler.cli._output import say, say_json
from reconciler.cli._tree import read_file, read_tests, read_tree
from reconciler.config import Guardrail, SecureConfig, SecureMode, parse_config, parse_tolerations
from reconciler.errors import ConfigError, Diagnostic, ExitCode, InputError
from reconciler.model import (
    Chain,
    DesiredState,
    Features,
    Inventory,
    Package,
    PackageRef,
    Signer,
    Snapshot,
)
from reconciler.status import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.cli._group import Context

ARCHIVE: Final = ".tar.gz"
GZIP: Final = b"\x1f\x8b"
"""How every gzip file starts (RFC 1952), whatever its name; no YAML does."""
PACKAGE_FILE: Final = "package.yaml"
NOBODY: Final = Signer(name="nobody", identity="not verified", issuer="none")
"""Stands where a verified signer would: such packages never leave this module."""


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found."""

    findings: list[Diagnostic] = field(default_factory=list)
    chains: int = 0
    packages: int = 0
    other: str = ""
    """The one document that is neither, such as "configuration"."""
    elsewhere: set[str] = field(default_factory=set)
    """Packages of other repositories, which cannot be looked at here."""

    def take(self, look: Callable[[], object]) -> None:
        """Do `look`, and keep the findings that it raises."""
        try:
            look()
        except InputError as error:
            self.findings += error.diagnostics()


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path())
@click.pass_obj
def validate(context: Context, *, path: Path) -> int:
    """Check PATH, offline: a work tree, or one file (manifests, package.yaml, an archive, a host's configuration)."""
    report = Report()
    if not path.exists():
        raise InputError(f"{path}: expected a folder or a file, got nothing of that name")
    if path.is_dir():
        _folder(path, report)
    else:
        report.take(lambda: _file(path, report))
    findings = sorted(dict.fromkeys(report.findings), key=_place)
    if context.output == "json":
        say_json(
            {
                "valid": not findings,
                "chains": report.chains,
                "packages": report.packages,
                "notChecked": sorted(report.elsewhere),
                "findings": findings,
            }
        )
    else:
        for finding in findings:
            say(clean(str(finding), 2000))
        for name in sorted(report.elsewhere):
            say(f"not checked: {clean(name)} lies in another repository of packages")
        say(_count(len(findings), "finding") if findings else f"valid: {_seen(report)}")
    return ExitCode.ERROR if findings else ExitCode.OK


def _place(finding: Diagnostic) -> tuple[str, int, int]:
    return finding.file or "", finding.line or 0, finding.column or 0


def _seen(report: Report) -> str:
    return report.other or f"{_count(report.chains, 'chain')}, {_count(report.packages, 'package')}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _folder(path: Path, report: Report) -> None:
    if (path / PACKAGE_FILE).is_file() and not (path / manifest.REPOSITORY_FILE).exists():
        report.take(lambda: _package_folder(path, report))
    else:
        _work_tree(path, report)


def _package_folder(path: Path, report: Report) -> None:
    name = str(path / PACKAGE_FILE)
    parsed = manifest.parse_package(read_file(path / PACKAGE_FILE), file=name)
    report.packages += 1
    # Sources are checked where nothing was compiled yet; objects too as soon as they are there.
    if any((path / program.object).is_file() for program in parsed.programs):
        packages.build_folder(path)


# --- one file ----------------------------------------------------------------------------------------------


def _file(path: Path, report: Report) -> None:
    data = read_file(path, packages.MAX_ARCHIVE_BYTES)
    if path.name.endswith(ARCHIVE) or data.startswith(GZIP):
        packages.open_archive(data, file=str(path))
        report.packages += 1
        return
    match _kind(data, str(path)):
        case "Package":
            manifest.parse_package(data, file=str(path))
            report.packages += 1
        case "Config":
            folder = path.absolute().parent
            parse_config(data, file=str(path), folder=str(folder), read=_named)
            report.other = "configuration of a host"
        case "PacketTest":
            _, findings = manifest.parse_tests({str(path): data}, None)
            report.findings += findings
            report.other = "packets for a test"
        case "Tolerations":
            parse_tolerations(data, file=str(path))
            report.other = "tolerations"
        case "HostGroup":
            inside = f"{manifest.HOSTS_FOLDER}{path.name}"
            report.other = "group of hosts"
            report.findings += [each.within(str(path)) for each in manifest.parse_groups({inside: data}).findings]
        case "Repository":
            # A document of its own says nothing about chains, so it may have none.
            checked = manifest.parse_all({manifest.REPOSITORY_FILE: data})
            report.other = "description of a repository"
            report.findings += [
                finding.within(str(path)) for finding in checked.findings if "at least one chain" not in finding.message
            ]
        case _:
            inside = f"{manifest.CHAINS_FOLDER}{path.name}"
            checked = manifest.parse_all({manifest.REPOSITORY_FILE: ANY_REPOSITORY, inside: data})
            report.findings += [
                finding.within(str(path)) if finding.file == inside else finding for finding in checked.findings
            ]
            report.chains += len(checked.chains)


ANY_REPOSITORY: Final = b"{apiVersion: reconciler/v1alpha1, kind: Repository, metadata: {name: any}}"
"""Stands for the repository that a single file of chains will be part of."""


def _kind(data: bytes, file: str) -> object:
    documents, findings = _documents.read_documents(data, file=file)
    if not documents:
        raise InputError(findings)
    first: Any = documents[0].value
    return first.get("kind") if isinstance(first, dict) else None


def _named(name: str) -> bytes:
    # Who owns the file is a question for the host, not for whoever writes its configuration.
    try:
        return read_file(Path(name))
    except InputError as error:
        (finding,) = error.diagnostics()
        raise ConfigError((replace(finding, message=f"{finding.message} ({name})"),)) from error


# --- a work tree -------------------------------------------------------------------------------------------


def _work_tree(root: Path, report: Report) -> None:
    files, problems = read_tree(root, (manifest.CHAINS_FOLDER, manifest.HOSTS_FOLDER))
    paper = tuple(each for each in problems if (each.file or "").startswith(manifest.HOSTS_FOLDER))
    report.findings += manifest.parse_groups(files, problems=paper).findings
    problems = tuple(each for each in problems if each not in paper)
    checked = manifest.parse_all(files, problems=problems)
    report.findings += checked.findings
    report.chains += len(checked.chains)
    report.elsewhere |= {
        f"{member.package.name} {member.package.version} ({member.package.repository})"
        for chain in checked.chains
        for member in chain.members
        if member.package.repository != "git"
    }
    found: dict[PackageRef, Package | None] = {}
    for chain, document in zip(checked.chains, checked.documents, strict=True):
        for index, member in enumerate(chain.members):
            ref = member.package
            if ref.repository == "git" and ref not in found:
                found[ref] = _package(root, ref, _Place(document, f"/spec/members/{index}/package"), report)
        usable = {ref.digest: package for ref, package in found.items() if package is not None}
        if all(member.package.digest in usable for member in chain.members):
            _check_chain(chain, usable, document, report)
    report.packages += sum(package is not None for package in found.values())
    tests, unreadable = read_tests(root)
    report.findings += (*unreadable, *manifest.parse_tests(tests, checked.chains)[1])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a chain names a package."""

    document: _documents.Document
    pointer: str

    def finding(self, message: str, below: str = "") -> Diagnostic:
        return self.document.finding(message, self.pointer + below)


def _package(root: Path, ref: PackageRef, place: _Place, report: Report) -> Package | None:
    name = f"packages/{packages.archive_name(ref)}"
    path = root / name
    if not path.is_file():
        message = f"expected {name} in the same commit, got none; add it, or name its repository"
        report.findings.append(place.finding(message))
        return None
    try:
        data = read_file(path, packages.MAX_ARCHIVE_BYTES)
        parsed, files = packages.open_archive(data, file=name)
    except InputError as error:
        report.findings += [finding if finding.file else finding.within(name) for finding in error.diagnostics()]
        return None
    digest = packages.digest_of(data)
    if digest != ref.digest:
        message = f"expected the digest of {name}, {digest}, got {ref.digest}"
        report.findings.append(place.finding(message, "/digest"))
        return None
    if (parsed.name, parsed.version) != (ref.name, ref.version):
        message = f"expected {ref.name} {ref.version} in {name}, got {parsed.name} {parsed.version}"
        report.findings.append(place.finding(message))
        return None
    if not path.with_name(path.name + packages.BUNDLE_SUFFIX).is_file():
        message = f"expected a signature {name}{packages.BUNDLE_SUFFIX}, got none; run `reconciler package sign`"
        report.findings.append(place.finding(message))
    objects = {program.object: files[program.object] for program in parsed.programs}
    return Package(ref=ref, manifest=parsed, objects=objects, signer=NOBODY)


def _check_chain(chain: Chain, found: Mapping[str, Package], document: _documents.Document, report: Report) -> None:
    """What the plan of a host without interfaces would refuse: programs, parameters, entries, verdicts."""
    given = plan.PlanInput(
        desired=DesiredState(repository="any", chains=(chain,)),
        packages=found,
        snapshot=Snapshot(boot_id="", features=Features()),
        inventory=Inventory(boot_id=""),
        secure=SecureConfig(mode=SecureMode.OFF),
        guardrail=Guardrail(),
        state_digest="",
    )
    try:
        plan.make(given)
    except InputError as error:
        prefix = f"chain {chain.name}: "
        for finding in error.diagnostics():
            placed = document.finding(finding.message.removeprefix(prefix), finding.pointer or "")
            report.findings.append(replace(placed, file=chain.file))
