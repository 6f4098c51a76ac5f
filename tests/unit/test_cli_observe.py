# SPDX-License-Identifier: Apache-2.0
"""What observe makes of a snapshot; the real kernel is for tests/e2e."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.cli._observe import seen_of
from reconciler.config import SecureConfig, SecureMode, Toleration
from reconciler.model import (
    AttachKind,
    Attachment,
    Features,
    HookKind,
    HookPoint,
    HookState,
    Inventory,
    OwnedAttachment,
    Pin,
    PinKind,
    Program,
    Snapshot,
)
from tests.command import reconciler
from tests.sim.fake_kernel import FakeKernel

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ETH = HookPoint(kind=HookKind.XDP, netns_inode=1, ifindex=2, netns="host", interface="eth0")
TAP = HookPoint(kind=HookKind.TC_INGRESS, netns_inode=1, ifindex=3, netns="host", interface="tap0")
LINK = f"links/{ETH.key}"
GENERATION = "a" * 32 + "_0"


def program(number: int, name: str) -> Program:
    return Program(id=number, type="xdp", name=name, tag="00", load_time=number)


SNAPSHOT = Snapshot(
    boot_id="boot",
    features=Features(),
    namespaces={"host": 1},
    hooks={
        ETH: HookState(point=ETH, attachments=(Attachment(kind=AttachKind.XDP_LINK, program_id=10, link_id=7),)),
        TAP: HookState(
            point=TAP,
            attachments=(
                Attachment(kind=AttachKind.TCX_PROG, program_id=11),
                Attachment(kind=AttachKind.CLSACT_FILTER, program_id=12, name="other.o:[tc]"),
            ),
        ),
    },
    programs={10: program(10, "firewall"), 11: program(11, "cil_from_netdev"), 12: program(12, "stranger")},
    pins=(
        Pin(path=LINK, kind=PinKind.LINK, id=7),
        Pin(path=f"gen/{GENERATION}/p00", kind=PinKind.PROGRAM, id=10),
    ),
)
INVENTORY = Inventory(
    boot_id="boot",
    attachments=(OwnedAttachment(point=ETH, kind=AttachKind.XDP_LINK, generation=GENERATION, pin=LINK, link_id=7),),
)
CILIUM = Toleration(name="cilium", why="the CNI", owner="net", program_name="cil_*")


def test_owned_tolerated_and_foreign() -> None:
    ours, tolerated, foreign = seen_of(SNAPSHOT, INVENTORY, SecureConfig(tolerations=(CILIUM,)))
    assert (ours.interface, ours.whose, ours.by, ours.removal) == ("eth0", "owned", GENERATION, None)
    assert (tolerated.whose, tolerated.by, tolerated.removal) == ("tolerated", "cilium", None)
    assert (foreign.program, foreign.whose, foreign.removal) == ("stranger", "foreign", "filter-delete")
    assert ours.watched
    assert tolerated.watched
    assert foreign.watched


def test_what_secure_mode_does_not_look_at_is_shown_and_said() -> None:
    seen = seen_of(SNAPSHOT, INVENTORY, SecureConfig(interfaces=("wan*",)))
    assert [(each.interface, each.whose, each.watched) for each in seen] == [
        ("eth0", "owned", True),  # a chain of ours is there, so its interface is watched in any case
        ("tap0", "foreign", False),
        ("tap0", "foreign", False),
    ]


def test_nothing_is_watched_when_secure_mode_is_off() -> None:
    seen = seen_of(SNAPSHOT, INVENTORY, SecureConfig(mode=SecureMode.OFF))
    assert len(seen) == 3
    assert not any(each.watched for each in seen)


def test_the_kernel_decides_what_is_ours_not_the_inventory() -> None:
    elsewhere = replace(SNAPSHOT, pins=())
    seen = seen_of(elsewhere, INVENTORY, SecureConfig())
    assert [each.whose for each in seen] == ["foreign", "foreign", "foreign"]


def test_a_configured_namespace_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.cli._observe.make_kernel", lambda _: FakeKernel())
    file = tmp_path / "config.yaml"
    text = (
        "apiVersion: reconciler/v1alpha1\nkind: Config\nmetadata: {name: lab}\nspec:\n  source: {url: 'https://x/y'}\n"
    )
    text += f"  paths: {{state: {tmp_path}/state}}\n  secureMode: {{namespaces: [host%s]}}\n"
    file.write_text(text % ", typo")
    ran = reconciler("-c", file, "observe")
    assert (ran.code, "there is no network namespace typo" in ran.err) == (0, True), ran.err
    file.write_text(text % "")
    assert "there is no" not in reconciler("-c", file, "observe").err
