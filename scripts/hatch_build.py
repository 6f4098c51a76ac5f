# SPDX-License-Identifier: Apache-2.0
"""Puts schema/, policies/, deploy/ci/ and the compiled packages of bpf/ into the wheel, as `reconciler/_data/KIND/`.

An editable install gets none of it: `reconciler._resources` then reads the checkout, so nothing goes stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = {"schema": "schema", "policies": "policies", "packages": "build/packages", "ci": "deploy/ci"}
"""Kind of resource → folder of the checkout; `reconciler._resources` reads the same folders (a test compares)."""


class ResourceHook(BuildHookInterface[Any]):
    """Adds the resources to standard wheels, and refuses to build one without them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Lists the files to include; raises FileNotFoundError when a folder holds none."""
        if version == "editable":
            return
        for kind, folder in SOURCES.items():
            root = Path(self.root, folder)
            files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
            if not files:
                what = "run `make packages` first" if kind == "packages" else "is the checkout complete?"
                message = f"expected files in {folder}/ for the wheel, got none; {what}"
                raise FileNotFoundError(message)
            for path in files:
                build_data["force_include"][str(path)] = f"reconciler/_data/{kind}/{path.relative_to(root).as_posix()}"
