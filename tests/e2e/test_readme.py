# SPDX-License-Identifier: Apache-2.0
"""Tours of the README and of docs/, as they stand there: every command is run, every output that is shown compared.

It runs in a namespace of its own, which is all that its commands see of the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.lab import ROOT
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.lab import Kit

SECONDS = 240
EXIT_CODES = {"reconciler plan": {2}, "reconciler apply": {0, 3}}
"""What a command may end with besides 0: plans have something to do, and one commit is refused."""

END = "--end-of-command"


@dataclass(frozen=True, slots=True)
class Shown:
    """One command of the tour and what the README shows of its output."""

    command: str
    output: tuple[str, ...]


def tour(text: str, heading: str) -> list[Shown]:
    """The console blocks of one section."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found: list[Shown] = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Shown(line.removeprefix("$ "), ()))
            else:
                found[-1] = Shown(found[-1].command, (*found[-1].output, line))
    return found


def pattern(lines: tuple[str, ...]) -> str:
    """A regular expression for the lines; `…` is any text, and alone on a line any lines."""
    parts = []
    for line in lines:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            words = [re.escape(word).replace("…", r"[^\n]*?") for word in line.split()]
            parts.append(r"[ \t]*" + r"[ \t]+".join(words) + r"[ \t]*\n")
    return "".join(parts)


@pytest.fixture
def namespace() -> Iterator[support.Netns]:
    with support.netns() as made:
        yield made


def test_a_tour_is_taken_apart_and_compared() -> None:
    shown = tour("\n## Here\n```console\n$ a b\n  x …  y\n…\nz\n$ c\n```\n## Next\n```console\n$ d\n```\n", "Here")
    assert shown == [Shown("a b", ("  x …  y", "…", "z")), Shown("c", ())]
    expression = pattern(shown[0].output)
    assert re.fullmatch(expression, "x 1 2 y\nmore\nand more\nz\n")
    assert re.fullmatch(expression, "x 1 y\nz\n")
    assert not re.fullmatch(expression, "x 1 y\nmore\n")
    assert not re.fullmatch(expression, "x 1 q\nz\n")


def test_ip_netns_exec_is_recognized_as_what_the_readme_warns_of(namespace: support.Netns) -> None:
    states = []
    for enter in (["ip", "netns", "exec", namespace.name], ["nsenter", f"--net=/run/netns/{namespace.name}"]):
        command = [*enter, str(ROOT / ".venv/bin/reconciler"), "check", "-o", "json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=SECONDS)
        states += [each["state"] for each in json.loads(done.stdout) if each["name"] == "bpffs"]
    assert states == ["note", "ok"]


@pytest.mark.parametrize(
    ("page", "heading"), [("README.md", "Five minutes"), ("docs/review.md", "From a pull request to a host")]
)
def test_the_tour(page: str, heading: str, kit: Kit, namespace: support.Netns, tmp_path: Path) -> None:
    shown = tour((ROOT / page).read_text(encoding="utf-8"), heading)
    assert [each.command for each in shown][-1].startswith("cd / && rm")
    folder = tmp_path / "tour"
    pins = support.BPFFS / f"reconciler-policy-{hashlib.sha256(os.fsencode(folder / 'policy')).hexdigest()[:6]}"
    script = f"mktemp() {{ mkdir {folder} && echo {folder}; }}\n"  # so that the name of the pin directory is known
    script += "".join(f"{each.command}\nprintf '\\n%s %d\\n' '{END}' $?\n" for each in shown)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }
    command = ["nsenter", f"--net=/run/netns/{namespace.name}", "bash", "-s"]
    try:
        done = subprocess.run(
            command,
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
            timeout=SECONDS,
        )
        assert not pins.exists()
    finally:
        support.remove_pins(pins)
    results = re.findall(rf"(.*?)\n{END} (\d+)\n", done.stdout, re.DOTALL)
    assert len(results) == len(shown), done.stdout
    wrong = []
    for each, (output, code) in zip(shown, results, strict=True):
        got = output.strip("\n") + "\n"
        if int(code) not in EXIT_CODES.get(" ".join(each.command.split()[:2]), set()) | {0}:
            wrong.append(f"$ {each.command}\nexit {code}\n{got}")
        elif each.output and not re.fullmatch(pattern(each.output), got):
            wrong.append(f"$ {each.command}\nexpected\n" + "\n".join(each.output) + f"\ngot\n{got}")
    if wrong:
        pytest.fail("\n".join(wrong))
    assert list(tmp_path.iterdir()) == []
