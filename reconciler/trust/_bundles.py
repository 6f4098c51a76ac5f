# SPDX-License-Identifier: Apache-2.0
"""Who signed a package: the rules of the host, tried one by one; deny by default.

The *policy* decides whether a key or a certificate counts, never the bundle. Every failure is a SignatureError (nobody
provably signed these bytes) or an IdentityError (somebody did who may not).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler._documents import parse_glob
from reconciler.config import IdentityRule, KeyRule
from reconciler.errors import IdentityError, SignatureError, TrustError
from reconciler.model import Signer
from reconciler.trust import _keys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from reconciler.config import Revoked, SignerRule


def verify_package(
    artifact: bytes,
    bundle: bytes,
    *,
    package: str,
    rules: tuple[SignerRule, ...],
    roots: Mapping[str, bytes],
    now: datetime,
) -> Signer:
    """Who signed `artifact`, under the first rule for `package` that holds.

    Args:
        roots: trusted roots by name, as bytes of trusted_root.json.
        now: nothing signed later than five minutes after it is accepted.

    Raises:
        SignatureError: no rule finds a valid signature over exactly these bytes.
        IdentityError: no rule is for this package, or a valid signature is by somebody not allowed.
    """
    matching = [rule for rule in rules if any(parse_glob(glob).matches(package) for glob in rule.packages)]
    if not matching:
        raise IdentityError(
            f"expected a rule in trust.signers for package {package}, got none: nobody may sign it on this host",
            reason="NoSignerRule",
        )
    parsed = _keys.read_bundle(bundle)
    failures: list[tuple[str, TrustError]] = []
    for rule in matching:
        try:
            return _verify(artifact, bundle, parsed, rule, roots, now)
        except TrustError as error:
            failures.append((rule.name, error))
    text = "; ".join(f"{name}: {error}" for name, error in failures)
    worst = IdentityError if any(isinstance(error, IdentityError) for _, error in failures) else SignatureError
    raise worst(f"no signer of {package} that this host allows ({text})")


def _verify(
    artifact: bytes,
    bundle: bytes,
    parsed: dict[str, object],
    rule: SignerRule,
    roots: Mapping[str, bytes],
    now: datetime,
) -> Signer:
    if isinstance(rule, KeyRule):
        return _verify_key(artifact, parsed, rule, roots, now)
    assert isinstance(rule, IdentityRule)
    raise SignatureError("certificates: not available yet")


def _verify_key(
    artifact: bytes, parsed: dict[str, object], rule: KeyRule, roots: Mapping[str, bytes], now: datetime
) -> Signer:
    _keys.verify_with_key(artifact, parsed, rule.key_pem)
    if rule.tlog == "required" or rule.not_before is not None or rule.not_after is not None:
        raise SignatureError("log entries and validity windows: not available yet")
    return Signer(name=rule.name, identity=_keys.fingerprint(rule.key_pem), issuer="key")


def revoked_reason(*, digest: str, signer: Signer, revoked: Revoked) -> str | None:
    """Why a verified package is revoked on this host, None when it is not."""
    if digest in revoked.digests:
        return f"its digest {digest[:19]} is revoked"
    if signer.issuer == "key" and signer.identity in revoked.keys:
        return f"the key {signer.identity} is revoked"
    if signer.issuer != "key" and signer.identity in revoked.identities:
        return f"the identity {signer.identity} is revoked"
    return None
