# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a host, in whatever order: nothing unverified runs, the watermark only moves forwards, no packet
sees half a chain, and once it is quiet the host is as its last good commit wants it. RECONCILER_EXAMPLES: more of them.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import reconcile
from reconciler.config import Guardrail, SecureConfig, SecureMode
from reconciler.errors import KernelError, StaleError
from reconciler.model import HookKind, Support
from tests.sim.fake_kernel import ALL_FEATURES, Crash
from tests.sim.host import Host, chain, member, orphans

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = range(int(os.environ.get("RECONCILER_EXAMPLES", "40")) // 8)
DEEDS = 25
EVERYWHERE = {"type": "xdp", "interfaces": ["eth*"]}
FIREWALL = member("firewall", program="firewall_xdp")
FENCE = member("firewall", program="firewall_ingress")
TC = {"type": "tc", "direction": "ingress", "interfaces": ["eth0"]}
STATES: list[tuple[Any, ...]] = [
    (chain(),),
    (chain("edge", member(params={"rate": 3}), hook=EVERYWHERE), chain("tc", member("flowcount"), FENCE, hook=TC)),
    (chain("edge", member(), FIREWALL),),
    (
        chain("edge", FIREWALL),
        chain("more", member(), priority=200, hook=EVERYWHERE),
        chain("tc", FENCE, member("flowcount"), hook=TC),
    ),
    (chain("edge", member(), hook={**EVERYWHERE, "mode": "generic"}),),
]
EXPECTED = [
    (["ratelimit"], [], []),
    (["ratelimit"], ["ratelimit"], ["flowcount", "firewall"]),
    (["ratelimit", "firewall"], [], []),
    (["firewall", "ratelimit"], ["ratelimit"], ["firewall", "flowcount"]),
    (["ratelimit"], ["ratelimit"], []),
]
"""What runs on XDP of eth0 and eth1, and on tc ingress of eth0."""


class Story:
    """One host and everything that happens to it, chosen by a seed."""

    def __init__(self, host: Host, seed: int) -> None:
        self.host, self.random, self.log = host, random.Random(seed), [f"seed {seed}"]
        self.good: dict[str, int] = {}
        host.configure(
            guardrail=Guardrail(share=1.0),
            secure=SecureConfig(mode=SecureMode.ENFORCE),
        )
        self.head = self.push(0)
        host.set_source(minimum_commit=self.head)

    def push(self, number: int, **options: Any) -> str:
        commit = self.host.origin.commit(*STATES[number], **options)
        self.good[commit] = number
        self.head = commit
        return commit

    def deed(self) -> None:
        deeds = [self.commit, self.bad_commit, self.tamper, self.crash, self.fail, self.race, self.reboot, self.away]
        deeds += [self.foreign, self.repair, self.apply, self.commit, self.crash, self.suspend, self.restart]
        chosen = self.random.choice(deeds)
        self.log.append(chosen.__name__)
        chosen()

    def present(self) -> bool:
        return self.host.origin.path.exists()

    def commit(self) -> None:
        if self.present():
            self.push(self.random.randrange(len(STATES)))
        self.apply()

    def bad_commit(self) -> None:
        """An unsigned commit, and then the branch is put right."""
        if not self.present():
            return
        wrong = chain("edge", member(), FIREWALL, member("ratelimit", name="ratelimit2"))
        self.host.origin.commit(wrong, key=None)
        self.apply()
        self.host.origin.push(self.head)

    def tamper(self) -> None:
        interface, kind = self.random.choice(
            [("eth0", HookKind.XDP), ("eth1", HookKind.XDP), ("eth0", HookKind.TC_INGRESS)]
        )
        point = self.host.kernel.point(interface, kind)
        attached = self.host.kernel.attachments(point)
        match self.random.randrange(3):
            case 0 if attached:
                self.host.kernel.remove(point, attached[0])
            case 1 if attached:
                self.host.kernel.replace(point, attached[0], name="foe")
            case _:
                for path in self.random.sample(sorted(self.host.kernel.pins), min(1, len(self.host.kernel.pins))):
                    self.host.kernel.unpin(path)

    def foreign(self) -> None:
        point = self.host.kernel.point("eth1", HookKind.TC_INGRESS)
        if self.host.kernel.forced_features.tcx is Support.YES:
            self.host.kernel.attach_foreign_tcx(point)
        elif not self.host.kernel.attachments(point):
            self.host.kernel.add_foreign_filter(point)

    def crash(self) -> None:
        if self.present() and self.random.random() < 0.7:
            self.push(self.random.randrange(len(STATES)))
        self.host.kernel.crash_at(self.random.randrange(1, 60), when=self.random.choice(["before", "after"]))
        try:
            self.apply(poll=self.random.random() < 0.7)
        except Crash:
            self.log.append("killed")
        self.host.restart()

    def fail(self) -> None:
        if self.present():
            self.push(self.random.randrange(len(STATES)))
        error = KernelError("injected", 5, "input/output error")
        self.host.kernel.fail_at(self.random.randrange(1, 60), error, onwards=self.random.random() < 0.3)
        self.apply()
        self.host.kernel.faults.clear()

    def race(self) -> None:
        if self.present():
            self.push(self.random.randrange(len(STATES)))
        self.host.kernel.fail_on(
            self.random.choice(["link-update", "filter-replace"]),
            StaleError("BPF_LINK_UPDATE", 1, "expected another program"),
        )
        self.apply()
        self.host.kernel.faults.clear()

    def reboot(self) -> None:
        self.host.reboot()
        self.apply()

    def away(self) -> None:
        if self.present():
            self.host.origin.vanish()
        else:
            self.host.origin.return_()

    def suspend(self) -> None:
        reconcile.suspend(self.host.parts(), seconds=self.random.randrange(1, 100), reason="work", by="uid 0")
        self.host.clock.seconds += 50

    def restart(self) -> None:
        self.host.restart()

    def repair(self) -> None:
        self.apply(poll=False)

    def apply(self, **request: Any) -> None:
        before = self.host.applied
        result = self.host.apply(**request)
        self.log.append(result.status.reason)
        assert result.status.reason not in {"InternalError", "StateLost"}, (self.log, result.status.message)
        after = self.host.applied
        if after != before and before is not None:
            assert after is not None
            base = self.host.origin.repository if self.present() else None
            assert after in self.good
            if base is not None:
                base.git("merge-base", "--is-ancestor", before, after)

    def check(self) -> None:
        """What must hold after each deed."""
        assert self.host.kernel.violations == [], self.log
        for interface in ("eth0", "eth1"):
            point = self.host.kernel.point(interface, HookKind.XDP)
            names = [name for _, name in self.host.kernel.run_packet(point).members]
            assert "ratelimit2" not in names, self.log

    def calm(self) -> None:
        """Everything is repaired; the host must get where its head is."""
        if not self.present():
            self.host.origin.return_()
        self.host.origin.push(self.head)
        reconcile.resume(self.host.parts(), by="uid 0")
        for _ in range(4):
            self.host.apply()
        result = self.host.apply()
        assert result.status.exit_code == 0, (self.log, result.status)
        assert result.plan is not None
        assert result.plan.steps == (), self.log
        assert self.host.applied == self.head, self.log
        seen = (self.host.runs(), self.host.runs("eth1"), self.host.runs(kind=HookKind.TC_INGRESS))
        assert seen == EXPECTED[self.good[self.head]], self.log
        assert orphans(self.host) == [], self.log
        assert self.host.kernel.attachments(self.host.kernel.point("eth1", HookKind.TC_INGRESS)) == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens(make_host: Callable[..., Host], seed: int) -> None:
    tcx = Support.YES if seed % 2 else Support.NO
    story = Story(make_host("eth0", "eth1", features=replace(ALL_FEATURES, tcx=tcx)), seed)
    for _ in range(DEEDS):
        story.deed()
        story.check()
    story.calm()
