# SPDX-License-Identifier: Apache-2.0
"""A host's record: what is read is what was written, and the plan that is made of it is that of the host."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from reconciler import manifest, plan
from reconciler.errors import InputError, PlanError
from reconciler.kernel import Scope
from reconciler.model import Features, HookKind, HostFacts, MapEntry
from reconciler.plan import HostRecord, decode_record, encode_record
from tests.sim.world import World, desired, fake_world, member, shipped, xdp_chain

STATE = desired(xdp_chain("edge", member("ratelimit"), interfaces=("eth*",)))
OTHER = desired(xdp_chain("edge", member("ratelimit", params={"rate": 7}), member("firewall"), interfaces=("eth*",)))


def recorded(world: World, **fields: Any) -> HostRecord:
    snapshot = world.fake.snapshot(Scope())
    values: dict[str, Any] = {
        "at": "2026-06-01T00:00:00+00:00",
        "facts": HostFacts(name="edge-1", labels={"role": "edge"}),
        "policy": "5" * 64,
        "kernel": "6.18.0",
        "snapshot": snapshot,
        "inventory": world.inventory,
        "secure": world.secure,
        "guardrail": world.guardrail,
    }
    return HostRecord(**{**values, **fields})


@pytest.fixture
def world() -> World:
    made = fake_world("eth0", "eth1")
    made.converge(STATE)
    made.fake.attach_foreign_xdp(made.fake.point("lo", HookKind.XDP))
    return made


def test_what_is_read_is_what_was_written(world: World) -> None:
    for record in (recorded(world), recorded(world, earlier=world.fake.snapshot(Scope()), applied="c" * 40)):
        assert record.snapshot.hooks
        assert decode_record(encode_record(record), file="edge-1.json") == record


def test_the_plan_of_a_record_is_that_of_the_host(world: World) -> None:
    packages = {package.ref.digest: package for package in shipped().values()}
    record = decode_record(encode_record(recorded(world, earlier=world.fake.snapshot(Scope()))), file="edge-1.json")
    for state in (STATE, OTHER, desired()):
        digest = manifest.state_digest(state)
        made = plan.plan_offline(record, state, packages, digest)
        assert made.steps == world.plan(state, state_digest=digest).steps


def damaged(record: bytes, change: Any) -> bytes:
    raw = json.loads(record)
    change(raw)
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda raw: raw.pop("version"), "got JSON without a version"),
        (lambda raw: raw.update(version=True), "got JSON without a version"),
        (lambda raw: raw.update(version=2), "at most format 1, got format 2"),
        (lambda raw: raw.pop("snapshot"), "got a damaged one"),
        (lambda raw: raw.update(snapshot=None), "got a damaged one"),
        (lambda raw: raw.update(snapshot=[]), "got a damaged one"),
        (lambda raw: raw["snapshot"].pop("hooks"), "got a damaged one"),
        (lambda raw: raw["snapshot"]["hooks"].append({}), "got a damaged one"),
        (lambda raw: raw.update(facts=5), "got a damaged one"),
    ],
)
def test_a_record_that_is_damaged_or_newer_is_refused(world: World, change: Any, finding: str) -> None:
    with pytest.raises(InputError, match=finding):
        decode_record(damaged(encode_record(recorded(world)), change), file="edge-1.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"version": 1, "x": "\xff"}', b"[" * 100_000])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"edge-1\.json: expected a record"):
        decode_record(data, file="edge-1.json")


def test_a_chain_alone_is_one_generation() -> None:
    packages = {package.ref.digest: package for package in shipped().values()}
    (chain,) = STATE.chains
    made = plan.alone(chain, packages, Features())
    assert [each.member for each in made.members] == ["ratelimit"]
    (refused,) = desired(xdp_chain("edge", member("ratelimit", maps={"none": (MapEntry(key=1, value=1),)}))).chains
    with pytest.raises(PlanError, match="expected a config map of package ratelimit"):
        plan.alone(replace(refused), packages, Features())
