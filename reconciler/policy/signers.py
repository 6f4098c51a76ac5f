# SPDX-License-Identifier: Apache-2.0
"""Moved: import from reconciler.config.signers (this file goes away)."""

from reconciler.config.signers import IdentityRule, KeyRule, Revoked, SignerRule

__all__ = ["IdentityRule", "KeyRule", "Revoked", "SignerRule"]
