# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the kernel marker, the check for leaks, names that belong to this run.

Warnings are errors (pyproject.toml), ResourceWarning included. A test under tests/kernel or tests/e2e carries the
marker `kernel` by itself. With RECONCILER_REQUIRE_KERNEL=1 a skip of such a test is a failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

TESTS = Path(__file__).parent
KERNEL_FOLDERS = (TESTS / "kernel", TESTS / "e2e")
BPFFS = Path("/sys/fs/bpf")
NETNS = Path("/run/netns")

REQUIRE_KERNEL = os.environ.get("RECONCILER_REQUIRE_KERNEL") == "1"

EXCLUSIVE = os.environ.get("RECONCILER_EXCLUSIVE") == "1"
"""Nobody else uses this kernel: then every new pin, namespace and network program counts as a leak, not only ours."""

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
"""Other workers use the kernel meanwhile: a test looks for what is its own, and the whole run for everything."""

RUN_TOKEN = f"rct{os.getpid()}"
"""Part of every name that this run creates on the machine (namespaces, pin directories); see `unique_name`."""

FROM_IPROUTE2 = tuple(BPFFS / name for name in ("ip", "xdp", "tc/globals", "tc"))
"""Links and empty folders that iproute2 makes when it loads an object; the run removes them at its end."""

OF_THE_SYSTEM = frozenset(str(path) for path in (*FROM_IPROUTE2, BPFFS / "maps.debug", BPFFS / "progs.debug"))
"""Nobody's pins: the above, and what every bpffs holds."""

SETTLE_SECONDS = 5.0
"""How long the kernel may take to free what was closed (after a grace period, on a work queue)."""

# Nothing is timed, and a failure prints what repeats it.
hypothesis.settings.register_profile("reconciler", deadline=None, print_blob=True, database=None)
hypothesis.settings.load_profile("reconciler")


# --- the kernel marker -------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in KERNEL_FOLDERS):
            item.add_marker(pytest.mark.kernel)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") is None:
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not BPFFS.is_dir():
        pytest.skip(f"needs a kernel with BPF ({BPFFS} is absent)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_KERNEL and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("kernel"):
        report.outcome = "failed"
        report.longrepr = f"RECONCILER_REQUIRE_KERNEL=1 and a kernel test skipped: {_skip_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    # A module that skips itself as a whole has no items, so no markers either.
    if REQUIRE_KERNEL and report.skipped and any(collector.path.is_relative_to(folder) for folder in KERNEL_FOLDERS):
        report.outcome = "failed"
        report.longrepr = f"RECONCILER_REQUIRE_KERNEL=1 and a module of kernel tests skipped: {_skip_reason(report)}"
    return report


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


# --- leaks -------------------------------------------------------------------------------------------------


def _paths(folder: Path) -> Iterator[str]:
    """Everything below `folder`; what vanishes meanwhile (other processes remove their pins) is no error."""
    for place, folders, files in os.walk(folder):
        yield from (os.path.join(place, name) for name in (*folders, *files))  # noqa: PTH118  # no objects for names


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What this process and this run hold on the machine.

    Attributes:
        descriptors: open descriptor → what it points to.
        pins: paths below bpffs.
        namespaces: names of network namespaces.
        links: ids of XDP and tcx links, in an exclusive run only.
        programs: ids of XDP and tc programs, in an exclusive run only.
    """

    descriptors: dict[int, str]
    pins: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[int] = field(default_factory=frozenset)
    programs: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def take(cls) -> Footprint:
        return cls(
            descriptors=_descriptors(),
            pins=frozenset(path for path in _paths(BPFFS) if _is_ours(path) and path not in OF_THE_SYSTEM),
            namespaces=frozenset(name for name in _names(NETNS) if _is_ours(name)),
            links=_bpftool_ids("link", ("xdp", "tcx")) if _alone() else frozenset(),
            programs=_bpftool_ids("prog", ("xdp", "sched_cls")) if _alone() else frozenset(),
        )

    def leaked_since(self, before: Footprint) -> list[str]:
        """One line for each thing that is here and was not before."""
        found = [
            f"descriptor {number}: {target}"
            for number, target in self.descriptors.items()
            if before.descriptors.get(number) != target
        ]
        found += [f"pin {path}" for path in sorted(self.pins - before.pins)]
        found += [f"network namespace {name}" for name in sorted(self.namespaces - before.namespaces)]
        found += [f"link {number}" for number in sorted(self.links - before.links)]
        found += [f"program {number}" for number in sorted(self.programs - before.programs)]
        return found


def _alone() -> bool:
    return EXCLUSIVE and not IN_WORKER


def _is_ours(name: str) -> bool:
    return _alone() or RUN_TOKEN in name


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def _bpftool_ids(what: str, types: tuple[str, ...]) -> frozenset[int]:
    tool = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tool is None:
        return frozenset()
    done = subprocess.run([tool, "-j", what, "show"], capture_output=True, check=False)
    if done.returncode != 0:
        return frozenset()  # an object went away while it was listed
    return frozenset(each["id"] for each in json.loads(done.stdout or b"[]") if each.get("type") in types)


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fails a test that leaves descriptors, pins or namespaces (in an exclusive run links and programs too) behind.

    tests/kernel and tests/e2e make it automatic in their own conftest.
    """
    gc.collect()
    before = Footprint.take()
    yield
    if leaked := _left_behind(before):
        pytest.fail("this test left behind: " + "; ".join(leaked))


def _left_behind(before: Footprint) -> list[str]:
    """What stays; the kernel frees links and programs some time after their last reference is closed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while leaked := Footprint.take().leaked_since(before):
        if time.monotonic() > deadline:
            return leaked
        gc.collect()
        time.sleep(0.05)
    return []


_BEFORE_THE_RUN = pytest.StashKey["Footprint"]()
_THERE_BEFORE = pytest.StashKey[frozenset[Path]]()


def _there() -> frozenset[Path]:
    return frozenset(path for path in FROM_IPROUTE2 if path.is_symlink() or path.exists())


def _remove_from_iproute2(before: frozenset[Path]) -> None:
    for path in FROM_IPROUTE2:  # folders after what they hold
        if path not in before:
            with contextlib.suppress(OSError):  # not made, or somebody uses it by now
                if path.is_symlink():
                    path.unlink()
                else:
                    path.rmdir()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_THERE_BEFORE] = _there()
    if _alone() and BPFFS.is_dir():
        session.config.stash[_BEFORE_THE_RUN] = Footprint.take()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The whole run leaves nothing either; with several workers this is what sees links and programs."""
    if not IN_WORKER:
        _remove_from_iproute2(session.config.stash.get(_THERE_BEFORE, frozenset(FROM_IPROUTE2)))
    before = session.config.stash.get(_BEFORE_THE_RUN, None)
    if before is not None and (leaked := _left_behind(before)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if (reporter := session.config.pluginmanager.get_plugin("terminalreporter")) is not None:
            reporter.write_line("this run left behind: " + "; ".join(leaked), red=True)


# --- the machine -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bpffs() -> Path:
    """/sys/fs/bpf, mounted if it was not. It stays mounted: others may have begun to use it."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    if not any(line.split()[1:3] == [str(BPFFS), "bpf"] for line in mounts):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", str(BPFFS).encode(), b"bpf", 0, None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(BPFFS))
    return BPFFS


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Makes names that belong to this run and to nobody else, such as `rct4711-a1`; short enough for an interface."""
    count = 0

    def make(stem: str = "n") -> str:
        nonlocal count
        count += 1
        return f"{RUN_TOKEN}-{stem}{count}"

    return make
