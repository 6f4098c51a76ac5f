# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: dumps of interfaces, qdiscs and cls_bpf filters, and the few changes we make.

Dumps are parsed raw (1,000 interfaces: a few ms, a hundred times less than a general parser takes); changes are rare
and encoded by pyroute2. A `Route` is one socket and belongs to the namespace of the thread that made it, wherever it
is used afterwards. Errors are `OSError` with the kernel's errno and its extended message.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from reconciler._imports import without_init

with without_init("pyroute2"):
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

from reconciler import _points

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

NETLINK_ROUTE = 0
RTMGRP_LINK = 1

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLM_F_DUMP_INTR, _NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x10, 0x100, 0x200
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400
_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 18, 19
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46

_IFLA_IFNAME, _IFLA_EXT_MASK, _IFLA_XDP = 3, 29, 43
_RTEXT_FILTER_SKIP_STATS = 8
_IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID, _IFLA_XDP_HW_PROG_ID = 5, 6, 7
_TCA_KIND, _TCA_OPTIONS, _TCA_CHAIN = 1, 2, 11
_TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 7, 8, 11
_NLMSGERR_ATTR_MSG = 1
_SIOCGIFNAME, _IFNAMSIZ = 0x8910, 16
_NLA_TYPE_MASK = 0x3FFF

CLSACT_HANDLE = 0xFFFF0000
CLSACT_PARENT = 0xFFFFFFF1
"""TC_H_CLSACT, which is TC_H_INGRESS: an old `ingress` qdisc sits in the same place."""
MIN_INGRESS, MIN_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 3
BLOCK = -1
"""TCM_IFINDEX_MAGIC_BLOCK (include/uapi/linux/rtnetlink.h)."""

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_IFREQ = struct.Struct("=16si20x")
_INT = struct.Struct("=i")

_CHANGES = {
    _RTM_SETLINK: "netlink SETLINK",
    _RTM_NEWQDISC: "netlink NEWQDISC",
    _RTM_DELQDISC: "netlink DELQDISC",
    _RTM_NEWTFILTER: "netlink NEWTFILTER",
    _RTM_DELTFILTER: "netlink DELTFILTER",
}

_DUMP_TRIES = 5
_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One interface; `xdp` holds (mode, program id), more than one where the hardware runs one too.

    Attributes:
        raw: the message that said so: an equal one says the same, and need not be read again.
    """

    ifindex: int
    name: str
    xdp: tuple[tuple[str, int], ...] = ()
    raw: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfFilter:
    """One cls_bpf filter with an eBPF program; protocol in host byte order.

    A filter in a block that several qdiscs share has ifindex BLOCK, and the block's index as its parent.
    """

    ifindex: int
    parent: int
    prio: int
    protocol: int
    chain: int
    handle: int
    program_id: int
    name: str | None
    direct_action: bool


class Route:
    """One rtnetlink socket in the calling thread's namespace. `close()`, or `with`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0
        self._buffer = bytearray(_BUFFER)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- reading -------------------------------------------------------------------------------------------

    def devices(self, before: Mapping[int, Device] | None = None) -> dict[int, Device]:
        """All interfaces by ifindex; `before` is an earlier answer, which saves reading what did not change."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
        found: dict[int, Device] = {}
        for payload in self._dump(_RTM_GETLINK, body):
            _, _, ifindex, _, _ = _IFINFO.unpack_from(payload)
            known = before.get(ifindex) if before is not None else None
            found[ifindex] = known if known is not None and known.raw == payload else _device(payload)
        return found

    def device(self, ifindex: int) -> Device:
        """One interface. Raises OSError ENODEV."""
        body = _IFINFO.pack(0, 0, ifindex, 0, 0) + _attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
        for kind, _, payload in self._exchange(_RTM_GETLINK, _NLM_F_REQUEST, body):
            if kind == _RTM_NEWLINK:
                return _device(payload)
        raise OSError(errno.ENODEV, f"no interface {ifindex}")

    def name(self, ifindex: int) -> str | None:
        """The name of one interface, None when there is none: a tenth of what `device` costs."""
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, _IFREQ.pack(b"", ifindex))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _text(answer[:_IFNAMSIZ])

    def clsact(self, ifindex: int = 0) -> dict[int, str]:
        """Which interfaces have a qdisc in the place of clsact: ifindex to "clsact" or "ingress"."""
        found = {}
        # A dump for one interface is only filtered by kernels that look at tcm_ifindex; older ones send all.
        for payload in self._dump(_RTM_GETQDISC, _TCMSG.pack(0, ifindex, 0, 0, 0)):
            _, index, handle, _, _ = _TCMSG.unpack_from(payload)
            if handle != CLSACT_HANDLE or ifindex not in {0, index}:
                continue
            kind = _text(_attributes(payload, _TCMSG.size).get(_TCA_KIND, b""))
            if kind in {"clsact", "ingress"}:
                found[index] = kind
        return found

    def filters(self, ifindex: int, parent: int) -> tuple[BpfFilter, ...]:
        """Filters with eBPF programs of one interface and parent, in the order in which the kernel runs them.

        Those in a shared block run there too; asked for BLOCK and its index, they are given as well.
        """
        try:
            payloads = list(self._dump(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0)))
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:  # the qdisc or interface has just gone
                return ()
            raise
        found = (_filter(payload) for payload in payloads)
        return tuple(item for item in found if item is not None and item.ifindex in {ifindex, BLOCK})

    def any_filter(self, ifindex: int) -> bool:
        """Whether any filter, of whatever kind, is left on the clsact qdisc."""
        for parent in (MIN_INGRESS, MIN_EGRESS):
            if any(True for _ in self._dump(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0))):
                return True
        return False

    # --- changing ------------------------------------------------------------------------------------------

    def add_clsact(self, ifindex: int) -> None:
        """Raises OSError EEXIST when the place is taken."""
        message = _tc(ifindex, CLSACT_PARENT, CLSACT_HANDLE, 0)
        message["attrs"] = [("TCA_KIND", "clsact")]
        self._change(_RTM_NEWQDISC, _NLM_F_CREATE | _NLM_F_EXCL, message)

    def delete_clsact(self, ifindex: int) -> None:
        message = _tc(ifindex, CLSACT_PARENT, CLSACT_HANDLE, 0)
        message["attrs"] = [("TCA_KIND", "clsact")]
        self._change(_RTM_DELQDISC, 0, message)

    def set_filter(self, wanted: BpfFilter, program: int, *, replace: bool) -> None:
        """Create a direct-action filter running the program with descriptor `program`, or replace it in one step.

        Raises:
            OSError: EEXIST when creating over another, ENOENT when replacing what is not there.
        """
        message = _tc(wanted.ifindex, wanted.parent, wanted.handle, _prio(wanted))
        options = [("TCA_BPF_FD", program), ("TCA_BPF_NAME", wanted.name or ""), ("TCA_BPF_FLAGS", 1)]
        message["attrs"] = [("TCA_KIND", "bpf"), ("TCA_OPTIONS", {"attrs": options})]
        if wanted.chain:
            message["attrs"].append(("TCA_CHAIN", wanted.chain))
        # Without NLM_F_CREATE the kernel replaces and never creates.
        self._change(_RTM_NEWTFILTER, _NLM_F_REPLACE if replace else _NLM_F_CREATE | _NLM_F_EXCL, message)

    def delete_filter(self, gone: BpfFilter) -> None:
        message = _tc(gone.ifindex, gone.parent, gone.handle, _prio(gone))
        message["attrs"] = [("TCA_KIND", "bpf")]
        if gone.chain:
            message["attrs"].append(("TCA_CHAIN", gone.chain))
        self._change(_RTM_DELTFILTER, 0, message)

    def set_xdp(self, ifindex: int, program: int, expected: int, flags: int) -> None:
        """Netlink XDP, compared: `program` -1 removes; `flags` name the mode and get XDP_FLAGS_REPLACE.

        Raises:
            OSError: EEXIST when the program there is not `expected`, EBUSY when a link holds the hook.
        """
        message = ifinfmsg()
        message["index"] = ifindex
        values = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", flags | 16), ("IFLA_XDP_EXPECTED_FD", expected)]
        message["attrs"] = [("IFLA_XDP", {"attrs": values})]
        self._change(_RTM_SETLINK, 0, message)

    # --- the wire ------------------------------------------------------------------------------------------

    def _change(self, kind: int, flags: int, message: Any) -> None:  # noqa: ANN401  # pyroute2 has no types  # pyroute2 has no types
        message.reset()
        message.encode()
        body = bytes(message.data)[_HEADER.size :]
        _points.at(_CHANGES[kind], self._acknowledged, kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, body)

    def _acknowledged(self, kind: int, flags: int, body: bytes) -> None:
        for _ in self._exchange(kind, flags, body):
            pass

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Payloads of a dump, repeated when the kernel says that it was interrupted by a change."""
        for _ in range(_DUMP_TRIES):
            found = list(self._exchange(kind, _NLM_F_REQUEST | _NLM_F_DUMP, body))
            if not any(flags & _NLM_F_DUMP_INTR for _, flags, _ in found):
                return (payload for _, _, payload in found)
        raise OSError(errno.EINTR, f"{_DUMP_TRIES} dumps in a row were interrupted by changes")

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Send one request; (type, flags, payload) of every message of the answer."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        finished = False
        while not finished:
            size = self._socket.recv_into(self._buffer)
            data = bytes(memoryview(self._buffer)[:size])
            for answer, answer_flags, sequence, payload in _messages(data):
                if sequence != self._sequence:
                    continue
                if answer in {_NLMSG_ERROR, _NLMSG_DONE}:
                    _check(answer_flags, payload)
                    finished = True
                    break
                yield answer, answer_flags, payload
                if not flags & (_NLM_F_DUMP | _NLM_F_ACK):
                    finished = True


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _check(flags: int, payload: bytes) -> None:
    """Raise what an NLMSG_ERROR or NLMSG_DONE says; 0 is an acknowledgement."""
    (code,) = _INT.unpack_from(payload) if len(payload) >= _INT.size else (0,)
    if code == 0:
        return
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        start = 4 + _HEADER.size if flags & _NLM_F_CAPPED else 4
        detail = _text(_attributes(payload, start).get(_NLMSGERR_ATTR_MSG, b""))
    raise OSError(-code, detail or os.strerror(-code))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(_ATTR.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    found = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < _ATTR.size:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _number(value: bytes | None) -> int:
    return int(_U32.unpack_from(value)[0]) if value is not None else 0


_XDP_MODES = ((_IFLA_XDP_HW_PROG_ID, "offload"), (_IFLA_XDP_DRV_PROG_ID, "native"), (_IFLA_XDP_SKB_PROG_ID, "generic"))


def _device(payload: bytes) -> Device:
    """Only what is used of some fifty attributes is taken: dumps of thousands of interfaces come here."""
    _, _, ifindex, _, _ = _IFINFO.unpack_from(payload)
    name = ""
    modes: tuple[tuple[str, int], ...] = ()
    words = memoryview(payload if len(payload) % 2 == 0 else payload + b"\0").cast("H")  # a header: length, kind
    offset, end = _IFINFO.size // 2, len(words) - 1
    while offset < end:
        length, kind = words[offset], words[offset + 1]
        if length < _ATTR.size:
            break
        if kind == _IFLA_IFNAME:
            name = _text(payload[2 * offset + 4 : 2 * offset + length])
        elif kind & _NLA_TYPE_MASK == _IFLA_XDP:
            # XDP_ATTACHED_MULTI and single modes alike carry one id for each mode.
            ids = _attributes(payload[2 * offset + 4 : 2 * offset + length])
            modes = tuple((mode, _number(ids[kind])) for kind, mode in _XDP_MODES if kind in ids)
            if name:  # the name comes first (rtnl_fill_ifinfo)
                break
        offset += (length + 3) // 4 * 2
    return Device(ifindex=ifindex, name=name, xdp=modes, raw=payload)


def _filter(payload: bytes) -> BpfFilter | None:
    _, ifindex, handle, parent, info = _TCMSG.unpack_from(payload)
    attributes = _attributes(payload, _TCMSG.size)
    if _text(attributes.get(_TCA_KIND, b"")) != "bpf" or not handle:
        return None
    options = _attributes(attributes.get(_TCA_OPTIONS, b""))
    if _TCA_BPF_ID not in options:  # classic BPF
        return None
    return BpfFilter(
        ifindex=ifindex,
        parent=parent,
        prio=info >> 16,
        protocol=socket.ntohs(info & 0xFFFF),
        chain=_number(attributes.get(_TCA_CHAIN)),
        handle=handle,
        program_id=_number(options[_TCA_BPF_ID]),
        name=_text(options[_TCA_BPF_NAME]) if _TCA_BPF_NAME in options else None,
        direct_action=bool(_number(options.get(_TCA_BPF_FLAGS)) & 1),
    )


def _tc(ifindex: int, parent: int, handle: int, info: int) -> Any:  # noqa: ANN401  # pyroute2 has no types  # pyroute2 has no types
    message = tcmsg()
    message["index"], message["parent"], message["handle"], message["info"] = ifindex, parent, handle, info
    return message


def _prio(item: BpfFilter) -> int:
    return item.prio << 16 | socket.htons(item.protocol)
