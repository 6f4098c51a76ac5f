# SPDX-License-Identifier: Apache-2.0
"""From references to packages: the order of the checks, what is remembered, and what may stay although revoked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import pytest

from reconciler import packages, trust
from reconciler.config import IdentityRule, Revoked, Trust
from reconciler.errors import (
    DigestError,
    IdentityError,
    PackageError,
    ReconcilerError,
    RepositoryError,
    RevokedError,
    SignatureError,
)
from reconciler.packages import Cache, Store
from tests.private_sigstore import IDENTITY, ISSUER, PrivateSigstore
from tests.signed_packages import OBJECT, Key, Signed, manifest_bytes, object_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reconciler.model import Package, PackageRef

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Memory:
    """A repository in memory that counts what is asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def add(self, *signed: Signed) -> Memory:
        for each in signed:
            self.files |= each.files
        return self

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        name = packages.archive_name(ref)
        self.asked.append(name)
        if self.broken:
            raise RepositoryError("out of order")
        return self.files[name], self.files[name + packages.BUNDLE_SUFFIX]


@dataclass
class Host:
    """A host with one repository and one policy; `again` is the same host after a restart."""

    folder: Path
    trust: Trust
    repository: Memory = field(default_factory=Memory)
    cache: Cache = field(init=False)
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.again()

    def again(self) -> None:
        self.cache = Cache(Store(self.folder))

    def ensure(self, *refs: PackageRef, running: frozenset[str] = frozenset()) -> Mapping[str, Package]:
        return self.cache.ensure(
            refs,
            repositories={"git": self.repository},
            trust=self.trust,
            running=running,
            policy_id=repr(self.trust),
            now=self.now,
        )

    def fails(
        self,
        error: type[ReconcilerError],
        *refs: PackageRef,
        running: frozenset[str] = frozenset(),
        words: str | None = None,
    ) -> ReconcilerError:
        with pytest.raises(ReconcilerError, match=words) as raised:
            self.ensure(*refs, running=running)
        assert type(raised.value) is error, raised.value
        return raised.value

    @property
    def stored(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []


@pytest.fixture(scope="module")
def key() -> Key:
    return Key.make()


@pytest.fixture(scope="module")
def demo(key: Key) -> Signed:
    return Signed.make(key)


@pytest.fixture
def host(tmp_path: Path, key: Key, demo: Signed) -> Host:
    return Host(tmp_path / "packages", Trust(signers=(key.rule(),)), Memory().add(demo))


# --- the order of the checks -------------------------------------------------------------------------------


def test_a_signed_package_is_taken(host: Host, demo: Signed, key: Key) -> None:
    package = host.ensure(demo.ref())[demo.ref().digest]
    assert package.manifest.name == "demo"
    assert package.objects == {OBJECT: object_bytes()}
    assert package.signer.identity == key.fingerprint
    assert package.revoked is None


def test_without_rules_nothing_is_taken_nor_kept(host: Host, demo: Signed) -> None:
    host.trust = Trust()
    host.fails(IdentityError, demo.ref(), words="package demo 1.0.0 of repository git")
    assert host.stored == []


def test_a_rule_for_another_package_is_no_rule(host: Host, demo: Signed, key: Key) -> None:
    host.trust = Trust(signers=(key.rule(package="firewall"),))
    host.fails(IdentityError, demo.ref())


def test_another_key_is_refused(host: Host, demo: Signed) -> None:
    host.trust = Trust(signers=(Key.make().rule(),))
    host.fails(SignatureError, demo.ref())


def test_the_digest_is_checked_before_the_signature(host: Host, demo: Signed, key: Key) -> None:
    other = Signed.make(key, version="1.0.0")
    host.repository.files[f"{packages.archive_name(demo.ref())}"] = other.archive + b"x"
    host.fails(DigestError, demo.ref(), words="expected sha256:")
    assert host.stored == []


def test_a_rollback_to_an_older_signed_version_is_a_wrong_digest(host: Host, demo: Signed, key: Key) -> None:
    newer = Signed.make(key, version="1.1.0")
    files = dict(zip(newer.files, demo.files.values(), strict=True))
    host.repository.files |= files
    host.fails(DigestError, newer.ref())


def test_the_signature_is_checked_before_the_archive_is_opened(host: Host, key: Key) -> None:
    junk = Signed("demo", "1.0.0", b"no archive", trust.sign(b"no archive", Key.make().private))
    host.repository.add(junk)
    host.fails(SignatureError, junk.ref())
    signed = replace(junk, bundle=trust.sign(b"no archive", key.private))
    host.repository.add(signed)
    host.fails(PackageError, signed.ref(), words="gzip")
    assert host.stored == []


@pytest.mark.parametrize(("name", "version"), [("other", "1.0.0"), ("demo", "2.0.0")])
def test_a_package_under_another_name_is_refused(host: Host, key: Key, name: str, version: str) -> None:
    """The policy is chosen by the manifest's name: who may sign `demo` may not smuggle `firewall` in."""
    archive = packages.build_archive(manifest_bytes(name, version), {OBJECT: object_bytes()})
    signed = Signed("demo", "1.0.0", archive, trust.sign(archive, key.private))
    host.repository.add(signed)
    host.fails(PackageError, signed.ref(), words=f"got {name} {version}")


def test_the_same_archive_under_two_names_is_judged_twice(host: Host, demo: Signed) -> None:
    host.ensure(demo.ref())
    renamed = replace(demo, name="other")
    host.repository.add(renamed)
    host.fails(PackageError, renamed.ref())
    host.fails(PackageError, demo.ref(), renamed.ref())


def test_too_much_is_refused_before_it_is_hashed(host: Host, demo: Signed) -> None:
    name = packages.archive_name(demo.ref())
    host.repository.files[name] = bytes(packages.MAX_ARCHIVE_BYTES + 1)
    assert host.fails(PackageError, demo.ref()).reason == "TooLarge"
    host.repository.files[name] = demo.archive
    host.repository.files[name + packages.BUNDLE_SUFFIX] = bytes(packages.MAX_BUNDLE_BYTES + 1)
    assert host.fails(PackageError, demo.ref()).reason == "TooLarge"


def test_an_object_that_does_not_fit_its_manifest_is_refused(host: Host, key: Key) -> None:
    text = manifest_bytes().replace(b"{name: prog,", b"{name: other,")
    archive = packages.build_archive(text, {OBJECT: object_bytes()})
    signed = Signed("demo", "1.0.0", archive, trust.sign(archive, key.private))
    host.repository.add(signed)
    host.fails(PackageError, signed.ref(), words="other")


def test_a_repository_that_the_host_does_not_know_is_said(host: Host, demo: Signed) -> None:
    error = host.fails(packages.UnknownRepositoryError, demo.ref("mirror"), words="mirror")
    assert error.reason == "UnknownRepository"


def test_a_refusal_goes_before_what_is_merely_unavailable(host: Host, key: Key) -> None:
    missing, unsigned = Signed.make(key, name="missing"), Signed.make(Key.make(), name="unsigned")
    host.repository.add(unsigned)
    broken = Memory(broken=True)
    with pytest.raises(SignatureError):
        host.cache.ensure(
            [missing.ref("broken"), unsigned.ref()],
            repositories={"git": host.repository, "broken": broken},
            trust=host.trust,
            running=frozenset(),
            policy_id="1",
            now=NOW,
        )


def test_a_commit_without_the_bundle_is_a_refusal_that_names_the_package(host: Host, demo: Signed) -> None:
    name = packages.archive_name(demo.ref())
    repository = packages.GitRepository(lambda path, limit: demo.archive if path == f"packages/{name}" else None)
    with pytest.raises(SignatureError, match="package demo 1.0.0 of repository git"):  # noqa: RUF043 - dots match dots
        host.cache.ensure(
            [demo.ref()],
            repositories={"git": repository},
            trust=host.trust,
            running=frozenset(),
            policy_id="1",
            now=NOW,
        )


# --- what is remembered ------------------------------------------------------------------------------------


def test_one_fetch_is_enough_and_a_restart_needs_no_repository(host: Host, demo: Signed) -> None:
    first = host.ensure(demo.ref())
    host.repository.broken = True
    assert host.ensure(demo.ref()) == first
    host.again()
    assert host.ensure(demo.ref()) == first
    assert len(host.repository.asked) == 1


def test_a_restart_verifies_again(host: Host, demo: Signed) -> None:
    host.ensure(demo.ref())
    host.again()
    bundle = next(path for path in host.folder.iterdir() if path.suffix == ".json")
    bundle.write_bytes(trust.sign(demo.archive, Key.make().private))
    host.repository.broken = True
    host.fails(SignatureError, demo.ref())


def test_another_policy_verifies_again(host: Host, demo: Signed) -> None:
    host.ensure(demo.ref())
    host.trust = Trust(signers=(Key.make().rule(),))
    host.fails(SignatureError, demo.ref())


def test_what_was_altered_in_the_store_is_fetched_again(host: Host, demo: Signed) -> None:
    host.ensure(demo.ref())
    host.again()
    archive = next(path for path in host.folder.iterdir() if path.name.endswith(".tar.gz"))
    archive.write_bytes(demo.archive + b"x")
    assert host.ensure(demo.ref())[demo.ref().digest].manifest.name == "demo"
    assert archive.read_bytes() == demo.archive
    assert len(host.repository.asked) == 2


def test_a_new_bundle_for_the_same_bytes_is_looked_for(host: Host, demo: Signed) -> None:
    host.ensure(demo.ref())
    other = Key.make()
    host.trust = Trust(signers=(other.rule(),))
    host.repository.add(replace(demo, bundle=trust.sign(demo.archive, other.private)))
    assert host.ensure(demo.ref())[demo.ref().digest].signer.identity == other.fingerprint
    host.again()
    host.repository.broken = True
    assert host.ensure(demo.ref())[demo.ref().digest].signer.identity == other.fingerprint


def test_pruning_forgets_on_disk_and_in_memory(host: Host, demo: Signed, key: Key) -> None:
    other = Signed.make(key, name="other")
    host.repository.add(other)
    host.ensure(demo.ref(), other.ref())
    host.cache.prune(frozenset({other.ref().digest}))
    assert len(host.stored) == 3
    host.repository.broken = True
    assert host.ensure(other.ref())
    host.fails(RepositoryError, demo.ref())


# --- revocation --------------------------------------------------------------------------------------------


def revoked(key: Key, demo: Signed, what: str, **fields: object) -> Trust:
    lists = {
        "digests": Revoked(digests=frozenset({demo.ref().digest})),
        "keys": Revoked(keys=frozenset({key.fingerprint})),
    }
    return Trust(signers=(key.rule(),), revoked=lists[what], **fields)  # type: ignore[arg-type]  # tests name the fields


@pytest.mark.parametrize("what", ["digests", "keys"])
def test_what_is_revoked_does_not_start(host: Host, demo: Signed, key: Key, what: str) -> None:
    host.trust = revoked(key, demo, what)
    host.fails(RevokedError, demo.ref(), words="revoked")
    assert host.stored == []


def test_a_revoked_digest_is_not_even_fetched(host: Host, demo: Signed, key: Key) -> None:
    host.trust = revoked(key, demo, "digests")
    host.fails(RevokedError, demo.ref())
    assert host.repository.asked == []


@pytest.mark.parametrize("what", ["digests", "keys"])
@pytest.mark.parametrize("restart", [False, True])
def test_what_runs_is_kept_and_marked(host: Host, demo: Signed, key: Key, what: str, *, restart: bool) -> None:
    digest = demo.ref().digest
    host.ensure(demo.ref())
    host.trust = revoked(key, demo, what)
    if restart:
        host.again()
    package = host.ensure(demo.ref(), running=frozenset({digest}))[digest]
    assert "revoked" in str(package.revoked)
    assert package.objects == {OBJECT: object_bytes()}
    host.fails(RevokedError, demo.ref())
    assert host.ensure(demo.ref(), running=frozenset({digest}))[digest].revoked == package.revoked


def test_a_keyless_package_is_taken_and_its_identity_can_be_revoked(host: Host, demo: Signed) -> None:
    sigstore = PrivateSigstore()
    bundle = json.dumps(sigstore.bundle(demo.archive)).encode()
    host.repository.add(replace(demo, bundle=bundle))
    rule = IdentityRule(name="ci", packages=("demo",), identity=IDENTITY, issuer=ISSUER, root="private")
    allowed = Trust(signers=(rule,), roots={"private": sigstore.root()})
    host.trust = allowed
    digest = demo.ref().digest
    assert host.ensure(demo.ref())[digest].signer.identity == IDENTITY
    host.trust = replace(allowed, revoked=Revoked(identities=frozenset({IDENTITY})))
    host.fails(RevokedError, demo.ref(), words="identity")
    assert "identity" in str(host.ensure(demo.ref(), running=frozenset({digest}))[digest].revoked)


@pytest.mark.parametrize("what", ["digests", "keys"])
def test_what_was_never_taken_here_is_new_whatever_a_commit_says(host: Host, demo: Signed, key: Key, what: str) -> None:
    """The last applied commit may name it for other hosts."""
    host.trust = revoked(key, demo, what)
    host.fails(RevokedError, demo.ref(), running=frozenset({demo.ref().digest}))
    host.fails(RevokedError, demo.ref(), running=frozenset({demo.ref().digest}))


@pytest.mark.parametrize("what", ["digests", "keys"])
def test_a_host_that_detaches_gets_the_mark_without_a_record(host: Host, demo: Signed, key: Key, what: str) -> None:
    host.trust = revoked(key, demo, what, on_revoked="detach")
    package = host.ensure(demo.ref(), running=frozenset({demo.ref().digest}))[demo.ref().digest]
    assert "revoked" in str(package.revoked)
    host.fails(RevokedError, demo.ref())


@pytest.mark.parametrize("on_revoked", ["keep", "detach"])
def test_what_runs_is_kept_when_its_signer_leaves_the_policy(
    host: Host, demo: Signed, on_revoked: Literal["keep", "detach"]
) -> None:
    digest = demo.ref().digest
    host.ensure(demo.ref())
    for signers in ((), (Key.make().rule(),)):
        host.trust = Trust(signers=signers, on_revoked=on_revoked)
        host.again()
        package = host.ensure(demo.ref(), running=frozenset({digest}))[digest]
        assert "not trusted any more" in str(package.untrusted)
        # Only what somebody revoked leaves its hooks.
        assert package.revoked is None
        with pytest.raises((IdentityError, SignatureError)):
            host.ensure(demo.ref())


def test_what_is_revoked_besides_is_marked_as_revoked(host: Host, demo: Signed) -> None:
    digest = demo.ref().digest
    host.ensure(demo.ref())
    host.trust = Trust(signers=(Key.make().rule(),), revoked=Revoked(digests=frozenset({digest})), on_revoked="detach")
    package = host.ensure(demo.ref(), running=frozenset({digest}))[digest]
    assert "revoked" in str(package.revoked)


def test_another_bundle_for_what_runs_is_looked_for_now_and_then(host: Host, demo: Signed) -> None:
    digest = demo.ref().digest
    host.ensure(demo.ref())
    other = Key.make()
    host.trust = Trust(signers=(other.rule(),))
    asked = len(host.repository.asked)
    for _ in range(5):
        assert host.ensure(demo.ref(), running=frozenset({digest}))[digest].untrusted
    assert len(host.repository.asked) == asked + 1
    host.repository.add(replace(demo, bundle=trust.sign(demo.archive, other.private)))
    host.now += timedelta(minutes=5)
    package = host.ensure(demo.ref(), running=frozenset({digest}))[digest]
    assert (package.untrusted, package.signer.identity) == (None, trust.fingerprint(other.public))


def test_what_never_verified_here_is_not_kept(host: Host, demo: Signed) -> None:
    host.trust = Trust(signers=(Key.make().rule(),))
    host.fails(SignatureError, demo.ref(), running=frozenset({demo.ref().digest}))


def test_a_store_that_lost_the_archive_keeps_nothing(host: Host, demo: Signed) -> None:
    host.ensure(demo.ref())
    host.again()
    next(path for path in host.folder.iterdir() if path.name.endswith(".tar.gz")).unlink()
    host.trust = Trust(signers=(Key.make().rule(),))
    host.fails(SignatureError, demo.ref(), running=frozenset({demo.ref().digest}))
