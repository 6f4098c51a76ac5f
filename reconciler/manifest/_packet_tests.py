# SPDX-License-Identifier: Apache-2.0
"""Documents of kind PacketTest below tests/: packets, and what a chain must say to them. Agents never read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reconciler import _documents
from reconciler.manifest._chains import check_head
from reconciler.manifest._frames import frame
from reconciler.model import family_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reconciler._documents import Document
    from reconciler.errors import Diagnostic
    from reconciler.model import Chain

TESTS_FOLDER = "tests/"
"""Where packet tests lie in a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestPacket:
    """One packet of a test.

    Attributes:
        frame: an Ethernet frame.
        verdicts: numbers, one of which the chain must give.
        times: how often it comes.
    """

    name: str
    frame: bytes
    verdict: str
    verdicts: frozenset[int]
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketTest:
    """Packets for one chain, in order."""

    name: str
    chain: Chain
    packets: tuple[TestPacket, ...]
    file: str


def parse_tests(
    files: Mapping[str, bytes], chains: Iterable[Chain] | None
) -> tuple[tuple[PacketTest, ...], tuple[Diagnostic, ...]]:
    """Every test that can be read, and every finding about the others.

    Args:
        files: below tests/, path to content.
        chains: of the same work tree; None when only the documents themselves are checked.
    """
    known = None if chains is None else {chain.name: chain for chain in chains}
    tests: list[PacketTest] = []
    findings: list[Diagnostic] = []
    for path, data in sorted(files.items()):
        documents, problems = _documents.read_documents(data, file=path)
        findings += problems
        for document in documents:
            found = check_head(document, "PacketTest") or _documents.validate(document, "PacketTest")
            findings += found
            if known is not None and not found and not document.broken:
                tests += _read(document, known, findings, path)
    return tuple(tests), tuple(findings)


def _read(
    document: Document, chains: Mapping[str, Chain], findings: list[Diagnostic], path: str
) -> Iterable[PacketTest]:
    value: Any = document.value
    chain = chains.get(value["spec"]["chain"])
    if chain is None:
        names = ", ".join(sorted(chains)) or "none"
        message = f"expected a chain of this repository ({names}), got {value['spec']['chain']!r}"
        findings.append(document.finding(message, "/spec/chain"))
        return
    packets = []
    for index, fields in enumerate(value["spec"]["packets"]):
        try:
            packets.append(_packet(fields, chain))
        except ValueError as error:
            findings.append(document.finding(str(error), f"/spec/packets/{index}"))
    yield PacketTest(name=value["metadata"]["name"], chain=chain, packets=tuple(packets), file=path)


def _packet(fields: Mapping[str, Any], chain: Chain) -> TestPacket:
    family = family_of(chain.hook.kind)
    verdict = fields["verdict"]
    if verdict not in family.spellings:
        raise ValueError(f"expected a verdict of {family.type} ({', '.join(family.spellings)}), got {verdict}")
    numbers = {family.spellings[verdict]}
    if verdict == "pass" and "next" in family.verdicts:
        numbers.add(family.verdicts["next"])
    return TestPacket(
        name=fields["name"],
        frame=frame(fields),
        verdict=verdict,
        verdicts=frozenset(numbers),
        times=fields.get("times", 1),
    )
