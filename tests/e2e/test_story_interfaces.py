# SPDX-License-Identifier: Apache-2.0
"""Interfaces and namespaces that are renamed, deleted and made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.lab import Lab, chain
from tests.kernel import support
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from tests.e2e.lab import Document


def both(lab: Lab, *interfaces: str) -> list[Document]:
    """A wall on XDP and one on tc ingress."""
    names = list(interfaces)
    return [
        chain(kind, lab.wall(kind=kind), hook=lab.hook(kind) | {"interfaces": names}) for kind in ("xdp", "tc-ingress")
    ]


def rename(lab: Lab, old: str, new: str) -> None:
    lab.near.ip("link", "set", "dev", old, "down")
    lab.near.ip("link", "set", "dev", old, "name", new)
    lab.near.ip("link", "set", "dev", new, "up")


def hooks(lab: Lab) -> dict[tuple[str, str], int]:
    return {(each["interface"], each["hook"]): each["program_id"] for each in lab.attached()}


def test_an_interface_is_followed_through_names_and_lives(lab: Lab) -> None:
    wire = lab.wire
    lab.applied(*both(lab, "near*"))
    before = hooks(lab)

    # Another name that still matches: nothing is done, and the same links are ours.
    rename(lab, wire.interface, "near.9@x")
    assert lab.apply().expect(0).steps == []
    assert list(hooks(lab).values()) == list(before.values())
    assert {name for name, _ in hooks(lab)} == {"near.9@x"}

    # A name that no longer does: the chain leaves it. And back.
    rename(lab, "near.9@x", "other")
    gone = lab.apply().expect(2, "HookAbsent")
    assert gone.steps.count("detach") == 2
    assert hooks(lab) == {}
    rename(lab, "other", wire.interface)
    assert lab.apply().expect(0, "Applied").steps.count("attach") == 2
    assert not lab.reaches(DROP_PORT)

    # Deleted: nothing of it stays. Made anew: attached again, though ifindex and all are other ones.
    index = wire.ifindex
    lab.near.ip("link", "del", "dev", wire.interface)
    lab.apply().expect(2, "HookAbsent")
    assert [path for path in lab.pinned() if path.startswith("links/")] == []
    support.add_veth(lab.near, wire.interface, lab.far, wire.far_interface)
    lab.near.ip("addr", "add", f"{wire.near_address}/24", "dev", wire.interface)
    assert wire.ifindex != index
    assert lab.apply().expect(0, "Applied").steps.count("attach") == 2
    assert not lab.reaches(DROP_PORT)
    assert lab.apply().expect(0, "InSync").steps == []


def test_a_namespace_that_is_made_anew_is_another_one(lab: Lab) -> None:
    name = support.unique()
    hook = {"type": "xdp", "interfaces": ["pod0"], "netns": name}
    lab.commit(chain("pod", lab.wall(), hook=hook))
    absent = lab.apply().expect(2, "HookAbsent")
    assert absent.json["status"]["applied"]["id"] == lab.repository.head()
    agent = lab.agent()
    agent.wait("pass", reason="HookAbsent")
    try:
        inodes = set()
        for _ in range(2):
            applied = agent.count("pass", reason="Applied")
            support.run("ip", "netns", "add", name)
            pod = support.Netns(name)
            inodes.add(pod.inode)
            support.add_veth(pod, "pod0", lab.far, "pod1")
            agent.wait("pass", more_than=applied, reason="Applied")
            (link,) = [path for path in lab.pinned() if path.startswith("links/")]
            assert str(pod.inode) in link
            support.run("ip", "netns", "del", name)
            agent.wait_until(lambda: not any(path.startswith("links/") for path in lab.pinned()), "the link to go")
    finally:
        support.run("ip", "netns", "del", name, check=False)
    assert agent.stop() == 0


def test_an_interface_whose_driver_knows_no_xdp(lab: Lab) -> None:
    hook = lab.hook() | {"interfaces": ["lo", lab.wire.interface]}
    lab.applied(chain("edge", lab.wall(), hook=hook))
    modes = {"lo": "generic", lab.wire.interface: "native"}
    assert {each["interface"]: each["mode"] for each in lab.attached()} == modes
    # Demanded, it is an error, and the interface that could have it is left as it is too.
    lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=hook | {"mode": "native"}))
    lab.apply().expect(1, "NotSupported")
    assert lab.apply().expect(1, "NotSupported").json["outcome"] is None
    assert {each["interface"]: each["mode"] for each in lab.attached()} == modes
    assert not lab.reaches(DROP_PORT)


def test_a_teardown_after_interfaces_and_namespaces_went(lab: Lab) -> None:
    with support.netns() as pod:
        support.add_veth(pod, "pod0", lab.far, "pod1")
        hook = {"type": "xdp", "interfaces": ["pod0"], "netns": pod.name}
        lab.applied(*both(lab, lab.wire.interface), chain("pod", lab.wall(), hook=hook))
        lab.near.ip("link", "del", "dev", lab.wire.interface)
    gone = lab.reconciler("teardown", "--yes").expect(0)
    assert gone.json["outcome"]["survivors"] == []
    assert lab.pinned() == []


def test_many_interfaces_are_switched_in_one_pass(lab: Lab) -> None:
    names = [f"many{number}" for number in range(16)]
    for number, name in enumerate(names):
        support.add_veth(lab.near, name, lab.far, f"other{number}")
    hook = lab.hook() | {"interfaces": ["many*", "near*"]}
    lab.applied(chain("edge", lab.limit(5), lab.wall(), hook=hook))
    assert len(lab.attached()) == 17
    # One generation serves all of them.
    assert len(list((lab.pins / "gen").iterdir())) == 1
    lab.commit(chain("edge", lab.limit(6), lab.wall(), hook=hook))
    with lab.traffic() as traffic:
        assert lab.apply().expect(0, "Applied").steps.count("switch") == 17
    traffic.assert_filtered()
