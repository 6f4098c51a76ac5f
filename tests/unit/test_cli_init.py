# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from reconciler.cli import _init
from reconciler.config import load_config
from tests.command import reconciler

if TYPE_CHECKING:
    from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    ran = reconciler("init", tmp_path / "policy", "-o", "json")
    assert (ran.code, ran.err) == (0, "")
    return tmp_path / "policy"


def test_the_repository_is_valid_and_its_commit_signed(made: Path) -> None:
    assert reconciler("validate", made).code == 0
    assert "Good" in git(made, "log", "--show-signature", "-1")
    assert git(made, "status", "--porcelain") == ""
    assert git(made, "rev-parse", "HEAD") == git(made.with_name("policy.git"), "rev-parse", "refs/heads/main")


def test_the_host_configuration_is_one_that_a_host_takes(made: Path) -> None:
    config = load_config(made.with_name("policy-host") / "config.yaml")
    assert config.source.minimum_commit == git(made, "rev-parse", "HEAD")
    assert config.source.repository == "policy"
    assert config.trust.commits.allowed_signers
    assert not config.trust.commits.unsafe_allow_unsigned
    assert config.secure.interfaces == ("rc-demo0",)
    assert config.paths.pins.startswith("/sys/fs/bpf/reconciler-")
    assert str(made.parent) in config.paths.state


def test_a_host_would_accept_commit_and_package(made: Path) -> None:
    ran = reconciler("-c", made.with_name("policy-host") / "config.yaml", "verify", "-o", "json")
    assert ran.code == 0
    kinds = {each["kind"]: each["reason"] for each in ran.json["verdicts"]}
    assert kinds == {"history": "Verified", "commit": "Verified", "package": "Verified"}


def test_keys_lie_outside_and_are_nobody_elses(made: Path) -> None:
    keys = made.with_name("policy-keys")
    assert mode(keys) == 0o700
    assert mode(keys / "commit") == 0o600
    assert mode(keys / "package.pem") == 0o600
    private = [path for path in made.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert private == []


def test_later_commits_are_signed_without_asking(made: Path) -> None:
    (made / "chains" / "demo.yaml").write_text(
        (made / "chains" / "demo.yaml").read_text().replace("rate: 10", "rate: 20")
    )
    git(made, "commit", "--quiet", "--all", "--message", "more")
    git(made, "push", "--quiet")
    ran = reconciler("-c", made.with_name("policy-host") / "config.yaml", "verify", "-o", "json")
    assert ran.code == 0
    assert [each["kind"] for each in ran.json["verdicts"]].count("commit") == 1


def test_three_commands_are_printed(tmp_path: Path) -> None:
    ran = reconciler("init", tmp_path / "policy")
    following = ran.out.partition("Next")[2].splitlines()[1:]
    assert len(following) == 3
    assert "ip link add rc-demo0 type veth" in following[0]
    assert following[1].endswith(f"--config {tmp_path}/policy-host/config.yaml plan")
    assert following[2].endswith(f"--config {tmp_path}/policy-host/config.yaml apply")


def test_editors_find_the_schemas(made: Path) -> None:
    for name in ("reconciler.yaml", "chains/demo.yaml"):
        first = (made / name).read_text().splitlines()[0]
        schema = first.partition("$schema=")[2]
        assert ((made / name).parent / schema).is_file()


def test_a_folder_with_something_in_it_is_refused(made: Path) -> None:
    before = git(made, "rev-parse", "HEAD")
    ran = reconciler("init", made)
    assert ran.code == 1
    assert "nothing was changed" in ran.err
    assert git(made, "rev-parse", "HEAD") == before


@pytest.mark.parametrize("beside", ["policy.git", "policy-keys"])
def test_so_is_what_lies_beside_it(beside: str, tmp_path: Path) -> None:
    (tmp_path / beside).mkdir()
    (tmp_path / beside / "mine").write_text("x")
    assert reconciler("init", tmp_path / "policy").code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [beside]


def test_keys_never_go_into_the_repository(tmp_path: Path) -> None:
    ran = reconciler("init", tmp_path / "policy", "--keys", tmp_path / "policy" / "keys")
    assert ran.code == 1
    assert "outside" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_keys_and_configuration_go_where_they_are_told_to(tmp_path: Path) -> None:
    ran = reconciler("init", tmp_path / "p", "--keys", tmp_path / "k", "--host-config", tmp_path / "etc" / "r.yaml")
    assert ran.code == 0
    assert (tmp_path / "k" / "commit").is_file()
    assert load_config(tmp_path / "etc" / "r.yaml").trust.signers


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy-host").mkdir()
    (tmp_path / "policy-host" / "mine").write_text("x")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    ran = reconciler("init", tmp_path / "policy")
    assert ran.code == 1
    assert "reconciler check" in ran.err
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "policy",
        "policy-host",
        "policy-host/mine",
    ]


def test_a_path_that_cannot_be_a_url_is_refused(tmp_path: Path) -> None:
    ran = reconciler("init", tmp_path / "my policy")
    assert ran.code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["true", "12", "Ünï", "a" * 80])
def test_every_folder_name_gives_a_valid_repository_name(name: str) -> None:
    assert 0 < len(_init._name(name)) <= 40


@pytest.mark.parametrize("name", ["true", "12"])
def test_names_that_yaml_reads_otherwise_are_quoted(name: str, tmp_path: Path) -> None:
    assert reconciler("init", tmp_path / name).code == 0
    assert reconciler("validate", tmp_path / name).code == 0


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert reconciler("init", tmp_path / "policy").code == 0
    finally:
        os.umask(before)
    assert mode(tmp_path / "policy-keys" / "package.pem") == 0o600
    assert mode(tmp_path / "policy-keys" / "commit") == 0o600
    assert mode(tmp_path / "policy-host" / "config.yaml") == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs folders that only root can write")
def test_root_is_told_that_a_host_would_not_trust_the_place(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 1000, 1000)
    ran = reconciler("init", tmp_path / "home" / "policy")
    assert ran.code == 1
    assert "only root can write" in ran.err
    assert list((tmp_path / "home").iterdir()) == []
