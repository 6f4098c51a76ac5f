# SPDX-License-Identifier: Apache-2.0
"""Who signed a package: sigstore bundles under the host's policy, offline.

The steps, in this order:

1. the rules whose `packages` match the package's name; none: refused, whoever signed (deny by default);
2. the bundle's size and form (`_format.py`);
3. the *policy* decides how a bundle is verified, never the bundle: one with a certificate is held against identity
   rules only, one without against key rules only;
4. key rules: the signature by exactly the rule's key; then the log entry and the timestamps under the rule's trusted
   root, if it names one; then `tlog` and the key's window. Without a root, entries and timestamps of the bundle prove
   nothing and are ignored;
5. identity rules: certificate chain, SCT, log entry, verified time and signature under the rule's root
   (`_sigstore.py`), then identity *and* issuer.

A bundle says who signed these bytes, at some time; it does not say that they are the newest. Versions are pinned by the
manifest's digest, and what must not run any more is revoked (`check_revoked`).

Invariant: on whatever bytes, these functions return a `Signer` or raise a `TrustError`.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from reconciler._documents import parse_glob
from reconciler.config.signers import IdentityRule, KeyRule, Revoked, SignerRule
from reconciler.errors import IdentityError, ReconcilerError, SignatureError, TrustError
from reconciler.model import Signer
from reconciler.policy import matches_identity
from reconciler.trust._apart import Child, current
from reconciler.trust._format import Bundle, read_bundle
from reconciler.trust._keys import fingerprint, is_signature, key_der, load_public_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from types import ModuleType


def verify_package(
    artifact: bytes,
    bundle: bytes,
    *,
    package: str,
    rules: tuple[SignerRule, ...],
    roots: Mapping[str, bytes],
    now: datetime,
) -> Signer:
    """Who signed the archive, if the policy allows them to sign this package.

    Args:
        artifact: the archive's bytes; their digest was compared with the manifest's before.
        bundle: sigstore bundle v0.3, JSON.
        package: name of the package, by which rules are chosen.
        roots: name to content of a trusted_root.json.
        now: verified signing times must not be later (with 5 minutes of grace); aware.

    Returns:
        `identity` is the certificate's, or the key's fingerprint; `issuer` the OIDC issuer, or "key".

    Raises:
        SignatureError: no valid signature over exactly these bytes, or none of the kind that the rules ask for.
        IdentityError: no rule is for this package, or a valid signature by somebody whom none allows (then).
    """
    chosen = tuple(rule for rule in rules if any(parse_glob(glob).matches(package) for glob in rule.packages))
    if not chosen:
        raise IdentityError(
            f"no signer is allowed for package {package!r}; name one in trust.signers of the host's configuration"
        )
    with _hostile("the bundle"):
        parsed = read_bundle(bundle)
    digest = hashlib.sha256(artifact).digest()
    if parsed.digest not in (None, digest):
        raise SignatureError("expected a bundle for these bytes, got one whose message digest is another")
    names = ", ".join(rule.name for rule in chosen)
    if parsed.certificate:
        identities = tuple(rule for rule in chosen if isinstance(rule, IdentityRule))
        if not identities:
            raise IdentityError(f"expected a signature by a key ({names}), got one by a certificate")
        return _by_certificate(parsed, digest, rules=identities, roots=roots, now=now)
    keys = tuple(rule for rule in chosen if isinstance(rule, KeyRule))
    if not keys:
        raise IdentityError(f"expected a signature by a certificate ({names}), got one by a key")
    return _by_key(parsed, artifact, rules=keys, roots=roots, now=now)


def claimed_signer(bundle: bytes) -> Signer:
    """Who a bundle says signed it. Nothing is verified: for reviews, where nobody is trusted and nothing is loaded.

    Raises:
        SignatureError: it is no bundle, or says nothing.
    """
    with _hostile("the bundle"):
        parsed = read_bundle(bundle)
        if parsed.certificate:
            from reconciler.trust._identity import claimed  # noqa: PLC0415 - only bundles with certificates need it

            who = claimed(parsed)
            return Signer(name="claimed", identity=who.identity, issuer=who.issuer)
        if parsed.hint is None:
            raise SignatureError("expected a bundle that names its key, got one without a hint")
        return Signer(name="claimed", identity=parsed.hint, issuer="key")


def check_revoked(revoked: Revoked, *, digest: str, signer: Signer | None = None) -> str | None:
    """Why the package must not start here, or None.

    Args:
        digest: "sha256:...".
        signer: as `verify_package` returned it; None while it is not known yet.
    """
    if digest in revoked.digests:
        return f"the digest {digest} is revoked"
    if signer is not None and signer.identity in revoked.keys:
        return f"the key {signer.identity} ({signer.name}) is revoked"
    if signer is not None and signer.identity in revoked.identities:
        return f"the identity {signer.identity} ({signer.name}) is revoked"
    return None


@contextlib.contextmanager
def _hostile(what: str) -> Iterator[None]:
    """Whatever goes wrong with unverified bytes is a bad signature, never a crash and never an acceptance."""
    try:
        yield
    except TrustError:
        raise
    # Parsers of JSON, base64, X.509, ASN.1 and RFC 3161 meet bytes that anybody may have written. Fuzzing found ten
    # classes of exceptions in sigstore and below it, RecursionError and AttributeError among them.
    except Exception as error:
        raise SignatureError(
            f"{what} is malformed or not supported: {type(error).__name__}: {str(error)[:200]}"
        ) from error


# --- keys --------------------------------------------------------------------------------------------------


def _by_key(
    bundle: Bundle, artifact: bytes, *, rules: tuple[KeyRule, ...], roots: Mapping[str, bytes], now: datetime
) -> Signer:
    refusal: TrustError | None = None
    for rule in rules:
        try:
            with _hostile(f"the bundle (rule {rule.name})"):
                signer = _try_key(rule, bundle, artifact, roots=roots, now=now)
        except TrustError as error:
            refusal = refusal or error
            continue
        if signer is not None:
            return signer
    names = ", ".join(rule.name for rule in rules)
    hint = f" (the bundle names the key {bundle.hint})" if bundle.hint else ""
    raise refusal or SignatureError(f"expected a signature over these bytes by one of the keys {names}, got none{hint}")


def _try_key(
    rule: KeyRule, bundle: Bundle, artifact: bytes, *, roots: Mapping[str, bytes], now: datetime
) -> Signer | None:
    """The signer; None if this is not a signature by the rule's key; an error if it is, and is refused all the same."""
    try:
        key = load_public_key(rule.key_pem)
    except ReconcilerError as error:
        raise SignatureError(f"the key of rule {rule.name} cannot be used: {error}") from error
    if not is_signature(key, bundle.signature, artifact):
        return None
    times: tuple[datetime, ...] = ()
    if rule.root is not None:
        times = _sigstore().verify_evidence(
            bundle, _root(rule, roots), key=key_der(key), digest=hashlib.sha256(artifact).digest(), now=now
        )
    if rule.tlog == "required" and (rule.root is None or not bundle.entries):
        got = "no trusted root in the rule to check it with" if rule.root is None else "none in the bundle"
        raise SignatureError(f"rule {rule.name} demands an entry in a transparency log, got {got}")
    _check_window(rule, times)
    return Signer(
        name=rule.name,
        identity=fingerprint(key),
        issuer="key",
        not_after=rule.not_after.isoformat() if rule.not_after is not None else None,
    )


def _check_window(rule: KeyRule, times: tuple[datetime, ...]) -> None:
    if rule.not_before is None and rule.not_after is None:
        return
    if not times:
        # The signer chooses every other time, so a window means nothing without one that somebody else vouches for.
        raise SignatureError(
            f"rule {rule.name} limits its key in time, so it demands a verified signing time, got none; "
            "sign with a timestamp authority or a log, and name the trusted root in the rule"
        )
    for time in times:
        if (rule.not_before and time < rule.not_before) or (rule.not_after and time > rule.not_after):
            raise IdentityError(
                f"signed at {time.isoformat()}, outside of the time in which rule {rule.name} allows its key"
            )


# --- certificates ------------------------------------------------------------------------------------------


def _by_certificate(
    bundle: Bundle, digest: bytes, *, rules: tuple[IdentityRule, ...], roots: Mapping[str, bytes], now: datetime
) -> Signer:
    refusal: TrustError | None = None
    for name in dict.fromkeys(rule.root for rule in rules):
        same_root = tuple(rule for rule in rules if rule.root == name)
        try:
            with _hostile(f"the bundle (trusted root {name})"):
                certified = _sigstore().verify_certificate(bundle, _root(same_root[0], roots), digest=digest, now=now)
        except SignatureError as error:
            refusal = refusal or error
            continue
        for rule in same_root:
            if certified.issuer == rule.issuer and matches_identity(rule.identity, certified.identity):
                return Signer(name=rule.name, identity=certified.identity, issuer=certified.issuer)
        got = f"{certified.identity!r} of {certified.issuer!r}"
        rule_names = ", ".join(rule.name for rule in same_root)
        # A valid signature by somebody says more than that other roots do not know it.
        refusal = IdentityError(f"expected a signer whom a rule allows ({rule_names}), got {got}")
    raise refusal or SignatureError("expected a certificate under a trusted root, got none")


# --- shared ------------------------------------------------------------------------------------------------


def _root(rule: SignerRule, roots: Mapping[str, bytes]) -> bytes:
    if rule.root is None or rule.root not in roots:
        raise SignatureError(f"rule {rule.name} names the trusted root {rule.root!r}, which trust.roots does not have")
    return roots[rule.root]


def _sigstore() -> ModuleType | Child:
    child = current()
    if child is not None:
        return child
    from reconciler.trust import _sigstore  # noqa: PLC0415 - 0.4 s and 45 MiB, which hosts with plain keys never pay

    return _sigstore
