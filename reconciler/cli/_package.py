# SPDX-License-Identifier: Apache-2.0
"""The verbs package build, package sign and package inspect. Nothing here calls libbpf or needs privileges."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler import elf, packages, trust
from reconciler.cli._output import note, say, say_json, table
from reconciler.cli._tree import read_file
from reconciler.errors import ExitCode, InputError
from reconciler.status import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.cli._group import Context
    from reconciler.model import MapSpec, PackageManifest, ParamSpec, ProgramSpec

MAP_TYPES: Final = (
    "unspec", "hash", "array", "prog-array", "perf-event-array", "percpu-hash", "percpu-array", "stack-trace",
    "cgroup-array", "lru-hash", "lru-percpu-hash", "lpm-trie", "array-of-maps", "hash-of-maps", "devmap", "sockmap",
    "cpumap", "xskmap", "sockhash", "cgroup-storage", "reuseport-sockarray", "percpu-cgroup-storage", "queue", "stack",
    "sk-storage", "devmap-hash", "struct-ops", "ringbuf", "inode-storage", "task-storage", "bloom-filter",
    "user-ringbuf", "cgrp-storage", "arena",
)  # fmt: skip
"""Names by enum bpf_map_type (include/uapi/linux/bpf.h), as bpftool writes them."""


@click.group()
def package() -> None:
    """Build, sign and look into packages."""


@package.command(short_help="Pack a folder into NAME-VERSION.tar.gz.")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--into", type=click.Path(path_type=Path), default=Path(), help="Folder for the archive.  [default: .]")
@click.option(
    "--objects",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the compiled objects.  [default: FOLDER]",
)
@click.pass_obj
def build(context: Context, *, folder: Path, into: Path, objects: Path | None) -> int:
    """Pack FOLDER (package.yaml and the objects it names) into NAME-VERSION.tar.gz. Equal content, equal bytes."""
    name, data = packages.build_folder(folder, objects)
    path = into / name
    try:
        into.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another folder with --into") from error
    digest = packages.digest_of(data)
    if context.output == "json":
        say_json({"archive": str(path), "digest": digest})
    else:
        say(f"{clean(str(path))}  {digest}")
    return ExitCode.OK


@package.command(short_help="Sign an archive with a key.")
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Private key, PEM: P-256 or Ed25519.")
@click.option("--password-file", type=click.Path(path_type=Path), help="File that holds the key's password.")
@click.pass_obj
def sign(context: Context, *, archive: Path, key: Path, password_file: Path | None) -> int:
    """Sign ARCHIVE: writes ARCHIVE.sigstore.json, which `cosign verify-blob` reads too."""
    data = read_file(archive, packages.MAX_ARCHIVE_BYTES)
    manifest, _ = packages.open_archive(data, file=str(archive))
    password = read_file(password_file, 4096).rstrip(b"\r\n") if password_file is not None else None
    bundle = trust.sign(data, _read_key(key), password=password)
    path = archive.with_name(archive.name + packages.BUNDLE_SUFFIX)
    try:
        path.write_bytes(bundle)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    digest = packages.digest_of(data)
    if context.output == "json":
        say_json({"bundle": str(path), "name": manifest.name, "version": manifest.version, "digest": digest})
    else:
        say(f"{clean(str(path))}  {manifest.name} {manifest.version}  {digest}")
    return ExitCode.OK


@package.command(short_help="What an archive holds.")
@click.argument("archive", type=click.Path(path_type=Path))
@click.pass_obj
def inspect(context: Context, *, archive: Path) -> int:
    """What ARCHIVE holds: programs, maps and parameters with their layouts. Verifies no signature."""
    data = read_file(archive, packages.MAX_ARCHIVE_BYTES)
    manifest, files = packages.open_archive(data, file=str(archive))
    names = sorted({program.object for program in manifest.programs})
    objects = {name: elf.read_object(files[name], name=name) for name in names}
    view = View(manifest, objects)
    bundle = archive.with_name(archive.name + packages.BUNDLE_SUFFIX)
    head: dict[str, Any] = {
        "name": manifest.name,
        "version": manifest.version,
        "digest": packages.digest_of(data),
        "license": manifest.license,
        "description": manifest.description,
        "features": manifest.features,
        "size": len(data),
        "files": {name: len(content) for name, content in sorted(files.items())},
        "signature": _signature(bundle),
    }
    programs, maps, params = list(view.programs()), list(view.maps()), list(view.params())
    if context.output == "json":
        say_json({**head, "programs": programs, "maps": maps, "params": params})
        return ExitCode.OK
    for key in ("name", "version", "digest", "license", "description", "signature"):
        say(f"{key:<12} {clean(str(head[key]))}")
    say(f"{'features':<12} {', '.join(manifest.features) or 'none needed'}")
    for title, rows in (("PROGRAM", programs), ("MAP", maps), ("PARAMETER", params)):
        if rows:
            say()
            table((title, *(key.upper() for key in rows[0] if key not in _HIDDEN)), [_row(row) for row in rows])
    return ExitCode.OK


_HIDDEN: Final = ("name", "description", "definition", "object")
"""Columns of JSON that a table has no room for; the name comes first under its own title."""


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["name"], *(_cell(value) for key, value in row.items() if key not in _HIDDEN))


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case list() | tuple():
            return ", ".join(str(item) for item in value)
        case bool():
            return str(value).lower()
        case _:
            return str(value)


class View:
    """A package's declarations, each with what its object says about it."""

    def __init__(self, manifest: PackageManifest, objects: dict[str, elf.Object]) -> None:
        self._manifest = manifest
        self._objects = objects

    def programs(self) -> Iterator[dict[str, Any]]:
        """One row for each program."""
        for spec in self._manifest.programs:
            yield {"name": spec.name, **self._program(spec)}

    def _program(self, spec: ProgramSpec) -> dict[str, Any]:
        found = self._objects[spec.object].find_program(spec.name)
        return {
            "type": spec.type,
            "hooks": spec.hooks,
            "proceedOn": spec.proceed_on,
            "contract": spec.contract,
            "instructions": found.size // 8 if found is not None else None,
            "object": spec.object,
            "description": spec.description,
        }

    def maps(self) -> Iterator[dict[str, Any]]:
        """One row for each map."""
        for spec in self._manifest.maps:
            yield {"name": spec.name, "role": spec.role, **self._map(spec)}

    def _map(self, spec: MapSpec) -> dict[str, Any]:
        obj, found = next((obj, found) for obj in self._objects.values() if (found := obj.find_map(spec.name)))
        known = found.type < len(MAP_TYPES)
        key = _type(obj, found.key_type_id, found.key_size)
        value = _type(obj, found.value_type_id, found.value_size)
        return {
            "type": MAP_TYPES[found.type] if known else str(found.type),
            "key": f"{key} as {spec.key_format}" if spec.key_format else key,
            "value": f"{value} as {spec.value_format}" if spec.value_format else value,
            "entries": found.max_entries,
            "definition": {
                "key": _definition(obj, found.key_type_id),
                "value": _definition(obj, found.value_type_id),
                "stateVersion": spec.state_version,
            },
            "description": spec.description,
        }

    def params(self) -> Iterator[dict[str, Any]]:
        """One row for each parameter."""
        for spec in self._manifest.params:
            yield {"name": spec.name, **self._param(spec)}

    def _param(self, spec: ParamSpec) -> dict[str, Any]:
        obj, found = next((obj, found) for obj in self._objects.values() if (found := obj.find_global(spec.name)))
        limited = spec.minimum is not None or spec.maximum is not None
        return {
            "type": obj.btf.describe(found.type_id),
            "default": spec.default,
            "range": f"{spec.minimum}..{spec.maximum}" if limited else None,
            "unit": spec.unit,
            "weakens": spec.weakens,
            "definition": _definition(obj, found.type_id),
            "description": spec.description,
        }


def _type(obj: elf.Object, type_id: int | None, size: int) -> str:
    return f"{size} bytes" if type_id is None else obj.btf.describe(type_id)


def _definition(obj: elf.Object, type_id: int | None) -> str | None:
    return None if type_id is None else obj.btf.definition(type_id)


def _signature(bundle: Path) -> str:
    """What the bundle beside the archive claims; no word of it is proven here."""
    if not bundle.is_file():
        return f"none ({bundle.name} is not there)"
    try:
        content = json.loads(read_file(bundle, packages.MAX_BUNDLE_BYTES))
        material = content["verificationMaterial"]
        kind = (
            "a key"
            if "publicKey" in material
            else "a certificate"
            if "certificate" in material
            else "something unknown"
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{bundle.name} is no sigstore bundle"
    return f"by {kind}, not verified here: reconciler verify --archive"


# --- files -------------------------------------------------------------------------------------------------


def _read_key(path: Path) -> bytes:
    data = read_file(path, 1 << 16)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        note(f"warning: {clean(str(path))} can be read by others; run chmod 600")
    return data
