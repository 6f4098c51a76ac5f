# SPDX-License-Identifier: Apache-2.0
"""Small real packages for tests: an object made by clang, its package.yaml, keys and signatures."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from reconciler import packages, trust
from reconciler.config import KeyRule
from reconciler.model import PackageRef
from tests.elf_objects import compile_program, strip

OBJECT: Final = "prog.bpf.o"

MANIFEST: Final = """\
apiVersion: reconciler/v1alpha1
kind: Package
metadata: {{name: {name}, version: {version}}}
spec:
  license: Dual BSD/GPL
  programs:
    - {{name: prog, type: xdp, object: prog.bpf.o, hooks: [xdp], proceedOn: [pass], contract: false}}
"""


@functools.cache
def object_bytes() -> bytes:
    """An object with one XDP program `prog`."""
    return strip(compile_program(""))


def manifest_bytes(name: str = "demo", version: str = "1.0.0") -> bytes:
    """The package.yaml of `object_bytes`."""
    return MANIFEST.format(name=name, version=version).encode()


@dataclass(frozen=True)
class Key:
    """A key pair, PEM."""

    private: bytes
    public: bytes

    @staticmethod
    def make(kind: str = "p256") -> Key:
        key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
        key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
        return Key(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        )

    @property
    def fingerprint(self) -> str:
        return trust.fingerprint(self.public)

    def rule(self, name: str = "key", package: str = "*") -> KeyRule:
        return KeyRule(name=name, packages=(package,), key_pem=self.public)


@dataclass(frozen=True)
class Signed:
    """A package as a repository holds it."""

    name: str
    version: str
    archive: bytes
    bundle: bytes

    @staticmethod
    def make(key: Key, name: str = "demo", version: str = "1.0.0") -> Signed:
        archive = packages.build_archive(manifest_bytes(name, version), {OBJECT: object_bytes()})
        return Signed(name, version, archive, trust.sign(archive, key.private))

    def ref(self, repository: str = "git") -> PackageRef:
        digest = packages.digest_of(self.archive)
        return PackageRef(name=self.name, version=self.version, digest=digest, repository=repository)

    @property
    def files(self) -> dict[str, bytes]:
        """File name to content, as they lie in a repository."""
        name = f"{self.name}-{self.version}.tar.gz"
        return {name: self.archive, name + packages.BUNDLE_SUFFIX: self.bundle}
