# SPDX-License-Identifier: Apache-2.0
"""Descriptors that wake the loop: interfaces and namespaces that come and go."""

from __future__ import annotations

import os
import resource
import select
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from reconciler.kernel.watch import InterfaceWatch, open_watches
from tests.kernel import support

if TYPE_CHECKING:
    from pathlib import Path


def wakes(watch: InterfaceWatch, seconds: float = 2.0) -> bool:
    return bool(select.select([watch], [], [], seconds)[0])


def test_an_interface_that_appears_wakes(wire: support.Wire) -> None:
    (watch,) = open_watches(["host", wire.near.name])
    with closing(watch):
        watch.drain()
        assert not wakes(watch, 0)
        wire.near.ip("link", "add", "name", "more0", "type", "veth", "peer", "name", "more1")
        assert wakes(watch)
        watch.drain()
        assert not wakes(watch, 0)
        wire.near.ip("link", "del", "dev", "more0")
        assert wakes(watch)


def test_a_namespace_that_appears_is_followed() -> None:
    name = support.unique()
    (watch,) = open_watches([name])
    with closing(watch):
        watch.drain()
        support.run("ip", "netns", "add", name)
        try:
            assert wakes(watch)
            for _ in range(20):  # the file is there a moment before the namespace is mounted on it
                support.run("ip", "-n", name, "link", "set", "lo", "up")
                watch.drain()
            support.run("ip", "-n", name, "link", "set", "lo", "down")
            assert wakes(watch)
        finally:
            support.run("ip", "netns", "del", name)
        assert wakes(watch)


def test_a_watched_namespace_can_go(wire: support.Wire) -> None:
    """A socket that stayed open would keep it, and its end of the wire, alive."""
    (watch,) = open_watches([wire.far.name])
    with closing(watch):
        watch.drain()
        support.run("ip", "netns", "del", wire.far.name)
        assert wakes(watch)
        watch.drain()
        assert support.eventually(lambda: "near0" not in wire.near.ip("-br", "link"))


def test_a_name_that_returns_as_another_namespace_is_followed() -> None:
    with support.netns() as space:
        (watch,) = open_watches([space.name])
        with closing(watch):
            support.run("ip", "netns", "del", space.name)
            support.run("ip", "netns", "add", space.name)
            assert wakes(watch)
            watch.drain()
            space.ip("link", "set", "lo", "up")
            assert wakes(watch)


def test_closing_twice_is_fine() -> None:
    (watch,) = open_watches(["host"])
    watch.close()
    watch.close()


def test_without_a_free_descriptor_nothing_new_is_followed_and_nothing_ends(tmp_path: Path) -> None:
    watch = InterfaceWatch((support.unique(),), tmp_path)
    with closing(watch):
        (tmp_path / "appears").touch()
        assert wakes(watch)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.open(os.devnull, os.O_RDONLY)
            watch.drain()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not wakes(watch, 0)
        (tmp_path / "appears").unlink()
        assert wakes(watch)
