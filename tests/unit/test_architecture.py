# SPDX-License-Identifier: Apache-2.0
"""The map (docs/architecture.md), the import contract (pyproject.toml) and the code agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PURE = ("_documents", "model", "errors", "elf", "config", "manifest", "policy", "plan", "status", "review")
"""Modules without input or output (docs/architecture.md); of `config`, all but its loader."""


def contract(name: str) -> dict[str, Any]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = next(each for each in settings["tool"]["importlinter"]["contracts"] if each["id"] == name)
    return found


def exists(module: str) -> bool:
    return (ROOT / "reconciler" / f"{module}.py").exists() or (ROOT / "reconciler" / module / "__init__.py").exists()


def layers_of_the_contract() -> list[set[str]]:
    layers = [{name.strip(" ()") for name in layer.split("|")} for layer in contract("layers")["layers"]]
    # Modules with a leading underscore are nobody's business but the code's.
    public = [{name for name in layer if not name.startswith("_")} for layer in layers]
    return [layer for layer in public if layer]


def layers_of_the_map() -> list[set[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Direction of imports", 1)[1]
    chain = re.search(r"`(cli →[^`]*)`", section)
    assert chain is not None
    return [{re.sub(r"\(.*?\)", "", name).strip() for name in layer.split("|")} for layer in chain[1].split("→")]


def test_the_contract_has_the_layers_of_the_map() -> None:
    assert layers_of_the_contract() == layers_of_the_map()


def test_every_pure_module_that_exists_is_held_to_purity() -> None:
    held = set(contract("pure")["source_modules"])
    assert {f"reconciler.{name}" for name in PURE if exists(name)} <= held
