# SPDX-License-Identifier: Apache-2.0
"""`package.yaml` against the BTF of its objects, in both directions.

What is declared must be there and be what the manifest says; what is there must be declared. So nobody reviews a
package.yaml that is silent about a program, a map or a parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from reconciler.elf import MAX_PACKAGE_NODES, Budget, Format, decode, encode
from reconciler.errors import Diagnostic, ElfError, EncodingError
from reconciler.manifest._packages import CONTRACT_GLOBALS, in_range
from reconciler.model import FAMILIES, STATS_COUNTERS, MapRole, MapSpec, PackageManifest, ParamSpec, ProgramSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.elf import GlobalVar, MapDef, Object

# enum bpf_map_type (include/uapi/linux/bpf.h)
_HASH, _ARRAY, _PROG_ARRAY, _PERCPU_ARRAY, _LPM_TRIE = 1, 2, 3, 6, 11
_ARRAY_OF_MAPS, _HASH_OF_MAPS, _STRUCT_OPS = 12, 13, 26
_CONFIG_TYPES = {_HASH: "HASH", _ARRAY: "ARRAY", _LPM_TRIE: "LPM_TRIE"}
"""The types that BPF_F_RDONLY_PROG works on; locking the content is what config maps are for."""
_REFUSED_STATE = {_PROG_ARRAY: "PROG_ARRAY", _ARRAY_OF_MAPS: "ARRAY_OF_MAPS", _HASH_OF_MAPS: "HASH_OF_MAPS"}
_REFUSED_STATE[_STRUCT_OPS] = "STRUCT_OPS"

_GLOBAL_BYTES = 4
_INDEX_BYTES = 4
_COUNTER_BYTES = 16
_U64 = {"kind": "int", "size": 8, "signed": False}
NEXT = "next"


def check_package(manifest: PackageManifest, objects: Mapping[str, Object]) -> tuple[Diagnostic, ...]:
    """Findings about a package whose objects were read; empty if manifest and objects say the same.

    Args:
        manifest: of `parse_package`.
        objects: file name in the archive to the object as read.
    """
    return tuple(Diagnostic(message=message, pointer=pointer) for pointer, message in _check(manifest, objects))


def _check(manifest: PackageManifest, objects: Mapping[str, Object]) -> Iterator[tuple[str, str]]:
    budget = Budget(ElfError, MAX_PACKAGE_NODES)
    for index, program in enumerate(manifest.programs):
        pointer = f"/spec/programs/{index}"
        for message in _check_program(manifest, program, objects):
            yield pointer, message
    for index, spec in enumerate(manifest.maps):
        found = [(obj, each) for obj in objects.values() if (each := obj.find_map(spec.name)) is not None]
        if not found:
            yield f"/spec/maps/{index}/name", f"expected a map {spec.name!r} in the objects, got none; remove it here"
        for obj, each in found:
            for message in _check_map(spec, each, obj, budget):
                yield f"/spec/maps/{index}", f"{obj.name}: map {spec.name}: {message}"
    for index, param in enumerate(manifest.params):
        yield from ((f"/spec/params/{index}", message) for message in _check_param(param, objects, budget))
    for message in _undeclared(manifest, objects):
        yield "/spec", message


# --- declared, so it must be there -------------------------------------------------------------------------


def _check_program(manifest: PackageManifest, program: ProgramSpec, objects: Mapping[str, Object]) -> Iterator[str]:
    obj = objects.get(program.object)
    if obj is None:
        known = ", ".join(sorted(objects)) or "none"
        yield f"program {program.name}: expected one of the package's objects ({known}), got {program.object!r}"
        return
    found = obj.find_program(program.name)
    if found is None:
        known = ", ".join(each.name for each in obj.programs) or "none"
        yield f"program {program.name}: expected a program of {obj.name} ({known}), got none of that name"
    elif found.section not in FAMILIES[program.type].sections:
        wanted = " or ".join(repr(name) for name in FAMILIES[program.type].sections)
        yield f"program {program.name}: expected section {wanted} for type {program.type}, got {found.section!r}"
    if program.contract:
        yield from _check_contract(manifest, program, obj)


def _check_contract(manifest: PackageManifest, program: ProgramSpec, obj: Object) -> Iterator[str]:
    where = f"program {program.name}: {obj.name}"
    hint = "include chain.h, or say contract: false"
    for name, signed in CONTRACT_GLOBALS.items():
        variables = [each for each in obj.globals if each.name == name]
        if len(variables) != 1:
            yield f"{where}: expected the global {name} of the contract, got {len(variables)}; {hint}"
        elif not variables[0].tunable or not _is_integer(obj, variables[0], signed=signed):
            kind = "const volatile __s32" if signed else "const volatile __u32"
            yield f"{where}: expected {name} to be {kind}, got {obj.btf.describe(variables[0].type_id)}"
    if obj.find_map(NEXT) is None:
        yield f"{where}: expected the map {NEXT!r} of the contract, got none; {hint}"
    elif not any(spec.name == NEXT and spec.role is MapRole.NEXT for spec in manifest.maps):
        yield f"{where}: expected the map {NEXT!r} with role next among the maps, got none; declare it"


def _is_integer(obj: Object, variable: GlobalVar, *, signed: bool) -> bool:
    wanted = {"kind": "int", "size": _GLOBAL_BYTES, "signed": signed}
    try:
        return variable.size == _GLOBAL_BYTES and obj.btf.structure(variable.type_id) == wanted
    except ElfError:
        return False


def _check_map(spec: MapSpec, found: MapDef, obj: Object, budget: Budget) -> Iterator[str]:
    if found.pinning:
        yield "expected no pinning in the object, got some; remove it, the reconciler owns pin paths"
    match spec.role:
        case MapRole.NEXT:
            shape = (found.type, found.max_entries, found.key_size, found.value_size)
            if spec.name != NEXT or shape != (_PROG_ARRAY, 1, _INDEX_BYTES, _INDEX_BYTES):
                yield f"expected role next for a PROG_ARRAY of one slot named {NEXT!r}, got another map"
        case MapRole.STATS:
            if not _is_stats(found, obj, budget):
                yield (
                    f"expected role stats for a PERCPU_ARRAY of {len(STATS_COUNTERS)} entries of two u64 "
                    f"(packets, bytes), got another map; include chain.h"
                )
        case MapRole.CONFIG:
            if found.type not in _CONFIG_TYPES:
                yield f"expected role config for {', '.join(_CONFIG_TYPES.values())} only, got map type {found.type}"
            yield from _check_format(obj, found.key_type_id, found.key_size, spec.key_format, "key", budget)
            yield from _check_format(obj, found.value_type_id, found.value_size, spec.value_format, "value", budget)
        case MapRole.STATE:
            if found.type in _REFUSED_STATE:
                yield f"expected role state for a map of data, got {_REFUSED_STATE[found.type]}"
            yield from _check_layout(found, obj, budget)
        case _:
            assert_never(spec.role)


def _check_layout(found: MapDef, obj: Object, budget: Budget) -> Iterator[str]:
    # Whether state is carried over is decided by it, so a type without one is refused before anything runs.
    try:
        for type_id in filter(None, (found.key_type_id, found.value_type_id)):
            obj.btf.structure(type_id, budget)
    except ElfError as error:
        yield f"expected types whose layout can be compared, got an error: {error}"


def _is_stats(found: MapDef, obj: Object, budget: Budget) -> bool:
    shape = (found.type, found.max_entries, found.key_size, found.value_size)
    if shape != (_PERCPU_ARRAY, len(STATS_COUNTERS), _INDEX_BYTES, _COUNTER_BYTES) or found.value_type_id is None:
        return False
    try:
        structure = obj.btf.structure(found.value_type_id, budget)
    except ElfError:
        return False
    members = structure.get("members") if isinstance(structure, dict) else None
    return isinstance(members, list) and [
        (member["offset"], member["type"]) for member in members if isinstance(member, dict)
    ] == [(0, _U64), (64, _U64)]


def _check_format(  # what a format is for, and what it may cost
    obj: Object, type_id: int | None, size: int, format_: str | None, what: str, budget: Budget
) -> Iterator[str]:
    if type_id is None:
        yield f"expected __type({what}, …) so that manifests can be read by BTF, got a size only"
        return
    if format_ is not None and format_ not in list(Format):
        yield f"expected {what}Format to be one of {', '.join(Format)}, got {format_!r}"
        return
    try:
        # Zeros are as good as any value: whether the format fits is a question of the type.
        decode(obj.btf, type_id, bytes(size), format=format_, budget=budget)
    except EncodingError as error:
        yield f"expected a {what} that manifests can write, got an error: {error}"


def _check_param(param: ParamSpec, objects: Mapping[str, Object], budget: Budget) -> Iterator[str]:
    found = [(obj, each) for obj in objects.values() for each in obj.globals if each.name == param.name]
    where = f"parameter {param.name}"
    if not found:
        yield f"{where}: expected a global of that name in the objects, got none; remove it here"
    for obj, variable in found:
        if not variable.tunable:
            yield f"{where}: {obj.name}: expected a const volatile global, got another one in {variable.section}"
            continue
        if param.format is not None and param.format not in list(Format):
            yield f"{where}: expected format to be one of {', '.join(Format)}, got {param.format!r}"
            continue
        for name, value in (("default", param.default), ("minimum", param.minimum), ("maximum", param.maximum)):
            if value is None:
                continue
            try:
                encode(obj.btf, variable.type_id, value, where=name, format=param.format, budget=budget)
            except EncodingError as error:
                yield f"{where}: {obj.name}: {error}"
        if param.default is None:
            yield from (f"{where}: {obj.name}: {message}" for message in _check_initial(param, obj, variable, budget))


def _check_initial(param: ParamSpec, obj: Object, variable: GlobalVar, budget: Budget) -> Iterator[str]:
    # Without a default the object's own value stands, so it is held to the same limits.
    size = obj.btf.size(variable.type_id)
    try:
        value = decode(obj.btf, variable.type_id, variable.initial[:size], format=param.format, budget=budget)
    except EncodingError as error:
        yield str(error)
        return
    if param.minimum is None and param.maximum is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        yield "expected an integer where minimum or maximum is given, got another type"
    elif (param.minimum is not None and value < param.minimum) or (param.maximum is not None and value > param.maximum):
        yield f"expected an initial value {in_range(param.minimum, param.maximum)}, got {value}"


# --- there, so it must be declared -------------------------------------------------------------------------


def _undeclared(manifest: PackageManifest, objects: Mapping[str, Object]) -> Iterator[str]:
    programs = {(program.object, program.name) for program in manifest.programs}
    maps = {spec.name for spec in manifest.maps}
    params = {param.name for param in manifest.params} | set(CONTRACT_GLOBALS)
    for name, obj in sorted(objects.items()):
        if not any(program.object == name for program in manifest.programs):
            yield f"{name}: expected objects of declared programs only, got one that no program uses; remove it"
        for each in obj.programs:
            if (name, each.name) not in programs:
                yield f"{name}: expected every program to be declared, got {each.name!r}; add it to programs"
        for found in obj.maps:
            if found.name not in maps:
                yield f"{name}: expected every map to be declared, got {found.name!r}; add it to maps with its role"
        for variable in obj.globals:
            if variable.tunable and variable.name not in params:
                yield (
                    f"{name}: expected every const volatile global to be declared, got {variable.name!r}; "
                    "add it to params"
                )
