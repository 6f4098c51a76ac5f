# SPDX-License-Identifier: Apache-2.0
"""The injection seam: a plain call in production, and nothing outside of the process can make it anything else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reconciler
from reconciler import _points

if TYPE_CHECKING:
    from functools import partial

    import pytest

SOURCES = sorted(Path(reconciler.__file__).parent.rglob("*.py"))


def test_without_a_hook_it_is_the_call() -> None:
    assert _points.hook is None
    assert _points.at("open x", divmod, 7, 2) == (3, 1)


def test_a_hook_gets_the_name_and_the_call_that_it_may_make(monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(name: str, call: partial[Any]) -> Any:
        return name, call.func, call.args, call.keywords, call()

    monkeypatch.setattr(_points, "hook", hook)
    got: object = _points.at("x", int, "12", base=8)
    assert got == ("x", int, ("12",), {"base": 8}, 10)


def test_nothing_in_the_product_sets_the_hook() -> None:
    """Other modules use `_points.at` and read `_points.hook`; the module itself asks nothing outside of the process."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "_points.hook":
                assert isinstance(node.ctx, ast.Load), path
            if isinstance(node, ast.ImportFrom):
                assert node.module != "reconciler._points", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"setattr", "vars"}:
                assert "_points" not in ast.unparse(node), path
    module = ast.parse(Path(_points.__file__).read_text(encoding="utf-8"))
    stored = [node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    assert stored == ["P", "T", "hook", "result"]
    imported = {alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == set()
