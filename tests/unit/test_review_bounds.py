# SPDX-License-Identifier: Apache-2.0
"""What a review leaves out is counted, and what it cannot read takes nothing else along."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reconciler import review
from reconciler.config import Guardrail, SecureConfig, SecureMode, shipped_tolerations
from reconciler.errors import InputError
from reconciler.model import (
    Acknowledgement,
    AttachKind,
    Attachment,
    Features,
    HookKind,
    HookPoint,
    HookState,
    HostFacts,
    Interface,
    Inventory,
    MapRole,
    Occupant,
    Program,
    Snapshot,
    Support,
)
from reconciler.plan import HostRecord
from reconciler.review import Finding, HookChange, _markdown, _text
from reconciler.review._coverage import coverage_of
from reconciler.review._state import layouts
from reconciler.review._values import ChainChange, Line
from tests.cases.review_case import CHAIN, Case, build, make, merge
from tests.unit.test_review_host import EDGE, REVIEW

if TYPE_CHECKING:
    from reconciler.model import Json, KeyKind


def test_lines_beyond_those_that_are_shown_are_counted() -> None:
    lines = tuple(Line(what=f"field {number}", before="a", after="b") for number in range(1_000))
    change = ChainChange(name="edge", change="changed", file="f", hook="xdp on eth0", lines=lines)
    made = replace(REVIEW, chains=(change,))
    shown = "\n".join(line for line, _ in review.render_text(made))
    assert f"└ … and {1_000 - _text.MAX_LINES} more lines; -o json has all of them" in shown
    assert "field 0 " in shown
    assert "field 999 " not in shown
    comment = review.render_markdown(made)
    assert f"- and {1_000 - _text.MAX_LINES} more lines, in review.json" in comment


def test_hooks_of_a_group_beyond_those_that_are_shown_are_counted() -> None:
    hooks = tuple(HookChange(hook=f"eth{number} xdp", before=(), after=("a/b",)) for number in range(100))
    made = replace(REVIEW, cohorts=(replace(EDGE, hooks=hooks),))
    shown = [line for line, _ in review.render_text(made)]
    assert f"    … and {100 - _text.MAX_LINES} more hooks; -o json has all of them" in shown
    assert sum(" xdp: " in line for line in shown) == _text.MAX_LINES
    comment = review.render_markdown(made).splitlines()
    assert f"  - and {100 - _markdown.MAX_HOOKS} more hooks, in review.json" in comment
    assert sum(" xdp: " in line for line in comment) == _markdown.MAX_HOOKS
    assert len(comment) <= review.MAX_MARKDOWN


def test_cohorts_beyond_those_that_are_shown_are_counted() -> None:
    cohorts = tuple(replace(EDGE, name=f"group-{number}") for number in range(_text.MAX_COHORTS + 3))
    shown = "\n".join(line for line, _ in review.render_text(replace(REVIEW, cohorts=cohorts)))
    assert "… and 3 more groups; -o json has all of them" in shown


def test_a_picture_shows_hook_members_and_the_settings_that_differ() -> None:
    """Not what is said of a member by its version, and nothing where both sides would be alike."""
    one, two = "limit (ratelimit-1.0.0)", "limit (ratelimit-1.1.0)"
    chain = ChainChange(
        name="edge",
        change="changed",
        file="chains/edge.yaml",
        hook="xdp on eth[0-9]",
        before=(one,),
        after=(two, "wall (firewall-1.0.0)"),
        lines=(
            Line(what="hook", before="xdp on eth*", after="xdp on eth[0-9]"),
            Line(what="package", before="a", after="b", member="limit"),
            Line(what="signer", before="a", after="a", member="limit"),
            *(Line(what=f"p{number}", before=None, after=str(number), member="limit") for number in range(5)),
        ),
    )

    def picture(chain: ChainChange) -> str:
        comment = review.render_markdown(replace(REVIEW, chains=(chain,)))
        return "\n".join(line for line in comment.splitlines() if '["' in line)

    assert picture(chain).splitlines() == [
        f'    b0["xdp on eth*"] --> b1["{one}: p0 not set, p1 not set, p2 not set and 2 more"]',
        f'    a0["xdp on eth#91;0-9#93;"] --> a1["{two}: p0 0, p1 1, p2 2 and 2 more"] --> a2["wall (firewall-1.0.0)"]',
    ]
    assert picture(replace(chain, before=())).splitlines()[0] == '    b0["nothing"]'
    alike = (Line(what="priority", before="1", after="2"), Line(what="signer", before="a", after="b", member="limit"))
    assert picture(replace(chain, before=(one,), after=(one,), lines=alike)) == ""


LIMIT, GONE, CONFLICT = (Finding(id=each, message="m") for each in ("RV019", "RV002", "RV006"))
ACCEPTED = replace(LIMIT, acknowledged=Acknowledgement(finding="RV019", why="w", until="2026-12-31"))


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ((), "unchanged: nothing changes on any host"),
        ((LIMIT,), "weaker: this change lets more through (1 high)"),
        ((ACCEPTED,), "changed: this change lets more through, and all of it is acknowledged (1 acknowledged)"),
        ((LIMIT, ACCEPTED), "weaker: this change lets more through (1 high, 1 acknowledged)"),
        ((GONE,), "blocked: hosts would refuse this change (1 high)"),
        ((LIMIT, GONE), "blocked: hosts would refuse this change, and it lets more through (2 high)"),
        ((CONFLICT,), "blocked: this change does not merge, so what hosts would get is not known (1 high)"),
        ((CONFLICT, GONE), "blocked: hosts would refuse this change (2 high)"),
    ],
)
def test_the_first_line_says_whatever_lets_more_through(findings: tuple[Finding, ...], words: str) -> None:
    made = replace(REVIEW, findings=findings, cohorts=())
    assert review.render_text(made)[0][0] == words
    sentence = words.partition(": ")[2].partition(" (")[0]
    assert f"**{sentence.capitalize()}.**" in review.render_markdown(made)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("commits", "reviewed commit bbb, which contains BASE, against BASE aaa"),
        ("merge", "reviewed what merging bbb into BASE would make, against BASE aaa"),
        ("branch", "reviewed commit bbb, which does not merge, against aaa, where it left BASE"),
        ("worktree", "reviewed the files of the work tree against BASE aaa"),
    ],
)
def test_what_was_compared_with_what_is_said(kind: review.Kind, words: str) -> None:
    made = replace(REVIEW, base="aaa", head="bbb", kind=kind)
    assert words in [line for line, _ in review.render_text(made)]
    assert f"`{words}`" in review.render_markdown(made)


def test_a_document_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = review.to_json(REVIEW).encode()
    assert review.from_json(text, file="r.json") == REVIEW
    monkeypatch.setattr("reconciler.review._load.MAX_DOCUMENT_BYTES", len(text) - 1)
    with pytest.raises(InputError, match="expected at most"):
        review.from_json(text, file="r.json")


def test_a_recorded_host_is_a_group_of_one() -> None:
    interfaces = tuple(
        Interface(netns=netns, netns_inode=1, ifindex=number, name=name)
        for number, (netns, name) in enumerate((("host", "lo"), ("host", "eth0"), ("blue", "eth1")))
    )
    record = HostRecord(
        at="2026-06-01T00:00:00+00:00",
        facts=HostFacts(name="edge-1", labels={"role": "edge"}),
        policy="5" * 64,
        kernel="6.18.0",
        snapshot=Snapshot(boot_id="b", features=Features(tcx=Support.YES, clsact=Support.NO), interfaces=interfaces),
        inventory=Inventory(boot_id="b"),
        secure=SecureConfig(mode=SecureMode.AUDIT),
        guardrail=Guardrail(count=3),
    )
    group = review.group_of(record)
    assert (group.name, group.names, dict(group.labels)) == ("edge-1", ("edge-1",), {"role": "edge"})
    assert group.interfaces == {"blue": ("eth1",), "host": ("eth0", "lo")}
    assert group.features == {"tcx": True, "clsact": False}
    assert (group.policy.id, group.guardrail_count, group.secure_mode) == ("5" * 64, 3, "audit")
    assert (group.policy.tolerations, group.occupants) == ((), ())
    # Beside the groups of the repository it is one host more.
    side = build("base", {"edge": merge(CHAIN, {})}, {}, {}, {})
    reading = review.read(side.tree, side.tree)
    made = review.make(reading, (side.packages, side.packages), kind="commits", now="2026-06-01", hosts=(group,))
    assert [(cohort.name, cohort.count, cohort.chains) for cohort in made.cohorts] == [("edge-1", 1, 1)]


def test_a_recorded_host_says_what_others_have_on_hooks_that_take_one_program() -> None:
    def state(name: str, kind: HookKind, program: int) -> HookState:
        point = HookPoint(kind=kind, netns="host", netns_inode=1, ifindex=program, interface=name)
        attach = AttachKind.XDP_NETLINK if kind is HookKind.XDP else AttachKind.TCX_PROG
        return HookState(point=point, attachments=(Attachment(kind=attach, program_id=program),))

    hooks = (state("eth0", HookKind.XDP, 7), state("eth1", HookKind.XDP, 8), state("eth0", HookKind.TC_INGRESS, 9))
    programs = {
        number: Program(id=number, type="xdp", name=name, tag="0" * 16, load_time=1)
        for number, name in ((7, "xdp_other"), (8, "xdp_dispatcher"), (9, "other"))
    }
    secure = SecureConfig(mode=SecureMode.OFF, interfaces=("no",), tolerations=shipped_tolerations("libxdp"))
    record = HostRecord(
        at="2026-06-01T00:00:00+00:00",
        facts=HostFacts(name="edge-1", labels={}),
        policy="5" * 64,
        kernel="6.18.0",
        snapshot=Snapshot(
            boot_id="b", features=Features(), hooks={each.point: each for each in hooks}, programs=programs
        ),
        inventory=Inventory(boot_id="b"),
        secure=secure,
        guardrail=Guardrail(),
    )
    group = review.group_of(record)
    assert group.policy.tolerations == ("libxdp-dispatcher",)
    assert group.occupants == (
        Occupant(netns="host", interface="eth0", program="xdp_other"),
        Occupant(netns="host", interface="eth1", program="xdp_dispatcher", tolerated_by="libxdp-dispatcher"),
    )


def test_layouts_of_an_object_that_cannot_be_read_are_not_known() -> None:
    (base, _) = Case({}).sides
    (package,) = base.packages.values()
    assert isinstance(package, review.ReviewPackage)
    (chain,) = review.read(base.tree, base.tree).base.chains.values()
    (member,) = chain.members
    assert any(spec.role is MapRole.STATE for spec in package.manifest.maps)
    assert layouts(member, package)
    broken = replace(package, objects={name: data[:100] for name, data in package.objects.items()})
    assert layouts(member, broken) == {}


def test_a_repository_that_cannot_be_read_has_no_digest() -> None:
    whole = build("base", {"edge": merge(CHAIN, {})}, {}, {}, {})
    nameless = build("base", {"edge": merge(CHAIN, {})}, {}, {}, {"reconciler.yaml": "[]"})
    made = make(whole, nameless)
    assert "RV001" in {finding.id for finding in made.findings}
    assert {cohort.digest for cohort in made.cohorts} <= {None}
    assert made.chains == ()
    group = {"edge": {"labels": {"role": "edge"}}}
    with_group = [
        build(name, {"edge": merge(CHAIN, {})}, group, {}, files)
        for name, files in (("base", {}), ("head", {"reconciler.yaml": "[]"}))
    ]
    (cohort,) = make(*with_group).cohorts
    assert cohort.digest is None
    assert cohort.before is not None


@pytest.mark.parametrize(
    ("kind", "key"), [("port", 65536), ("port", -1), ("port", True), ("port", "80"), ("protocol", 256), ("cidr", 5)]
)
def test_a_key_of_another_kind_makes_no_set(kind: KeyKind, key: Json) -> None:
    good: dict[KeyKind, Json] = {"port": 80, "protocol": 6, "cidr": "10.0.0.0/8"}
    assert coverage_of(kind, [good[kind]]) is not None
    assert coverage_of(kind, [good[kind], key]) is None
