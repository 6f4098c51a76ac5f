# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel tests; each compares descriptors, pins and namespaces before and after."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import support


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    """No descriptor, pin or namespace outlives a test, and this thread's namespace is what it was."""
    support.need_kernel()
    before = support.open_descriptors(), _names(support.BPFFS), _names(Path("/run/netns")), _own_netns()
    yield
    gc.collect()
    after = support.open_descriptors(), _names(support.BPFFS), _names(Path("/run/netns")), _own_netns()
    mine = [name for name in after[1] | after[2] if name.startswith("rt-")]
    assert after[0] == before[0], "descriptors leaked"
    assert [name for name in mine if name not in before[1] | before[2]] == []
    assert after[3] == before[3]


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.exists() else set()  # noqa: PTH208


def _own_netns() -> str:
    return os.readlink("/proc/self/ns/net")  # noqa: PTH115


@pytest.fixture
def pins() -> Iterator[Path]:
    """A pin directory of this test's own."""
    with support.pin_directory() as path:
        yield path


@pytest.fixture
def wire() -> Iterator[support.Wire]:
    """Two namespaces joined by a veth pair."""
    with support.wire() as made:
        yield made
