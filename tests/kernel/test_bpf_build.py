# SPDX-License-Identifier: Apache-2.0
"""The packages of bpf/ as such: the same bytes wherever they are compiled, a package.yaml that says what they hold."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from reconciler import elf
from reconciler.model import MapRole
from tests.kernel import progtest

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = {"chain_proceed": 0, "chain_last": 1, "chain_end": 0, "chain_broken": 0}
CAN_BE_LOCKED = {1, 2, 11}  # HASH, ARRAY, LPM_TRIE take BPF_F_RDONLY_PROG


def test_the_same_sources_give_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    progtest.build()
    shutil.copytree(progtest.BPF, tmp_path / "elsewhere" / "bpf")
    command = ["make", "-s", "-C", str(tmp_path / "elsewhere" / "bpf"), "objects", f"BUILD={tmp_path / 'out'}"]
    subprocess.run(command, check=True, capture_output=True)
    for package in progtest.PACKAGES:
        again = (tmp_path / "out" / "bpf" / package / f"{package}.bpf.o").read_bytes()
        assert again == progtest.object_bytes(package), package
        assert str(tmp_path).encode() not in again


@pytest.mark.parametrize("package", progtest.PACKAGES)
def test_package_yaml_names_exactly_what_the_object_holds(package: str) -> None:
    spec = progtest.manifest(package)
    found = elf.read_object(progtest.object_bytes(package), name=package)
    assert {each["name"]: each["type"] for each in spec["programs"]} == {
        each.name: each.section for each in found.programs
    }
    assert {each["name"] for each in spec["maps"]} == {each.name for each in found.maps}
    tunable = {each.name for each in found.globals if each.tunable}
    assert {each["name"] for each in spec["params"]} == tunable - set(CONTRACT)
    assert found.license == "Dual BSD/GPL"


@pytest.mark.parametrize("package", progtest.PACKAGES)
def test_defaults_of_package_yaml_are_those_of_the_source(package: str) -> None:
    found = elf.read_object(progtest.object_bytes(package), name=package)
    expected = {each["name"]: each["default"] for each in progtest.manifest(package)["params"]} | CONTRACT
    for name, value in expected.items():
        variable = found.find_global(name)
        assert variable is not None
        assert elf.encode(found.btf, variable.type_id, value, where=name) == variable.initial, name


@pytest.mark.parametrize("package", progtest.PACKAGES)
def test_config_maps_are_of_types_that_can_be_locked(package: str) -> None:
    found = elf.read_object(progtest.object_bytes(package), name=package)
    roles = {each["name"]: MapRole(each["role"]) for each in progtest.manifest(package)["maps"]}
    for each in found.maps:
        assert roles[each.name] is not MapRole.CONFIG or each.type in CAN_BE_LOCKED, each.name
    assert [roles["next"], roles["stats"]] == [MapRole.NEXT, MapRole.STATS]


@pytest.mark.parametrize("package", progtest.PACKAGES)
def test_the_source_begins_and_ends_as_every_package_does(package: str) -> None:
    lines = (progtest.BPF / package / f"{package}.bpf.c").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause"
    assert lines[-1] == 'char LICENSE[] SEC("license") = "Dual BSD/GPL";'
    assert (progtest.BPF / package / "README.md").is_file()
