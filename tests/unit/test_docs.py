# SPDX-License-Identifier: Apache-2.0
"""The pages agree with the code: links, commands, exit codes, reasons, metrics, examples, and the first package."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from reconciler import elf, errors, status
from reconciler.cli._group import VERBS, group
from reconciler.config import parse_config, shipped_names
from reconciler.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = (
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "bpf").glob("*/README.md")),
)
PACKAGES = ROOT / "build" / "packages"

CODE = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """What links into a page can name: its headings, as forges spell them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: str, section: str) -> list[list[str]]:
    """Cells of the tables below a heading, up to the next heading of its level or above."""
    level = len(section.split(" ", 1)[0])
    text = read(ROOT / page).split(f"\n{section}\n", 1)[1]
    text = re.split(rf"^#{{1,{level}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# --- links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", read(page))):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_pages_that_the_code_names_exist() -> None:
    places = [*(ROOT / "reconciler").rglob("*.py"), *(ROOT / "bpf").rglob("*.[ch]"), ROOT / "Makefile"]
    named = {page for place in places for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", read(place))}
    # Fulcio's own docs/oid-info.md is named with its project.
    assert {page for page in named if not (ROOT / page).exists()} <= {"docs/oid-info.md"}


# --- commands ----------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[str]:
    """Everything that a page gives as a command, one line each."""
    text = read(page)
    for language, block in FENCE.findall(text):
        if language in ("console", "sh"):
            yield from (line.removeprefix("$ ") for line in block.splitlines())
    yield from INLINE.findall(FENCE.sub("", text))


def invocations(line: str) -> Iterator[list[str]]:
    """Words after each `reconciler` that starts a command."""
    for part in re.split(r"&&|\|\||[;|]|\$\(", line.split(" # ", maxsplit=1)[0]):
        words = part.split()
        while words and ("=" in words[0] or words[0] == "sudo"):
            words.pop(0)
        if words and words[0].rsplit("/", 1)[-1] == "reconciler":
            yield words[1:]


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def check_invocation(words: list[str]) -> None:
    """The verb exists, and so does every option that is given."""
    context = click.Context(group)
    allowed = options_of(group) | {"--help", "-h"}
    takes_value = {"--config", "-c", "--output", "-o"}
    while words and words[0].startswith("-"):
        assert words[0] in allowed, words
        words = words[2:] if words[0] in takes_value else words[1:]
    if not words:
        return
    assert words[0] in VERBS, words
    command = group.get_command(context, words[0])
    assert command is not None
    words = words[1:]
    if isinstance(command, click.Group) and words:
        assert set(words[0].split("|")) <= set(command.commands), words
        command = command.commands[words[0].split("|")[0]]
        words = words[1:]
    allowed |= options_of(command)
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in allowed, (command.name, word)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_verbs_and_options_that_pages_mention_exist(page: Path) -> None:
    for line in commands(page):
        for words in invocations(line):
            check_invocation(words)


def test_the_check_of_commands_finds_what_is_wrong() -> None:
    for line in ("reconciler destroy", "reconciler apply --force", "x=1 sudo reconciler package burn DIR"):
        (words,) = invocations(line)
        with pytest.raises(AssertionError):
            check_invocation(words)


def test_the_readme_names_every_verb() -> None:
    section = read(ROOT / "README.md").split("\n## Commands\n", 1)[1].split("\n### ", 1)[0]
    said = {word for text in INLINE.findall(section) for word in text.split()}
    assert set(VERBS) <= said


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_that_pages_mention_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    for line in commands(page):
        if line.startswith("make "):
            words = [word for word in line.split(" # ")[0].split()[1:] if re.fullmatch(r"[a-z-]+", word)]
            assert set(words) <= targets, line


# --- exit codes, reasons, metrics --------------------------------------------------------------------------


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    table = rows("README.md", "### Exit codes")[1:]
    assert {(int(code), spelled) for code, spelled, _ in table} == {(int(code), code.name) for code in ExitCode}


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/operations.md"])
def test_the_order_of_exit_codes_is_that_of_the_code(page: str) -> None:
    assert ", ".join(str(int(code)) for code in status.EXIT_PRECEDENCE) in re.sub(r"\s+", " ", read(ROOT / page))


def texts(node: ast.expr | None) -> Iterator[str]:
    """String constants that an expression can turn out to be."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=first, orelse=second):
            yield from texts(first)
            yield from texts(second)
        case ast.Call(func=ast.Attribute(value=ast.Dict(values=values), attr="get"), args=arguments):
            for each in (*values, *arguments[1:]):
                yield from texts(each)
        case _:
            pass


def reasons_in(tree: ast.Module) -> Iterator[str]:
    """What is given as `reason` anywhere, and the tables of (pattern, reason, meaning)."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="reason", value=value):
                yield from texts(value)
            case ast.Assign(targets=[ast.Name(id="reason")], value=value):
                yield from texts(value)
            case ast.AnnAssign(target=ast.Name(id="reason"), value=value):
                yield from texts(value)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "reason":
                        yield from texts(value)
            case ast.Tuple(elts=[ast.Constant(), ast.Constant(value=str(second)), ast.Constant()]):
                yield second
            case _:
                pass


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(read(path)) for path in sorted((ROOT / "reconciler").rglob("*.py")))


@cache
def documented_reasons() -> dict[str, str]:
    """Reason to the cell with its exit codes."""
    found: dict[str, str] = {}
    for row in rows("docs/operations.md", "## Reason codes"):
        for code in re.findall(r"`([A-Za-z]+)`", row[0]):
            assert code not in found, f"{code} is listed twice"
            found[code] = row[1]
    return found


def test_every_reason_of_the_code_is_documented() -> None:
    used = {reason for tree in trees() for reason in reasons_in(tree) if CODE.fullmatch(reason)}
    assert len(used) > 50, "the search itself is broken"
    assert used - documented_reasons().keys() == set()


def test_every_documented_reason_is_one_of_the_code() -> None:
    constants = {
        node.value
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert documented_reasons().keys() - constants == set()


def test_documented_reasons_have_the_exit_code_of_their_error() -> None:
    kinds = [errors.ReconcilerError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind.__module__ == errors.__name__:
            assert str(int(kind.exit_code)) in documented_reasons()[kind.reason].split(", "), kind.reason


def test_next_steps_are_given_for_reasons_that_exist() -> None:
    assert set(status.NEXT_STEPS) <= documented_reasons().keys()


def test_metrics_that_pages_name_are_those_of_the_code() -> None:
    named = set(re.findall(r"`(reconciler_[a-z_]+)`", read(ROOT / "docs" / "operations.md")))
    made = set(re.findall(r'"(reconciler_[a-z_]+)"', read(ROOT / "reconciler" / "status.py")))
    assert named == made


def test_shipped_tolerations_are_named() -> None:
    text = read(ROOT / "docs" / "secure-mode.md")
    listed = re.search(r"Shipped sets: ([^.]+)\.", text)
    assert listed is not None
    assert set(re.findall(r"`([a-z]+)`", listed[1])) == set(shipped_names())


def test_formats_of_values_are_listed() -> None:
    table = rows("docs/packages.md", "## Maps have one role each")
    listed = {text for row in table for text in re.findall(r"`([a-z0-9-]+)`", row[0])}
    assert {str(each) for each in elf.Format} <= listed


# --- examples ----------------------------------------------------------------------------------------------


def run(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def reconciler(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "reconciler", *arguments, cwd=cwd)


def test_the_example_repository_is_valid_with_the_packages_that_ship(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(ROOT / "examples" / "policy", policy)
    (policy / "packages").mkdir()
    archives = {path.name.rsplit("-", 1)[0]: path for path in PACKAGES.glob("*.tar.gz")}
    assert archives, "expected the packages that ship; run `make packages`"
    digests = {}
    for package, path in archives.items():
        shutil.copy(path, policy / "packages")
        (policy / "packages" / f"{path.name}.sigstore.json").write_text("{}", encoding="utf-8")
        answer = reconciler("-o", "json", "package", "inspect", str(path))
        digests[package] = json.loads(answer.stdout)["digest"]
    for chain in (policy / "chains").iterdir():
        text = read(chain)
        for package, digest in digests.items():
            text = re.sub(rf"(name: {package}\n.*\n +digest: )sha256:0+$", rf"\1{digest}", text, flags=re.MULTILINE)
        assert "0" * 64 not in text, chain.name
        chain.write_text(text, encoding="utf-8")
    done = reconciler("validate", str(policy))
    assert (done.returncode, done.stdout) == (0, "valid: 5 chains, 3 packages\n"), done.stdout + done.stderr


def test_the_example_of_a_host_is_valid() -> None:
    done = reconciler("validate", str(ROOT / "examples" / "host" / "config.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_with_a_certificate_is_valid() -> None:
    folder = ROOT / "examples" / "host"
    data = ROOT / "tests" / "data" / "sigstore"
    there = {
        "trusted_root.json": data / "trusted-root.json",
        "allowed_signers": folder / "allowed_signers",
    }
    config = parse_config(
        (folder / "certificate.yaml").read_bytes(),
        file="certificate.yaml",
        folder=str(folder),
        read=lambda path: there[Path(path).name].read_bytes(),
    )
    assert [rule.name for rule in config.trust.signers] == ["release-workflow"]


def test_examples_hold_no_private_key() -> None:
    for path in (ROOT / "examples").rglob("*"):
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes(), path


# --- the first package, step by step -----------------------------------------------------------------------


def test_the_first_package_is_built_as_the_page_says(tmp_path: Path) -> None:
    text = read(ROOT / "docs" / "packages.md")
    section = text.split("\n## A first package, step by step\n", 1)[1].split("\n## ", 1)[0]
    files = re.findall(
        r"`((?:udpblock|policy)/[\w./-]+)`[^`]*?\n\n```(?:c|yaml)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL
    )
    assert [path for path, _ in files] == [
        "udpblock/udpblock.bpf.c",
        "udpblock/package.yaml",
        "policy/chains/udpblock.yaml",
    ]
    steps = [
        line.removeprefix("$ ")
        for language, block in FENCE.findall(section)
        if language == "console"
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert reconciler("init", "policy", cwd=tmp_path).returncode == 0
    (tmp_path / "udpblock").mkdir()
    for path, content in files:
        (tmp_path / path).write_text(content, encoding="utf-8")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "reconciler"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m reconciler "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    script = "\n".join(["set -eux", *steps])
    done = run("bash", "-c", script, cwd=tmp_path, CHECKOUT=str(ROOT), PATH=f"{bin_folder}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid: 2 chains, 2 packages\n" in done.stdout
    pushed = run("git", "-C", str(tmp_path / "policy.git"), "ls-tree", "--name-only", "main", "chains/")
    assert pushed.stdout.split() == ["chains/demo.yaml", "chains/udpblock.yaml"]


# --- the unit ----------------------------------------------------------------------------------------------


def test_the_unit_starts_the_agent() -> None:
    unit = read(ROOT / "deploy" / "systemd" / "reconciler.service")
    start = re.search(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    assert start is not None
    check_invocation(next(invocations(start[1])))
