# SPDX-License-Identifier: Apache-2.0
"""Who made what: signatures of commits and of packages, checked offline under the host's policy."""

from __future__ import annotations

from reconciler.trust._bundles import revoked_reason, verify_package
from reconciler.trust._commits import verify_commit
from reconciler.trust._keys import fingerprint, sign

__all__ = ["fingerprint", "revoked_reason", "sign", "verify_commit", "verify_package"]
