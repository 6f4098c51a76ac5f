# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.command import Ran, reconciler

if TYPE_CHECKING:
    from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Site:
    """A repository that `init` made, and the host that follows it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy = root / "policy"
        self.config = root / "policy-host" / "config.yaml"

    def verify(self, *arguments: object) -> Ran:
        return reconciler("-c", self.config, "verify", *arguments)

    def verdicts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.verify("-o", "json").json["verdicts"]
        return found

    def commit(self, *options: str) -> str:
        chain = self.policy / "chains" / "demo.yaml"
        chain.write_text(f"{chain.read_text()}# more\n")
        git(self.policy, *options, "commit", "--quiet", "--all", "--message", "more")
        git(self.policy, "push", "--quiet", "--force")
        return git(self.policy, "rev-parse", "HEAD")

    @property
    def archive(self) -> Path:
        return self.policy / "packages" / "ratelimit-1.0.0.tar.gz"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    assert reconciler("init", tmp_path / "policy").code == 0
    return Site(tmp_path)


def test_the_signers_are_named(site: Site) -> None:
    ran = site.verify()
    assert ran.code == 0
    assert "policy@localhost SHA256:" in ran.out
    assert "policy-packages SHA256:" in ran.out


def test_every_new_commit_is_verified(site: Site) -> None:
    site.commit()
    site.commit("-c", "commit.gpgsign=false")
    site.commit()
    assert site.verify().code == 3
    commits = [each["reason"] for each in site.verdicts() if each["kind"] == "commit"]
    assert commits == ["Verified", "Unsigned", "Verified"]


def test_a_stranger(site: Site) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(site.root / "stranger")], check=True)
    commit = site.commit("-c", f"user.signingkey={site.root / 'stranger'}")
    ran = site.verify()
    assert ran.code == 3
    assert f"SignerNotAllowed: commit {commit}" in ran.out


def test_history_that_does_not_follow(site: Site) -> None:
    git(site.policy, "commit", "--quiet", "--amend", "--message", "another first commit")
    git(site.policy, "push", "--quiet", "--force")
    ran = site.verify()
    assert ran.code == 4
    assert "HistoryRewritten" in ran.out


def test_manifests_that_are_not_valid(site: Site) -> None:
    (site.policy / "chains" / "demo.yaml").write_text("kind: Nothing\n")
    git(site.policy, "commit", "--quiet", "--all", "--message", "bad")
    git(site.policy, "push", "--quiet")
    assert site.verify().code == 1
    assert {each["kind"]: each["reason"] for each in site.verdicts()}["manifests"] == "InvalidManifest"


def test_a_package_without_signature(site: Site) -> None:
    git(site.policy, "rm", "--quiet", "packages/ratelimit-1.0.0.tar.gz.sigstore.json")
    git(site.policy, "commit", "--quiet", "--message", "unsigned")
    git(site.policy, "push", "--quiet")
    assert site.verify().code == 3
    assert site.verdicts()[-1]["reason"] == "Unsigned"


def test_verifying_adopts_nothing(site: Site) -> None:
    assert site.verify().code == 0
    state = site.config.parent / "state"
    kept = {path.name for path in state.iterdir()}
    assert not kept & {"source.json", "inventory.json", "control.json", "history.jsonl", "status.json", "lock"}


def test_one_archive(site: Site) -> None:
    ran = site.verify("--archive", site.archive)
    assert ran.code == 0
    assert "policy-packages SHA256:" in ran.out


def test_one_archive_with_its_bundle_elsewhere(site: Site, tmp_path: Path) -> None:
    bundle = site.archive.with_name(f"{site.archive.name}.sigstore.json")
    shutil.move(bundle, tmp_path / "bundle.json")
    assert site.verify("--archive", site.archive).code == 1
    assert site.verify("--archive", site.archive, "--bundle", tmp_path / "bundle.json").code == 0


def test_an_archive_that_somebody_else_signed(site: Site) -> None:
    key = site.root / "key.pem"
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
    subprocess.run(command, check=True)
    assert reconciler("package", "sign", site.archive, "--key", key).code == 0
    ran = site.verify("--archive", site.archive)
    assert ran.code == 3
    assert "BadSignature" in ran.out


def test_a_revoked_archive(site: Site) -> None:
    digest = site.verify("--archive", site.archive, "-o", "json").json["verdicts"][0]["name"].split()[-1]
    text = site.config.read_text()
    site.config.write_text(text.replace("  trust:\n", f'  trust:\n    revoked: {{digests: ["{digest}"]}}\n'))
    ran = site.verify("--archive", site.archive)
    assert ran.code == 3
    assert "Revoked" in ran.out


def test_a_bundle_needs_an_archive(site: Site) -> None:
    assert site.verify("--bundle", site.archive).code == 64


def test_without_configuration(tmp_path: Path) -> None:
    assert reconciler("-c", tmp_path / "none.yaml", "verify").code == 1
