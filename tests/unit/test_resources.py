# SPDX-License-Identifier: Apache-2.0
"""reconciler._resources: what ships is found, and nothing else is."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from reconciler import _resources

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_folders_that_a_checkout_reads() -> None:
    sources = runpy.run_path(str(ROOT / "scripts" / "hatch_build.py"))["SOURCES"]
    assert sources == {kind: "/".join(parts) for kind, parts in _resources.CHECKOUT.items()}


def test_a_schema_is_found_by_its_relative_name() -> None:
    expected = sorted(str(path.relative_to(ROOT / "schema")) for path in (ROOT / "schema").rglob("*.schema.json"))
    assert [name for name in _resources.names("schema") if name.endswith(".schema.json")] == expected
    for name in expected:
        assert _resources.resource("schema", name) == (ROOT / "schema" / name).read_bytes()


@pytest.mark.parametrize("name", ["", ".", "..", "../pyproject.toml", "v1alpha1", "/etc/passwd", "no-such-file"])
def test_a_name_that_is_not_listed_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="got none of that name"):
        _resources.resource("schema", name)


def test_a_missing_package_says_how_to_build_it() -> None:
    with pytest.raises(FileNotFoundError, match="make packages"):
        _resources.resource("packages", "no-such-1.0.0.tar.gz")
