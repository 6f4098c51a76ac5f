# SPDX-License-Identifier: Apache-2.0
"""What is ours, tolerated or foreign; who tolerates what; how a foreign program is removed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler import policy
from reconciler.config import SecureConfig, SecureMode, Toleration
from reconciler.model import (
    AttachKind,
    Attachment,
    Features,
    FilterId,
    HookKind,
    HookPoint,
    HookState,
    Identity,
    Program,
    RemovalMethod,
    Snapshot,
)

RULE = Toleration(name="rule", why="test", owner="test")
PROGRAM = Program(id=7, type="tc", name="cil_from_netdev", tag="00112233aabbccdd", load_time=5)
TCX = Attachment(kind=AttachKind.TCX_LINK, program_id=7, link_id=3)
FILTER = Attachment(
    kind=AttachKind.CLSACT_FILTER, program_id=7, filter=FilterId(parent=1, prio=1, handle=1), name="bpf_lxc.o"
)


def point(interface: str = "eth0", kind: HookKind = HookKind.TC_INGRESS, netns: str = "host") -> HookPoint:
    ifindex = sum(interface.encode())
    return HookPoint(kind=kind, netns_inode=len(netns), ifindex=ifindex, netns=netns, interface=interface)


def snapshot(*states: HookState, programs: tuple[Program, ...] = (PROGRAM,)) -> Snapshot:
    return Snapshot(
        boot_id="boot",
        features=Features(),
        hooks={state.point: state for state in states},
        programs={program.id: program for program in programs},
    )


@pytest.mark.parametrize(
    ("changes", "attachment", "program", "tolerated"),
    [
        ({}, TCX, PROGRAM, False),
        ({"program_name": "cil_*"}, TCX, PROGRAM, True),
        ({"program_name": "cil_"}, TCX, PROGRAM, False),
        ({"program_name": "cil_*"}, TCX, None, False),
        ({"tag": "00112233aabbccdd"}, TCX, PROGRAM, True),
        ({"tag": "ffffffffffffffff"}, TCX, PROGRAM, False),
        ({"tag": "00112233aabbccdd"}, TCX, None, False),
        ({"program_name": "cil_*", "tag": "ffffffffffffffff"}, TCX, PROGRAM, False),
        ({"program_name": "cil_*", "hooks": (HookKind.TC_INGRESS,)}, TCX, PROGRAM, True),
        ({"program_name": "cil_*", "hooks": (HookKind.XDP,)}, TCX, PROGRAM, False),
        ({"program_name": "cil_*", "attach": (AttachKind.TCX_LINK,)}, TCX, PROGRAM, True),
        ({"program_name": "cil_*", "attach": (AttachKind.TCX_PROG,)}, TCX, PROGRAM, False),
        ({"filter_name": "bpf_*.o"}, FILTER, None, True),
        ({"filter_name": "bpf_*.o"}, TCX, PROGRAM, False),
        ({"filter_name": "other"}, FILTER, PROGRAM, False),
    ],
)
def test_a_rule_tolerates_what_fulfils_all_of_its_conditions(
    changes: dict[str, object], attachment: Attachment, program: Program | None, tolerated: bool
) -> None:
    rule = replace(RULE, **changes)  # type: ignore[arg-type]  # by the parameters
    assert policy.tolerates(rule, point(), attachment, program) is tolerated


def test_without_rules_everything_that_is_not_ours_is_foreign() -> None:
    ours = Attachment(kind=AttachKind.TCX_LINK, program_id=1, link_id=1)
    seen = snapshot(HookState(point=point(), attachments=(ours, TCX)))
    (found,) = policy.classify(seen, {point(): ours}, SecureConfig(), frozenset())
    assert (found.attachment, found.tolerated_by, found.program_name) == (TCX, None, "cil_from_netdev")
    assert found.program == Identity(id=7, load_time=5)


def test_the_first_rule_that_matches_gives_the_name() -> None:
    rules = tuple(replace(RULE, name=name, program_name="cil_*") for name in ("first", "second"))
    secure = SecureConfig(tolerations=rules)
    (found,) = policy.classify(snapshot(HookState(point=point(), attachments=(TCX,))), {}, secure, frozenset())
    assert found.tolerated_by == "first"


def test_a_program_that_vanished_meanwhile_is_known_by_its_id_only() -> None:
    seen = snapshot(HookState(point=point(), attachments=(TCX,)), programs=())
    (found,) = policy.classify(seen, {}, SecureConfig(), frozenset())
    assert (found.program, found.program_name) == (Identity(id=7), "")


def test_an_id_that_came_back_is_another_stranger() -> None:
    state = HookState(point=point(), attachments=(TCX,))
    (before,) = policy.classify(snapshot(state), {}, SecureConfig(), frozenset())
    (again,) = policy.classify(snapshot(state), {}, SecureConfig(), frozenset())
    later = snapshot(state, programs=(replace(PROGRAM, load_time=6),))
    (other,) = policy.classify(later, {}, SecureConfig(), frozenset())
    assert before.identity == again.identity != other.identity


@pytest.mark.parametrize(
    ("interface", "netns", "declared", "watched"),
    [
        ("eth0", "host", False, True),
        ("wan0", "host", False, False),
        ("wan0", "host", True, True),
        ("eth0", "blue", False, False),
        ("eth0", "blue", True, True),
    ],
)
def test_hooks_are_watched_where_the_host_or_a_chain_says_so(
    interface: str, netns: str, declared: bool, watched: bool
) -> None:
    secure = SecureConfig(mode=SecureMode.ENFORCE, interfaces=("eth*",))
    here = point(interface, netns=netns)
    other = point(interface, HookKind.XDP, netns)
    declared_here = frozenset({other}) if declared else frozenset[HookPoint]()
    seen = snapshot(HookState(point=here, attachments=(TCX,)))
    assert len(policy.classify(seen, {}, secure, declared_here)) == watched


@pytest.mark.parametrize("kind", list(AttachKind))
def test_every_kind_of_attachment_can_be_removed_in_its_own_way(kind: AttachKind) -> None:
    assert (
        policy.removal_method(kind)
        is {
            AttachKind.XDP_LINK: RemovalMethod.LINK_DETACH,
            AttachKind.TCX_LINK: RemovalMethod.LINK_DETACH,
            AttachKind.XDP_NETLINK: RemovalMethod.NETLINK,
            AttachKind.TCX_PROG: RemovalMethod.PROG_DETACH,
            AttachKind.CLSACT_FILTER: RemovalMethod.FILTER_DELETE,
        }[kind]
    )
