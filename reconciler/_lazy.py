# SPDX-License-Identifier: Apache-2.0
"""Packages of ours whose public names are imported when somebody first asks for one.

`import package` then costs next to nothing, and a verb pays for the values that it uses: making the classes of `model`
alone takes 40 ms, longer than the interpreter needs to start. For checkers of types and for the import linter the names
are imported as usual, below `if TYPE_CHECKING`; a test compares both lists.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing takes 4 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def on_demand(package: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        names: submodule to the names that come from it, with blanks between them.
    """
    homes = {name: home for home, listed in names.items() for name in listed.split()}

    def __getattr__(name: str) -> object:  # noqa: N807 - what it becomes
        if name not in homes:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message)
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(importlib.import_module(package), name, value)  # so this function is asked once for each name
        return value

    return __getattr__
