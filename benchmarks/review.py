# SPDX-License-Identifier: Apache-2.0
"""What a review and a check of one file cost, beside an interpreter that only parses or does nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks._compare import Comparison, Measure, Options, interleaved, quiet, seconds
from benchmarks.agent import COMMAND, MIB, PYTHON
from tests.manifests import REPOSITORY, chain, member
from tests.signed_packages import Key, Signed

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAINS, GROUPS, HOSTS, CHANGED = 1_000, 50, 200, 20
"""Hosts: in each group."""

PARSE = """
import pathlib, sys, yaml
for folder in sys.argv[1:]:
    for file in pathlib.Path(folder).rglob("*.yaml"):
        for each in yaml.load_all(file.read_bytes(), yaml.CSafeLoader): pass
"""
"""The baseline: both trees through PyYAML's C loader, and nothing else."""


def trees(folder: Path, count: int) -> None:
    """A fleet's repository below `base`, and below `head` with some chains changed."""
    signed = Signed.make(Key.make())
    ref = signed.ref()
    package = {"name": ref.name, "version": ref.version, "digest": ref.digest}
    for side in ("base", "head"):
        for below in ("chains", "hosts", "packages"):
            (folder / side / below).mkdir(parents=True)
        (folder / side / "reconciler.yaml").write_bytes(REPOSITORY)
        for name, data in signed.files.items():
            (folder / side / "packages" / name).write_bytes(data)
        for number in range(count):
            changed = side == "head" and number % (count // CHANGED + 1) == 0
            members = [member(name, package={**package}, program="prog") for name in ("one", "two", "three")]
            made = chain(
                f"chain-{number}",
                hosts={"matchLabels": {"role": f"role-{number % GROUPS}"}},
                priority=number // GROUPS + 1,
                hook={"type": "xdp", "interfaces": [f"eth{number // GROUPS}", "bond0"]},
                members=members[:2] if changed else members,
            )
            write(folder / side / "chains" / f"{number}.yaml", made)
        for number in range(GROUPS):
            names = [f"host-{number}-{host}" for host in range(HOSTS)]
            spec = {"labels": {"role": f"role-{number}"}, "names": names}
            head = {"apiVersion": "reconciler/v1alpha1", "kind": "HostGroup", "metadata": {"name": f"group-{number}"}}
            write(folder / side / "hosts" / f"{number}.yaml", {**head, "spec": spec})


def write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def reviewed(options: Options) -> Iterator[Comparison]:
    """A pull request in a large repository, from the start of the command to its comment."""
    count = options.some(CHAINS)
    with tempfile.TemporaryDirectory(prefix="rcb-") as name:
        folder = Path(name)
        trees(folder, count)
        git = ("git", "-C", name, "-c", "user.name=b", "-c", "user.email=b@example.com")
        quiet(*git, "init", "-q", "-b", "main")
        for side in ("base", "head"):
            work = (*git, f"--work-tree={folder / side}")
            quiet(*work, "add", "-A")
            quiet(*work, "commit", "-q", "-m", side)
        command = [COMMAND, "review", "HEAD~1", "HEAD", "--repository", name, "--markdown", str(folder / "review.md")]
        peaks: list[float] = []

        def ours() -> float:
            def run() -> None:
                with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                    _, status, usage = os.wait4(process.pid, 0)
                    process.returncode = os.waitstatus_to_exitcode(status)
                assert process.returncode == 0
                peaks.append(usage.ru_maxrss / MIB)

            return seconds(run)

        parse = [PYTHON, "-c", PARSE, str(folder / "base"), str(folder / "head")]
        took, alone = interleaved(ours, lambda: seconds(lambda: quiet(*parse)), rounds=options.rounds)
        comment = (folder / "review.md").read_text()
        assert "RV011" in comment, comment[:2_000]
        assert "RV001" not in comment, comment[:2_000]
    what = f"review, {count:,} chains, {GROUPS * HOSTS:,} hosts in {GROUPS} groups, {CHANGED} changed"
    yield Comparison(name=f"{what}, against parsing", ours=took, baseline=alone, unit="ms", target=3)
    yield Comparison(name="  its memory at most", ours=max(peaks), baseline=None, unit="MiB", target=300)


def validated(options: Options) -> Iterator[Comparison]:
    """`validate` of one file, as an editor or a hook calls it."""
    with tempfile.TemporaryDirectory(prefix="rcb-") as name:
        file = Path(name) / "chain.yaml"
        write(file, chain())
        ours, bare = interleaved(
            lambda: seconds(lambda: quiet(COMMAND, "validate", str(file))),
            lambda: seconds(lambda: quiet(PYTHON, "-c", "")),
            rounds=4 * options.rounds,
        )
    yield Comparison(name="validate of one file, against python", ours=ours, baseline=bare, unit="ms", target=4)


MEASURES = (
    Measure(key="review", what="a review of a large repository, against parsing it", run=reviewed),
    Measure(key="validate", what="validate of one file against a bare interpreter", run=validated),
)
