# SPDX-License-Identifier: Apache-2.0
"""`package.yaml`: bytes → `PackageManifest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from reconciler import _documents
from reconciler._documents import one_of, show
from reconciler.errors import Diagnostic, PackageError
from reconciler.manifest._chains import check_head, proceed_on
from reconciler.model import (
    FAMILIES,
    HookKind,
    MapRole,
    MapSpec,
    PackageManifest,
    ParamSpec,
    ProgramSpec,
)

if TYPE_CHECKING:
    from reconciler._documents import Document

Fields: TypeAlias = dict[str, Any]

CONTRACT_GLOBALS = {
    "chain_proceed": False,
    "chain_last": False,
    "chain_end": True,
    "chain_broken": True,
}
"""The globals of the contract (docs/packages.md), each 4 bytes; True: signed. The reconciler sets them."""


def parse_package(data: bytes, *, file: str) -> PackageManifest:
    """The manifest of a package.

    Raises:
        PackageError: with every finding.
    """
    documents, findings = _documents.read_documents(data, file=file)
    if len(documents) > 1:
        findings += (documents[1].finding("expected one document, got several; keep one"),)
    if not documents:
        raise PackageError(findings)
    document = documents[0]
    form = check_head(document, "Package") or _documents.validate(document, "Package")
    findings += form
    if not findings:
        # The rules look at values whose form is right.
        value: Any = document.value
        findings = _check_rules(document, value["spec"])
    if findings:
        raise PackageError(findings)
    return _manifest(document)


def _check_rules(document: Document, spec: Fields) -> tuple[Diagnostic, ...]:
    findings: list[Diagnostic] = []
    for field in ("programs", "maps", "params"):
        seen: set[str] = set()
        for index, item in enumerate(spec.get(field, [])):
            if item["name"] in seen:
                message = f"expected each name once, got {show(item['name'])} again; drop one"
                findings.append(document.finding(message, f"/spec/{field}/{index}/name"))
            seen.add(item["name"])
    for index, program in enumerate(spec["programs"]):
        findings += _check_program(document, program, f"/spec/programs/{index}")
    for index, param in enumerate(spec.get("params", [])):
        findings += _check_param(document, param, f"/spec/params/{index}")
    for index, item in enumerate(spec.get("maps", [])):
        if "stateVersion" in item and item["role"] != "state":
            message = f"expected stateVersion for maps of role state only, got one for role {item['role']}; remove it"
            findings.append(document.finding(message, f"/spec/maps/{index}/stateVersion"))
        findings += _check_meaning(
            document, item, f"/spec/maps/{index}", {each["name"] for each in spec.get("params", [])}
        )
    return tuple(findings)


def _check_meaning(document: Document, item: Fields, pointer: str, params: set[str]) -> list[Diagnostic]:
    """What a map says for reviews must hang together: nobody can ask its author when a review is read."""
    findings = []
    meaning = item.get("meaning")
    for field, wanted in (("verdicts", "verdict"), ("weakens", "limit"), ("zeroIs", "limit")):
        if field in item and meaning != wanted:
            message = f"expected {field} with meaning {wanted} only, got it with {show(meaning)}; remove it"
            findings.append(document.finding(message, f"{pointer}/{field}"))
    if meaning == "verdict" and not item.get("verdicts"):
        message = "expected verdicts with meaning verdict, got none; say which values allow and which deny"
        findings.append(document.finding(message, f"{pointer}/meaning"))
    if "meaning" in item and item["role"] != "config":
        message = f"expected a meaning for maps of role config only, got one for role {item['role']}; remove it"
        findings.append(document.finding(message, f"{pointer}/meaning"))
    if item.get("zeroIs", None) is not None and item["zeroIs"] not in params:
        message = f"expected a parameter of this package, got {show(item['zeroIs'])}"
        findings.append(document.finding(message, f"{pointer}/zeroIs"))
    return findings


def _check_program(document: Document, program: Fields, pointer: str) -> list[Diagnostic]:
    findings = []
    family = FAMILIES[program["type"]]
    for index, hook in enumerate(program["hooks"]):
        known = [str(kind) for kind in family.kinds]
        if hook not in known:
            message = f"expected a hook for programs of type {program['type']} ({one_of(known)}), got {show(hook)}"
            findings.append(document.finding(message, f"{pointer}/hooks/{index}"))
    seen: set[str] = set()
    for index, verdict in enumerate(program["proceedOn"]):
        name = family.verdict(verdict)
        place = f"{pointer}/proceedOn/{index}"
        if name is None:
            message = f"expected a verdict of {family.type} ({one_of([*family.spellings])}), got {show(verdict)}"
            findings.append(document.finding(message, place))
        elif name in seen:
            findings.append(document.finding(f"expected each verdict once, got {show(verdict)} again", place))
        else:
            seen.add(name)
    return findings


def _check_param(document: Document, param: Fields, pointer: str) -> list[Diagnostic]:
    findings = []
    if param["name"] in CONTRACT_GLOBALS:
        message = f"expected a parameter of the package, got {show(param['name'])}, which the reconciler sets"
        findings.append(document.finding(message, f"{pointer}/name"))
    low, high, default = param.get("minimum"), param.get("maximum"), param.get("default")
    if low is not None and high is not None and low > high:
        findings.append(document.finding(f"expected minimum <= maximum, got {low} and {high}", f"{pointer}/minimum"))
    if (low is not None or high is not None) and default is not None:
        if isinstance(default, bool) or not isinstance(default, int):
            message = f"expected an integer where minimum or maximum is given, got {show(default)}"
            findings.append(document.finding(message, f"{pointer}/default"))
        elif (low is not None and default < low) or (high is not None and default > high):
            message = f"expected a default {in_range(low, high)}, got {default}"
            findings.append(document.finding(message, f"{pointer}/default"))
    return findings


def in_range(low: int | None, high: int | None) -> str:
    """The limits of a parameter in words; at least one is given."""
    if low is None:
        return f"of at most {high}"
    return f"of at least {low}" if high is None else f"from {low} to {high}"


def _manifest(document: Document) -> PackageManifest:
    value: Any = document.value
    spec: Fields = value["spec"]
    return PackageManifest(
        name=value["metadata"]["name"],
        version=value["metadata"]["version"],
        license=spec["license"],
        description=spec.get("description", ""),
        programs=tuple(_program(fields) for fields in spec["programs"]),
        maps=tuple(_map(fields) for fields in spec.get("maps", [])),
        params=tuple(_param(fields) for fields in spec.get("params", [])),
        features=tuple(sorted(spec.get("features", []))),
    )


def _program(fields: Fields) -> ProgramSpec:
    kinds = [kind for kind in HookKind if kind.value in fields["hooks"]]
    return ProgramSpec(
        name=fields["name"],
        type=fields["type"],
        object=fields["object"],
        hooks=tuple(kinds),
        proceed_on=proceed_on(fields["type"], fields["proceedOn"]),
        contract=fields.get("contract", True),
        description=fields.get("description", ""),
    )


def _map(fields: Fields) -> MapSpec:
    return MapSpec(
        name=fields["name"],
        role=MapRole(fields["role"]),
        state_version=fields.get("stateVersion", 1),
        key_format=fields.get("keyFormat"),
        value_format=fields.get("valueFormat"),
        meaning=fields.get("meaning"),
        key=fields.get("key"),
        key_fields=dict(sorted(fields.get("keyFields", {}).items())),
        verdicts=dict(sorted(fields.get("verdicts", {}).items())),
        weakens=fields.get("weakens"),
        zero_is=fields.get("zeroIs"),
        description=fields.get("description", ""),
    )


def _param(fields: Fields) -> ParamSpec:
    return ParamSpec(
        name=fields["name"],
        description=fields["description"],
        unit=fields.get("unit"),
        format=fields.get("format"),
        default=fields.get("default"),
        minimum=fields.get("minimum"),
        maximum=fields.get("maximum"),
        meaning=fields.get("meaning"),
        kind=fields.get("kind"),
        weakens=fields.get("weakens"),
        verdicts=dict(sorted(fields.get("verdicts", {}).items())),
    )
