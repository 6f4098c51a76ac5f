# SPDX-License-Identifier: Apache-2.0
"""`reconciler test`: the packets of a work tree through its chains, on this kernel, attached to nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.command import Ran, reconciler
from tests.conftest import BPFFS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    place = tmp_path / f"trial-{os.getpid()}"  # on bpffs the README's "policy" of another worker may lie beside it
    assert reconciler("init", place).code == 0
    return place


def run(policy: Path, *arguments: object) -> Ran:
    return reconciler("-c", policy.with_name(f"{policy.name}-host") / "config.yaml", "test", policy, *arguments)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def pins_beside(policy: Path) -> list[Path]:
    return [path for path in BPFFS.iterdir() if policy.name in path.name]


def test_the_packets_that_init_writes_get_their_verdicts(policy: Path) -> None:
    ran = run(policy, "-o", "json")
    assert (ran.code, ran.json["passed"]) == (0, True)
    assert [(each["times"], each["got"]) for each in ran.json["results"]] == [
        (10, "pass"),
        (1, "drop"),
        (1, "pass"),
        (20, "pass"),
    ]
    assert pins_beside(policy) == []


def test_another_verdict_is_shown_with_the_packet_that_got_it(policy: Path) -> None:
    change(policy / "tests" / "demo.yaml", "times: 10", "times: 12")
    ran = run(policy)
    assert ran.code == 1
    assert "wrong  demo  ten new connections in one second" in ran.out
    assert "drop (number 11)" in ran.out
    assert "4 packets, 1 wrong" in ran.out


def test_a_package_that_nobody_vouches_for_is_not_loaded(policy: Path) -> None:
    (bundle,) = (policy / "packages").glob("*.sigstore.json")
    bundle.unlink()
    ran = run(policy)
    assert ran.code != 0
    assert "expected a signature" in ran.err + ran.out or "Unsigned" in ran.err
    assert pins_beside(policy) == []


def test_a_chain_that_its_package_cannot_honour_is_refused_before_anything_is_loaded(policy: Path) -> None:
    change(policy / "chains" / "demo.yaml", "rate: 10", "rate: 10\n        nonsense: 1")
    ran = run(policy)
    assert ran.code == 1
    assert "nonsense" in ran.err
    assert pins_beside(policy) == []


def test_a_tree_without_tests_says_so(policy: Path) -> None:
    (policy / "tests" / "demo.yaml").unlink()
    ran = run(policy)
    assert ran.code == 1
    assert "expected documents of kind PacketTest below tests/, got none" in ran.err


def test_validate_reads_packet_tests_too(policy: Path) -> None:
    assert reconciler("validate", policy).code == 0
    assert "packets for a test" in reconciler("validate", policy / "tests" / "demo.yaml").out
    change(policy / "tests" / "demo.yaml", "chain: demo-ingress", "chain: other")
    ran = reconciler("validate", policy)
    assert ran.code == 1
    assert "tests/demo.yaml:8:10" in ran.out
