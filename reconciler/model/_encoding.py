# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON of every value, and the digests over it."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from reconciler.model._observed import HookPoint

NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot read: bad UTF-8 in a text and deep nesting have errors of their own."""


def to_builtins(value: object) -> Any:  # noqa: ANN401  # any JSON value, as its callers know
    """`value` as dicts, lists, strings, numbers; bytes become hex text, mapping keys become text."""
    match value:
        case bytes():
            return value.hex()
        case enum.Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {_key_text(key): to_builtins(item) for key, item in value.items()}
        case list() | tuple():
            return [to_builtins(item) for item in value]
        case _:
            names = value.__dataclass_fields__  # type: ignore[attr-defined]  # all other model values are dataclasses
            return {name: to_builtins(getattr(value, name)) for name in names}


def _key_text(key: object) -> str:
    return key.key if isinstance(key, HookPoint) else str(key)


def encode_json(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; equal values give equal bytes."""
    return msgspec.json.encode(to_builtins(value), order="sorted")


def encode_record(value: object) -> bytes:
    """As `encode_json` and many times faster, for what has no `HookPoint` as a mapping key; bytes become base64."""
    return msgspec.json.encode(value, order="sorted")


def record_builtins(value: object) -> Any:  # noqa: ANN401  # any JSON value, as its callers know
    """As `to_builtins` and many times faster, for what `encode_record` takes."""
    return msgspec.to_builtins(value)


def digest_of(value: object) -> str:
    """sha256 hex over `encode_json(value)`."""
    return hashlib.sha256(encode_json(value)).hexdigest()


def digest_of_builtins(plain: object) -> str:
    """`digest_of` of what `to_builtins` or `record_builtins` made, perhaps with something taken out."""
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def content_digest(entries: tuple[tuple[bytes, bytes], ...]) -> str:
    """sha256 hex over the sorted entries of a map, each length-prefixed: equal content, equal digest."""
    hasher = hashlib.sha256()
    for key, value in sorted(entries):
        for part in (key, value):
            hasher.update(len(part).to_bytes(4, "little"))
            hasher.update(part)
    return hasher.hexdigest()
