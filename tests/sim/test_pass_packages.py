# SPDX-License-Identifier: Apache-2.0
"""Packages: what is refused with its commit, and what a revocation does to what runs."""

from __future__ import annotations

import shutil

import pytest

from reconciler import packages
from reconciler.config import FolderRepository, KeyRule
from reconciler.config.signers import Revoked
from reconciler.model import DriftKind
from tests.sim.host import Host, archive, bundle, chain, member, package_keys, ref, tree

FIREWALL = member("firewall", program="firewall_xdp")


def with_firewall() -> object:
    """The chain of `edge`, with a second member."""
    return chain("edge", member(), FIREWALL)


def refused(host: Host, reason: str, code: int, *, before: object) -> None:
    watermark = host.applied
    for _ in range(2):
        result = host.apply()
        assert (result.status.reason, result.status.exit_code) == (reason, code), result.status.message
        assert host.applied == watermark
        assert host.fingerprint() == before
    host.detach()
    assert host.repair().status.exit_code == code
    assert host.runs() == ["ratelimit"]


# --- refused with their commit -----------------------------------------------------------------------------


def test_an_unsigned_package_refuses_the_commit(edge: Host) -> None:
    edge.origin.commit(with_firewall(), signed={"firewall": ""})
    refused(edge, "Unsigned", 3, before=edge.fingerprint())


def test_a_package_that_another_key_signed_refuses_the_commit(edge: Host) -> None:
    edge.origin.commit(with_firewall(), signed={"firewall": "other"})
    refused(edge, "BadSignature", 3, before=edge.fingerprint())


def test_a_package_with_another_packages_bundle_refuses_the_commit(edge: Host) -> None:
    files = tree(with_firewall())
    files["packages/firewall-1.0.0.tar.gz.sigstore.json"] = bundle("ratelimit")
    edge.origin.commit(files=files)
    refused(edge, "BadSignature", 3, before=edge.fingerprint())


def test_a_package_with_another_digest_refuses_the_commit(edge: Host) -> None:
    files = tree(with_firewall())
    files["packages/firewall-1.0.0.tar.gz"] = archive("ratelimit")
    edge.origin.commit(files=files)
    refused(edge, "DigestMismatch", 3, before=edge.fingerprint())


def test_a_package_that_is_not_there_is_looked_for_again(edge: Host) -> None:
    used = {**FIREWALL, "package": ref("firewall", repository="site")}
    folder = edge.folder / "site"
    folder.mkdir()
    edge.configure(repositories=(FolderRepository(name="site", path=str(folder)),))
    files = tree(chain("edge", member(), used))
    edge.origin.commit(files=files)
    before = edge.fingerprint()
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("PackageUnavailable", 1)
    assert result.transient
    assert edge.fingerprint() == before
    (folder / "firewall-1.0.0.tar.gz").write_bytes(archive("firewall"))
    (folder / "firewall-1.0.0.tar.gz.sigstore.json").write_bytes(bundle("firewall"))
    assert edge.apply().status.reason == "Applied"
    assert edge.runs() == ["ratelimit", "firewall"]
    shutil.rmtree(folder)
    edge.reboot()
    assert edge.apply().status.reason == "Applied"


def test_a_package_of_another_hosts_chain_is_not_even_looked_at(edge: Host) -> None:
    other = chain("db", FIREWALL, hosts={"matchLabels": {"role": "db"}})
    edge.origin.commit(chain(), other, signed={"firewall": ""})
    assert edge.apply().status.exit_code == 0


def test_an_unknown_repository_refuses_the_commit_for_good(edge: Host) -> None:
    edge.origin.commit(chain("edge", member(), {**FIREWALL, "package": ref("firewall", repository="nowhere")}))
    refused(edge, "UnknownRepository", 1, before=edge.fingerprint())


# --- revoked -----------------------------------------------------------------------------------------------


def revoke(host: Host, name: str = "ratelimit", **changes: object) -> None:
    digest = packages.digest_of(archive(name))
    host.trust(revoked=Revoked(digests=frozenset({digest})), **changes)


def test_a_revoked_package_that_is_new_refuses_the_commit(edge: Host) -> None:
    revoke(edge, "firewall")
    edge.origin.commit(with_firewall())
    refused(edge, "Revoked", 3, before=edge.fingerprint())


def test_a_revoked_package_that_runs_is_kept_repaired_and_said(edge: Host) -> None:
    before = edge.fingerprint()
    revoke(edge)
    for request in ({}, {"poll": False}):
        result = edge.apply(**request)
        assert (result.status.reason, result.status.exit_code) == ("Revoked", 2)
        assert [drift.kind for drift in result.status.drift] == [DriftKind.REVOKED]
        assert result.status.drift[0].critical
        assert edge.fingerprint() == before
    edge.detach()
    assert edge.repair().status.reason == "Revoked"
    assert edge.runs() == ["ratelimit"]
    edge.reboot()
    assert edge.apply().status.reason == "Revoked"
    assert edge.runs() == ["ratelimit"]


def test_a_newer_commit_may_still_name_what_runs_although_it_is_revoked(edge: Host) -> None:
    revoke(edge)
    edge.origin.commit(chain("edge", member(params={"rate": 3})))
    result = edge.apply()
    assert result.status.reason == "Revoked"
    assert result.outcome is not None
    assert result.outcome.committed
    edge.origin.commit(chain("edge", member(version="1.0.1", params={"rate": 3})))
    assert edge.apply().status.reason == "Applied"


def test_a_revoked_package_leaves_its_hooks_when_the_host_says_so(edge: Host) -> None:
    edge.origin.commit(chain(), chain("other", FIREWALL, priority=200, hook={"type": "xdp", "interfaces": ["eth*"]}))
    edge.apply()
    assert edge.runs() == ["ratelimit", "firewall"]
    revoke(edge, on_revoked="detach")
    result = edge.apply()
    assert result.status.reason == "Revoked"
    assert edge.runs() == edge.runs("eth1") == ["firewall"]
    assert edge.kernel.violations == []
    result = edge.apply()
    assert result.plan is not None
    assert result.plan.steps == ()
    edge.trust(revoked=Revoked())
    edge.apply()
    assert edge.runs() == ["ratelimit", "firewall"]


def test_the_last_package_can_leave_too(edge: Host) -> None:
    revoke(edge, on_revoked="detach")
    assert edge.apply().status.reason == "Revoked"
    assert edge.kernel.pins == {}
    edge.reboot()
    assert edge.apply().status.reason == "Revoked"
    assert edge.kernel.pins == {}


def test_a_revoked_key_is_as_good_as_a_revoked_digest(edge: Host) -> None:
    edge.trust(revoked=Revoked(keys=frozenset({package_keys()["release"].fingerprint})))
    assert edge.apply().status.reason == "Revoked"
    assert edge.runs() == ["ratelimit"]
    edge.origin.commit(with_firewall())
    refused(edge, "Revoked", 3, before=edge.fingerprint())


def test_a_signer_that_leaves_the_policy_keeps_what_runs(edge: Host) -> None:
    before = edge.fingerprint()
    other = KeyRule(name="other", packages=("*",), key_pem=package_keys()["other"].public)
    edge.trust(signers=(other,))
    result = edge.apply()
    assert result.status.reason == "Revoked"
    assert edge.fingerprint() == before
    edge.origin.commit(chain("edge", member(params={"rate": 2}), FIREWALL), signed={"firewall": "other"})
    edge.apply()
    assert edge.runs() == ["ratelimit", "firewall"]


# --- the store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["*.tar.gz", "*.json"])
def test_a_damaged_store_is_filled_again_from_the_commit(edge: Host, pattern: str) -> None:
    edge.close()
    for path in edge.file("packages").glob(pattern):
        path.write_bytes(b"damaged")
    edge.reboot()
    assert edge.apply().status.reason == "Applied"
    assert edge.runs() == ["ratelimit"]


def test_packages_that_nothing_names_any_more_are_forgotten(edge: Host) -> None:
    edge.origin.commit(with_firewall())
    edge.apply()
    assert len(list(edge.file("packages").glob("*.tar.gz"))) == 2
    edge.origin.commit(chain("edge", member(version="1.0.1"), FIREWALL))
    edge.apply()
    kept = {path.name.split(".")[0] for path in edge.file("packages").glob("*.tar.gz")}
    assert kept == {
        packages.digest_of(archive(*each)).removeprefix("sha256:") for each in (("ratelimit", "1.0.1"), ("firewall",))
    }
