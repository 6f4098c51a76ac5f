# SPDX-License-Identifier: Apache-2.0
"""Load a generation: every member by itself, then joined, filled, frozen and pinned; or nothing of it.

Order (docs/packages.md): load all → config maps filled and frozen → `next` slots filled → all `next` arrays frozen →
pins. A frozen map refuses every update and delete from user space, through any descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from reconciler.errors import KernelError, VerifierError
from reconciler.kernel import _bpf
from reconciler.kernel._failing import failing
from reconciler.kernel._libbpf import LibbpfError, Object
from reconciler.kernel._pins import Pins, identity_of
from reconciler.model import (
    Generation,
    LoadedGeneration,
    LoadedMap,
    LoadedProgram,
    MapRole,
    MapUse,
    MemberLoad,
    Package,
    PinKind,
    content_digest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SECTIONS = {"xdp": frozenset({"xdp", "xdp.frags"}), "tc": frozenset({"tc"})}
"""Sections of the package contract: libbpf derives type, attach type and frags flag from them."""

_LOCKABLE = frozenset({_bpf.MapType.HASH, _bpf.MapType.ARRAY, _bpf.MapType.LRU_HASH, _bpf.MapType.LPM_TRIE})
"""Types that take BPF_F_RDONLY_PROG (HTAB_, ARRAY_ and LPM_CREATE_FLAG_MASK in kernel/bpf)."""

_PER_CPU = frozenset({_bpf.MapType.PERCPU_HASH, _bpf.MapType.PERCPU_ARRAY, _bpf.MapType.LRU_PERCPU_HASH})
_BPF_NOEXIST = 1
_LIBBPF_ERRNO_START = 4000
_SLOT = b"\0\0\0\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """One member in the kernel; descriptors belong to `object`."""

    spec: MemberLoad
    object: Object
    program: int


def load_generation(
    pins: Pins, generation: Generation, packages: Mapping[str, Package]
) -> tuple[LoadedGeneration, dict[str, int]]:
    """Load it; what it left in the kernel, and one descriptor for each `next` array by pin path, owned by the caller.

    Raises:
        VerifierError: a program was rejected.
        KernelError: anything else; nothing that this call made is left.
    """
    _refuse_taken(pins, generation)
    with ExitStack() as objects, ExitStack() as undo:
        members = [_load_member(objects, pins, spec, packages) for spec in generation.members]
        for member in members:
            _fill_configs(member)
        _join(members)
        loaded = _pin(pins, undo, generation, members)
        arrays = _hold_arrays(undo, members)
        undo.pop_all()
    return loaded, arrays


def _hold_arrays(undo: ExitStack, members: list[_Loaded]) -> dict[str, int]:
    arrays = {}
    for member in members:
        for use in member.spec.maps:
            if use.role is MapRole.NEXT:
                with failing(f"hold {use.pin}"):
                    arrays[use.pin] = fcntl.fcntl(member.object.map_fd(use.name), fcntl.F_DUPFD_CLOEXEC, 0)
                undo.callback(os.close, arrays[use.pin])
    return arrays


def _refuse_taken(pins: Pins, generation: Generation) -> None:
    wanted = [path for spec in generation.members for path in _new_pins(spec)]
    for path in wanted:
        if pins.exists(path):
            raise KernelError(f"load {generation.name}", errno.EEXIST, f"the pin {path} exists already")


def _new_pins(spec: MemberLoad) -> Iterable[str]:
    return (spec.pin, *(use.pin for use in spec.maps if not use.reuse))


def _load_member(objects: ExitStack, pins: Pins, spec: MemberLoad, packages: Mapping[str, Package]) -> _Loaded:
    call = f"load {spec.chain}/{spec.member}"
    try:
        data = packages[spec.package].objects[spec.object]
    except KeyError as error:
        raise KernelError(call, errno.ENOENT, f"no object {spec.object} of package {spec.package}") from error
    try:
        # The kernel shows it as the name of the map that holds .rodata: "<8 characters>.rodata".
        opened = objects.enter_context(Object(data, re.sub(r"\W", "_", spec.member, flags=re.ASCII)[:8]))
        _prepare(opened, pins, spec, call)
        return _Loaded(spec=spec, object=opened, program=opened.load())
    except LibbpfError as error:
        raise _load_error(call, error) from error


def _prepare(opened: Object, pins: Pins, spec: MemberLoad, call: str) -> None:
    """Everything that must be set before libbpf loads."""
    try:
        section = opened.choose(spec.program)
    except KeyError as error:
        raise KernelError(call, errno.ENOENT, f"the object has no program {spec.program}") from error
    if section not in SECTIONS[spec.type]:
        expected = " or ".join(sorted(SECTIONS[spec.type]))
        raise KernelError(call, errno.EINVAL, f"expected section {expected}, got {section}")
    for name in {value.section for value in spec.globals}:
        values = [(value.offset, value.value) for value in spec.globals if value.section == name]
        try:
            opened.patch(name, values)
        except (KeyError, ValueError) as error:
            raise KernelError(call, errno.EINVAL, f"globals do not fit section {name}: {error}") from error
    uses = {use.name: use for use in spec.maps}
    names = opened.map_names()
    if missing := sorted(set(uses) - set(names)):
        raise KernelError(call, errno.ENOENT, f"the object has no map {', '.join(missing)}")
    for name in names:
        with failing(f"{call}: map {name}"):
            _prepare_map(opened, pins, name, uses.get(name))


def _prepare_map(opened: Object, pins: Pins, name: str, use: MapUse | None) -> None:
    if use is None:  # nothing of a package runs that was not declared
        opened.omit_map(name)
    elif use.reuse:
        with pins.opened(use.pin) as descriptor:
            opened.reuse_map(name, descriptor)
    elif use.role is MapRole.CONFIG and opened.map_type(name) in _LOCKABLE:
        opened.add_map_flags(name, _bpf.BPF_F_RDONLY_PROG)


# === the verifier's words ==================================================================================

_NOISE = re.compile(
    r"""^(\d+:\ \(|;\ |from\ \d+\ to|R\d+(_\w)?=|processed\ \d+\ insns|verification\ time|stack\ depth|\d+:\ R\d
        |func\#\d+\ @|Validating\ |Func\#\d+\ |caller:|callee:|arg\#\d+\ |mark_precise:)""",
    re.VERBOSE,
)


_NO_CONSTANTS = re.compile(r"BPF map '\S*\.(rodata|data|bss)\S*' is referenced but wasn't created")
"""libbpf leaves these maps out when its probe for global data fails, whatever the errno (tried with EMFILE, 1.1.2)."""


def summarize(log: str) -> str:
    """One line: the last lines of a verifier log that are neither instructions nor register states."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.match(line.strip())]
    return "; ".join(lines[-2:]) or "rejected without a reason"


_NO_VERDICT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""What the verifier's log says when one of these ended it is how far it came."""


def _load_error(call: str, error: LibbpfError) -> KernelError:
    number = errno.EINVAL if error.errno >= _LIBBPF_ERRNO_START else error.errno
    if _NO_CONSTANTS.search(error.log):
        detail = (
            "libbpf made no map for the program's constants: descriptors or memory ran out when it asked, once for the "
            "whole process, whether the kernel has such maps; restart the agent if this stays"
        )
        return KernelError(call, errno.ENOMEM, detail)
    if error.log and number not in _NO_VERDICT:
        return VerifierError(call, number, summarize(error.log), error.log)
    detail = "; ".join(message.removeprefix("libbpf: ") for message in error.messages)
    return KernelError(call, number, detail)


# === join, fill, freeze ====================================================================================


def _fill_configs(member: _Loaded) -> None:
    for use in member.spec.maps:
        if use.role is not MapRole.CONFIG:
            continue
        with failing(f"fill {member.spec.chain}/{member.spec.member} map {use.name}"):
            descriptor = member.object.map_fd(use.name)
            facts = _bpf.map_info(descriptor)
            if facts.type in _PER_CPU:
                raise OSError(errno.EINVAL, "expected one value for all CPUs, got a per-CPU map with role config")
            for key, value in use.entries:
                # The kernel copies as much as the map says, whatever the buffers hold.
                if (len(key), len(value)) != (facts.key_size, facts.value_size):
                    wanted, got = f"{facts.key_size}+{facts.value_size}", f"{len(key)}+{len(value)}"
                    raise OSError(errno.EINVAL, f"expected entries of {wanted} bytes, got {got}")
                # An array has all its keys from the start; elsewhere a key declared twice must not pass silently.
                _bpf.map_update(descriptor, key, value, 0 if facts.type == _bpf.MapType.ARRAY else _BPF_NOEXIST)
            _bpf.map_freeze(descriptor)
            # Tries ignored BPF_NOEXIST before Linux 6.13 (eae6a075e952), so what the map holds is counted as well.
            if facts.type != _bpf.MapType.ARRAY and len(_bpf.map_entries(descriptor, facts)) != len(use.entries):
                raise OSError(
                    errno.EEXIST, "expected every entry to have a key of its own, got one that is declared twice"
                )


def _join(members: list[_Loaded]) -> None:
    """Fill each member's `next` with its successor, then freeze them all, the last one empty."""
    for member, successor in pairwise(members):
        name = _next_name(member)
        call = f"join {member.spec.chain}/{member.spec.member} to {successor.spec.chain}/{successor.spec.member}"
        if name is None:
            raise KernelError(call, errno.EINVAL, "the member has no `next` array")
        with failing(call):
            _bpf.map_update(member.object.map_fd(name), _SLOT, successor.program.to_bytes(4, sys.byteorder))
    for member in members:
        if name := _next_name(member):
            with failing(f"freeze {member.spec.chain}/{member.spec.member} map {name}"):
                _bpf.map_freeze(member.object.map_fd(name))


def _next_name(member: _Loaded) -> str | None:
    return next((use.name for use in member.spec.maps if use.role is MapRole.NEXT), None)


# === pins ==================================================================================================


def _pin(pins: Pins, undo: ExitStack, generation: Generation, members: list[_Loaded]) -> LoadedGeneration:
    programs, maps = [], []
    for member in members:
        spec = member.spec
        _pin_one(pins, undo, member.program, spec.pin)
        with failing(f"read program {spec.pin}"):
            identity = identity_of(member.program, PinKind.PROGRAM)
        programs.append(LoadedProgram(pin=spec.pin, identity=identity, chain=spec.chain, member=spec.member))
        for use in spec.maps:
            descriptor = member.object.map_fd(use.name)
            if not use.reuse:
                _pin_one(pins, undo, descriptor, use.pin)
            maps.append(_loaded_map(spec, use, descriptor))
    return LoadedGeneration(
        name=generation.name,
        digest=generation.digest,
        kind=generation.kind,
        programs=tuple(programs),
        maps=tuple(maps),
    )


def _pin_one(pins: Pins, undo: ExitStack, descriptor: int, path: str) -> None:
    pins.pin(descriptor, path)
    undo.callback(_unpin, pins, path)


def _unpin(pins: Pins, path: str) -> None:
    with suppress(KernelError):  # the first error is what counts; the next pass finds the orphan
        pins.unlink(path)


def _loaded_map(spec: MemberLoad, use: MapUse, descriptor: int) -> LoadedMap:
    with failing(f"read map {use.pin}"):
        facts = _bpf.map_info(descriptor)
        content = content_digest(_bpf.map_entries(descriptor, facts)) if use.role is MapRole.CONFIG else None
    return LoadedMap(
        pin=use.pin,
        id=facts.id,
        role=use.role,
        chain=spec.chain,
        member=spec.member,
        name=use.name,
        key=use.key,
        layout=use.layout,
        content=content,
    )
