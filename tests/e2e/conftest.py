# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests; each test compares descriptors, pins and namespaces before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.lab import Kit, Lab
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _leaves_nothing(leak_check: None) -> None:
    """No descriptor, pin or namespace outlives a test."""


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Keys and packages, made once."""
    support.need_kernel()
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def lab(tmp_path: Path, kit: Kit) -> Iterator[Lab]:
    """A host of this test's own."""
    with Lab(tmp_path, kit) as made:
        yield made
