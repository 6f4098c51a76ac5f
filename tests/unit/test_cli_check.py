# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reconciler.cli import _check
from reconciler.kernel.about import bpffs_mounts, can_mount_bpffs, is_passing
from reconciler.model import Features, Support
from tests.command import reconciler

if TYPE_CHECKING:
    from pathlib import Path

YES, NO = Support.YES, Support.NO
ALL = Features(xdp_link=YES, tcx=YES, clsact=YES, btf=YES, expedite=YES, drain=("membarrier",))


def states(features: Features) -> dict[str, str]:
    return {found.name: found.state for found in _check._features(features)}


def test_a_configuration_that_was_named_must_be_there(tmp_path: Path) -> None:
    ran = reconciler("-c", tmp_path / "none.yaml", "check", "-o", "json")
    assert ran.code == 1
    (found,) = [each for each in ran.json if each["name"] == "configuration"]
    assert found["state"] == "missing"
    assert found["hint"] == f"reconciler validate {tmp_path}/none.yaml"


def test_a_configuration_that_works(tmp_path: Path) -> None:
    assert reconciler("init", tmp_path / "policy").code == 0
    ran = reconciler("-c", tmp_path / "policy-host" / "config.yaml", "check", "-o", "json")
    (found,) = [each for each in ran.json if each["name"] == "configuration"]
    assert found["state"] == "ok"
    assert {each["name"] for each in ran.json} >= {"python", "python packages", "git", "ssh-keygen", "libbpf", "bpffs"}
    assert all(each["hint"] for each in ran.json if each["state"] == "missing")


def test_missing_programs_are_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_check, "SSH_KEYGEN", tmp_path / "ssh-keygen")
    monkeypatch.setattr(_check, "libbpf_version", lambda: None)
    monkeypatch.setattr(_check, "has_bcc", lambda: False)
    found = {each.name: each for each in _check._programs()}
    assert {name for name, each in found.items() if each.state == "missing"} == {"git", "ssh-keygen", "libbpf"}
    assert found["libbpf"].hint.startswith("apt install libbpf1")
    assert found["bcc"].state == "optional"


def test_an_old_libbpf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check, "libbpf_version", lambda: (0, 8))
    assert {each.name: each.state for each in _check._programs()}["libbpf"] == "missing"


def test_a_kernel_that_can_do_all() -> None:
    assert set(states(ALL).values()) == {"ok"}


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (Features(tcx=YES, clsact=YES, btf=NO, xdp_link=YES, drain=("membarrier",)), "BTF of the kernel"),
        (Features(tcx=YES, clsact=YES, btf=YES, xdp_link=NO, drain=("membarrier",)), "XDP links"),
        (Features(tcx=NO, clsact=NO, btf=YES, xdp_link=YES, drain=("membarrier",)), "clsact"),
        (Features(tcx=YES, clsact=YES, btf=YES, xdp_link=YES), "waiting for packets"),
    ],
)
def test_what_a_kernel_must_have(features: Features, name: str) -> None:
    assert [each for each, state in states(features).items() if state == "missing"] == [name]


def test_without_tcx_there_is_clsact() -> None:
    found = states(Features(tcx=NO, clsact=YES, btf=YES, xdp_link=YES, expedite=YES, drain=("map-in-map",)))
    assert (found["tcx"], found["clsact"]) == ("optional", "ok")


def test_could_not_tell_is_not_no() -> None:
    assert "missing" not in [state for name, state in states(Features()).items() if name != "waiting for packets"]


def test_where_bpffs_is_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("none /sys/fs/bpf bpf rw 0 0\nproc /proc proc rw 0 0\nbpf /run/bpf bpf rw 0 0\n")
    assert bpffs_mounts(mounts) == ("/sys/fs/bpf", "/run/bpf")


def test_what_ip_netns_exec_mounts_is_recognized(tmp_path: Path) -> None:
    mounts, netns = tmp_path / "mounts", tmp_path / "netns"
    netns.mkdir()
    (netns / "blue").touch()
    for source, passing in (("sysfs", False), ("blue", True), ("green", False)):
        mounts.write_text(f"sysfs /sys sysfs rw 0 0\nblue /mnt ext4 rw 0 0\n{source} /sys sysfs rw 0 0\n")
        assert is_passing(mounts, netns) is passing
    mounts.write_text("")
    assert not is_passing(mounts, netns)


def test_a_kernel_without_bpffs_cannot_mount_one(tmp_path: Path) -> None:
    known = tmp_path / "filesystems"
    known.write_text("nodev\tsysfs\nnodev\tbpf_else\n\text4\n")
    assert not can_mount_bpffs(known)
    assert not can_mount_bpffs(tmp_path / "absent")


@pytest.mark.parametrize(
    ("mounts", "mountable", "state"), [((), True, "ok"), ((), False, "missing"), (("/sys/fs/bpf",), False, "ok")]
)
def test_bpffs_is_there_or_can_be_mounted(
    monkeypatch: pytest.MonkeyPatch, mounts: tuple[str, ...], mountable: bool, state: str
) -> None:
    monkeypatch.setattr(_check, "bpffs_mounts", lambda: mounts)
    monkeypatch.setattr(_check, "can_mount_bpffs", lambda: mountable)
    assert _check._bpffs(None).state == state
