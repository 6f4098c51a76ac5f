# SPDX-License-Identifier: Apache-2.0
"""The checks between the switch and the point of no return."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler._connect import connect
from reconciler.errors import HealthError, StaleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.kernel import Kernel
    from reconciler.model import CheckHealth, Inventory, StatsCheck, TcpCheck
    from reconciler.reconcile._parts import Clock

TCP_SECONDS: Final = 300.0
"""For all TCP checks of a change together: while they run nothing is repaired, and the next change waits."""

RETRY_PAUSE: Final = 0.5
"""Seconds between two tries of a check that may still come good before its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHealth:
    """`apply.HealthChecks` on the real host.

    Attributes:
        probe: a new connection to the source, within so many seconds; True when it answered.
        confirm_timeout: seconds within which the source must answer after the switch.
    """

    kernel: Kernel
    clock: Clock
    probe: Callable[[float], bool]
    confirm_timeout: float

    def check(self, step: CheckHealth, inventory: Inventory) -> None:
        """Links first (free), then the source, then the chains' own checks.

        Raises:
            HealthError: names what does not hold.
            StaleError: somebody else changed a hook after the switch.
        """
        self._links(step, inventory)
        if step.source:
            self._source()
        limit = self.clock.monotonic() + TCP_SECONDS
        for chain, health in sorted(step.checks.items()):
            for check in health.tcp:
                self._tcp(chain, check, limit)
        self._stats(
            [(chain, each) for chain, health in sorted(step.checks.items()) for each in health.stats], inventory
        )

    def _links(self, step: CheckHealth, inventory: Inventory) -> None:
        judged = [each for each in inventory.attachments if step.generations.get(each.point.key) == each.generation]
        first = {loaded.name: loaded.programs[0].identity for loaded in inventory.generations if loaded.programs}
        for owned in self.kernel.not_alive(judged, first):
            # Nothing that a commit says can do this: somebody else did, and the same commit may be tried again.
            raise StaleError(
                f"check {owned.point}",
                errno.ESTALE,
                f"expected program {first[owned.generation].id} of {owned.generation}, got something else",
            )

    def _source(self) -> None:
        deadline = self.clock.monotonic() + self.confirm_timeout
        while (left := deadline - self.clock.monotonic()) > 0:
            if self.probe(left):
                return
            self.clock.sleep(min(RETRY_PAUSE, max(deadline - self.clock.monotonic(), 0)))
        raise HealthError(
            f"the source does not answer on a new connection within {self.confirm_timeout:g} s after the switch: "
            "this chain may cut the host off from it",
            reason="SourceCutOff",
        )

    def _tcp(self, chain: str, check: TcpCheck, limit: float) -> None:
        host, _, port = check.connect.rpartition(":")
        deadline = min(self.clock.monotonic() + check.within, limit)
        error: OSError | None = None
        while (left := deadline - self.clock.monotonic()) > 0:
            try:
                with connect(host.strip("[]"), int(port), left):
                    return
            except OSError as failure:
                error = failure
                self.clock.sleep(min(RETRY_PAUSE, max(deadline - self.clock.monotonic(), 0)))
        raise HealthError(
            f"chain {chain}: expected a connection to {check.connect} within {check.within:g} s, "
            f"got {error or f'no time left of the {TCP_SECONDS:g} s for all TCP checks'}"
        )

    def _stats(self, checks: list[tuple[str, StatsCheck]], inventory: Inventory) -> None:
        """All at the same time: together they take as long as the longest."""
        start = self.clock.monotonic()
        before = [self._counters(chain, check.member, inventory) for chain, check in checks]
        for (chain, check), first in sorted(zip(checks, before, strict=True), key=lambda pair: pair[0][1].over):
            self.clock.sleep(max(start + check.over - self.clock.monotonic(), 0))
            after = self._counters(chain, check.member, inventory)
            seen = after.get("seen", 0) - first.get("seen", 0)
            count = after.get(check.counter, 0) - first.get(check.counter, 0)
            if seen > 0 and count >= check.below * seen:
                share = f"{100 * count / seen:.1f}%"
                raise HealthError(
                    f"chain {chain}, member {check.member}: expected {check.counter} below {100 * check.below:g}% "
                    f"over {check.over:g} s, got {share} of {seen} packets"
                )

    def _counters(self, chain: str, member: str, inventory: Inventory) -> dict[str, int]:
        used = {owned.generation for owned in inventory.attachments}
        total: dict[str, int] = {}
        for generation in inventory.generations:
            if generation.name not in used:
                continue
            for stats in self.kernel.stats(generation):
                if (stats.chain, stats.member) == (chain, member):
                    for name, (packets, _) in stats.counters.items():
                        total[name] = max(total.get(name, 0), packets)
        return total
