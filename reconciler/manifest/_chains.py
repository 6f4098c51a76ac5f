# SPDX-License-Identifier: Apache-2.0
"""One document of kind Chain: its selector, its rules beyond the schema, and its value.

The selector is read on its own, so that a fault elsewhere in the file stops only the hosts that the file is for. Rules
are checked wherever the values that they need are sound, so that all findings come at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from reconciler import _documents
from reconciler._documents import GlobError, one_of, parse_address, parse_duration, parse_glob, parse_share, show
from reconciler.manifest._select import MAX_INTERFACE_NAME
from reconciler.model import (
    FAMILIES,
    HOST_NETNS,
    Acknowledgement,
    Chain,
    Health,
    Hook,
    HostSelector,
    MapEntry,
    Member,
    OnBroken,
    PackageRef,
    StateScope,
    StatsCheck,
    TcEnd,
    TcHook,
    TcpCheck,
    XdpHook,
    XdpMode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler._documents import Document
    from reconciler.errors import Diagnostic

Fields: TypeAlias = dict[str, Any]

MAX_WAIT = 300.0
"""Seconds that one health check may take; a change is neither final nor taken back while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadChain:
    """One document below chains/.

    Attributes:
        selector: None when it cannot be read.
        chain: None when there are findings.
    """

    document: Document
    findings: tuple[Diagnostic, ...]
    selector: HostSelector | None = None
    chain: Chain | None = None


def read_chain(document: Document) -> ReadChain:
    """Reads one document; never raises."""
    foreign = check_head(document, "Chain")
    if foreign:
        return ReadChain(document=document, findings=foreign)
    findings = _documents.validate(document, "Chain")
    rules = _Rules(document, findings)
    rules.check()
    findings = tuple(sorted((*findings, *rules.findings), key=lambda finding: (finding.line, finding.column)))
    bad = [finding.pointer or "" for finding in findings]
    selector = _selector(document, bad)
    whole = not (findings or document.broken or document.incomplete)
    chain = _chain(document, selector) if whole and selector is not None else None
    return ReadChain(document=document, findings=findings, selector=selector, chain=chain)


def check_head(document: Document, kind: str) -> tuple[Diagnostic, ...]:
    """Findings that make the rest of a document another language: a wrong apiVersion or kind."""
    value = document.value
    if not isinstance(value, dict):
        return (document.finding(f"expected a mapping of kind {kind}, got {show(value)}"),)
    findings = []
    version = value.get("apiVersion", _documents.API_VERSION)
    if version != _documents.API_VERSION and not document.within_broken("/apiVersion"):
        message = f"expected {show(_documents.API_VERSION)}, got {show(version)}; this version reads no other"
        findings.append(document.finding(message, "/apiVersion"))
    if value.get("kind", kind) != kind and not document.within_broken("/kind"):
        message = f"expected {show(kind)} here, got {show(value['kind'])}"
        findings.append(document.finding(message, "/kind"))
    return tuple(findings)


def _selector(document: Document, bad: list[str]) -> HostSelector | None:
    value = document.value
    if not isinstance(value, dict) or value.get("kind") != "Chain" or "apiVersion" not in value:
        return None
    spec = value.get("spec")
    readable = (
        document.believable("/spec/hosts") and document.believable("/kind") and document.believable("/apiVersion")
    )
    if not isinstance(spec, dict) or not readable or any(f"{pointer}/".startswith("/spec/hosts/") for pointer in bad):
        return None
    hosts: Any = spec.get("hosts", {})
    return HostSelector(
        match_labels=dict(sorted(hosts.get("matchLabels", {}).items())),
        names=tuple(sorted({name.lower() for name in hosts.get("names", [])})),
    )


# --- rules that a schema cannot say ------------------------------------------------------------------------


class _Rules:
    """Checks a document whose form may be wrong in places; looks only at values that are sound."""

    def __init__(self, document: Document, findings: tuple[Diagnostic, ...]) -> None:
        self.findings: list[Diagnostic] = []
        self._document = document
        self._bad = [f"{finding.pointer or ''}/" for finding in findings]

    def check(self) -> None:
        for pointer, pattern in self._texts("/spec/hosts/names"):
            self._glob(pattern, pointer)
        for pointer, pattern in self._texts("/spec/hook/interfaces"):
            if self._glob(pattern, pointer):
                self._interface(pattern, pointer)
        self._members()
        self._health()

    def _report(self, message: str, pointer: str) -> None:
        self.findings.append(self._document.finding(message, pointer))

    def _get(self, pointer: str) -> Any:  # noqa: ANN401 - whatever a document holds
        """The value at `pointer`, None if there is none or it has a finding, at or below it."""
        if self._bad or self._document.broken:  # few documents have a finding, and each has many values
            prefix = f"{pointer}/"
            if any(bad.startswith(prefix) for bad in self._bad) or self._document.within_broken(pointer):
                return None
        return self._raw(pointer)

    def _raw(self, pointer: str) -> Any:  # noqa: ANN401 - whatever a document holds
        value: Any = self._document.value
        for part in pointer.split("/")[1:]:
            if isinstance(value, dict):
                value = value.get(part)
            else:
                value = value[int(part)] if isinstance(value, list) and part.isdecimal() else None
        return value

    def _items(self, pointer: str) -> Iterator[tuple[str, Any]]:
        """The items of the list at `pointer`, each with its pointer; None for one that is not sound."""
        items = self._raw(pointer)
        for index in range(len(items) if isinstance(items, list) else 0):
            yield f"{pointer}/{index}", self._get(f"{pointer}/{index}")

    def _texts(self, pointer: str) -> Iterator[tuple[str, str]]:
        return ((place, value) for place, value in self._items(pointer) if isinstance(value, str))

    def _attempt(self, parse: Callable[[str], object], text: object, pointer: str) -> bool:
        try:
            parse(str(text))
        except ValueError as error:
            self._report(str(error), pointer)
            return False
        return True

    def _glob(self, pattern: str, pointer: str) -> bool:
        try:
            parse_glob(pattern)
        except GlobError as error:
            self._report(str(error), pointer)
            return False
        return True

    def _interface(self, pattern: str, pointer: str) -> None:
        glob = parse_glob(pattern)
        size = len(pattern.encode()) if glob.literal else glob.shortest
        if size > MAX_INTERFACE_NAME:
            message = f"expected an interface name of at most {MAX_INTERFACE_NAME} bytes, got {show(pattern)}"
            self._report(f"{message}, which none can have", pointer)
        elif pattern in (".", ".."):
            self._report(f"expected the name of an interface, got {show(pattern)}", pointer)

    def _members(self) -> None:
        first: dict[str, str] = {}
        for pointer, _ in self._items("/spec/members"):
            name = self._get(f"{pointer}/name")
            if isinstance(name, str) and first.setdefault(name, pointer) != pointer:
                self._report(f"expected each member name once, got {show(name)} again; rename it", f"{pointer}/name")
            self._proceed_on(f"{pointer}/proceedOn")
            maps = self._get(f"{pointer}/maps")
            for map_name in maps if isinstance(maps, dict) else ():
                self._entries(f"{pointer}/maps/{map_name}/entries")

    def _proceed_on(self, pointer: str) -> None:
        hook = self._get("/spec/hook/type")
        family = FAMILIES.get(hook) if isinstance(hook, str) else None
        if family is None:
            return
        seen: dict[str, str] = {}
        for place, verdict in self._texts(pointer):
            name = family.verdict(verdict)
            if name is None:
                known = one_of([*family.spellings])
                self._report(f"expected a verdict of {hook} ({known}), got {show(verdict)}", place)
            elif seen.setdefault(name, verdict) != verdict:
                self._report(f"expected each verdict once, got {show(verdict)}, which is {show(seen[name])}", place)

    def _entries(self, pointer: str) -> None:
        import msgspec  # noqa: PLC0415  # 9 ms that chains without entries need not pay

        first: dict[bytes, int] = {}
        entries = self._get(pointer)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            key = msgspec.json.encode(entry["key"], order="sorted")
            if first.setdefault(key, index) != index:
                message = f"expected each key once, got {show(entry['key'])} again; it is entry {first[key]} already"
                self._report(message, f"{pointer}/{index}/key")

    def _health(self) -> None:
        for pointer, _ in self._items("/spec/health/tcp"):
            address = self._get(f"{pointer}/connect")
            if isinstance(address, str):
                self._attempt(parse_address, address, f"{pointer}/connect")
            self._wait(f"{pointer}/within")
        members = {self._get(f"{pointer}/name") for pointer, _ in self._items("/spec/members")}
        for pointer, _ in self._items("/spec/health/stats"):
            member = self._get(f"{pointer}/member")
            if isinstance(member, str) and None not in members and member not in members:
                known = one_of(sorted(members))
                self._report(f"expected a member of this chain ({known}), got {show(member)}", f"{pointer}/member")
            below = self._get(f"{pointer}/below")
            if isinstance(below, str) and parse_share(below) <= 0:
                self._report("expected a share above 0%, got one that nothing is below of", f"{pointer}/below")
            self._wait(f"{pointer}/over")

    def _wait(self, pointer: str) -> None:
        text = self._get(pointer)
        if isinstance(text, str) and not 0 < parse_duration(text) <= MAX_WAIT:
            self._report(f"expected a duration above zero and of at most 5m, got {show(text)}", pointer)


# --- values ------------------------------------------------------------------------------------------------


def _chain(document: Document, selector: HostSelector) -> Chain:
    """The value of a document without findings. Lists whose order has no meaning are sorted."""
    value: Any = document.value
    spec: Fields = value["spec"]
    hook = HOOKS[spec["hook"]["type"]](spec["hook"])
    return Chain(
        name=value["metadata"]["name"],
        hook=hook,
        priority=spec["priority"],
        members=tuple(_member(fields, spec["hook"]["type"]) for fields in spec["members"]),
        hosts=selector,
        on_broken=OnBroken(spec.get("onBroken", "drop")),
        state_scope=StateScope(spec.get("stateScope", "chain")),
        health=_checks(spec.get("health", {})),
        file=document.file,
        acknowledge=acknowledgements(spec),
    )


def acknowledgements(spec: Fields) -> tuple[Acknowledgement, ...]:
    """`spec.acknowledge` of a document without findings."""
    given = (
        Acknowledgement(finding=each["finding"], why=each["why"], until=each["until"])
        for each in spec.get("acknowledge", [])
    )
    return tuple(sorted(given, key=lambda each: (each.finding, each.until, each.why)))


def _xdp_hook(fields: Fields) -> Hook:
    return XdpHook(
        interfaces=tuple(sorted(fields["interfaces"])),
        netns=fields.get("netns", HOST_NETNS),
        mode=XdpMode(fields.get("mode", "auto")),
    )


def _tc_hook(fields: Fields) -> Hook:
    return TcHook(
        direction=fields["direction"],
        interfaces=tuple(sorted(fields["interfaces"])),
        netns=fields.get("netns", HOST_NETNS),
        end=TcEnd(fields.get("end", "next")),
    )


HOOKS: Final[Mapping[str, Callable[[Fields], Hook]]] = {"xdp": _xdp_hook, "tc": _tc_hook}
"""A hook of each `type` that the schema knows."""


def _member(fields: Fields, hook: str) -> Member:
    package = fields["package"]
    return Member(
        name=fields["name"],
        package=PackageRef(
            name=package["name"],
            version=package["version"],
            digest=package["digest"],
            repository=package.get("repository", "git"),
        ),
        program=fields["program"],
        proceed_on=proceed_on(hook, fields["proceedOn"]) if "proceedOn" in fields else None,
        params=dict(sorted(fields.get("params", {}).items())),
        maps={
            name: tuple(MapEntry(key=entry["key"], value=entry["value"]) for entry in content["entries"])
            for name, content in sorted(fields.get("maps", {}).items())
        },
        allow_state_loss=fields.get("allowStateLoss", False),
    )


def proceed_on(hook: str, verdicts: list[str]) -> tuple[str, ...]:
    """Verdicts by the names of `model`, each once, in the order of their numbers."""
    family = FAMILIES[hook]
    names = {name for verdict in verdicts if (name := family.verdict(verdict)) is not None}
    return tuple(sorted(names, key=family.verdicts.__getitem__))


def _checks(fields: Fields) -> Health:
    return Health(
        source=fields.get("source", True),
        tcp=tuple(
            TcpCheck(connect=check["connect"], within=parse_duration(check.get("within", "5s")))
            for check in fields.get("tcp", [])
        ),
        stats=tuple(
            StatsCheck(
                member=check["member"],
                counter=check["counter"],
                below=parse_share(check["below"]),
                over=parse_duration(check.get("over", "10s")),
            )
            for check in fields.get("stats", [])
        ),
    )
