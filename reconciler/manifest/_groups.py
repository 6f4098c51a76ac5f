# SPDX-License-Identifier: Apache-2.0
"""Files below hosts/: the fleet on paper, for `review` alone. No host reads them, and they grant nothing."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from reconciler import _documents
from reconciler._documents import GlobError, parse_glob, parse_share, show
from reconciler.manifest._chains import check_head
from reconciler.model import HOST_NETNS, HostGroup, PaperPolicy, PaperSigner, encode_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from reconciler._documents import Document
    from reconciler.errors import Diagnostic
    from reconciler.model import HostFacts

Fields: TypeAlias = dict[str, Any]

HOSTS_FOLDER = "hosts/"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """All groups without findings, by name in order, and every finding."""

    groups: tuple[HostGroup, ...]
    findings: tuple[Diagnostic, ...]


KnownGroups: TypeAlias = "dict[tuple[str, bytes], _File]"


def parse_groups(
    files: Mapping[str, bytes],
    *,
    problems: tuple[Diagnostic, ...] = (),
    known: KnownGroups | None = None,
    alone: bool = False,
) -> Groups:
    """The groups of a repository; files below hosts/ that are no YAML are passed over.

    Args:
        files: path to content; other paths than those below hosts/ are passed over.
        problems: what the reader of the Git tree could not give.
        known: files that were read before, by path and content; what is read now is added.
        alone: other files of the repository are not known, so what a group names there is not missed.
    """
    known = {} if known is None else known
    findings = [problem for problem in problems if f"{problem.file}/".startswith(HOSTS_FOLDER)]
    groups: dict[str, HostGroup] = {}
    for path in sorted(files):
        if not (path.startswith(HOSTS_FOLDER) and path.endswith(SUFFIXES)):
            continue
        key = (path, files[path])
        file = known[key] = known.get(key) or _read_file(*key)
        findings += file.findings
        for document, group in file.groups:
            if group.name in groups:
                place = groups[group.name].file
                message = f"expected each group once, got {show(group.name)} again; it stands in {place} already"
                findings.append(document.finding(f"{message}; rename one", "/metadata/name"))
            groups.setdefault(group.name, group)
            findings += () if alone else _missing_roots(document, group, files)
    return Groups(groups=tuple(groups[name] for name in sorted(groups)), findings=tuple(findings))


@dataclass(frozen=True, slots=True)
class _File:
    """A file below hosts/ as read."""

    groups: tuple[tuple[Document, HostGroup], ...]
    findings: tuple[Diagnostic, ...]


def _read_file(path: str, data: bytes) -> _File:
    documents, findings = _documents.read_documents(data, file=path)
    groups = []
    for document in documents:
        group, found = _read(document)
        findings += found
        if group is not None:
            groups.append((document, group))
    return _File(tuple(groups), findings)


def _missing_roots(document: Document, group: HostGroup, files: Mapping[str, bytes]) -> Iterator[Diagnostic]:
    for index, signer in enumerate(group.policy.signers or ()):
        if signer.root is not None and signer.root not in files:
            message = f"expected the trust root {signer.root} in the repository, got none; add it"
            yield document.finding(message, f"/spec/policy/signers/{index}/root")


def policies_of(groups: Iterable[HostGroup], host: HostFacts) -> frozenset[str]:
    """The policy ids that the groups of a host give for it."""
    labels, name = host.labels.items(), host.name.lower()
    mine = (
        group
        for group in groups
        if group.labels.items() <= labels and (not group.names or name in {each.lower() for each in group.names})
    )
    return frozenset(group.policy.id for group in mine if group.policy.id is not None)


def _read(document: Document) -> tuple[HostGroup | None, tuple[Diagnostic, ...]]:
    findings = check_head(document, "HostGroup") or _documents.validate(document, "HostGroup")
    if not findings and not document.broken and not document.incomplete:
        value: Any = document.value
        policy = value["spec"].get("policy", {})
        findings = (
            *_check_signers(document, policy.get("signers", [])),
            *_check_tolerations(document, policy.get("tolerations", [])),
        )
        if not findings:
            return _group(document.file, value["metadata"]["name"], value["spec"]), ()
    return None, findings


def _check_signers(document: Document, signers: list[Fields]) -> list[Diagnostic]:
    findings = []
    for index, signer in enumerate(signers):
        pointer = f"/spec/policy/signers/{index}"
        ways = sum(name in signer for name in ("key", "publicKey", "identity"))
        if ways != 1 or ("identity" in signer) != ("issuer" in signer):
            message = "expected one of key, publicKey, or identity together with issuer, got something else"
            findings.append(document.finding(message, pointer))
        if "root" in signer and "identity" not in signer:
            findings.append(document.finding("expected a root beside an identity only, got one", f"{pointer}/root"))
        for position, glob in enumerate(signer["packages"]):
            try:
                parse_glob(glob)
            except GlobError as error:
                findings.append(document.finding(str(error), f"{pointer}/packages/{position}"))
    return findings


def _check_tolerations(document: Document, tolerations: list[str]) -> Iterator[Diagnostic]:
    if not tolerations:
        return
    from reconciler.config import shipped_names  # noqa: PLC0415  # few groups name any

    known = shipped_names()
    for index, name in enumerate(tolerations):
        if name not in known:
            message = f"expected a set that ships ({', '.join(known)}), got {show(name)}"
            yield document.finding(message, f"/spec/policy/tolerations/{index}")


def _group(file: str, name: str, spec: Fields) -> HostGroup:
    names = tuple(sorted(spec.get("names", [])))
    interfaces: dict[str, set[str]] = {}
    for each in spec.get("interfaces", []):
        interfaces.setdefault(each.get("netns", HOST_NETNS), set()).update(each["names"])
    guardrail = spec.get("guardrail", {})
    return HostGroup(
        name=name,
        labels=dict(sorted(spec.get("labels", {}).items())),
        count=len(names) or spec.get("count", 1),
        names=names,
        interfaces={netns: tuple(sorted(interfaces[netns])) for netns in sorted(interfaces)},
        features=dict(sorted(spec.get("features", {}).items())),
        secure_mode=spec.get("secureMode"),
        policy=_policy(spec.get("policy", {})),
        guardrail_count=guardrail.get("count"),
        guardrail_share=parse_share(guardrail["share"]) if "share" in guardrail else None,
        file=file,
    )


def _fingerprint(pem: str | None) -> str | None:
    """As `trust.fingerprint`, without a cryptographic library: of the bytes between the lines of a PEM."""
    if pem is None:
        return None
    body = "".join(line for line in pem.splitlines() if not line.startswith("-----"))
    try:
        der = base64.b64decode(body, validate=True)
    except binascii.Error:
        return None
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def _policy(fields: Fields) -> PaperPolicy:
    tolerations = tuple(sorted(fields["tolerations"])) if "tolerations" in fields else None
    if "signers" not in fields:
        return PaperPolicy(id=fields.get("id"), tolerations=tolerations)
    signers = (
        PaperSigner(
            name=each["name"],
            packages=tuple(sorted(each["packages"])),
            key=each.get("key") or _fingerprint(each.get("publicKey")),
            public_key=each.get("publicKey"),
            identity=each.get("identity"),
            issuer=each.get("issuer"),
            root=each.get("root"),
        )
        for each in fields["signers"]
    )
    # Any rule may accept a package, so their order means nothing.
    ordered = tuple(sorted(signers, key=encode_record))
    return PaperPolicy(id=fields.get("id"), signers=ordered, tolerations=tolerations)
