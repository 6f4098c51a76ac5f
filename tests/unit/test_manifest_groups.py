# SPDX-License-Identifier: Apache-2.0
"""Groups of hosts: what a signer may be, and which policy a host was reviewed for."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler import manifest, trust
from reconciler.config import shipped_names
from reconciler.model import HostFacts
from tests.manifests import text
from tests.signed_packages import Key

FINGERPRINT = "SHA256:" + "A" * 43


def group(name: str = "edge", **spec: Any) -> bytes:
    head = {"apiVersion": "reconciler/v1alpha1", "kind": "HostGroup", "metadata": {"name": name}}
    return text({**head, "spec": {"labels": {"role": "edge"}, **spec}})


def signed_by(**rule: Any) -> manifest.Groups:
    signer = {"name": "release", "packages": ["*"], **rule}
    return manifest.parse_groups({"hosts/edge.yaml": group(policy={"signers": [signer]})}, alone=True)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"identity": "a"},
        {"issuer": "b"},
        {"key": FINGERPRINT, "identity": "a", "issuer": "b"},
        {"key": FINGERPRINT, "issuer": "b"},
        {"key": FINGERPRINT, "publicKey": Key.make().public.decode()},
    ],
)
def test_a_signer_is_a_key_or_an_identity_with_its_issuer(rule: dict[str, str]) -> None:
    read = signed_by(**rule)
    assert read.groups == ()
    (finding,) = read.findings
    assert finding.message == "expected one of key, publicKey, or identity together with issuer, got something else"
    assert (finding.file, finding.pointer) == ("hosts/edge.yaml", "/spec/policy/signers/0")


def test_packages_of_a_signer_are_globs() -> None:
    (finding,) = signed_by(key=FINGERPRINT, packages=["good", "[a"]).findings
    assert finding.pointer == "/spec/policy/signers/0/packages/1"


def test_tolerations_are_sets_that_ship() -> None:
    (read,) = manifest.parse_groups({"hosts/edge.yaml": group(policy={"tolerations": ["libxdp", "cilium"]})}).groups
    assert read.policy.tolerations == ("cilium", "libxdp")
    (none,) = manifest.parse_groups({"hosts/edge.yaml": group(policy={"tolerations": []})}).groups
    assert none.policy.tolerations == ()
    (unsaid,) = manifest.parse_groups({"hosts/edge.yaml": group(policy={"id": "a" * 12})}).groups
    assert unsaid.policy.tolerations is None
    wrong = manifest.parse_groups({"hosts/edge.yaml": group(policy={"tolerations": ["libxdp", "celium"]})})
    assert wrong.groups == ()
    (finding,) = wrong.findings
    assert finding.pointer == "/spec/policy/tolerations/1"
    assert finding.message == f"expected a set that ships ({', '.join(shipped_names())}), got 'celium'"


def test_the_order_of_signers_means_nothing() -> None:
    rules = [{"name": name, "packages": ["*"], "key": FINGERPRINT} for name in ("one", "two")]
    one, other = (
        manifest.parse_groups({"hosts/edge.yaml": group(policy={"signers": signers})}).groups
        for signers in (rules, rules[::-1])
    )
    assert one == other
    assert len(one) == 1


def test_a_public_key_has_the_fingerprint_that_hosts_give_it() -> None:
    key = Key.make()
    (read,) = signed_by(publicKey=key.public.decode()).groups
    assert read.policy.signers is not None
    assert [signer.key for signer in read.policy.signers] == [trust.fingerprint(key.public)]


def test_what_is_no_public_key_has_no_fingerprint() -> None:
    broken = "-----BEGIN PUBLIC KEY-----\nAAAAA\n-----END PUBLIC KEY-----\n"
    (read,) = signed_by(publicKey=broken).groups
    assert read.policy.signers is not None
    assert [signer.key for signer in read.policy.signers] == [None]


def test_a_host_was_reviewed_for_the_policies_of_the_groups_that_describe_it() -> None:
    files = {
        "hosts/a.yaml": group("a", policy={"id": "a" * 12}),
        "hosts/b.yaml": group("b", policy={"id": "b" * 12}, names=["Edge-1"]),
        "hosts/c.yaml": group("c", policy={"id": "c" * 12}, labels={"role": "db"}),
        "hosts/d.yaml": group("d"),
    }
    groups = manifest.parse_groups(files).groups
    found = manifest.policies_of(groups, HostFacts(name="edge-1", labels={"role": "edge", "site": "fra"}))
    assert found == {"a" * 12, "b" * 12}
    assert manifest.policies_of(groups, HostFacts(name="edge-2", labels={"role": "edge"})) == {"a" * 12}
    assert manifest.policies_of(groups, HostFacts(name="edge-1", labels={})) == frozenset()
