# SPDX-License-Identifier: Apache-2.0
"""The BTF types of one object, and what is asked of them: sizes, C-like descriptions, canonical structure.

Types may be nonsense (a struct that contains itself): every walk is bounded by depth and by steps.
"""

from __future__ import annotations

from typing import Final, TypeAlias, assert_never

from reconciler.elf._limits import BYTES_PER_NODE, MAX_DEPTH, MAX_NODES
from reconciler.elf._read_types import read_types
from reconciler.elf._types import (
    Array,
    Composite,
    DataSection,
    Enum,
    Float,
    Forward,
    Function,
    Int,
    Member,
    Modifier,
    Pointer,
    Type,
    Typedef,
    Variable,
    Void,
)
from reconciler.errors import ElfError, InputError

JsonValue: TypeAlias = "bool | int | str | list[JsonValue] | dict[str, JsonValue] | None"

POINTER_BYTES: Final = 8
_MAX_SIZE: Final = 0xFFFFFFFF
# How many members a definition lists.
_SHOWN_MEMBERS: Final = 12


class Budget:
    """Counts steps; more than `nodes` are refused, so that hostile types cost no more than large honest ones."""

    __slots__ = ("_error", "_left", "_nodes")

    def __init__(self, error: type[InputError], nodes: int = MAX_NODES) -> None:
        self._error = error
        self._left = self._nodes = nodes

    def spend(self, where: str, depth: int, *, steps: int = 1, size: int = 0) -> None:
        """Count `steps` at nesting `depth` that handle `size` bytes.

        Raises:
            InputError: of the class given, when the steps are used up or the nesting is too deep.
        """
        if depth > MAX_DEPTH:
            raise self._error(f"{where}: expected at most {MAX_DEPTH} types inside each other")
        self._left -= steps + size // BYTES_PER_NODE
        if self._left < 0:
            raise self._error(f"{where}: expected at most {self._nodes} members and elements")


class Btf:
    """The types of one object; a type's id is its position, 0 is void."""

    __slots__ = ("_sizes", "_types")

    def __init__(self, types: tuple[Type, ...]) -> None:
        self._types = types
        # Sizes that were asked for before: thousands of variables may have one type, at the end of a long chain.
        self._sizes: dict[int, int] = {}

    @classmethod
    def read(cls, data: bytes | memoryview) -> Btf:
        """Read the contents of a .BTF section.

        Raises:
            ElfError: it is not BTF within the limits.
        """
        return cls(read_types(memoryview(data)))

    def __len__(self) -> int:
        return len(self._types)

    def type(self, type_id: int) -> Type:
        """The type with this id.

        Raises:
            ElfError: there is none.
        """
        if not 0 <= type_id < len(self._types):
            raise ElfError(f"expected a BTF type below {len(self._types)}, got {type_id}")
        return self._types[type_id]

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs and qualifiers.

        Raises:
            ElfError: there is no such type, or the chain is longer than `MAX_DEPTH`.
        """
        return self.aliases(type_id)[0]

    def aliases(self, type_id: int) -> tuple[Type, tuple[str, ...]]:
        """The type behind typedefs and qualifiers, and the names of the typedefs on the way.

        Raises:
            ElfError: there is no such type, or the chain is longer than `MAX_DEPTH`.
        """
        names: list[str] = []
        for _hop in range(MAX_DEPTH):
            each = self.type(type_id)
            if isinstance(each, Typedef):
                names.append(each.name)
            elif not isinstance(each, Modifier):
                return each, tuple(names)
            type_id = each.type_id
        raise ElfError(f"BTF type {type_id}: expected at most {MAX_DEPTH} typedefs and qualifiers in a row")

    def size(self, type_id: int) -> int:
        """Bytes of a value of this type.

        Raises:
            ElfError: a value of this type cannot exist, or is larger than 4 GiB.
        """
        size = self._sizes.get(type_id)
        if size is None:
            size = self._sizes[type_id] = self._measure(type_id)
        return size

    def _measure(self, type_id: int) -> int:
        factor = 1
        for _hop in range(MAX_DEPTH):
            each = self.resolve(type_id)
            match each:
                case Array():
                    factor *= each.count
                    type_id = each.type_id
                    continue
                case Int() | Float() | Composite() | Enum():
                    size = each.size * factor
                case Pointer():
                    size = POINTER_BYTES * factor
                case _:
                    raise ElfError(f"expected a type that has a size, got {self.describe(type_id)}")
            if size > _MAX_SIZE:
                raise ElfError(f"expected a type of at most {_MAX_SIZE} bytes, got {size}")
            return size
        raise ElfError(f"BTF type {type_id}: expected an array of at most {MAX_DEPTH} dimensions")

    def size_of(self, type_id: int, where: str) -> int:
        """`size`, with `where` in front of the message.

        Raises:
            ElfError: as `size`.
        """
        try:
            return self.size(type_id)
        except ElfError as error:
            raise ElfError(f"{where}: {error}") from error

    def qualifiers(self, type_id: int) -> frozenset[str]:
        """The qualifiers of a variable: "const", "volatile", "restrict"; those of an array's elements count too.

        Raises:
            ElfError: there is no such type.
        """
        words: set[str] = set()
        for _hop in range(MAX_DEPTH):
            each = self.type(type_id)
            if isinstance(each, Modifier):
                words.add(each.word)
            elif not isinstance(each, Typedef | Array):
                break
            type_id = each.type_id
        return frozenset(words)

    def data_sections(self) -> dict[str, DataSection]:
        """Data sections by name.

        Raises:
            ElfError: two have the same name.
        """
        found: dict[str, DataSection] = {}
        for each in self._types:
            if isinstance(each, DataSection):
                if each.name in found:
                    raise ElfError(f"expected one BTF data section {each.name}, got two")
                found[each.name] = each
        return found

    def describe(self, type_id: int) -> str:
        """The type in one line as C would name it, without qualifiers, for messages; never fails."""
        return self._describe(type_id, 0)

    def definition(self, type_id: int) -> str:
        """Like `describe`, with the members of a struct or union."""
        each = self._types[type_id] if 0 <= type_id < len(self._types) else Void()
        while isinstance(each, Typedef | Modifier) and (below := self._peel(each)) is not None:
            each = below
        if not isinstance(each, Composite):
            return self.describe(type_id)
        return f"{self.describe(type_id).removesuffix(' {…}')} {self._members(each)}"

    def structure(self, type_id: int, budget: Budget | None = None) -> JsonValue:
        """What decides whether two packages may share bytes of this type, as a canonical JSON value.

        Kinds, sizes in bytes, offsets in bits, names of members and enumerators, signedness; typedefs, qualifiers
        and tags of structs are left out, and pointers are not followed.

        Args:
            type_id: of the type.
            budget: that of several calls together; None: one of its own.

        Raises:
            ElfError: a value of this type cannot exist, or the type is too deep or too large.
        """
        return self._structure(type_id, budget or Budget(ElfError), 0)

    def _peel(self, each: Typedef | Modifier) -> Type | None:
        try:
            return self.resolve(each.type_id)
        except ElfError:
            return None

    def _describe(self, type_id: int, depth: int) -> str:
        if depth > MAX_DEPTH or not 0 <= type_id < len(self._types):
            return "…"
        each = self._types[type_id]
        match each:
            case Pointer():
                text = f"{self._describe(each.type_id, depth + 1)} *"
            case Array():
                text = self._describe_array(each, depth)
            case Modifier():
                text = self._describe(each.type_id, depth + 1)
            case _:
                text = _describe_named(each)
        return text

    def _describe_array(self, array: Array, depth: int) -> str:
        counts: list[int] = []
        inner: Type = array
        type_id = 0
        while isinstance(inner, Array) and len(counts) <= MAX_DEPTH:
            counts.append(inner.count)
            type_id = inner.type_id
            inner = self._types[type_id]
        return self._describe(type_id, depth + 1 + len(counts)) + "".join(f"[{count}]" for count in counts)

    def _members(self, composite: Composite) -> str:
        # One level only, so that the text stays short whatever the types are.
        shown = [self._member(member) for member in composite.members[:_SHOWN_MEMBERS]]
        more = " …" if len(composite.members) > _SHOWN_MEMBERS else ""
        return f"{{ {' '.join(shown)}{more} }}" if shown else "{}"

    def _member(self, member: Member) -> str:
        # The name stands before the brackets of an array: __u8 data[4].
        base, bracket, counts = self.describe(member.type_id).partition("[")
        width = f":{member.bits}" if member.bits else ""
        return f"{base} {member.name}".rstrip() + f"{bracket}{counts}{width};"

    def _structure(self, type_id: int, budget: Budget, depth: int) -> JsonValue:
        where = f"BTF type {type_id}"
        budget.spend(where, depth)
        each = self.resolve(type_id)
        match each:
            case Int():
                return _int_structure(each)
            case Float():
                return {"kind": "float", "size": each.size}
            case Pointer():
                return {"kind": "pointer", "to": self.describe(each.type_id)}
            case Array():
                return {
                    "kind": "array",
                    "count": each.count,
                    "element": self._structure(each.type_id, budget, depth + 1),
                }
            case Composite():
                return self._composite_structure(each, budget, depth)
            case Enum():
                budget.spend(where, depth, steps=len(each.values))
                return {"kind": "enum", "size": each.size, "signed": each.signed, "values": dict(each.values)}
            case _:
                raise ElfError(f"expected a type that has a size, got {self.describe(type_id)}")

    def _composite_structure(self, each: Composite, budget: Budget, depth: int) -> JsonValue:
        members: list[JsonValue] = [
            {
                "name": member.name,
                "offset": member.offset,
                "bits": member.bits,
                "type": self._structure(member.type_id, budget, depth + 1),
            }
            for member in each.members
        ]
        structure: dict[str, JsonValue] = {
            "kind": "union" if each.union else "struct",
            "size": each.size,
            "members": members,
        }
        if each.name in KERNEL_MANAGED:
            structure["name"] = each.name
        return structure


KERNEL_MANAGED: Final = frozenset(
    {
        "bpf_spin_lock",
        "bpf_res_spin_lock",
        "bpf_timer",
        "bpf_wq",
        "bpf_task_work",
        "bpf_list_head",
        "bpf_list_node",
        "bpf_rb_root",
        "bpf_rb_node",
        "bpf_refcount",
    }
)
"""Structs that the kernel finds by their names in a map's value (btf_parse_fields) and keeps for itself."""


def _describe_named(
    each: Void | Int | Float | Composite | Enum | Forward | Typedef | Function | Variable | DataSection,
) -> str:
    match each:
        case Void():
            text = "void"
        case Int() | Float() | Typedef():
            text = each.name or "(anonymous)"
        case Composite() | Forward():
            text = f"{'union' if each.union else 'struct'} {each.name or '{…}'}"
        case Enum():
            text = f"enum {each.name}".rstrip()
        case Function():
            text = f"function {each.name}".rstrip()
        case Variable():
            text = f"variable {each.name}"
        case DataSection():
            text = f"section {each.name}"
        case _:
            assert_never(each)
    return text


def _int_structure(each: Int) -> JsonValue:
    structure: dict[str, JsonValue] = {"kind": "bool" if each.boolean else "int", "size": each.size}
    if not each.boolean:
        structure["signed"] = each.signed
    if each.offset or each.bits != 8 * each.size:
        structure["offset"] = each.offset
        structure["bits"] = each.bits
    return structure
