# SPDX-License-Identifier: Apache-2.0
"""The layout of a map: what must be equal for a new generation to go on with the old one's contents."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from reconciler.errors import ElfError

if TYPE_CHECKING:
    from reconciler.elf._btf import JsonValue
    from reconciler.elf._object import Object


def map_layout(obj: Object, map_name: str, state_version: int = 1) -> JsonValue:
    """The canonical layout of one map: type, sizes, flags, structure of keys and values, and `stateVersion`.

    Names of maps and structs, typedefs and qualifiers are not part of it.

    Raises:
        ElfError: the object has no such map, or a type of it is too deep or too large.
    """
    found = obj.find_map(map_name)
    if found is None:
        raise ElfError(
            f"{obj.name}: expected a map among {', '.join(m.name for m in obj.maps) or 'none'}, got {map_name}"
        )
    return {
        "type": found.type,
        "keySize": found.key_size,
        "valueSize": found.value_size,
        "maxEntries": found.max_entries,
        "flags": found.flags,
        "extra": found.extra,
        "key": None if found.key_type_id is None else obj.btf.structure(found.key_type_id),
        "value": None if found.value_type_id is None else obj.btf.structure(found.value_type_id),
        "stateVersion": state_version,
    }


def layout_digest(layout: JsonValue) -> str:
    """SHA-256 of a layout's canonical JSON, hexadecimal."""
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
