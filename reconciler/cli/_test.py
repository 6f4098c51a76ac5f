# SPDX-License-Identifier: Apache-2.0
"""The verb test: gives the packets of tests/ to the chains of a work tree, on this kernel, attached to nothing.

Packages are verified under the host's configuration first: libbpf opens nothing that nobody vouches for, here either.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler import manifest, plan
from reconciler.cli._compose import ConfiguredPackages, make_kernel
from reconciler.cli._output import progress, say, say_json, table
from reconciler.cli._tree import no_repository, plain_file, read_tests, read_tree
from reconciler.errors import ExitCode, InputError
from reconciler.model import DesiredState, family_of
from reconciler.reconcile import package_refs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.cli._group import Context
    from reconciler.config import Config
    from reconciler.manifest import PacketTest
    from reconciler.model import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one packet of a test.

    Attributes:
        wrong: which of its repetitions got another verdict first, from 1; None when all were right.
        got: that verdict, or the last one.
    """

    test: str
    packet: str
    times: int
    expected: str
    got: str
    wrong: int | None = None


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path())
@click.pass_obj
def test(context: Context, *, path: Path) -> int:
    """Give the packets of PATH/tests to the chains of the work tree PATH. Needs root; attaches nothing."""
    desired, tests = _read(path)
    with progress("verifying packages"):
        verified = _verified(context.config, desired, path)
    results = [result for each in tests for result in _run(context.config, each, verified)]
    wrong = sum(result.wrong is not None for result in results)
    if context.output == "json":
        say_json({"passed": not wrong, "results": results})
    else:
        table(
            ("", "TEST", "PACKET", "TIMES", "EXPECTED", "GOT"),
            [
                (
                    "ok" if result.wrong is None else "wrong",
                    result.test,
                    result.packet,
                    result.times,
                    result.expected,
                    result.got if result.wrong in (None, 1) else f"{result.got} (number {result.wrong})",
                )
                for result in results
            ],
        )
        say(f"{len(results)} packets, {wrong} wrong" if wrong else f"{len(results)} packets, all as expected")
    return ExitCode.ERROR if wrong else ExitCode.OK


def _read(root: Path) -> tuple[DesiredState, tuple[PacketTest, ...]]:
    """The chains that have tests, and the tests. Raises InputError with every finding."""
    nothing = no_repository(root)
    if nothing is not None:
        raise InputError((nothing,))
    files, problems = read_tree(root)
    checked = manifest.parse_all(files, problems=problems)
    found, unreadable = read_tests(root)
    tests, findings = manifest.parse_tests(found, None if checked.findings else checked.chains)
    if checked.findings or unreadable or findings:
        raise InputError((*checked.findings, *unreadable, *findings))
    if not tests:
        raise InputError(f"{root}: expected documents of kind PacketTest below {manifest.TESTS_FOLDER}, got none")
    chains = {each.chain.name: each.chain for each in tests}
    return DesiredState(repository=checked.repository or "", chains=tuple(chains.values())), tests


def _verified(config: Config, desired: DesiredState, root: Path) -> Mapping[str, Package]:
    from reconciler.packages import Cache, Store  # noqa: PLC0415  # the trust code is only needed with packages

    def blob(name: str, limit: int) -> bytes | None:
        if not plain_file(root, name):
            return None
        with (root / name).open("rb") as opened:
            return opened.read(limit + 1)

    with tempfile.TemporaryDirectory(prefix="reconciler-test-") as folder:
        source = ConfiguredPackages(config=config, cache=Cache(Store(Path(folder))))
        return source.ensure(package_refs(desired), blobs=blob, running=frozenset(), now=datetime.now(UTC))


def _run(config: Config, test: PacketTest, packages: Mapping[str, Package]) -> Iterator[Result]:
    from reconciler.kernel.trial import trial  # noqa: PLC0415  # pyroute2 and libbpf, only where they are used

    kernel = make_kernel(config)
    try:
        generation = plan.alone(test.chain, packages, kernel.features())
    finally:
        kernel.close()
    words = {number: name for name, number in family_of(test.chain.hook.kind).verdicts.items()}
    with trial(Path(config.paths.pins), generation, packages) as verdict:
        for packet in test.packets:
            number, wrong = 0, None
            for count in range(1, packet.times + 1):
                number = verdict(packet.frame)
                if number not in packet.verdicts:
                    wrong = count
                    break
            yield Result(
                test=test.name,
                packet=packet.name,
                times=packet.times,
                expected=packet.verdict,
                got=words.get(number, str(number)),
                wrong=wrong,
            )
