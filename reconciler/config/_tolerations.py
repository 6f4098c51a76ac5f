# SPDX-License-Identifier: Apache-2.0
"""Tolerations: the rules of a file, and the sets that ship in policies/tolerations/."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from reconciler import _documents
from reconciler._documents import GlobError, parse_glob
from reconciler._resources import names, resource
from reconciler.config._values import Toleration
from reconciler.errors import ConfigError, Diagnostic
from reconciler.model import AttachKind, HookKind

if TYPE_CHECKING:
    from reconciler._documents import Document

_PREFIX, _SUFFIX = "tolerations/", ".yaml"


def parse_tolerations(data: bytes, *, file: str) -> tuple[str, tuple[Toleration, ...]]:
    """Name and rules of a file of kind Tolerations.

    Raises:
        ConfigError: with every finding.
    """
    documents, findings = _documents.read_documents(data, file=file)
    if len(documents) > 1:
        findings += (documents[1].finding("expected one document, got several; keep one"),)
    for document in documents[:1]:
        findings += _documents.validate(document, "Tolerations")
    if findings:
        raise ConfigError(findings)
    value: Any = documents[0].value
    rules = value["spec"]["tolerate"]
    for index, item in enumerate(rules):
        findings += check_toleration(documents[0], item, f"/spec/tolerate/{index}")
    if findings:
        raise ConfigError(findings)
    return value["metadata"]["name"], tuple(toleration(item) for item in rules)


def check_toleration(document: Document, item: dict[str, Any], pointer: str) -> tuple[Diagnostic, ...]:
    """Findings about one rule whose form is right."""
    findings: list[Diagnostic] = []
    if not {"programName", "tag", "filterName"} & item.keys():
        message = "expected programName, tag or filterName, got none; a rule that names no program would tolerate all"
        findings.append(document.finding(message, pointer))
    for field in ("programName", "filterName"):
        try:
            parse_glob(item.get(field, "*"))
        except GlobError as error:
            findings.append(document.finding(str(error), f"{pointer}/{field}"))
    return tuple(findings)


def toleration(item: dict[str, Any]) -> Toleration:
    """The rule that `item` spells; its form is right."""
    return Toleration(
        name=item["name"],
        why=item["why"],
        owner=item["owner"],
        hooks=tuple(HookKind(hook) for hook in item.get("hooks", [])),
        attach=tuple(AttachKind(kind) for kind in item.get("attach", [])),
        program_name=item.get("programName"),
        tag=item.get("tag"),
        filter_name=item.get("filterName"),
    )


def shipped_names() -> tuple[str, ...]:
    """Names of the sets that ship."""
    files = (name for name in names("policies") if name.startswith(_PREFIX) and name.endswith(_SUFFIX))
    return tuple(name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in files)


@functools.cache
def shipped_tolerations(name: str) -> tuple[Toleration, ...]:
    """The rules of a set that ships; `name` is one of `shipped_names()`."""
    file = f"{_PREFIX}{name}{_SUFFIX}"
    return parse_tolerations(resource("policies", file), file=file)[1]
