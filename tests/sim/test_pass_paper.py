# SPDX-License-Identifier: Apache-2.0
"""Files below hosts/ describe and grant nothing: a host tells that it differs, and goes on as it would."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reconciler._words import render
from reconciler.config import trust_digest
from tests.sim.host import START, chain, tree

if TYPE_CHECKING:
    from tests.sim.host import Host


def group(**spec: Any) -> bytes:
    head = {"apiVersion": "reconciler/v1alpha1", "kind": "HostGroup", "metadata": {"name": "edge"}}
    return json.dumps({**head, "spec": {"labels": {"role": "edge"}, **spec}}).encode()


def adopt(host: Host, **hosts: bytes) -> str:
    """A commit with these files below hosts/ that the host applies; what status says about policies."""
    files = {**tree(chain()), **{f"hosts/{name}.yaml": data for name, data in hosts.items()}}
    commit = host.origin.commit(files=files)
    host.set_source(minimum_commit=commit)
    status = host.apply().status
    assert status.reason == "Applied"
    shown = render(status, START + timedelta(seconds=host.clock.seconds))
    assert ("reviewed for" in shown) == bool(status.reviewed_policy)
    return status.reviewed_policy


def test_a_host_with_another_policy_than_its_group_was_reviewed_for_says_so(host: Host) -> None:
    assert adopt(host, edge=group(policy={"id": "0123456789ab"})) == "0123456789ab"
    assert host.repair().status.reviewed_policy == "0123456789ab"
    assert host.runs() == ["ratelimit"]


@pytest.mark.parametrize("digits", [12, 64])
def test_a_host_with_the_policy_of_its_group_says_nothing(digits: int, host: Host) -> None:
    assert adopt(host, edge=group(policy={"id": trust_digest(host.config)[:digits]})) == ""


def test_groups_of_other_hosts_and_groups_without_a_policy_say_nothing(host: Host) -> None:
    other = group(labels={"role": "db"}, policy={"id": "0123456789ab"})
    named = group(names=["edge-2"], policy={"id": "0123456789ab"}).replace(b'"edge"}, "spec', b'"named"}, "spec')
    assert adopt(host, a=other, b=named) == ""


def test_what_stands_below_hosts_stops_no_host(host: Host) -> None:
    assert adopt(host, broken=b"{[", edge=group(grants="everything")) == ""
    assert host.runs() == ["ratelimit"]
