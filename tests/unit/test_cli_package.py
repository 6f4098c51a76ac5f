# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from reconciler import packages, trust
from reconciler._resources import names, resource
from reconciler.config import KeyRule
from tests.command import reconciler

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

NOW = datetime.now(UTC)
PLAIN = serialization.NoEncryption()


def shipped(name: str) -> tuple[str, bytes]:
    found = next(each for each in names("packages") if each.startswith(f"{name}-") and each.endswith(".tar.gz"))
    return found, resource("packages", found)


def write_key(path: Path, key: PrivateKeyTypes, how: serialization.KeySerializationEncryption = PLAIN) -> Path:
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    path.chmod(0o600)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    name, data = shipped("ratelimit")
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    folder = tmp_path / "ratelimit"
    folder.mkdir()
    for name, data in packages.read_archive(shipped("ratelimit")[1], file="it").items():
        (folder / name).write_bytes(data)
    return folder


def test_building_twice_gives_what_ships(unpacked: Path, tmp_path: Path) -> None:
    name, data = shipped("ratelimit")
    for target in ("one", "two"):
        ran = reconciler("package", "build", unpacked, "--into", tmp_path / target)
        assert ran.code == 0
        assert packages.digest_of(data) in ran.out
        assert (tmp_path / target / name).read_bytes() == data


def test_objects_may_lie_in_another_folder(unpacked: Path, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    objects.mkdir()
    (unpacked / "ratelimit.bpf.o").rename(objects / "ratelimit.bpf.o")
    assert reconciler("package", "build", unpacked, "--into", tmp_path / "out").code == 1
    assert reconciler("package", "build", unpacked, "--into", tmp_path / "out", "--objects", objects).code == 0


def test_a_folder_that_does_not_fit_its_object_is_no_package(unpacked: Path, tmp_path: Path) -> None:
    text = (unpacked / "package.yaml").read_text()
    (unpacked / "package.yaml").write_text(text.replace("name: burst_ms", "name: burst"))
    ran = reconciler("package", "build", unpacked, "--into", tmp_path / "out")
    assert ran.code == 1
    assert "burst" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_signature_is_one_that_a_host_accepts(kind: str, archive: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "p256" else ed25519.Ed25519PrivateKey.generate()
    ran = reconciler("package", "sign", archive, "--key", write_key(tmp_path / "key.pem", key))
    assert (ran.code, ran.err) == (0, "")
    bundle = archive.with_name(f"{archive.name}.sigstore.json").read_bytes()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    rule = KeyRule(name="us", packages=("*",), key_pem=public)
    signer = trust.verify_package(archive.read_bytes(), bundle, package="ratelimit", rules=(rule,), roots={}, now=NOW)
    assert signer.name == "us"


def test_a_key_with_a_password(archive: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = write_key(tmp_path / "key.pem", key, serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / "password").write_text("secret\n")
    assert reconciler("package", "sign", archive, "--key", path).code == 1
    assert reconciler("package", "sign", archive, "--key", path, "--password-file", tmp_path / "password").code == 0


def test_a_key_that_others_can_read_is_warned_of(archive: Path, tmp_path: Path) -> None:
    path = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    path.chmod(0o644)
    assert "chmod 600" in reconciler("package", "sign", archive, "--key", path).err


def test_what_is_no_package_is_not_signed(tmp_path: Path) -> None:
    path = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "no.tar.gz").write_bytes(b"no")
    ran = reconciler("package", "sign", tmp_path / "no.tar.gz", "--key", path)
    assert ran.code == 1
    assert "gzip" in ran.err
    assert not (tmp_path / "no.tar.gz.sigstore.json").exists()


def test_inspect_shows_layouts(archive: Path) -> None:
    ran = reconciler("package", "inspect", archive, "-o", "json")
    assert ran.code == 0
    found = ran.json
    assert (found["name"], found["digest"]) == ("ratelimit", packages.digest_of(archive.read_bytes()))
    ports = next(each for each in found["maps"] if each["name"] == "ports")
    assert (ports["role"], ports["type"], ports["key"]) == ("config", "hash", "__be16 as port-be")
    buckets = next(each for each in found["maps"] if each["name"] == "buckets")
    assert "tokens" in buckets["definition"]["value"]
    rate = next(each for each in found["params"] if each["name"] == "rate")
    assert (rate["type"], rate["range"], rate["weakens"]) == ("__u32", "1..1000000", "higher")
    assert [each["name"] for each in found["programs"]] == ["ratelimit"]


def test_inspect_says_what_a_bundle_claims_and_that_it_is_not_verified(archive: Path, tmp_path: Path) -> None:
    assert "none" in reconciler("package", "inspect", archive, "-o", "json").json["signature"]
    key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    assert reconciler("package", "sign", archive, "--key", key).code == 0
    assert "by a key, not verified" in reconciler("package", "inspect", archive).out
    archive.with_name(f"{archive.name}.sigstore.json").write_text("[" * 5000)
    assert "no sigstore bundle" in reconciler("package", "inspect", archive).out


@pytest.mark.parametrize("name", ["firewall", "flowcount", "ratelimit"])
def test_every_package_that_ships_can_be_looked_into(name: str, tmp_path: Path) -> None:
    file, data = shipped(name)
    (tmp_path / file).write_bytes(data)
    ran = reconciler("package", "inspect", tmp_path / file)
    assert ran.code == 0
    assert "PROGRAM" in ran.out
    assert all(len(line) < 200 for line in ran.out.splitlines())


def test_a_missing_archive_is_an_error(tmp_path: Path) -> None:
    ran = reconciler("package", "inspect", tmp_path / "nothing.tar.gz")
    assert ran.code == 1
    assert "nothing.tar.gz" in ran.err
