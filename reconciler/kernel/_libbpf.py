# SPDX-License-Identifier: Apache-2.0
"""libbpf by ctypes: open an object from memory, prepare its maps, load one of its programs.

Only objects whose package was verified may come here: libbpf is known to crash on hostile input. One `Object` is for
one load of one program; it owns libbpf's descriptors until `close()`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reconciler import _points

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

LOG_SIZE = 64 << 20
"""Bytes of address space for a verifier log; pages that are not written cost nothing."""
_MAP_NORESERVE = 0x4000
"""include/uapi/asm-generic/mman.h; absent from `mmap` before Python 3.13."""


class _OpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts of libbpf 1.1 up to the last member that is set; the library takes shorter ones."""

    _fields_: ClassVar = [("sz", c_size_t), ("object_name", c_char_p)]


_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
_WARN = 0
_messages = threading.local()
_libc = ctypes.CDLL(None)
_libc.vsnprintf.argtypes = [c_char_p, c_size_t, c_void_p, c_void_p]


def _on_print(level: int, form: int, arguments: int) -> int:
    """The process-wide print callback of libbpf: warnings of this thread's load, which say what errno does not."""
    collected: list[str] | None = getattr(_messages, "collected", None)
    if collected is None or level != _WARN:
        return 0
    buffer = ctypes.create_string_buffer(4096)
    _libc.vsnprintf(buffer, len(buffer), form, arguments)
    collected.append(buffer.value.decode("utf-8", "replace").rstrip())
    return 0


_PRINT_CALLBACK = _PRINT(_on_print)  # referenced for as long as the library is

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_mem": (c_void_p, [c_void_p, c_size_t, POINTER(_OpenOpts)]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__section_name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, c_bool]),
    "bpf_program__set_log_buf": (c_int, [c_void_p, c_void_p, c_size_t]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__map_flags": (c_uint32, [c_void_p]),
    "bpf_map__set_map_flags": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_autocreate": (c_int, [c_void_p, c_bool]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__is_internal": (c_bool, [c_void_p]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_map__set_initial_value": (c_int, [c_void_p, c_void_p, c_size_t]),
    "libbpf_set_print": (c_void_p, [_PRINT]),
}

_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """libbpf.so.1, opened at the first use.

    Raises:
        OSError: it is not installed, or older than 1.0.
    """
    global _library  # noqa: PLW0603  # one library per process
    if _library is None:
        found = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
        found.libbpf_set_print(_PRINT_CALLBACK)
        _library = found
    return _library


class LibbpfError(Exception):
    """libbpf refused; `_load` makes an error of ours of it.

    Attributes:
        log: the verifier's whole log, empty when it was not the verifier.
        messages: libbpf's own warnings.
    """

    def __init__(self, number: int, log: str, messages: tuple[str, ...]) -> None:
        super().__init__(os.strerror(number))
        self.errno = number
        self.log = log
        self.messages = messages


class Object:
    """One object, opened from memory; `load()` loads the chosen program and creates the maps."""

    def __init__(self, data: bytes, name: str) -> None:
        self._lib = library()
        self._messages: list[str] = []
        self._name = name
        self._data = data  # stays alive as long as libbpf may look at it
        options = _OpenOpts(sz=ctypes.sizeof(_OpenOpts), object_name=name.encode())
        with self._collecting():
            pointer = self._lib.bpf_object__open_mem(data, len(data), ctypes.byref(options))
            number = ctypes.get_errno()
        if not pointer:
            raise LibbpfError(number or errno.EINVAL, "", tuple(self._messages))
        self._pointer: int | None = pointer
        self._programs = {self._lib.bpf_program__name(p).decode(): p for p in self._walk("bpf_object__next_program")}
        self._maps = {self._lib.bpf_map__name(m).decode(): m for m in self._walk("bpf_object__next_map")}
        self._chosen: int | None = None

    def close(self) -> None:
        """Close libbpf's descriptors; what is pinned, attached or held elsewhere stays."""
        if self._pointer is not None:
            self._lib.bpf_object__close(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _walk(self, function: str) -> Iterator[int]:
        following = getattr(self._lib, function)
        item = following(self._pointer, None)
        while item:
            yield item
            item = following(self._pointer, item)

    def _collecting(self) -> _Collecting:
        return _Collecting(self._messages)

    # --- before load ---------------------------------------------------------------------------------------

    def choose(self, program: str) -> str:
        """Load only this program; returns its section's name. Raises KeyError."""
        self._chosen = self._programs[program]
        for pointer in self._programs.values():
            self._lib.bpf_program__set_autoload(pointer, pointer == self._chosen)
        section: bytes = self._lib.bpf_program__section_name(self._chosen)
        return section.decode()

    def map_names(self) -> tuple[str, ...]:
        """The object's own maps, without the internal ones that hold its sections."""
        return tuple(name for name, pointer in self._maps.items() if not self._lib.bpf_map__is_internal(pointer))

    def map_type(self, name: str) -> int:
        kind: int = self._lib.bpf_map__type(self._maps[name])
        return kind

    def add_map_flags(self, name: str, flags: int) -> None:
        pointer = self._maps[name]
        self._done(self._lib.bpf_map__set_map_flags(pointer, self._lib.bpf_map__map_flags(pointer) | flags))

    def omit_map(self, name: str) -> None:
        """Do not create this map; a program that uses it is then rejected."""
        self._done(self._lib.bpf_map__set_autocreate(self._maps[name], False))  # noqa: FBT003  # C  # C

    def reuse_map(self, name: str, descriptor: int) -> None:
        """Use an existing map; libbpf keeps a descriptor of its own."""
        self._done(self._lib.bpf_map__reuse_fd(self._maps[name], descriptor))

    def patch(self, section: str, values: list[tuple[int, bytes]]) -> None:
        """Write bytes at offsets into a section's initial value. Raises KeyError, or ValueError when beyond its end."""
        # libbpf calls the maps of .rodata, .data and .bss "<object name>.rodata" ..., others by their section.
        pointer = next((self._maps[name] for name in (self._name + section, section) if name in self._maps), None)
        if pointer is None:
            raise KeyError(section)
        size = c_size_t()
        start = self._lib.bpf_map__initial_value(pointer, ctypes.byref(size))
        image = bytearray(ctypes.string_at(start, size.value))
        for offset, value in values:
            if offset < 0 or offset + len(value) > len(image):
                message = f"{section} has {len(image)} bytes, got {len(value)} bytes at {offset}"
                raise ValueError(message)
            image[offset : offset + len(value)] = value
        self._done(self._lib.bpf_map__set_initial_value(pointer, bytes(image), len(image)))

    # --- load ----------------------------------------------------------------------------------------------

    def load(self) -> int:
        """Load into the kernel; the program's descriptor, owned by this object.

        Raises:
            LibbpfError: with the verifier's whole log where there is one.
        """
        space = mmap.mmap(-1, LOG_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        view = (ctypes.c_char * LOG_SIZE).from_buffer(space)
        self._done(self._lib.bpf_program__set_log_buf(self._chosen, ctypes.addressof(view), LOG_SIZE))
        try:
            with self._collecting():
                _points.at("libbpf load", self._load)
        except OSError as error:
            log = space[: space.find(b"\0")].decode("utf-8", "replace")
            raise LibbpfError(error.errno or errno.EINVAL, log, tuple(self._messages)) from error
        descriptor: int = self._lib.bpf_program__fd(self._chosen)
        return descriptor

    def _load(self) -> None:
        self._done(self._lib.bpf_object__load(self._pointer))

    def map_fd(self, name: str) -> int:
        """A map's descriptor, owned by this object."""
        descriptor: int = self._lib.bpf_map__fd(self._maps[name])
        return descriptor

    @staticmethod
    def _done(result: int) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result))


class _Collecting:
    """libbpf's warnings of this thread go into a list for a while."""

    def __init__(self, into: list[str]) -> None:
        self._into = into

    def __enter__(self) -> None:
        _messages.collected = self._into

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _messages.collected = None
