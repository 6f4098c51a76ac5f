# SPDX-License-Identifier: Apache-2.0
"""What `validate` says of a folder: a work tree, or the folder of one package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from reconciler import manifest, packages, plan
from reconciler.cli._tree import no_repository, plain_file, read_file, read_tests, read_tree
from reconciler.config import Guardrail, SecureConfig, SecureMode
from reconciler.errors import Diagnostic, InputError
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

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reconciler import _documents
    from reconciler.cli._tree import Report

PACKAGE_FILE: Final = "package.yaml"
NOBODY: Final = Signer(name="nobody", identity="not verified", issuer="none")
"""Stands where a verified signer would: such packages never leave this module."""


def check_folder(path: Path, report: Report) -> None:
    """Everything that is wrong with a folder."""
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


def _work_tree(root: Path, report: Report) -> None:
    nothing = no_repository(root)
    if nothing is not None:
        report.findings.append(nothing)
        return
    files, problems = read_tree(root, (manifest.CHAINS_FOLDER, manifest.HOSTS_FOLDER))
    paper = tuple(each for each in problems if f"{each.file}/".startswith(manifest.HOSTS_FOLDER))
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
    # A test of a chain that cannot be read is not wrong because of that.
    known = None if any(_is_of_chains(each) for each in checked.findings) else checked.chains
    report.findings += (*unreadable, *manifest.parse_tests(tests, known)[1])


def _is_of_chains(finding: Diagnostic) -> bool:
    return f"{finding.file}/".startswith(manifest.CHAINS_FOLDER)


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
    if not plain_file(root, name):
        others = sorted(each.name for each in path.parent.glob(f"{ref.name}-*.tar.gz"))
        got = ", ".join(others[:3]) or "none"
        message = f"expected {name} in the same commit, got {got}; add it, or name the `repository` that has it"
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
    if not plain_file(root, name + packages.BUNDLE_SUFFIX):
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
