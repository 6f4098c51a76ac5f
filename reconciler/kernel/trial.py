# SPDX-License-Identifier: Apache-2.0
"""Runs a generation on single frames with BPF_PROG_TEST_RUN: loaded as it would be for a hook, attached to none.

Only `reconciler test` and the project's own tests use it; the agent never does.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.kernel import _attr, _bpf
from reconciler.kernel._failing import failing
from reconciler.kernel.linux import LinuxKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.model import Generation, Package

MARK = "-test-"
"""Between the pin directory's name and the process that tries something beside it."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one BPF_PROG_TEST_RUN said.

    Attributes:
        verdict: of the last repetition, signed.
        duration: ns per repetition, measured by the kernel.
    """

    verdict: int
    duration: int


def run(program: int, frame: bytes, *, repeat: int = 1) -> Run:
    """Run the program behind a descriptor on a frame.

    Raises:
        OSError: the kernel does not take the frame (EINVAL: shorter than 14 bytes, or on tc than its IP header).
    """
    data = ctypes.create_string_buffer(frame, len(frame))
    attr = _attr.TestRun(prog_fd=program, data_size_in=len(frame), data_in=ctypes.addressof(data), repeat=repeat)
    _bpf.bpf(_bpf.Cmd.PROG_TEST_RUN, attr)
    return Run(verdict=ctypes.c_int32(attr.retval).value, duration=attr.duration)


@contextmanager
def trial(pin_dir: Path, generation: Generation, packages: Mapping[str, Package]) -> Iterator[Callable[[bytes], int]]:
    """Load `generation` under a pin directory of its own beside `pin_dir`; gives the chain's verdict on a frame.

    Raises:
        KernelError, VerifierError: it cannot be loaded; nothing of it stays.
    """
    own = pin_dir.with_name(f"{pin_dir.name}{MARK}{os.getpid()}")
    kernel = LinuxKernel(pin_dir=own)
    try:
        _remove_abandoned(pin_dir)
        loaded = kernel.load(generation, packages)
        try:
            program = _bpf.obj_get(f"{own}/{generation.members[0].pin}")
            with _bpf.closing(program):
                yield lambda frame: _verdict(program, frame)
        finally:
            kernel.unload((*(each.pin for each in loaded.programs), *(each.pin for each in loaded.maps)))
    finally:
        kernel.close()
        with suppress(OSError):
            own.rmdir()


def _verdict(program: int, frame: bytes) -> int:
    with failing("run the chain on a frame"):
        return run(program, frame).verdict


def _remove_abandoned(pin_dir: Path) -> None:
    """What a killed trial left; the kernel frees the rest by itself."""
    for folder in pin_dir.parent.glob(f"{pin_dir.name}{MARK}*"):
        process = folder.name.rpartition("-")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            for place, _, files in os.walk(folder, topdown=False):
                for name in files:
                    Path(place, name).unlink(missing_ok=True)
                with suppress(OSError):
                    Path(place).rmdir()
