# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.command import reconciler

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validate")
    assert reconciler("init", root / "policy").code == 0
    return root


@pytest.fixture
def policy(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine / "policy", tmp_path / "policy", ignore=shutil.ignore_patterns(".git"))
    return tmp_path / "policy"


def change(policy: Path, old: str, new: str) -> None:
    chain = policy / "chains" / "demo.yaml"
    text = chain.read_text()
    assert old in text
    chain.write_text(text.replace(old, new))


def findings(policy: Path) -> list[dict[str, Any]]:
    ran = reconciler("validate", policy, "-o", "json")
    assert ran.code == (1 if ran.json["findings"] else 0)
    assert ran.json["valid"] is (ran.code == 0)
    found: list[dict[str, Any]] = ran.json["findings"]
    return found


def test_a_valid_tree(policy: Path) -> None:
    ran = reconciler("validate", policy)
    assert (ran.code, ran.out) == (0, "valid: 1 chain, 1 package\n")


def test_the_current_folder_is_the_default(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(policy)
    assert reconciler("validate").out == "valid: 1 chain, 1 package\n"


def test_all_findings_come_with_their_places(policy: Path) -> None:
    change(policy, "rate: 10", "rate: 0")
    change(policy, "value: 0}", "value: -1}")
    found = findings(policy)
    assert [(each["file"], each["line"], each["column"]) for each in found] == [
        ("chains/demo.yaml", 22, 15),
        ("chains/demo.yaml", 26, 15),
    ]
    assert "expected 1..1000000 connections per second, got 0" in found[0]["message"]
    assert found[1]["pointer"] == "/spec/members/0/maps/ports/entries/0"


def test_an_unknown_field(policy: Path) -> None:
    change(policy, "priority: 100", "prioritty: 100")
    assert any("did you mean 'priority'" in each["message"] for each in findings(policy))


def test_a_program_that_the_package_lacks(policy: Path) -> None:
    change(policy, "program: ratelimit", "program: nothing")
    (found,) = findings(policy)
    assert (found["line"], "expected a program of package ratelimit" in found["message"]) == (20, True)


def test_a_hook_that_the_program_is_not_for(policy: Path) -> None:
    change(policy, "type: xdp", "type: tc\n    direction: ingress")
    assert any("expected a program for tc-ingress" in each["message"] for each in findings(policy))


def test_a_digest_that_is_not_the_archives(policy: Path) -> None:
    change(policy, "digest: sha256:", f"digest: sha256:{'0' * 64} #")
    (found,) = findings(policy)
    assert found["pointer"] == "/spec/members/0/package/digest"


def test_a_missing_package(policy: Path) -> None:
    next((policy / "packages").glob("*.tar.gz")).unlink()
    (found,) = findings(policy)
    assert "expected packages/ratelimit-1.0.0.tar.gz in the same commit" in found["message"]


def test_another_version_of_a_package_is_named(policy: Path) -> None:
    change(policy, "version: 1.0.0", "version: 1.0.1")
    (found,) = findings(policy)
    assert "expected packages/ratelimit-1.0.1.tar.gz in the same commit, got ratelimit-1.0.0.tar.gz" in found["message"]


def test_a_chain_that_cannot_be_read_is_no_fault_of_its_test(policy: Path) -> None:
    change(policy, "type: xdp", "type: xpd")
    (found,) = findings(policy)
    assert found["file"] == "chains/demo.yaml"


def test_a_folder_without_a_repository_says_where_one_lies(policy: Path, tmp_path: Path) -> None:
    (found,) = findings(tmp_path)
    assert found["file"] == str(tmp_path)
    assert "expected a policy repository here (reconciler.yaml and chains/), got neither" in found["message"]
    (found,) = findings(policy / "chains")
    assert found["message"].endswith(f"one lies in {policy.resolve()}: name that")
    ran = reconciler("test", policy / "tests")
    assert (ran.code, f"one lies in {policy.resolve()}" in ran.err) == (1, True)


def test_a_missing_signature(policy: Path) -> None:
    next((policy / "packages").glob("*.sigstore.json")).unlink()
    (found,) = findings(policy)
    assert "reconciler package sign" in found["message"]


def test_a_damaged_archive(policy: Path) -> None:
    archive = next((policy / "packages").glob("*.tar.gz"))
    archive.write_bytes(archive.read_bytes()[:-100])
    (found,) = findings(policy)
    assert found["file"] == "packages/ratelimit-1.0.0.tar.gz"


def test_packages_of_other_repositories_are_named_and_not_judged(policy: Path) -> None:
    change(policy, "        digest:", "        repository: mirror\n        digest:")
    ran = reconciler("validate", policy, "-o", "json")
    assert ran.code == 0
    assert ran.json["notChecked"] == ["ratelimit 1.0.0 (mirror)"]
    assert "not checked: ratelimit 1.0.0" in reconciler("validate", policy).out


def test_links_and_odd_names_are_findings_as_they_are_for_a_host(policy: Path) -> None:
    (policy / "chains" / "link.yaml").symlink_to("/etc/passwd")
    (policy / "chains" / "a b.yaml").write_text("")
    found = {each["file"]: each["message"] for each in findings(policy)}
    assert "symbolic link" in found["chains/link.yaml"]
    assert "no blanks" in found["chains/a b.yaml"]


def test_words_of_a_finding_in_a_file_hide_no_finding(tmp_path: Path) -> None:
    file = tmp_path / "reconciler.yaml"
    head = "apiVersion: reconciler/v1alpha1\nkind: Repository\nmetadata: {name: x}\n"
    file.write_text(f"{head}spec: {{}}\n")
    assert reconciler("validate", file).code == 0  # that it has no chains is for the work tree to say
    file.write_text(f"{head}spec: {{at least one chain: 1}}\n")
    assert reconciler("validate", file).code == 1


def test_a_repository_without_its_file(policy: Path) -> None:
    (policy / "reconciler.yaml").unlink()
    (found,) = findings(policy)
    assert found["file"] == "reconciler.yaml"


@pytest.mark.parametrize("name", ["chains/demo.yaml", "reconciler.yaml", "packages/ratelimit-1.0.0.tar.gz"])
def test_single_files(name: str, policy: Path) -> None:
    assert reconciler("validate", policy / name).code == 0


def test_a_single_chain_with_findings_is_called_as_it_was_given(policy: Path) -> None:
    change(policy, "priority: 100", "priority: x")
    ran = reconciler("validate", policy / "chains" / "demo.yaml")
    assert ran.code == 1
    assert ran.out.startswith(f"{policy}/chains/demo.yaml:10:13: ")


def test_a_host_configuration(pristine: Path, tmp_path: Path) -> None:
    config = pristine / "policy-host" / "config.yaml"
    assert reconciler("validate", config).code == 0
    shutil.copytree(config.parent, tmp_path / "host")
    (tmp_path / "host" / "allowed_signers").unlink()
    ran = reconciler("validate", tmp_path / "host" / "config.yaml")
    assert ran.code == 1
    assert "allowed_signers" in ran.out


def test_a_package_folder(tmp_path: Path) -> None:
    text = "apiVersion: reconciler/v1alpha1\nkind: Package\nmetadata: {name: x, version: 1.0.0}\nspec: {}\n"
    (tmp_path / "package.yaml").write_text(text)
    ran = reconciler("validate", tmp_path)
    assert ran.code == 1
    assert "'programs'" in ran.out


def test_nothing_of_that_name(tmp_path: Path) -> None:
    ran = reconciler("validate", tmp_path / "nothing")
    assert (ran.code, ran.out) == (1, "")


def test_what_others_wrote_does_not_reach_the_terminal_raw(policy: Path) -> None:
    (policy / "chains" / "x\x1b[2Jy.yaml").write_text("")
    ran = reconciler("validate", policy)
    assert ran.code == 1
    assert "\x1b" not in ran.out


def test_a_single_file_is_said_to_be_what_it_is(pristine: Path, tmp_path: Path) -> None:
    config = pristine / "policy-host" / "config.yaml"
    assert reconciler("validate", config).out == "valid: configuration of a host\n"
    assert reconciler("validate", pristine / "policy" / "reconciler.yaml").out == "valid: description of a repository\n"
    (archive,) = (pristine / "policy" / "packages").glob("*.tar.gz")
    renamed = shutil.copy(archive, tmp_path / "download")
    assert reconciler("validate", renamed).out == "valid: 0 chains, 1 package\n"


def test_a_mistyped_verb_is_told_the_nearest_one() -> None:
    ran = reconciler("validat")
    assert ran.code == 64
    assert "expected a verb, got 'validat'; did you mean 'validate'?" in ran.err
