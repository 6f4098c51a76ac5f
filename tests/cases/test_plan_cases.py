# SPDX-License-Identifier: Apache-2.0
"""Every file of plan/ is one case; its name is the sentence. Each plan is applied, and the next plan must be empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import KernelError, PlanError
from reconciler.model import HookKind
from tests.cases.plan_case import Case, Happening, drifted, summary

FOLDER = Path(__file__).parent / "plan"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_plan(path: Path) -> None:
    case = Case.read(path)
    expect = case.data["expect"]
    if "error" in expect:
        with pytest.raises((PlanError, KernelError)) as caught:
            case.plan()
        text = str(caught.value)
        assert [part for part in expect["error"] if part not in text] == [], text
        assert len(caught.value.diagnostics()) == len(expect["error"])
        return
    plan = case.plan()
    assert [summary(step) for step in plan.steps] == expect.get("steps", [])
    assert [drifted(each) for each in plan.drift] == expect.get("drift", [])
    assert [f"{each.where}: {each.kind}" for each in plan.pending] == expect.get("pending", [])
    if "changes" in expect:
        assert [f"{each.kind} {each.where} {each.chain}/{each.member}" for each in plan.changes] == expect["changes"]
    for wanted, note in zip(expect.get("notes", plan.notes), plan.notes, strict=True):
        assert wanted in note
    if "guard" in expect:
        assert [plan.guard.removed, plan.guard.owned, plan.guard.exceeded] == expect["guard"]
    apply_and_plan_again(case, expect)


def apply_and_plan_again(case: Case, expect: dict[str, object]) -> None:
    plan = case.plan()
    if plan.steps:
        outcome = case.world.execute(plan)
        assert outcome.failed is None, outcome.failed
        assert (outcome.skipped, outcome.undo_failures, outcome.stale_hooks) == ((), (), ())
        assert outcome.done == plan.steps
    assert case.world.fake.violations == []
    runs = expect.get("runs", {})
    assert isinstance(runs, dict)
    for where, members in runs.items():
        trace = case.world.fake.run_packet(Happening(case.world).point(where))
        assert [f"{chain}/{name}" if chain else name for chain, name in trace.members] == members, where
        assert not trace.broken
    assert [summary(step) for step in case.plan().steps] == expect.get("again", [])


def test_there_are_cases_for_every_kind_of_hook_and_their_names_are_sentences() -> None:
    assert len(FILES) >= 40
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    for kind in HookKind:
        assert any(kind.value in text for text in texts), kind
    assert [path.stem for path in FILES if " " not in path.stem] == []
