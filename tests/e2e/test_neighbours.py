# SPDX-License-Identifier: Apache-2.0
"""Side by side with others: libxdp, htb, clsact filters, tcx entries, XDP by netlink and by links, a churning agent.

What they hold is compared byte for byte as raw netlink says it (tests/kernel/neighbours.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.e2e.intruder import Intruder
from tests.e2e.lab import ROOT, WAIT_SECONDS, WITHOUT_TCX, Document, Lab, chain, rule
from tests.kernel import neighbours as others
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.neighbours import Record

TOLERATIONS = [
    {"name": "theirs", "why": "they were here first", "owner": "the test", "programName": "reconciler_nop"},
    {"name": "their-xdp", "why": "xdp-loader attached it", "owner": "the test", "programName": "neighbour"},
]
"""`reconciler_nop` is what `load_trivial` calls a program; the dispatcher is tolerated by the set that ships."""
CLOSED = {"tcp": [{"connect": "127.0.0.1:9", "within": "1s"}], "source": False}


def chains(lab: Lab, *rules: tuple[object, object], xdp: tuple[str, ...] = others.XDP_HELD) -> list[Document]:
    """Ours: XDP on the shared interface and on `xdp`, tc in both directions, in also beside the `ingress` qdisc."""
    main = lab.wire.interface
    where = {"xdp": [main, *xdp], "tc-ingress": [main, "ing0"], "tc-egress": [main]}
    return [
        chain(kind, lab.wall(*rules, kind=kind), hook=lab.hook(kind) | {"interfaces": names})
        for kind, names in where.items()
    ]


def assert_untouched(before: Record, now: Record, main: str) -> None:
    """Everything of theirs is there, byte for byte and in its order; on `main` ours may stand between."""
    assert {name: found for name, found in now.xdp.items() if name != main} == {
        name: found for name, found in before.xdp.items() if name != main
    }
    assert replace(now, filters={}, tcx={}, xdp={}) == replace(before, filters={}, tcx={}, xdp={})
    for key, found in before.filters.items():
        assert others.part_of(found, now.filters[key]), key
    for place, entries in before.tcx.items():
        assert others.part_of(entries, now.tcx[place]), place


@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])
@pytest.mark.parametrize("mode", ["audit", "tolerated"])
def test_a_whole_story_leaves_others_byte_for_byte(mode: str, tcx: bool, lab: Lab) -> None:
    """Attach, switch, detach, tear down; what others hold is compared after each."""
    lab.command = lab.command if tcx else WITHOUT_TCX
    if mode == "tolerated":
        lab.config["secureMode"] |= {"mode": "enforce", "tolerations": ["libxdp"], "tolerate": TOLERATIONS}
    main = lab.wire.interface
    with others.neighbours(lab.near, lab.far, main) as theirs:
        before, status = theirs.record(), theirs.status()
        fronts: dict[tuple[str, str], tuple[tuple[int, int], ...]] = {}
        story = {
            "attach": chains(lab),
            "switch": chains(lab, rule(53, "DENY")),
            "detach": chains(lab, rule(53, "DENY"))[:1],
        }
        for step, declared in story.items():
            lab.commit(*declared)
            applied = lab.apply().expect(2)
            # Without tcx, the old `ingress` qdisc is in the way as well.
            held = len(others.XDP_HELD) + (not tcx and step != "detach")
            assert applied.findings.count("HookOccupied") == held
            assert ("ForeignPrograms" in applied.findings) == (mode == "audit")
            assert step in applied.steps
            assert "evict" not in applied.steps
            now = theirs.record()
            assert now.xdp[main] != before.xdp[main]
            assert_untouched(before, now, main)
            if step == "attach":  # from now on entries of theirs stand before ours, too
                theirs.go_in_front()
                fronted = theirs.record()
                fronts = {place: entries[:1] for place, entries in fronted.tcx.items() if place[0] == main}
                tcx_then = {place: fronts.get(place, ()) + entries for place, entries in before.tcx.items()}
                before = replace(before, tcx=tcx_then, objects=fronted.objects)
            assert {place: theirs.record().tcx[place][:1] for place in fronts} == fronts
        lab.reconciler("teardown", "--yes").expect(0)
        assert theirs.record() == before
        assert theirs.status() == status


@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])
def test_enforce_takes_exactly_the_foreign_programs(tcx: bool, lab: Lab) -> None:
    """Qdiscs, classes, filters of other kinds and classic BPF stay, and so do filters below htb, pins and files."""
    lab.command = lab.command if tcx else WITHOUT_TCX
    lab.config["secureMode"] |= {"mode": "enforce", "maxEvictions": 50}
    main = lab.wire.interface
    # A kernel without tcx has no entries of others there either.
    with others.neighbours(lab.near, lab.far, main, tcx=tcx) as theirs:
        before = theirs.record()
        lab.commit(*chains(lab, xdp=("disp0", "link0")))
        applied = lab.apply().expect(0 if tcx else 2, None if tcx else "HookOccupied")
        assert sorted(applied.json["outcome"]["gaps"]) == sorted(
            f"{lab.near.name}/{name} xdp" for name in ("disp0", "link0")
        )
        assert lab.attached(whose="foreign") == []
        assert lab.apply().expect(0 if tcx else 2).steps == []
        lab.reconciler("teardown", "--yes").expect(0)
        after = theirs.record()
        nothing = before.xdp[main]
        watched = {key: found for key, found in before.filters.items() if key[1] != "root"}
        expected = replace(
            before,
            xdp=dict.fromkeys(before.xdp, nothing),
            filters=before.filters | {key: others.without_ebpf(found) for key, found in watched.items()},
            tcx=dict.fromkeys(before.tcx, ()),
            objects=after.objects,
        )
        assert after == expected
        assert any(map(others.is_ebpf, after.filters[main, "root"]))


def test_a_rollback_leaves_hooks_empty_that_others_held(lab: Lab) -> None:
    """Each kind of occupant is displaced by the switch, its gap is on record, and it does not come back."""
    lab.config["secureMode"]["mode"] = "enforce"
    main, held = lab.wire.interface, others.XDP_HELD
    with others.neighbours(lab.near, lab.far, main, tcx=False) as theirs:
        before = theirs.record()
        lab.commit(chain("edge", lab.wall(), hook=lab.hook() | {"interfaces": list(held)}, health=CLOSED))
        failed = lab.apply().expect(6)
        gaps = failed.json["outcome"]["gaps"]
        assert sorted(gaps) == sorted(f"{lab.near.name}/{name} xdp" for name in held)
        assert all(0 < gap < 10 for gap in gaps.values())
        after = theirs.record()
        assert {after.xdp[name] for name in held} == {before.xdp[main]}
        assert_untouched(replace(before, xdp={}, objects={}), replace(after, xdp={}, objects={}), main)
        assert lab.attached() == []


# === churn =================================================================================================


@contextlib.contextmanager
def churner(space: support.Netns, interface: str, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that replaces its program every 3 ms; it has begun."""
    command = [sys.executable, "-m", "tests.e2e.churner", space.name, interface, kind]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def end(process: subprocess.Popen[str]) -> int:
    """Let it take its program off; how often it replaced it."""
    out, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    return int(out)


@pytest.mark.parametrize("mode", ["audit", "enforce"])
def test_a_neighbour_that_churns_on_one_hook_stops_nothing_elsewhere(mode: str, lab: Lab) -> None:
    lab.config["secureMode"]["mode"] = mode
    main = lab.wire.interface
    for name in ("churn0", "calm0"):
        support.add_veth(lab.near, name, lab.far, f"x{name}")
    wanted = {(main, kind) for kind in ("xdp", "tc-ingress", "tc-egress")} | {("churn0", "xdp")}
    churned = {(main, "tc-ingress"), ("churn0", "xdp")}
    with (
        support.pin_directory() as pins,
        Intruder(lab.near, "calm0", pins) as intruder,
        churner(lab.near, main, "tc-ingress") as on_tcx,
        churner(lab.near, "churn0", "xdp") as on_xdp,
    ):
        foreign = {intruder.xdp_netlink(), intruder.tcx_link(), intruder.tcx_program("tc-egress"), intruder.filter()}
        lab.commit(
            *(chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in ("xdp", "tc-ingress", "tc-egress")),
            chain("other", lab.wall(), hook=lab.hook() | {"interfaces": ["churn0"]}),
        )
        first = lab.apply().expect(2)
        assert first.json["status"]["applied"] is not None
        assert first.steps.count("evict") >= (len(foreign) if mode == "enforce" else 0)
        seen = observed(lab)
        missing = wanted - {place for place, _ in seen["owned"]}
        assert missing <= churned
        assert {number for (name, _), number in seen["foreign"] if name == "calm0"} == (
            set() if mode == "enforce" else foreign
        )
        # What is churned is either ours by now (a comparison may win), or it is said why not.
        for interface, kind in missing:
            said = [item for item in first.json["status"]["findings"] if f"{interface} {kind}" in item["message"]]
            assert {"HookContested", "HookOccupied"} & {item["reason"] for item in said}, said
        # The next pass repairs and evicts elsewhere as well.
        intruder.detach(link_of(lab, "xdp"))
        again = intruder.filter("egress")
        assert "attach" in lab.apply().expect(2).steps
        seen = observed(lab)
        assert (main, "xdp") in {place for place, _ in seen["owned"]}
        assert (again in {number for _, number in seen["foreign"]}) == (mode == "audit")
        assert end(on_tcx) > 10
        assert end(on_xdp) > 10
    # It is over: what is declared is everywhere.
    lab.apply()
    lab.apply().expect(0 if mode == "enforce" else 2, None if mode == "enforce" else "ForeignPrograms")
    assert {place for place, _ in observed(lab)["owned"]} == wanted


def observed(lab: Lab) -> dict[str, list[tuple[tuple[str, str], int]]]:
    """((interface, kind of hook), program id) of every attachment, by whose it is."""
    found: dict[str, list[tuple[tuple[str, str], int]]] = {"owned": [], "foreign": []}
    for each in lab.reconciler("observe", "--netns", lab.netns).expect(0).json["attachments"]:
        found[each["whose"]].append(((each["interface"], each["hook"]), each["program_id"]))
    return found


def link_of(lab: Lab, kind: str) -> int:
    """Our link on the shared interface."""
    pin = next(
        path for path in lab.pinned() if path.startswith(f"links/{kind}_") and path.endswith(f"_{lab.wire.ifindex}")
    )
    number: int = json.loads(support.run("bpftool", "-j", "link", "show", "pinned", str(lab.pins / pin)))["id"]
    return number
