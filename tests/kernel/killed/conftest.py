# SPDX-License-Identifier: Apache-2.0
"""A host with hooks in two namespaces, at rest in one of its two states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import support
from tests.kernel.killed.host import Host, Scene
from tests.kernel.killed.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def rounds(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rounds]:
    """Attached by tcx, or as the test's parameter says."""
    with support.pin_directory() as pins, Scene() as scene:
        host = Host(tmp_path, scene, getattr(request, "param", "tcx"), pins)
        try:
            made = Rounds(host)
            made.start()
            yield made
        finally:
            host.close()
