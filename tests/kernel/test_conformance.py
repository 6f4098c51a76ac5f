# SPDX-License-Identifier: Apache-2.0
"""The conformance suite on the running kernel; the clsact ways force the probe of tcx to "no"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reconciler.kernel.linux import LinuxKernel
from reconciler.model import AttachKind, Support
from tests.conformance.real import labs
from tests.conformance.suite import *  # noqa: F403  # the tests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reconciler.kernel import Kernel
    from tests.conformance.lab import Lab, Way


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    way: Way = request.param
    force = {"tcx": Support.NO} if way.attach_kind is AttachKind.CLSACT_FILTER else {}

    def start(pin_dir: Path) -> Kernel:
        return LinuxKernel(pin_dir=pin_dir, force=force)

    yield from labs(way, start)
