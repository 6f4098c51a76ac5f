# SPDX-License-Identifier: Apache-2.0
"""The installed command in a process of its own: what CliRunner cannot see."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler import packages
from reconciler._resources import names, resource
from tests.kernel import support

COMMAND = Path(sys.executable).with_name("reconciler")
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), *(str(each) for each in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_and_the_module_are_the_same() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "reconciler", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert module.stdout == run("--help").stdout
    for verb in ("init", "validate", "plan", "apply", "run", "status", "observe", "verify", "package", "teardown"):
        assert f"  {verb} " in module.stdout


def test_this_machine_has_what_is_needed() -> None:
    ran = run("check")
    assert ran.returncode == 0, ran.stdout
    assert "everything that is needed is there" in ran.stdout


def test_no_colour_and_no_progress_in_a_pipe(tmp_path: Path) -> None:
    ran = run("validate", tmp_path)
    assert ran.returncode == 1
    assert "\x1b" not in ran.stdout + ran.stderr


def test_colour_on_a_terminal() -> None:
    parent, child = pty.openpty()
    try:
        subprocess.run([COMMAND, "check"], stdout=child, stderr=child, check=False, timeout=60)
        os.set_blocking(parent, False)
        shown = os.read(parent, 1 << 16)
    finally:
        os.close(parent)
        os.close(child)
    assert b"\x1b[1m" in shown


def test_a_reader_that_leaves_is_no_crash() -> None:
    with subprocess.Popen([COMMAND, "explain"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_foreign_programs_are_seen_without_any_configuration(tmp_path: Path) -> None:
    archive = next(name for name in names("packages") if name.startswith("ratelimit-") and name.endswith(".tar.gz"))
    program = tmp_path / "program.o"
    program.write_bytes(packages.read_archive(resource("packages", archive), file=archive)["ratelimit.bpf.o"])
    with support.wire() as wire:
        wire.near.ip("link", "set", "dev", wire.interface, "xdpgeneric", "obj", str(program), "sec", "xdp")
        ran = run("observe", "--netns", wire.near.name, "-o", "json")
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["attachments"]
    expected = {"interface": wire.interface, "attached": "xdp-netlink", "mode": "generic", "program": "ratelimit"}
    assert {key: found[key] for key in expected} == expected
    assert (found["whose"], found["removal"]) == ("foreign", "netlink")


def test_a_namespace_that_does_not_exist() -> None:
    ran = run("observe", "--netns", support.unique("no"))
    assert ran.returncode == 1
    assert "ip netns" in ran.stderr


def test_what_init_prints_works_as_it_is(tmp_path: Path) -> None:
    made = run("init", tmp_path / support.unique("policy"), "-o", "json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    with support.netns() as space:
        # nsenter keeps bpffs in sight; what the commands make goes with the namespace.
        inside = ["nsenter", f"--net=/run/netns/{space.name}", "sh", "-c"]
        codes = [subprocess.run([*inside, command], check=False, timeout=120).returncode for command in told["next"]]
        command = [*inside, f"{COMMAND} -c {told['config']} "]
        try:
            assert codes == [0, 2, 0]
            shown = subprocess.run([*command[:-1], command[-1] + "-o json observe"], capture_output=True, check=True)
            (found,) = json.loads(shown.stdout)["attachments"]
            assert (found["interface"], found["program"], found["whose"]) == ("rc-demo0", "ratelimit", "owned")
        finally:
            ended = subprocess.run([*command[:-1], command[-1] + "teardown --yes"], check=False, timeout=120)
        assert ended.returncode == 0
        assert not [path for path in Path("/sys/fs/bpf").iterdir() if Path(told["repository"]).name in path.name]


@pytest.mark.slow
def test_the_demo_works_and_leaves_nothing() -> None:
    done = subprocess.run(
        [ROOT / "demo" / "run"], capture_output=True, text=True, check=False, timeout=280, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "nothing is left on this machine" in done.stdout
