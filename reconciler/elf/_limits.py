# SPDX-License-Identifier: Apache-2.0
"""How much of an unverified object is read at most, and where each number comes from.

Every limit is an upper bound on work or memory, so that a hostile object costs what a large honest one costs.
"""

from __future__ import annotations

from typing import Final

MAX_OBJECT_BYTES: Final = 16 << 20
"""Bytes of one object: twice what the kernel's longest program takes (BPF_COMPLEXITY_LIMIT_INSNS, 1,000,000 x 8)."""

MAX_SECTIONS: Final = 4096
"""Section headers; an object of 100 programs with debug information has about 230."""

MAX_SYMBOLS: Final = 1 << 16
"""Symbol table entries, local labels counted."""

MAX_PROGRAMS: Final = 256
"""Entry programs of one object; a chain holds 33 (the kernel's MAX_TAIL_CALL_CNT)."""

MAX_MAPS: Final = 256
"""Maps of one object; the kernel lets one program use 64 (MAX_USED_MAPS)."""

MAX_GLOBALS: Final = 4096
"""Global variables of one object."""

MAX_DATA_BYTES: Final = 4 << 20
"""Bytes of one data section, and of one encoded or decoded value: the kernel's KMALLOC_MAX_SIZE with 4 KiB pages,
above which a map's value cannot be copied from user space in one piece."""

MAX_BTF_BYTES: Final = 4 << 20
"""Bytes of .BTF: the BTF of a whole distribution kernel; the kernel's own limit is 16 MiB (BTF_MAX_SIZE)."""

MAX_TYPES: Final = 1 << 16
"""BTF types; BTF up to Linux 5.7 could not number more (BTF_MAX_TYPE 0xffff), now it is 0xfffff."""

MAX_NAME: Final = 511
"""Characters of a name: KSYM_NAME_LEN (512 since Linux 6.1) without the terminating NUL."""

MAX_NAME_CHARACTERS: Final = 8 << 20
"""Characters of all names of types together: names may overlap in their table, so its size does not bound them."""

MAX_DEPTH: Final = 32
"""Types inside types: MAX_RESOLVE_DEPTH of kernel/bpf/btf.c."""

MAX_NODES: Final = 1 << 16
"""Scalars, members and elements that one value or one description of a type may have. `BYTES_PER_NODE`
bytes count as one more."""

MAX_PACKAGE_NODES: Final = 2 * MAX_NODES
"""The same for all declared maps and parameters of one package together: it may have 256 of them, in 63 objects."""

BYTES_PER_NODE: Final = 256
"""Bytes of a value that cost as much as one member: types whose members overlap cannot multiply its size."""

MAX_LICENSE: Final = 63
"""Characters of the licence: libbpf keeps 64 bytes of it with the NUL."""

INSTRUCTION_BYTES: Final = 8
"""Bytes of one eBPF instruction (linux/bpf.h, struct bpf_insn)."""
