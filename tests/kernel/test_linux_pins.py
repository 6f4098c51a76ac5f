# SPDX-License-Identifier: Apache-2.0
"""The pin directory: nobody but root may have made it, write to it, or lead it elsewhere."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import Scope, _bpf
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import HookKind
from tests.kernel import generations, support
from tests.kernel.generations import MemberDef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOBODY = 65534


def made_by_somebody(path: Path, _: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)


def writable_for_others(path: Path, _: Path) -> None:
    path.mkdir()
    path.chmod(0o1777)  # sticky is enough for the mount point alone


def a_link_to_others(path: Path, other: Path) -> None:
    path.symlink_to(other)


def below_what_somebody_made(path: Path, _: Path) -> None:
    path.parent.mkdir()
    os.chown(path.parent, NOBODY, NOBODY)
    path.mkdir()


def below_a_link_to_others(path: Path, other: Path) -> None:
    path.parent.symlink_to(other)
    path.mkdir()


@pytest.fixture
def other() -> Iterator[Path]:
    """Pins of somebody else."""
    with support.pin_directory() as path:
        (path / "links").mkdir(parents=True)
        with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program:
            _bpf.obj_pin(program, str(path / "links" / "theirs"))
        yield path


@pytest.mark.parametrize(
    "prepare",
    [made_by_somebody, writable_for_others, a_link_to_others, below_what_somebody_made, below_a_link_to_others],
)
def test_a_directory_that_others_may_change_is_neither_used_nor_believed(
    prepare: Callable[[Path, Path], None], other: Path
) -> None:
    above = support.BPFFS / support.unique()
    root = above / "rc" if "below" in prepare.__name__ else above
    try:
        prepare(root, other)
        with closing(LinuxKernel(pin_dir=root)) as kernel:
            with pytest.raises(KernelError, match="expected a folder of root that nobody else can write to") as seen:
                kernel.snapshot(Scope())
            assert seen.value.errno == errno.EPERM
            wanted, packages = generations.generation(HookKind.XDP, (MemberDef(name="one"),))
            with pytest.raises(KernelError, match="look into it, then remove it"):
                kernel.load(wanted, packages)
        assert [str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()] == ["links/theirs"]
    finally:
        if above.is_symlink():
            above.unlink()
        else:
            shutil.rmtree(above, ignore_errors=True)


def test_its_folders_are_for_root_alone_whatever_the_umask_is(pins: Path) -> None:
    root = pins / "a" / "b"
    before = os.umask(0)
    try:
        with closing(LinuxKernel(pin_dir=root)) as kernel:
            kernel.load(*generations.generation(HookKind.XDP, (MemberDef(name="one"),)))
            folders = [pins, *(path for path in pins.rglob("*") if path.is_dir())]
            assert len(folders) > 4
            assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
            assert kernel.snapshot(Scope()).pins
    finally:
        os.umask(before)


@pytest.mark.parametrize("left", ["gen/one", "links"])
def test_an_empty_folder_is_seen_and_removed_with_those_above_it(left: str, pins: Path) -> None:
    (pins / left).mkdir(parents=True, mode=0o700)
    with closing(LinuxKernel(pin_dir=pins)) as kernel:
        seen = kernel.snapshot(Scope())
        assert (seen.folders, seen.pins, seen.complete) == ((left,), (), True)
        kernel.unload(seen.folders)
        assert not pins.exists()
        kernel.unload(seen.folders)


def test_a_folder_that_is_empty_no_more_stays(pins: Path) -> None:
    (pins / "gen" / "one").mkdir(parents=True, mode=0o700)
    with closing(LinuxKernel(pin_dir=pins)) as kernel:
        wanted, packages = generations.generation(HookKind.XDP, (MemberDef(name="one"),))
        before = kernel.snapshot(Scope()).folders
        loaded = kernel.load(wanted, packages)
        kernel.unload(("gen", *before))
        assert {program.pin for program in loaded.programs} <= {pin.path for pin in kernel.snapshot(Scope()).pins}
        kernel.unload(())
        assert pins.exists()


def test_our_directory_goes_when_nothing_else_is_left(pins: Path) -> None:
    pins.mkdir(mode=0o700)
    with closing(LinuxKernel(pin_dir=pins)) as kernel:
        assert kernel.snapshot(Scope()).folders == ()
        kernel.unload(())
    assert not pins.exists()
