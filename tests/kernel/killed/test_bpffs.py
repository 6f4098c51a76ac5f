# SPDX-License-Identifier: Apache-2.0
"""bpffs goes away under the agent: emptied, mounted anew, mounted over; and a reboot, without a Git server.

All of it in a mount namespace of the child that plays the agent: the machine's /sys/fs/bpf is never touched.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reconciler import _points
from reconciler.errors import ReconcilerError
from reconciler.kernel import linux
from tests.kernel import support
from tests.kernel.killed.host import Host, Scene
from tests.kernel.killed.process import forked
from tests.kernel.killed.rounds import say
from tests.unit.test_docs import documented_reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from functools import partial
    from pathlib import Path
    from typing import Any, Literal

    from tests.kernel.killed.host import Report, Seen, Side

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_SLAVE = 1, 0x20, 0x4000, 1 << 19
WAYS = ("tcx", "clsact")

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount_fresh() -> None:
    """An empty bpffs on top of whatever is on /sys/fs/bpf."""
    call("mount", b"bpf", os.fsencode(support.BPFFS), b"bpf", 0, b"mode=0700")


def unmount() -> None:
    call("umount2", os.fsencode(support.BPFFS), 0)


def remount(flags: int) -> None:
    call("mount", b"none", os.fsencode(support.BPFFS), None, MS_REMOUNT | flags, None)


def in_private(work: Any) -> Any:
    """The result of `work` in a child with a bpffs of its own."""

    def child() -> Any:
        call("unshare", CLONE_NEWNS)
        call("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)
        mount_fresh()
        return work()

    return forked(child).value


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    way: Literal["tcx", "clsact"] = request.param
    with Scene() as scene:
        made = Host(tmp_path, scene, way, support.BPFFS / support.unique())
        yield made


def emptied(host: Host) -> None:
    shutil.rmtree(host.pins)


def mounted_anew(host: Host) -> None:
    unmount()
    mount_fresh()


def unmounted(host: Host) -> None:
    """No bpffs at all: ours, and that of the machine below it, which stays where it is for everybody else."""
    while support.is_bpffs(support.BPFFS):
        unmount()


@pytest.mark.parametrize("deed", [emptied, mounted_anew, unmounted])
@pytest.mark.parametrize("host", WAYS, indirect=True)
def test_what_was_pinned_is_put_back_by_the_next_pass(host: Host, deed: Any) -> None:
    def story() -> None:
        before = host.settle()
        deed(host)
        host.at_rest(host.settle(poll=False), before.seen)
        host.push("b")
        host.at_rest(host.settle())

    in_private(story)


@pytest.mark.parametrize("host", WAYS, indirect=True)
def test_a_bpffs_over_ours_hides_pins_until_it_goes(host: Host) -> None:
    """The covered pins are out of reach: what they hold stays in the kernel, attached nowhere, until they are back."""

    def story() -> None:
        before = host.settle().seen
        mount_fresh()
        over = host.settle(poll=False)
        assert (over.status.exit_code, over.again, over.seen) == (0, 0, before)
        host.push("b")
        changed = host.settle()
        assert (changed.status.exit_code, changed.again, changed.seen.unknown) == (0, 0, ())
        unmount()
        back = host.settle(poll=False)
        host.at_rest(back, changed.seen)

    in_private(story)


@pytest.mark.parametrize("host", ["tcx"], indirect=True)
def test_a_bpffs_that_became_read_only_changes_nothing(host: Host) -> None:
    def story() -> Report:
        before = host.settle().seen
        remount(MS_RDONLY)
        host.push("b")
        refused = host.settle()
        assert refused.seen.hooks == before.hooks
        remount(0)
        host.at_rest(host.settle())
        return refused

    refused: Report = in_private(story)  # the kernel does not even open a pin there: OBJ_GET wants to write
    assert (refused.status.reason, refused.status.exit_code) == ("KernelRefused", 1)
    assert "nothing new is adopted meanwhile" in refused.status.message


@pytest.mark.parametrize("host", WAYS, indirect=True)
def test_after_a_reboot_the_last_good_state_is_back_without_the_git_server(
    host: Host,
) -> None:
    other_boot = host.folder / "boot_id"
    other_boot.write_text("00000000-0000-4000-8000-000000000000\n")

    def story() -> list[Report]:
        reports = [host.settle()]
        unmount()  # pins do not survive a reboot; nor do links, which have no other reference
        mount_fresh()
        for name in host.scene.names:  # nor qdiscs and filters
            for interface in ("w0", "w1", "x0", "x1", "x2"):
                support.run("tc", "-n", name, "qdisc", "del", "dev", interface, "clsact", check=False)
        linux._BOOT_ID = other_boot
        host.origin.vanish()
        reports.append(host.settle())
        host.origin.return_()
        host.push("b")
        reports.append(host.settle())
        return reports

    before, after, later = in_private(story)
    assert after.seen.hooks == before.seen.hooks
    assert after.seen.pins == before.seen.pins
    assert after.seen.unknown == ()
    assert after.steps > 0
    assert after.again == 0
    assert (after.status.reason, after.status.exit_code) == ("NotARepository", 1)  # of a folder that is not there
    assert later.status.exit_code == 0
    assert later.seen.rubbish == ()


# --- in the middle of a pass -------------------------------------------------------------------------------


def covered(host: Host) -> None:
    mount_fresh()


def read_only(host: Host) -> None:
    remount(MS_RDONLY)


AFTER: dict[Any, Callable[[], None]] = {covered: unmount, read_only: lambda: remount(0)}
"""How what somebody did ends again, where it does."""
IN_THE_MIDDLE = (emptied, mounted_anew, unmounted, covered, read_only)


def struck(host: Host, number: int, deed: Any) -> tuple[str, int]:
    """A pass in which somebody does this right before a point; its reason, and how many points there were."""
    count = 0

    def hook(_: str, call: partial[Any]) -> Any:
        nonlocal count
        count += 1
        if count == number:
            deed(host)
        return call()

    _points.hook = hook
    try:
        return host.one_pass().status.reason, count
    except ReconcilerError as error:  # the command prints it and ends
        return error.reason, count
    finally:
        _points.hook = None


def beside_files(report: Report) -> Report:
    """What is to be seen but for names in the state directory, one of which says what was taken back."""
    return replace(report, seen=replace(report.seen, files=()))


def in_the_middle(host: Host, strikes: Callable[[int], Iterable[tuple[Any, int]]]) -> dict[str, int]:
    """Changes, each struck at one of its points; the next pass converges. How they ended.

    Args:
        host: fresh.
        strikes: given how many points there are: what is done, and before which point.
    """
    reasons: dict[str, int] = {}
    host.settle()
    host.push("b")
    _, points = struck(host, 0, None)
    wanted: dict[Side, Seen] = {"b": beside_files(host.settle()).seen}
    host.push("a")
    wanted["a"] = beside_files(host.settle()).seen
    sides: Iterator[Side] = itertools.cycle(("b", "a"))
    for (deed, number), side in zip(strikes(points), sides, strict=False):
        host.push(side)
        reason, came = struck(host, number, deed)
        assert reason in documented_reasons().keys() - {"InternalError"}, (number, reason)
        reasons[reason] = reasons.get(reason, 0) + 1
        report = beside_files(host.settle())
        if deed in AFTER and came >= number:  # one of the two changes has fewer points
            AFTER[deed]()
            report = beside_files(host.settle())
        try:
            host.at_rest(report, wanted[side])
        except AssertionError as error:
            message = f"{deed.__name__} at point {number} of {points}, {reason}, then {report.status.reason}: {error}"
            raise AssertionError(message) from error
    return reasons


def some(points: int) -> Iterator[tuple[Any, int]]:
    """Each of them at two points, all of which are spread over the pass."""
    count = 2 * len(IN_THE_MIDDLE)
    for index in range(count):
        yield IN_THE_MIDDLE[index % len(IN_THE_MIDDLE)], points * (2 * index + 1) // (2 * count)


@pytest.mark.parametrize("host", ["tcx"], indirect=True)
def test_what_happens_to_bpffs_in_the_middle_of_a_pass_is_mended_by_the_next(host: Host) -> None:
    say(f"bpffs in the middle of a pass: {in_private(lambda: in_the_middle(host, some))}")


@pytest.mark.torture
@pytest.mark.parametrize("deed", IN_THE_MIDDLE)
@pytest.mark.parametrize("host", WAYS, indirect=True)
def test_what_happens_to_bpffs_at_every_point_is_mended_by_the_next(host: Host, deed: Any) -> None:
    def story() -> dict[str, int]:
        signal.alarm(3600)
        return in_the_middle(host, lambda points: ((deed, number) for number in range(1, points + 1)))

    say(f"{host.way}, {deed.__name__}: {in_private(story)}")
