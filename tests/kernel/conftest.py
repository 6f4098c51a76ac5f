# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel tests; each test compares descriptors, pins and namespaces before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _leaves_nothing(leak_check: None) -> Iterator[None]:
    """No descriptor, pin or namespace outlives a test, and this thread's namespace is what it was."""
    support.need_kernel()
    before = _own_netns()
    yield
    assert _own_netns() == before


def _own_netns() -> str:
    return str(Path("/proc/self/ns/net").readlink())


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
