# SPDX-License-Identifier: Apache-2.0
"""Who made what: signatures of commits and of packages, checked offline under the host's policy."""

from __future__ import annotations

from reconciler.trust._apart import VerifierFailedError, apart
from reconciler.trust._bundles import check_revoked, claimed_signer, verify_package
from reconciler.trust._commits import verify_commit
from reconciler.trust._ends import allowed_signers_ends, certificate_ends
from reconciler.trust._format import MAX_BUNDLE_BYTES
from reconciler.trust._keys import fingerprint, load_public_key, sign
from reconciler.trust._roots import trust_root_end

__all__ = [
    "MAX_BUNDLE_BYTES",
    "VerifierFailedError",
    "allowed_signers_ends",
    "apart",
    "certificate_ends",
    "check_revoked",
    "claimed_signer",
    "fingerprint",
    "load_public_key",
    "sign",
    "trust_root_end",
    "verify_commit",
    "verify_package",
]
