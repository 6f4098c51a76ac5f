# SPDX-License-Identifier: Apache-2.0
"""The verb validate: everything that is wrong with a work tree or a file, offline and without privileges.

It says what a host would say, as far as that can be said without a host: manifests, archives in packages/, and whether
each package can honour what the chains ask of it. Who signed what is for `verify`: here nobody is trusted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler import _documents, manifest
from reconciler._words import clean
from reconciler.cli._output import say, say_json
from reconciler.cli._tree import Report, read_file
from reconciler.errors import ConfigError, Diagnostic, ExitCode, InputError

if TYPE_CHECKING:
    from reconciler.cli._group import Context

# Editors and hooks call this for one file, again and again: what a kind of file needs is imported for that kind.

ARCHIVE: Final = ".tar.gz"
GZIP: Final = b"\x1f\x8b"
"""How every gzip file starts (RFC 1952), whatever its name; no YAML does."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path())
@click.pass_obj
def validate(context: Context, *, path: Path) -> int:
    """Check PATH, offline: a work tree, or one file (manifests, package.yaml, an archive, a host's configuration)."""
    report = Report()
    if not path.exists():
        raise InputError(f"{path}: expected a folder or a file, got nothing of that name")
    if path.is_dir():
        from reconciler.cli._validate_tree import check_folder  # noqa: PLC0415

        check_folder(path, report)
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


# --- one file ----------------------------------------------------------------------------------------------


def _file(path: Path, report: Report) -> None:
    if _is_archive(path):
        _archive(path, report)
        return
    data = read_file(path)
    match _kind(data, str(path)):
        case "Package":
            manifest.parse_package(data, file=str(path))
            report.packages += 1
        case "Config" | "Tolerations" as kind:
            report.other = _configuration(path, data, kind)
        case "PacketTest":
            _, findings = manifest.parse_tests({str(path): data}, None)
            report.findings += findings
            report.other = "packets for a test"
        case "HostGroup":
            inside = f"{manifest.HOSTS_FOLDER}{path.name}"
            report.other = "group of hosts"
            found = manifest.parse_groups({inside: data}, alone=True).findings
            report.findings += [each.within(str(path)) for each in found]
        case "Repository":
            # A document of its own says nothing about chains, so it may have none.
            checked = manifest.parse_all({manifest.REPOSITORY_FILE: data})
            report.other = "description of a repository"
            report.findings += [
                finding.within(str(path)) for finding in checked.findings if finding.message != manifest.NO_CHAIN
            ]
        case _:
            inside = f"{manifest.CHAINS_FOLDER}{path.name}"
            checked = manifest.parse_all({manifest.REPOSITORY_FILE: ANY_REPOSITORY, inside: data})
            report.findings += [
                finding.within(str(path)) if finding.file == inside else finding for finding in checked.findings
            ]
            report.chains += len(checked.chains)


def _is_archive(path: Path) -> bool:
    if path.name.endswith(ARCHIVE):
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(GZIP)) == GZIP
    except OSError:
        return False  # who reads it says why it cannot be read


def _archive(path: Path, report: Report) -> None:
    from reconciler import packages  # noqa: PLC0415

    packages.open_archive(read_file(path, packages.MAX_ARCHIVE_BYTES), file=str(path))
    report.packages += 1


def _configuration(path: Path, data: bytes, kind: str) -> str:
    from reconciler.config import parse_config, parse_tolerations  # noqa: PLC0415

    if kind == "Tolerations":
        parse_tolerations(data, file=str(path))
        return "tolerations"
    parse_config(data, file=str(path), folder=str(path.absolute().parent), read=_named)
    return "configuration of a host"


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
