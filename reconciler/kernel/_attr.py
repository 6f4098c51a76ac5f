# SPDX-License-Identifier: Apache-2.0
"""`union bpf_attr` and the info structures of bpf(2), one `ctypes.Structure` per command.

Each structure holds the members that we use, in the kernel's layout, and may end before the kernel's does: bpf(2)
takes the size and treats the rest as zero. `tests/kernel/test_linux_abi.py` compares every member's offset and size
with the running kernel's own BTF.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_uint8, c_uint32, c_uint64
from typing import ClassVar


class MapCreate(ctypes.Structure):
    """BPF_MAP_CREATE."""

    _fields_: ClassVar = [
        ("map_type", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("inner_map_fd", c_uint32),
    ]


class MapElem(ctypes.Structure):
    """BPF_MAP_LOOKUP_ELEM, _UPDATE_ELEM, _DELETE_ELEM, _GET_NEXT_KEY (`value` is `next_key`), _FREEZE."""

    _fields_: ClassVar = [("map_fd", c_uint32), ("key", c_uint64), ("value", c_uint64), ("flags", c_uint64)]


class MapBatch(ctypes.Structure):
    """BPF_MAP_LOOKUP_BATCH."""

    _fields_: ClassVar = [
        ("in_batch", c_uint64),
        ("out_batch", c_uint64),
        ("keys", c_uint64),
        ("values", c_uint64),
        ("count", c_uint32),
        ("map_fd", c_uint32),
        ("elem_flags", c_uint64),
        ("flags", c_uint64),
    ]


class ProgLoad(ctypes.Structure):
    """BPF_PROG_LOAD, as far as probes need it; packages are loaded by libbpf."""

    _fields_: ClassVar = [
        ("prog_type", c_uint32),
        ("insn_cnt", c_uint32),
        ("insns", c_uint64),
        ("license", c_uint64),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_uint64),
        ("kern_version", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_name", c_char * 16),
        ("prog_ifindex", c_uint32),
        ("expected_attach_type", c_uint32),
    ]


class TestRun(ctypes.Structure):
    """BPF_PROG_TEST_RUN."""

    _fields_: ClassVar = [
        ("prog_fd", c_uint32),
        ("retval", c_uint32),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("data_in", c_uint64),
        ("data_out", c_uint64),
        ("repeat", c_uint32),
        ("duration", c_uint32),
    ]


class Obj(ctypes.Structure):
    """BPF_OBJ_PIN, BPF_OBJ_GET."""

    _fields_: ClassVar = [("pathname", c_uint64), ("bpf_fd", c_uint32), ("file_flags", c_uint32)]


class ProgAttach(ctypes.Structure):
    """BPF_PROG_ATTACH, BPF_PROG_DETACH."""

    _fields_: ClassVar = [
        ("target_ifindex", c_uint32),
        ("attach_bpf_fd", c_uint32),
        ("attach_type", c_uint32),
        ("attach_flags", c_uint32),
        ("replace_bpf_fd", c_uint32),
        ("relative_fd", c_uint32),
        ("expected_revision", c_uint64),
    ]


class Ids(ctypes.Structure):
    """BPF_*_GET_NEXT_ID, BPF_*_GET_FD_BY_ID."""

    _fields_: ClassVar = [("start_id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32)]


class Info(ctypes.Structure):
    """BPF_OBJ_GET_INFO_BY_FD."""

    _fields_: ClassVar = [("bpf_fd", c_uint32), ("info_len", c_uint32), ("info", c_uint64)]


class Query(ctypes.Structure):
    """BPF_PROG_QUERY."""

    _fields_: ClassVar = [
        ("target_ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("count", c_uint32),
        ("prog_attach_flags", c_uint64),
        ("link_ids", c_uint64),
        ("link_attach_flags", c_uint64),
        ("revision", c_uint64),
    ]


class LinkCreate(ctypes.Structure):
    """BPF_LINK_CREATE for XDP."""

    _fields_: ClassVar = [
        ("prog_fd", c_uint32),
        ("target_ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
    ]


class LinkCreateTcx(ctypes.Structure):
    """BPF_LINK_CREATE for tcx."""

    _fields_: ClassVar = [
        *LinkCreate._fields_,
        ("relative_fd", c_uint32),
        ("_pad", c_uint32),
        ("expected_revision", c_uint64),
    ]


class LinkUpdate(ctypes.Structure):
    """BPF_LINK_UPDATE."""

    _fields_: ClassVar = [
        ("link_fd", c_uint32),
        ("new_prog_fd", c_uint32),
        ("flags", c_uint32),
        ("old_prog_fd", c_uint32),
    ]


class LinkDetach(ctypes.Structure):
    """BPF_LINK_DETACH."""

    _fields_: ClassVar = [("link_fd", c_uint32)]


class ProgInfo(ctypes.Structure):
    """struct bpf_prog_info, its first members."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
    ]


class MapInfo(ctypes.Structure):
    """struct bpf_map_info, its first members."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
    ]


class LinkInfo(ctypes.Structure):
    """struct bpf_link_info, its first members; `ifindex` means something for XDP, tcx and netkit links only.

    The union after prog_id is 8-byte aligned, hence the padding. It must be given with room for the largest member
    that an old kernel insists on; 64 bytes are.
    """

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("_rest", c_uint8 * 40),
    ]


class Insn(ctypes.Structure):
    """struct bpf_insn, registers packed by hand: `registers` is dst | src << 4."""

    _fields_: ClassVar = [("code", c_uint8), ("registers", c_uint8), ("off", ctypes.c_int16), ("imm", c_int32)]
