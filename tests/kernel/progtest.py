# SPDX-License-Identifier: Apache-2.0
"""Loads programs of bpf/ as a chain does, and runs them on single frames with BPF_PROG_TEST_RUN.

Parameters and map entries are written as in a manifest and go through `elf.encode` with the formats of package.yaml.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from reconciler import elf
from reconciler.kernel import _bpf, _libbpf, trial
from reconciler.model import STATS_COUNTERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

ROOT = Path(__file__).parents[2]
BPF = ROOT / "bpf"
PACKAGES = tuple(sorted(path.parent.name for path in BPF.glob("*/package.yaml")))

TCX_NEXT = -1
XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
TC_ACT_OK, TC_ACT_SHOT = 0, 2


@functools.cache
def build() -> Path:
    """Compile every package if needed; the folder with one folder for each package."""
    made = subprocess.run(["make", "-s", "-C", BPF, "objects"], check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return ROOT / "build" / "bpf"


@functools.cache
def object_bytes(package: str) -> bytes:
    return (build() / package / f"{package}.bpf.o").read_bytes()


@functools.cache
def manifest(package: str) -> Any:
    """`spec` of the package's package.yaml."""
    return yaml.safe_load((BPF / package / "package.yaml").read_text(encoding="utf-8"))["spec"]


def _possible_cpus() -> int:
    last = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split("-")[-1]
    return int(last) + 1


class Program:
    """One loaded program. `chain` sets the globals of the contract by their names without `chain_`."""

    def __init__(
        self,
        package: str,
        program: str | None = None,
        *,
        params: Mapping[str, object] | None = None,
        maps: Mapping[str, Sequence[tuple[object, object]]] | None = None,
        chain: Mapping[str, int] | None = None,
    ) -> None:
        self._spec = manifest(package)
        self._elf = elf.read_object(object_bytes(package), name=f"{package}.bpf.o")
        self.name = program or package
        self._is_tc = next(each["type"] for each in self._spec["programs"] if each["name"] == self.name) == "tc"
        self._object = _libbpf.Object(object_bytes(package), "test")
        try:
            self._object.choose(self.name)
            self._set(dict(params or {}) | {f"chain_{key}": value for key, value in (chain or {}).items()})
            for each in self._spec["maps"]:
                if each["role"] == "config":
                    self._object.add_map_flags(each["name"], _bpf.BPF_F_RDONLY_PROG)
            self.fd = self._object.load()
            for name, entries in (maps or {}).items():
                for key, value in entries:
                    self.put(name, key, value)
        except BaseException:
            self._object.close()
            raise

    def _set(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            found = self._elf.find_global(name)
            assert found is not None, name
            data = elf.encode(self._elf.btf, found.type_id, value, where=name)
            self._object.patch(found.section, [(found.offset, data)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._object.close()

    # --- maps ----------------------------------------------------------------------------------------------

    def map_fd(self, name: str) -> int:
        return self._object.map_fd(name)

    def _types(self, name: str) -> tuple[elf.MapDef, Mapping[str, str]]:
        found = self._elf.find_map(name)
        assert found is not None, name
        return found, next(each for each in self._spec["maps"] if each["name"] == name)

    def put(self, name: str, key: object, value: object) -> None:
        """Set an entry, both as in a manifest."""
        definition, declared = self._types(name)
        assert definition.key_type_id is not None
        assert definition.value_type_id is not None
        btf = self._elf.btf
        key_bytes = elf.encode(btf, definition.key_type_id, key, where=name, format=declared.get("keyFormat"))
        value_bytes = elf.encode(btf, definition.value_type_id, value, where=name, format=declared.get("valueFormat"))
        _bpf.map_update(self.map_fd(name), key_bytes, value_bytes)

    def raw_entries(self, name: str) -> dict[bytes, bytes]:
        descriptor = self.map_fd(name)
        return dict(_bpf.map_entries(descriptor, _bpf.map_info(descriptor)))

    def stats(self) -> dict[str, tuple[int, int]]:
        """Counters that are not 0: name to (packets, bytes), summed over the CPUs."""
        size, found = 16, {}
        for index, name in enumerate(STATS_COUNTERS):
            data = _bpf.map_lookup(self.map_fd("stats"), index.to_bytes(4, "little"), size * _possible_cpus())
            numbers = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
            if any(numbers):
                found[name] = (sum(numbers[::2]), sum(numbers[1::2]))
        return found

    def join(self, successor: Program) -> None:
        """Fill the slot of `next`."""
        _bpf.map_update(self.map_fd("next"), bytes(4), successor.fd.to_bytes(4, "little"))

    def cut(self) -> None:
        """Empty the slot of `next`."""
        _bpf.map_delete(self.map_fd("next"), bytes(4))

    # --- runs ----------------------------------------------------------------------------------------------

    def run(self, frame: bytes, *, repeat: int = 1) -> trial.Run:
        """Run on a frame of at least 14 bytes; on tc, Linux takes no IP frame without its whole fixed IP header."""
        return trial.run(self.fd, frame, repeat=repeat)

    def verdict(self, frame: bytes) -> int:
        return self.run(frame).verdict

    def passes(self, frame: bytes) -> bool:
        """Whether the program lets the frame through; any verdict but its own pass and drop is an error."""
        verdict = self.verdict(frame)
        passed, dropped = (TCX_NEXT, TC_ACT_SHOT) if self._is_tc else (XDP_PASS, XDP_DROP)
        assert verdict in (passed, dropped)
        return verdict == passed
