# SPDX-License-Identifier: Apache-2.0
"""Hosts for the stories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sim.host import Host, chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts, and ends their processes at the end of the test."""
    made: list[Host] = []

    def make(*interfaces: str, **options: Any) -> Host:
        made.append(Host(tmp_path / f"host{len(made)}", *interfaces, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """A host with eth0 that was never applied to; its first commit is not made yet."""
    return make_host()


@pytest.fixture(scope="session")
def _edge(tmp_path_factory: pytest.TempPathFactory) -> Host:
    made = Host(tmp_path_factory.mktemp("edge"), "eth0", "eth1")
    first = made.origin.commit(chain())
    made.set_source(minimum_commit=first)
    assert made.apply().status.reason == "Applied"
    made.close()
    return made


@pytest.fixture
def edge(_edge: Host, tmp_path: Path) -> Iterator[Host]:
    """A host with eth0 and eth1 that runs one chain (ratelimit on eth0) of its first commit."""
    made = _edge.copy(tmp_path / "edge")
    yield made
    made.close()
