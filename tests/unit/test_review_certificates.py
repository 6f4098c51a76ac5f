# SPDX-License-Identifier: Apache-2.0
"""Packages signed by certificates: a review verifies them under BASE's trust roots, and says where it could not."""

from __future__ import annotations

import functools
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from reconciler import manifest
from reconciler.trust import _apart
from tests.manifests import text
from tests.private_sigstore import IDENTITY, ISSUER, Leaf, PrivateSigstore
from tests.signed_packages import Key, Signed
from tests.unit.test_review_hostile import Repository, Said, edge, member_of, reviewed, tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROOT = "hosts/sigstore.json"
OTHER = "https://ci.example.org/somebody/else@refs/heads/main"
NAMED, STRANGER = f"{IDENTITY} ({ISSUER})", f"{OTHER} ({ISSUER})"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    subprocess.run(["git", "init", "-q", tmp_path / "clone"], check=True)
    return Repository(tmp_path / "clone")


@functools.cache
def ours() -> PrivateSigstore:
    return PrivateSigstore()


@functools.cache
def theirs() -> PrivateSigstore:
    """One that anybody can run, and that writes whatever they like into certificates."""
    return PrivateSigstore()


@functools.cache
def archive(version: str) -> bytes:
    return Signed.make(Key.make(), version=version).archive


@functools.cache
def signed(version: str = "1.0.0", *, by: str = IDENTITY, under: PrivateSigstore | None = None) -> Signed:
    made = under or ours()
    leaf = Leaf(names=(x509.UniformResourceIdentifier(by),), transparency=made.transparency)
    bundle = json.dumps(made.bundle(archive(version), leaf=leaf)).encode()
    return Signed("demo", version, archive(version), bundle)


def group(name: str = "edge", *, root: str | None = ROOT, identity: str = IDENTITY) -> dict[str, Any]:
    rule = {"name": "release", "packages": ["*"], "identity": identity, "issuer": ISSUER}
    rule |= {"root": root} if root is not None else {}
    spec = {"labels": {"role": "edge"}, "policy": {"signers": [rule]}}
    return {"apiVersion": "reconciler/v1alpha1", "kind": "HostGroup", "metadata": {"name": name}, "spec": spec}


def side(package: Signed, *groups: dict[str, Any], root: bytes | None = None, **params: Any) -> dict[str | bytes, Any]:
    files = tree(edge(members=[member_of(package, **params)]), signed=package)
    files |= {f"hosts/{each['metadata']['name']}.yaml": text(each) for each in groups}
    return files | ({ROOT: root} if root is not None else {})


def base(*groups: dict[str, Any]) -> dict[str | bytes, Any]:
    return side(signed(), *(groups or (group(),)), root=ours().root())


def upgraded(repository: Repository, package: Signed, before: Mapping[str | bytes, Any] | None = None) -> Said:
    old = base() if before is None else before
    new = dict(old) | {"chains/0.yaml": text(edge(members=[member_of(package)]))}
    new |= {f"packages/{name}": data for name, data in package.files.items()}
    return reviewed(repository, new, old)


def signers(said: Said) -> list[tuple[str, str]]:
    (chain,) = said.document["chains"]
    return [(line["before"], line["after"]) for line in chain["lines"] if line["what"] == "signer"]


def test_a_package_by_whom_the_group_allows_is_verified_and_no_finding(repository: Repository) -> None:
    said = upgraded(repository, signed("2.0.0"))
    assert said.ids == set()
    assert signers(said) == [(NAMED, NAMED)]


def test_somebody_else_under_the_same_root_is_told_and_refused(repository: Repository) -> None:
    said = upgraded(repository, signed("2.0.0", by=OTHER))
    assert said.ids == {"RV004", "RV022"}
    assert f"is signed by {STRANGER}, whom no signer rule of the group allows" in said.message("RV004")
    assert said.message("RV022") == f"signed by {STRANGER}, before by {NAMED}"
    assert signers(said) == [(NAMED, STRANGER)]


def test_a_certificate_that_only_claims_to_be_somebody_is_refused(repository: Repository) -> None:
    said = upgraded(repository, signed("2.0.0", under=theirs()))
    assert said.ids == {"RV004", "RV042"}
    assert f"is signed by {NAMED}, as claimed, whom no signer rule" in said.message("RV004")
    assert f"the bundle claims {IDENTITY}, and under {ROOT}: " in said.message("RV042")
    assert signers(said) == [(NAMED, f"{NAMED}, as claimed")]


def test_the_signature_of_other_bytes_is_refused(repository: Repository) -> None:
    said = upgraded(repository, Signed("demo", "2.0.0", archive("2.0.0"), signed().bundle))
    assert said.ids == {"RV004", "RV042"}


def test_a_root_that_the_change_brings_verifies_nothing(repository: Repository) -> None:
    forged = signed("2.0.0", under=theirs())
    said = reviewed(repository, side(forged, group(), root=theirs().root()), base())
    assert said.ids == {"RV004", "RV042", "RV053"}
    assert said.message("RV053") == f"the trust root {ROOT} is changed; signatures were verified with what BASE has"
    # Nor does one under another name, in a group that the change points to it.
    other = "hosts/other.json"
    files = base(group(root=other)) | {other: theirs().root()}
    files |= {"chains/0.yaml": text(edge(members=[member_of(forged)]))}
    files |= {f"packages/{name}": data for name, data in forged.files.items()}
    said = reviewed(repository, files, base())
    assert said.ids == {"RV004", "RV042", "RV053"}
    assert {each["message"] for each in said.document["findings"] if each["id"] == "RV053"} == {
        f"the trust root {other} is added; signatures were verified with what BASE has",
        f"group edge is changed (policy.signers release: root {ROOT} → {other}); both versions were reviewed",
    }


def test_a_root_that_goes_or_changes_is_told_when_nothing_else_changes(repository: Repository) -> None:
    changed = reviewed(repository, base() | {ROOT: theirs().root()}, base())
    assert changed.ids == {"RV053"}
    gone = reviewed(repository, side(signed(), group()), base())
    assert gone.ids == {"RV053", "RV055"}
    assert f"expected the trust root {ROOT} in the repository, got none; add it" in gone.message("RV055")


def test_without_a_root_a_certificate_is_a_claim(repository: Repository) -> None:
    said = upgraded(repository, signed("2.0.0"), base(group(root=None)))
    assert said.ids == {"RV042"}
    assert said.message("RV042").endswith(f"the bundle claims {IDENTITY}, and nothing here could verify it")
    said = upgraded(repository, signed("2.0.0", by=OTHER), base(group(root=None)))
    assert said.ids == {"RV004", "RV022", "RV042"}
    assert signers(said) == [(f"{NAMED}, as claimed", f"{STRANGER}, as claimed")]


def test_each_group_asks_for_its_own_root(repository: Repository) -> None:
    second = "hosts/second.json"
    before = base(group("edge"), group("site", root=second)) | {second: theirs().root()}
    said = upgraded(repository, signed("2.0.0"), before)
    assert said.ids == {"RV004"}
    (finding,) = (each for each in said.document["findings"] if each["id"] == "RV004")
    assert finding["hosts"] == ["site"]


def test_a_package_that_a_selector_brings_to_other_hosts_is_verified_for_them(repository: Repository) -> None:
    db = group("db")
    db["spec"]["labels"] = {"role": "db"}
    before = base(group(), db)
    after: dict[str | bytes, Any] = {"chains/0.yaml": text(edge(members=[member_of(signed())], hosts={}))}
    assert reviewed(repository, before | after, before).ids == set()
    before["packages/demo-1.0.0.tar.gz.sigstore.json"] = signed(under=theirs()).bundle
    said = reviewed(repository, before | after, before)
    assert said.ids == {"RV004"}
    (finding,) = said.document["findings"]
    assert finding["hosts"] == ["db"]


def test_a_root_that_is_none_verifies_nothing(repository: Repository) -> None:
    for root in (b"", b"{}", b"[" * 1000, b"\xff"):
        said = upgraded(repository, signed("2.0.0"), side(signed(), group(), root=root))
        assert said.ids == {"RV004", "RV042"}


def test_the_same_bytes_whose_signature_no_longer_holds_are_told(repository: Repository) -> None:
    forged = signed(under=theirs())
    said = reviewed(repository, side(forged, group(), root=ours().root()), base())
    assert said.ids == {"RV022"}
    assert said.message("RV022") == f"signed by {NAMED}, as claimed, before by {NAMED}"


def test_no_verifier_starts_for_packages_that_stay(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(_apart.Child, "_running", started.append)
    said = reviewed(repository, side(signed(), group(), root=ours().root(), proceedOn=["pass", "drop"]), base())
    assert said.document["chains"][0]["change"] == "changed"
    assert started == []
    monkeypatch.undo()


def test_a_verifier_that_fails_accepts_nothing(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_apart, "COMMAND", ("/bin/false",))
    said = upgraded(repository, signed("2.0.0"))
    assert said.ids == {"RV004", "RV042"}
    assert "expected the verifier of certificates to answer" in said.message("RV042")


def test_a_verifier_that_failed_is_asked_no_more(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = _apart.Child._running

    def running(self: _apart.Child) -> Any:
        asked.append(self)
        return real(self)

    monkeypatch.setattr(_apart, "COMMAND", ("/bin/false",))
    monkeypatch.setattr(_apart.Child, "_running", running)
    new = [signed("2.0.0"), signed("3.0.0"), signed("4.0.0")]
    files = base() | {"chains/0.yaml": text(edge(members=[member_of(each, f"m{n}") for n, each in enumerate(new)]))}
    files |= {f"packages/{name}": data for each in new for name, data in each.files.items()}
    said = reviewed(repository, files, base())
    refused = [each["message"] for each in said.document["findings"] if each["id"] == "RV042"]
    assert len(refused) == 3
    assert all("expected the verifier of certificates to answer" in each for each in refused)
    assert len(asked) == 1


def test_a_root_stands_beside_an_identity_only(tmp_path: Path) -> None:
    wrong = group()
    (rule,) = wrong["spec"]["policy"]["signers"]
    rule |= {"key": "SHA256:" + "A" * 43}
    del rule["identity"], rule["issuer"]
    (finding,) = manifest.parse_groups({"hosts/edge.yaml": text(wrong)}, alone=True).findings
    assert finding.message == "expected a root beside an identity only, got one"
    for path in ("/etc/passwd", "chains/x.json", "hosts/", ""):
        found = manifest.parse_groups({"hosts/edge.yaml": text(group(root=path))}, alone=True).findings
        assert [each.pointer for each in found] == ["/spec/policy/signers/0/root"]
    assert manifest.parse_groups({"hosts/edge.yaml": text(group())}, alone=True).findings == ()
