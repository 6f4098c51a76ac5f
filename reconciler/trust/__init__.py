# SPDX-License-Identifier: Apache-2.0
"""Who made what: signatures of commits and of packages, checked offline under the host's policy."""

from __future__ import annotations

from reconciler.trust._commits import verify_commit

__all__ = ["verify_commit"]
