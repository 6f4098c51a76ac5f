# SPDX-License-Identifier: Apache-2.0
"""Reads eBPF objects that nobody has verified yet, and converts values by their BTF types.

`read_object` is the only code that touches unverified object bytes: sizes, counts and nesting are bounded (`_limits`),
every offset is checked, and whatever the bytes are, it returns or raises `ElfError`. `encode` and `decode` convert
between JSON values and the bytes of a map entry or global variable. Nothing here does I/O, applies relocations, or
judges whether a program is allowed; that a value is meaningful (a parameter's `min` and `max`) is checked by its owner.
"""

from __future__ import annotations

from reconciler.elf._btf import Btf, Budget, JsonValue
from reconciler.elf._decode import decode
from reconciler.elf._encode import encode
from reconciler.elf._layout import layout_digest, map_layout
from reconciler.elf._limits import MAX_PACKAGE_NODES
from reconciler.elf._maps import MapDef
from reconciler.elf._object import GlobalVar, Object, ProgramSection, read_object
from reconciler.elf._text import Format

__all__ = [
    "MAX_PACKAGE_NODES",
    "Btf",
    "Budget",
    "Format",
    "GlobalVar",
    "JsonValue",
    "MapDef",
    "Object",
    "ProgramSection",
    "decode",
    "encode",
    "layout_digest",
    "map_layout",
    "read_object",
]
