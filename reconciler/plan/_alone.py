# SPDX-License-Identifier: Apache-2.0
"""One chain as a generation of its own, for trying it out: no hook, no other chain, empty state maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.errors import PlanError
from reconciler.model import HOST_NETNS, Chain, Features, Generation, HookPoint, Package
from reconciler.plan._generations import compile_chains, instantiate

if TYPE_CHECKING:
    from collections.abc import Mapping


def alone(chain: Chain, packages: Mapping[str, Package], features: Features) -> Generation:
    """The generation that `chain` would be on a hook that it has for itself.

    Raises:
        PlanError: a package cannot honour what the chain asks of it; all findings.
    """
    nowhere = HookPoint(kind=chain.hook.kind, netns_inode=0, ifindex=0, netns=HOST_NETNS, interface="none")
    content, findings = compile_chains((chain,), nowhere, packages, features)
    if content is None:
        raise PlanError(findings)
    return instantiate(content, 1, frozenset())
