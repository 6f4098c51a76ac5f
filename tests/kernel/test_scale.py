# SPDX-License-Identifier: Apache-2.0
"""Many namespaces, interfaces and foreign programs: ours are everywhere, theirs stay in audit and go in enforce."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import scale

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("namespaces", "interfaces", "programs", "limit"),
    [
        pytest.param(20, 100, 200, 60, id="reduced"),
        pytest.param(200, 1000, 2000, 500, id="full", marks=pytest.mark.torture),
        pytest.param(1, 1000, 2000, 500, id="one-namespace", marks=pytest.mark.torture),
    ],
)
def test_everything_of_ours_is_attached_and_everything_foreign_goes(
    namespaces: int, interfaces: int, programs: int, limit: int, pins: Path
) -> None:
    seen = scale.story(pins, namespaces, interfaces, programs, limit)
    audit, again, *enforce = seen.passes
    held = interfaces // scale.OCCUPIED_SHARE

    assert len(seen.foreign) == programs
    assert len(seen.occupied) == len(audit.made.pending) == held
    assert (audit.foreign, again.foreign, audit.evicted) == (programs, programs, set())
    assert again.made.steps == ()

    # A teardown takes ours and leaves what others attached, each in its place and in its order.
    assert {program for found in seen.before.values() for program in found} == seen.foreign
    assert seen.teardown.outcome.failed is None
    assert seen.after == seen.before

    # As many as the limit allows in each pass, displaced ones among them, and never one twice or one of ours.
    gone = [done.evicted for done in enforce]
    assert [len(each) for each in gone] == [min(limit, max(programs - limit * n, 0)) for n in range(len(enforce))]
    assert set.union(*gone) == seen.foreign
    assert sum(map(len, gone)) == programs
    assert len(enforce[0].outcome.gaps) == held
    assert all(done.outcome.failed is None and not done.outcome.stale_hooks for done in seen.passes)

    assert seen.missing == set()
    assert seen.left == set()
