# SPDX-License-Identifier: Apache-2.0
"""Strict YAML: bytes → JSON values with the line and column of each.

YAML is read as a notation for JSON and nothing more: maps with text keys, lists, true, false, null, and numbers in
JSON's grammar; every other scalar is text (`12:30`, `yes`, `010`). Tags, anchors, aliases, merge keys, directives,
duplicate keys, control characters and bidirectional overrides are findings, and so is whatever exceeds the limits
below. The tree is built from libyaml's event stream without recursion, so depth costs no stack.

All findings of a file are collected. libyaml stops at the first error of syntax; everything before it is reported.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from reconciler.errors import Diagnostic

if TYPE_CHECKING:
    from reconciler.model import Json

MAX_BYTES = 1 << 20
"""Bytes of one file; a declared deny list of 10,000 prefixes takes about half of it."""
MAX_DEPTH = 24
"""Collections inside collections; the deepest fields of our schemas lie at 9, structs as map values go on there."""
MAX_NODES = 200_000
"""Scalars and collections in one file."""
MAX_POINTERS = 32 << 20
"""Characters of all JSON pointers of one file: few long keys around many values would take gigabytes of memory."""
MAX_DOCUMENTS = 1000
"""Documents in one file."""
MAX_FINDINGS = 100
"""Findings that are reported of one file; somebody who reads further than that would rather fix these first."""

INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
"""Integers beyond 64 bits are written as text; nothing of ours holds them, and readers of JSON round them."""

START = (1, 1)
"""Where a file begins."""

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)", re.ASCII)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_STARTS = frozenset("-0123456789")
"""How a number starts: most text does not, and looking is quicker than matching."""
_CONSTANTS: dict[str, Json] = {"true": True, "false": False, "null": None, "": None}

# C0 and C1 controls but tab, line feed and carriage return; a byte order mark; bidirectional overrides and isolates,
# which show a reviewer another text than the one that is read (CVE-2021-42574).
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u202a-\u202e\u2066-\u2069]")

# libyaml's parser where PyYAML was built with it (its wheels are, and Debian's), else PyYAML's own, five times slower.
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


Position: TypeAlias = tuple[int, int]
"""A place in a file, line and column, both 1-based. Tuples of numbers, because there is one for every value and every
key: the garbage collector forgets those."""


@dataclass(slots=True)
class Document:
    """One YAML document.

    Attributes:
        value: JSON values; what a finding concerns stands there as None and in `broken`.
        values: JSON pointer to the position of the value.
        keys: JSON pointer to the position of the key that leads to it (mappings only).
        broken: pointers of values that are not to be believed, nor anything below them.
        incomplete: pointers of mappings that lost fields because of a finding.
    """

    file: str
    value: Json = None
    values: dict[str, Position] = field(default_factory=dict)
    keys: dict[str, Position] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    incomplete: set[str] = field(default_factory=set)

    def finding(self, message: str, pointer: str = "", *, at_key: bool = False) -> Diagnostic:
        """A finding about the value at `pointer`, or about its key; the nearest known position is taken."""
        place = self.keys.get(pointer) if at_key else None
        near = pointer
        while place is None:
            place = self.values.get(near)
            if place is None and not near:
                place = START
            near = near.rpartition("/")[0]
        return Diagnostic(message=message, file=self.file, line=place[0], column=place[1], pointer=pointer)

    def believable(self, pointer: str) -> bool:
        """Whether neither the value at `pointer` nor anything around or below it is broken."""
        return not any(
            f"{pointer}/".startswith(f"{bad}/") or f"{bad}/".startswith(f"{pointer}/")
            for bad in self.broken | self.incomplete
        )

    def within_broken(self, pointer: str) -> bool:
        """Whether the value at `pointer` is part of a broken one, so that findings about it say nothing new."""
        while pointer not in self.broken:
            if not pointer:
                return False
            pointer = pointer.rpartition("/")[0]
        return True


def escape(token: str) -> str:
    """`token` as one part of a JSON pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")


def read_documents(data: bytes, *, file: str) -> tuple[tuple[Document, ...], tuple[Diagnostic, ...]]:
    """All documents of a file and all findings; with a finding about syntax the last documents may be missing.

    A file without any document is a finding; that a document's root is a mapping is for the schema to say.
    """
    text, findings = _decode(data, file)
    if text is None:
        return (), findings
    builder = _Builder(file)
    try:
        builder.read(_LOADER(text))
    except yaml.MarkedYAMLError as error:
        builder.syntax_error(error, text)
    except _StopReadingError:
        pass
    except yaml.YAMLError as error:
        builder.report(f"expected YAML, got something else: {error}", START, ends=True)
    if not builder.documents and not builder.findings:
        builder.report("expected at least one document, got an empty file; delete it or fill it", START)
    return tuple(builder.documents), tuple(builder.findings)


def _decode(data: bytes, file: str) -> tuple[str | None, tuple[Diagnostic, ...]]:
    def refuse(message: str, line: int = 1, column: int = 1) -> tuple[None, tuple[Diagnostic, ...]]:
        return None, (Diagnostic(message=message, file=file, line=line, column=column),)

    if len(data) > MAX_BYTES:
        return refuse(f"expected at most {MAX_BYTES} bytes, got {len(data)}; split the file")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return refuse("expected UTF-8, got a UTF-16 byte order mark; save the file as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        return refuse("expected UTF-8 without a byte order mark, got one; save the file without it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        return refuse(f"expected UTF-8, got byte 0x{data[error.start]:02x}", before.count(b"\n") + 1, column)
    bad = _FORBIDDEN.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        return refuse(f"expected printable text, got the character U+{ord(bad[0]):04X}; remove it", line, column)
    return text, ()


class _StopReadingError(Exception):
    """A limit is exceeded; the finding is recorded already."""


@dataclass(slots=True)
class _Frame:
    """One open collection."""

    pointer: str
    container: dict[str, Json] | list[Json]
    key: str | None = None
    """The key whose value comes next, mappings only."""
    at: str = ""
    """The pointer that this key leads to."""
    drop_value: bool = False
    """The key was refused, so its value is dropped."""


class _Builder:
    """Builds documents from events with an explicit stack."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.documents: list[Document] = []
        self.findings: list[Diagnostic] = []
        self._stack: list[_Frame] = []
        self._nodes = 0
        self._pointers = 0
        # Open collections inside a collection that is dropped.
        self._skip = 0
        self._document = Document(file=file)

    def report(self, message: str, place: Position, pointer: str | None = None, *, ends: bool = False) -> None:
        # What ends the reading is always told: callers must know that there is more in the file.
        if len(self.findings) >= MAX_FINDINGS and not ends:
            return
        self.findings.append(
            Diagnostic(message=message, file=self.file, line=place[0], column=place[1], pointer=pointer)
        )

    def syntax_error(self, error: yaml.MarkedYAMLError, text: str) -> None:
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context else ""
        message = f"expected YAML, got: {error.problem or 'something else'}{context}"
        # The two that are made most often, which libyaml tells in its own words, the second one a line too late.
        if error.problem_mark is not None and text[error.problem_mark.index : error.problem_mark.index + 1] == "\t":
            message = "expected spaces, got a tab; YAML is indented with spaces only"
        elif error.problem == "could not find expected ':'" and error.context_mark is not None:
            mark = error.context_mark
            message = "expected a key, a colon and a space (`key: value`), got text without them"
        place = (mark.line + 1, mark.column + 1) if mark is not None else START
        self.report(message, place, ends=True)
        # What was read of this document stays out: half a document must not be mistaken for a whole one.

    def read(self, loader: Any) -> None:  # noqa: ANN401 - either of PyYAML's, which have no common type
        """Take every event; what most of them are is looked for first."""
        while (event := loader.get_event()) is not None:
            mark = event.start_mark
            place = (mark.line + 1, mark.column + 1) if mark is not None else START
            if isinstance(event, yaml.NodeEvent):
                self._nodes += 1
                if self._nodes > MAX_NODES:
                    message = f"expected at most {MAX_NODES} values in a file, got more; split the file"
                    self.report(message, place, ends=True)
                    raise _StopReadingError
                self._node(event, place)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
            elif isinstance(event, yaml.DocumentStartEvent):
                self._start_document(event, place)
            elif isinstance(event, yaml.DocumentEndEvent):
                self.documents.append(self._document)

    def _start_document(self, event: yaml.DocumentStartEvent, place: Position) -> None:
        if len(self.documents) >= MAX_DOCUMENTS:
            self.report(
                f"expected at most {MAX_DOCUMENTS} documents in a file, got more; split the file", place, ends=True
            )
            raise _StopReadingError
        if event.version or event.tags:
            self.report("expected no YAML directives, got one; remove the line that starts with %", place)
        self._document = Document(file=self.file)
        self._document.values[""] = place

    def _node(self, event: yaml.NodeEvent, place: Position) -> None:
        if self._skip:
            if isinstance(event, yaml.CollectionStartEvent):
                self._skip += 1
                self._check_depth(place)
            return
        frame = self._stack[-1] if self._stack else None
        if frame is None:
            pointer = ""
        elif isinstance(frame.container, list):
            pointer = self._pointer(frame, str(len(frame.container)), place)
        elif frame.key is None:
            self._key_or_dropped(frame, event, place)
            return
        else:
            pointer = frame.at
        self._document.values[pointer] = place
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            self._refuse_node(event, place, pointer)
        if isinstance(event, yaml.ScalarEvent):
            self._put(self._scalar(event, place, pointer))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event, place, pointer)
        else:
            self._put(None)

    def _key_or_dropped(self, frame: _Frame, event: yaml.NodeEvent, place: Position) -> None:
        # Where a key was refused, its value is skipped, however deep it is.
        if frame.drop_value:
            frame.drop_value = False
        elif self._key(frame, event, place):
            return
        else:
            frame.drop_value = True
        if isinstance(event, yaml.CollectionStartEvent):
            self._skip = 1

    def _refuse_node(self, event: yaml.NodeEvent, place: Position, pointer: str) -> None:
        if isinstance(event, yaml.AliasEvent):
            problem = f"expected a value, got the alias *{event.anchor}; write the value itself"
        elif event.anchor is not None:
            problem = f"expected no anchors, got &{event.anchor}; remove it"
        else:
            problem = f"expected no tags, got {event.tag}; remove it"  # type: ignore[attr-defined]  # not on aliases
        self.report(problem, place, pointer)
        self._document.broken.add(pointer)

    def _pointer(self, frame: _Frame, token: str, place: Position) -> str:
        self._pointers += len(frame.pointer) + len(token) + 1
        if self._pointers > MAX_POINTERS:
            self.report("expected shorter keys, got long ones around many values; shorten them", place, ends=True)
            raise _StopReadingError
        return f"{frame.pointer}/{token}"

    def _key(self, frame: _Frame, event: yaml.NodeEvent, place: Position) -> bool:
        """Whether the key is taken; else it is reported."""
        problem = None
        if not isinstance(event, yaml.ScalarEvent):
            what = "an alias" if isinstance(event, yaml.AliasEvent) else "a collection"
            problem = f"expected text as key, got {what}"
        elif event.anchor is not None or event.tag is not None:
            problem = "expected a key without anchor or tag, got one; remove it"
        elif event.value == "<<" and event.implicit[0]:
            problem = "expected no merge keys, got <<; write the fields out"
        elif not event.implicit[0] and _FORBIDDEN.search(event.value):
            # Plain text holds what the file holds, which was looked at; only in quotes are there escapes.
            problem = "expected printable text as key, got control characters"
        else:
            return self._good_key(frame, event.value, place)
        self.report(problem, place, frame.pointer)
        self._document.incomplete.add(frame.pointer)
        return False

    def _good_key(self, frame: _Frame, key: str, place: Position) -> bool:
        pointer = self._pointer(frame, escape(key), place)
        first = self._document.keys.get(pointer)
        if first is None:
            frame.key, frame.at = key, pointer
            self._document.keys[pointer] = place
            return True
        # It breaks its own pointer only, so the fields around it are still checked.
        message = f"expected each key once, got {key!r} again; it stands in line {first[0]} already"
        self.report(message, place, pointer)
        self._document.broken.add(pointer)
        return False

    def _open(self, event: yaml.CollectionStartEvent, place: Position, pointer: str) -> None:
        container: dict[str, Json] | list[Json] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Frame(pointer=pointer, container=container))
        self._check_depth(place)

    def _check_depth(self, place: Position) -> None:
        # Also of what is dropped: libyaml takes time with the square of the depth.
        if len(self._stack) + self._skip > MAX_DEPTH:
            self.report(f"expected at most {MAX_DEPTH} levels, got more; make it flatter", place, ends=True)
            raise _StopReadingError

    def _end(self) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._put(self._stack.pop().container)

    def _put(self, value: Json) -> None:
        if not self._stack:
            self._document.value = value
            return
        frame = self._stack[-1]
        if isinstance(frame.container, list):
            frame.container.append(value)
        else:
            frame.container[frame.key or ""] = value
            frame.key = None

    def _scalar(self, event: yaml.ScalarEvent, place: Position, pointer: str) -> Json:
        text: str = event.value
        if not event.implicit[0]:
            if _FORBIDDEN.search(text):
                self.report("expected printable text, got control characters", place, pointer)
                self._document.broken.add(pointer)
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if text[0] not in _STARTS or not _NUMBER.fullmatch(text):
            return text
        number = _number(text)
        if number is None:
            self.report("expected a number of at most 64 bits, got a larger one; write it in quotes", place, pointer)
            self._document.broken.add(pointer)
        return number


def _number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        # 20 digits hold every 64-bit number; longer text is not even converted.
        value = int(text) if len(text) <= len(str(INT_MIN)) else None
        return value if value is not None and INT_MIN <= value <= INT_MAX else None
    number = float(text)
    return number if math.isfinite(number) else None
