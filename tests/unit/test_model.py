# SPDX-License-Identifier: Apache-2.0
"""Values and their one encoding: equal values, equal bytes; what is printed can be read again."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler import model
from reconciler.model import (
    Attach,
    AttachKind,
    Features,
    HookKind,
    HookPoint,
    Inventory,
    Plan,
    Support,
    content_digest,
    digest_of,
    encode_json,
    encode_record,
    to_builtins,
)
from tests.sim.world import desired, fake_world, member, tc_chain, xdp_chain

POINT = HookPoint(kind=HookKind.XDP, netns_inode=4026531840, ifindex=2, netns="host", interface="eth0.100")
VALUES = [each for each in vars(model).values() if isinstance(each, type) and is_dataclass(each)]


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_are_frozen_slotted_and_made_by_keyword(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]  # of every dataclass
    assert "__slots__" in vars(kind)
    assert all(field.kw_only for field in fields(kind))


def test_a_hook_is_known_by_numbers_and_called_by_names() -> None:
    renamed = replace(POINT, interface="wan0", netns="blue")
    assert renamed == POINT
    assert hash(renamed) == hash(POINT)
    assert (str(POINT), str(renamed)) == ("eth0.100 xdp", "blue/wan0 xdp")
    assert POINT.key == renamed.key == "xdp_4026531840_2"
    assert replace(POINT, ifindex=3) != POINT
    assert min(replace(POINT, ifindex=3), POINT) == POINT


def test_features_are_asked_for_by_name() -> None:
    found = Features(tcx=Support.YES, drain=("membarrier",))
    assert found.get("tcx") is Support.YES
    assert found.get("xdp-link") is Support.UNKNOWN
    assert [found.get(name) for name in ("drain", "get", "__class__", "teleport")] == [Support.NO] * 4


def test_the_encoding_is_canonical_and_can_be_read_again() -> None:
    world = fake_world("eth0")
    plan = world.plan(desired(xdp_chain("edge", member("ratelimit")), tc_chain("count", member("flowcount"))))
    world.execute(plan)
    data = encode_json(world.inventory)
    assert msgspec.json.decode(data, type=Inventory) == world.inventory
    assert json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == data
    for step in plan.steps:
        if isinstance(step, Attach):
            assert msgspec.convert(to_builtins(step), type=Attach) == step


def test_records_are_encoded_like_everything_else() -> None:
    world = fake_world("eth0", "eth1")
    state = desired(xdp_chain("edge", member("ratelimit"), interfaces=("eth*",)))
    world.fake.attach_foreign_xdp(world.fake.point("eth1", HookKind.XDP))
    made = world.plan(state)
    steps = [step for step in made.steps if step.step != "load"]  # only that has bytes
    assert {step.step for step in steps} >= {"attach", "check-health", "point-of-no-return"}
    world.execute(made)
    for value in (*steps, *world.plan(desired()).steps, world.inventory):
        assert encode_record(value) == encode_json(value)


def test_what_json_cannot_say_becomes_text() -> None:
    value = {POINT: (b"\x00\xff", AttachKind.XDP_LINK, None, True, 1.5)}
    assert to_builtins(value) == {POINT.key: ["00ff", "xdp-link", None, True, 1.5]}


def test_a_plans_digest_is_that_of_its_steps() -> None:
    world = fake_world("eth0")
    state = desired(xdp_chain("edge", member("ratelimit")))
    plan = world.plan(state)
    assert plan.digest == world.plan(state).digest
    assert replace(plan, notes=("other words",)).digest == plan.digest
    assert replace(plan, steps=plan.steps[:-1]).digest != plan.digest
    assert Plan(state_digest="a").digest != Plan(state_digest="b").digest


@given(st.dictionaries(st.binary(max_size=8), st.binary(max_size=8), max_size=5))
def test_the_digest_of_a_map_does_not_depend_on_the_order(entries: dict[bytes, bytes]) -> None:
    pairs = tuple(entries.items())
    assert content_digest(pairs) == content_digest(pairs[::-1])


def test_the_digest_of_a_map_tells_keys_from_values() -> None:
    assert content_digest(((b"ab", b"c"),)) != content_digest(((b"a", b"bc"),))
    assert content_digest(((b"a", b""),)) != content_digest(((b"", b"a"),))
    values: list[object] = [{}, [], "", 0, None, False, {"a": 1}, {"b": 1}]
    assert len({digest_of(value) for value in values}) == len(values)
