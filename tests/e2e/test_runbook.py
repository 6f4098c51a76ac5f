# SPDX-License-Identifier: Apache-2.0
"""The runbook of docs/operations.md: each story is played with the installed command, and every output that the page
shows is compared with what was printed. What happens between two commands (a push, a lost disk) happens here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import COMMAND_SECONDS, MAIN, ROOT, Lab, chain
from tests.e2e.test_readme import Shown, pattern
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from tests.e2e.lab import Document

KINDS = ("xdp", "tc-ingress", "tc-egress")
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RUNBOOK = PAGE.partition("\n## Runbook\n")[2].partition("\n## ")[0]
STORIES = re.findall(r"^### (.*)$", RUNBOOK, re.MULTILINE)


class Story:
    """One section: its commands in their order. `$NAME` in them stands for what `values` hold."""

    def __init__(self, lab: Lab, heading: str) -> None:
        self.lab = lab
        self.values: dict[str, str] = {}
        section = RUNBOOK.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
        self.left: list[Shown] = []
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
            for line in block.splitlines():
                if line.startswith("$ "):
                    self.left.append(Shown(line.removeprefix("$ "), ()))
                else:
                    self.left[-1] = Shown(self.left[-1].command, (*self.left[-1].output, line))
        assert self.left, heading

    def play(self, verb: str) -> None:
        """Run the next command of the section, which must be this verb."""
        shown = self.left.pop(0)
        text, _, comment = shown.command.partition("  # exit ")
        for name, value in self.values.items():
            text = text.replace(f"${name}", value)
        program, *arguments = shlex.split(text)
        assert (program, arguments[0]) == ("reconciler", verb)
        done = subprocess.run(
            self.lab.line(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            env=self.lab.environment,
        )
        got = done.stdout.strip("\n") + "\n"
        expected = int(comment or 0)
        if done.returncode != expected or not re.fullmatch(pattern(shown.output), got):
            lines = "\n".join(shown.output)
            pytest.fail(f"$ {text}\nexpected exit {expected} and\n{lines}\ngot exit {done.returncode} and\n{got}")

    def end(self) -> None:
        assert self.left == []


def edge(lab: Lab, *members: Document, **rest: Any) -> Document:
    return chain("edge", *members, hook=lab.hook(), **rest)


def test_every_story_is_played() -> None:
    played = set(re.findall(r'Story\(lab, "([^"]+)"\)', (ROOT / "tests" / "e2e" / "test_runbook.py").read_text()))
    assert set(STORIES) == played


def test_suspend_and_resume(lab: Lab) -> None:
    story = Story(lab, "No new commits for a while")
    lab.applied(edge(lab, lab.wall()))
    story.play("suspend")
    lab.commit(edge(lab, lab.limit(5), lab.wall()), message="limit new connections")
    story.play("apply")
    story.play("status")
    assert not lab.reaches(DROP_PORT)
    story.play("resume")
    story.end()


def test_accept(lab: Lab) -> None:
    story = Story(lab, "History was rewritten")
    old = lab.applied(edge(lab, lab.wall()))
    lab.applied(edge(lab, lab.limit(5), lab.wall()))
    lab.repository.git("update-ref", MAIN, old)
    story.play("apply")
    story.play("status")
    story.values["COMMIT"] = old
    story.play("accept")
    story.play("apply")
    story.end()


def test_teardown(lab: Lab) -> None:
    story = Story(lab, "Everything off this host")
    lab.applied(edge(lab, lab.wall()))
    story.play("teardown")
    assert lab.reaches(DROP_PORT)
    story.play("apply")
    story.play("status")
    story.play("resume")
    assert not lab.reaches(DROP_PORT)
    story.end()


def test_confirm(lab: Lab) -> None:
    story = Story(lab, "A commit removes much")
    lab.config["guardrail"] = {"share": "50%"}
    lab.applied(*[chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in KINDS])
    lab.commit(chain("xdp", lab.wall(), hook=lab.hook()), message="tc is not needed any more")
    story.play("apply")
    assert len(lab.attached()) == len(KINDS)
    story.play("plan")
    story.values["DIGEST"] = lab.reconciler("plan").json["digest"]
    story.play("apply")
    assert len(lab.attached()) == 1
    story.end()


def test_lost_state(lab: Lab) -> None:
    story = Story(lab, "The records are gone")
    head = lab.applied(edge(lab, lab.wall()))
    program = lab.xdp_id()
    shutil.rmtree(lab.state)
    story.play("apply")
    story.play("status")
    assert lab.xdp_id() == program
    story.values["COMMIT"] = head
    story.play("accept")
    assert not lab.reaches(DROP_PORT)
    story.end()


def test_rollback_and_quarantine(lab: Lab) -> None:
    story = Story(lab, "A change was taken back")
    lab.applied(edge(lab, lab.wall()))
    sick = {"tcp": [{"connect": "127.0.0.1:9", "within": "1s"}]}
    lab.commit(edge(lab, lab.limit(5), lab.wall(), health=sick), message="limit new connections")
    story.play("apply")
    assert not lab.reaches(DROP_PORT)
    lab.commit(edge(lab, lab.limit(5), lab.wall(), health=sick), message="the same once more")
    story.play("apply")
    story.play("status")
    lab.commit(edge(lab, lab.limit(5), lab.wall()), message="without the wrong check")
    story.play("apply")
    story.play("history")
    story.end()
