# SPDX-License-Identifier: Apache-2.0
"""Which of several XDP links is the one on a hook: the kernel says a link's ifindex, and not its namespace.

Two links that run one program on interfaces with the same number look alike, and removing the wrong one would take a
program off an interface that nobody asked about. So each of them runs for a moment a stand-in that only tail-calls the
program, and the hook tells which one it was; packets see no difference, and every link gets its program back.
"""

from __future__ import annotations

import errno
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from reconciler.errors import NotSupportedError
from reconciler.kernel import _bpf
from reconciler.kernel._objects import links_now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.kernel._snapshot import Reader
    from reconciler.model import HookPoint

_XDP_HAS_FRAGS = 1 << 5
_VARIANTS = tuple((kind, flags) for kind in (_bpf.BPF_XDP, 0) for flags in (0, _XDP_HAS_FRAGS))
"""What a program must share with the one that it is joined to (kernel/bpf/core.c, bpf_prog_map_compatible); unseen."""


def look_alikes(program: int, ifindex: int) -> list[int]:
    """Ids of all XDP links that run this program on an interface with this number, in whichever namespace."""
    wanted = (_bpf.LinkType.XDP, program, ifindex)
    return [link.id for link in links_now() if (link.type, link.prog_id, link.ifindex) == wanted]


def find(reader: Reader, call: str, point: HookPoint, candidates: list[int], program: int) -> int | None:
    """The candidate that holds the hook, None when none does.

    Args:
        program: a descriptor of the program that all of them run.

    Raises:
        NotSupportedError: no stand-in fits the program.
        OSError: EPERM, ENOENT or ENOLINK for a link that changed meanwhile.
    """
    with ExitStack() as stack:
        for kind, flags in _VARIANTS:
            try:
                other = stack.enter_context(_stand_in(program, kind, flags))
                return next((each for each in candidates if _holds(reader, point, each, program, other)), None)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
    links = ", ".join(map(str, candidates))
    message = f"links {links} run the same program on interfaces with the same number, and cannot be told apart"
    raise NotSupportedError(call, errno.EOPNOTSUPP, message)


@contextmanager
def _stand_in(program: int, kind: int, flags: int) -> Iterator[int]:
    """A program that tail-calls `program`. Raises OSError EINVAL when the two do not fit."""
    with (
        _bpf.closing(_bpf.map_create(_bpf.MapType.PROG_ARRAY, 4, 4, 1)) as array,
        _bpf.closing(_bpf.load_tail_call(array, kind, flags)) as made,
    ):
        _bpf.map_update(array, bytes(4), program.to_bytes(4, sys.byteorder))
        yield made


def _holds(reader: Reader, point: HookPoint, number: int, program: int, other: int) -> bool:
    with _bpf.closing(_bpf.link_by_id(number)) as link:
        _bpf.link_update(link, other, program)
        try:
            _, raw = reader.raw(point)
        finally:
            _bpf.link_update(link, program, other)
    return _bpf.prog_info(other).id in raw.programs()
