# SPDX-License-Identifier: Apache-2.0
"""The conformance suite on the fake kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from reconciler.errors import KernelError
from reconciler.model import AttachKind, Support
from tests.conformance.lab import Lab, Tamper, Way
from tests.conformance.suite import *  # noqa: F403  # the tests
from tests.sim.fake_kernel import ALL_FEATURES, FakeKernel
from tests.sim.samples import generation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.model import Attachment, Generation, HookPoint, OwnedAttachment, Package, XdpMode


class FakeLab(Lab):
    """A machine in memory."""

    def __init__(self, way: Way) -> None:
        features = ALL_FEATURES
        if way.attach_kind is AttachKind.CLSACT_FILTER:
            features = replace(features, tcx=Support.NO)
        self.fake = FakeKernel(features=features)
        self.kernel = self.fake
        self.way = way
        self._count = 0

    def namespace(self) -> str:
        self._count += 1
        name = f"ns{self._count}"
        self.fake.add_namespace(name)
        return name

    def interface(self, netns: str, name: str) -> int:
        return self.fake.add_interface(name, netns=netns)

    def rename(self, netns: str, old: str, new: str) -> None:
        self.fake.rename_interface(old, new, netns=netns)

    def remove_interface(self, netns: str, name: str) -> None:
        self.fake.remove_interface(name, netns=netns)

    def remove_namespace(self, netns: str) -> None:
        self.fake.remove_namespace(netns)

    def send(self, point: HookPoint, count: int) -> None:
        for _ in range(count):
            self.fake.run_packet(point)

    def next_process(self) -> None:
        self.fake.restart()

    def generation(
        self, members: int = 2, *, text: str = "a", number: int = 0, reuse: bool = False, broken: bool = False
    ) -> tuple[Generation, Mapping[str, Package]]:
        wanted, packages = generation(members, kind=self.way.kind, text=text, number=number, reuse=reuse)
        if broken:
            last = packages[wanted.members[-1].package]
            bad = replace(last, objects=dict.fromkeys(last.objects, b"REJECT"))
            packages = {**packages, last.ref.digest: bad}
        return wanted, packages

    def foreign_xdp(self, point: HookPoint, via: Literal["link", "netlink"], mode: XdpMode) -> Attachment:
        return self.fake.attach_foreign_xdp(point, via=via, mode="native" if mode == "native" else "generic")

    def foreign_tcx(
        self, point: HookPoint, via: Literal["link", "prog"], position: Literal["head", "tail"] = "tail"
    ) -> Attachment:
        return self.fake.attach_foreign_tcx(point, via=via, position=position)

    def foreign_filter(self, point: HookPoint, *, prio: int = 40000, handle: int = 1) -> Attachment:
        return self.fake.add_foreign_filter(point, prio=prio, handle=handle)

    def foreign_ingress_qdisc(self, point: HookPoint) -> None:
        self.fake.add_foreign_qdisc(point, "ingress")

    def tamper(self, how: Tamper, owned: OwnedAttachment) -> None:
        (here,) = self.fake.attachments(owned.point)
        if how == "detach":
            self.fake.remove(owned.point, here)
        else:
            self.fake.replace(owned.point, here)

    def remove_foreign(self, point: HookPoint, attachment: Attachment) -> None:
        self.fake.remove(point, attachment)

    def unpin(self, path: str) -> None:
        self.fake.unpin(path)

    def steal(self, path: str) -> None:
        self.fake.steal(path)

    def write_to_map(self, path: str) -> int:
        try:
            self.fake.poke_map(path, bytes(4), bytes(4))
        except KernelError as error:
            return error.errno
        return 0


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    made = FakeLab(request.param)
    yield made
    made.kernel.close()
    assert made.fake.violations == []
