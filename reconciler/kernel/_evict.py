# SPDX-License-Identifier: Apache-2.0
"""Remove what is not ours: evict from a hook, or displace the occupant of one that is wanted.

Each removal reads first and compares by what the kernel offers for its kind; what turns out to be another program than
the planned one is left alone (`StaleError`).
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from reconciler.errors import NotSupportedError, StaleError
from reconciler.kernel import _bpf, _filters, _hooks, _which_link
from reconciler.kernel._attach import create_xdp, pin_link
from reconciler.kernel._failing import OCCUPIED, STALE, UNSUPPORTED, failing
from reconciler.kernel._netlink import Route
from reconciler.kernel._site import Site, stale
from reconciler.model import (
    Attach,
    AttachKind,
    Attachment,
    Evict,
    HookPoint,
    HookState,
    Identity,
    OwnedAttachment,
    RemovalMethod,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NETLINK_LOST = {errno.EEXIST: StaleError, errno.EBUSY: StaleError, errno.ENODEV: StaleError}
"""Netlink XDP: another program than the expected one, or a link, holds the hook now."""


def evict(site: Site, step: Evict, state: HookState) -> None:
    """Remove one foreign attachment.

    Args:
        state: the hook as it is now.
    """
    call = f"evict {step.attachment.kind} from {step.point}"
    if step.method is RemovalMethod.NOT_POSSIBLE:
        raise NotSupportedError(call, errno.EOPNOTSUPP, "the kernel has no way to remove it")
    if not any(_same_place(found, step.attachment) for found in state.attachments):
        raise stale(call, f"program {step.program.id} is not attached there as planned any more")
    match step.method:
        case RemovalMethod.LINK_DETACH:
            with (
                _foreign_link(site, call, step.attachment, site.program(call, step.program), step.point) as link,
                failing(call, STALE, UNSUPPORTED),
            ):
                _bpf.link_detach(link)
        case RemovalMethod.NETLINK:
            expected = site.program(call, step.program)
            with failing(call, _NETLINK_LOST):
                set_xdp(site, step.point, -1, expected, step.attachment.mode)
        case RemovalMethod.PROG_DETACH:
            kind = _hooks.TCX_TYPES[step.point.kind]
            ifindex = step.point.ifindex
            program = site.program(call, step.program)
            with failing(call, STALE, {errno.EBUSY: StaleError}):
                site.reader.inside(step.point, lambda: _bpf.tcx_detach(program, ifindex, kind, step.revision))
        case RemovalMethod.FILTER_DELETE:
            if step.attachment.filter is None:
                raise stale(call, "the step names no filter")
            _filters.evict(site.reader, step.point, step.attachment.filter, step.program)


def _same_place(found: Attachment, planned: Attachment) -> bool:
    return (found.kind, found.program_id, found.link_id, found.filter) == (
        planned.kind,
        planned.program_id,
        planned.link_id,
        planned.filter,
    )


@contextmanager
def _foreign_link(site: Site, call: str, planned: Attachment, program: int, point: HookPoint) -> Iterator[int]:
    """A descriptor of the link on the hook: the planned one, or one that looked like it. Raises StaleError."""
    with failing(call, STALE, {errno.EPERM: StaleError}):
        number = planned.link_id or 0
        alike = _which_link.look_alikes(planned.program_id, point.ifindex) if planned.mode is not None else []
        if len(alike) > 1:
            number = _which_link.find(site.reader, call, point, alike, program) or 0
        link = _bpf.link_by_id(number)
    with _bpf.closing(link), failing(call):
        facts = _bpf.link_info(link)
        if (facts.prog_id, facts.ifindex) != (planned.program_id, point.ifindex):
            raise stale(call, f"link {planned.link_id} is not what it was when the plan was made")
        yield link


def set_xdp(site: Site, point: HookPoint, program: int, expected: int, mode: str | None) -> None:
    """Netlink XDP in the hook's namespace, compared with the program `expected` is a descriptor of."""

    def work() -> None:
        with Route() as route:
            route.set_xdp(point.ifindex, program, expected, _hooks.XDP_FLAGS[mode or "native"])

    site.reader.inside(point, work)


# === displace ==============================================================================================


def attach_displacing(
    site: Site, step: Attach, first: Identity, state: HookState, clock: Callable[[], float] = time.monotonic
) -> OwnedAttachment:
    """Take an XDP hook over from its planned occupant.

    The occupant's attachment first gets our program in place, compared with the old one; so packets run ours at once,
    and what remains is the gap between removing that attachment and making our link, which is measured. If our link
    cannot be made then, the hook stays empty: the foreign program does not come back.

    Args:
        state: the hook as it is now.
    """
    call = f"displace {step.point}"
    foreign = step.displace
    if foreign is None or state.attachments != (foreign,):
        raise stale(call, "the hook does not hold exactly the planned occupant any more")
    program = site.first(step.generation, first)
    with ExitStack() as stack:
        with failing(call, STALE):
            old = stack.enter_context(_bpf.closing(_bpf.prog_by_id(foreign.program_id)))
        if foreign.kind is AttachKind.XDP_LINK:
            link = stack.enter_context(_foreign_link(site, call, foreign, old, step.point))
            _take_over_link(call, link, program, old)
            start = clock()
            with failing(call, STALE):
                _bpf.link_detach(link)
        else:
            expected = _take_over_netlink(site, call, step, program, old)
            start = clock()
            with failing(call, _NETLINK_LOST):
                set_xdp(site, step.point, -1, expected, foreign.mode)
        with failing(f"BPF_LINK_CREATE {step.point}", OCCUPIED, UNSUPPORTED):
            made, mode = create_xdp(site, step.point, program, step.mode)
        gap = clock() - start
        with _bpf.closing(made):
            return pin_link(site, made, step, mode, gap)


def _take_over_link(call: str, link: int, program: int, old: int) -> None:
    try:
        _bpf.link_update(link, program, old)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.ENOLINK}:
            raise stale(call, "the occupant's link changed") from error
        # Our program does not fit the occupant's mode: it is then removed without this.


def _take_over_netlink(site: Site, call: str, step: Attach, program: int, old: int) -> int:
    """The program that the hook holds afterwards: ours, or still the old one where ours does not fit its mode."""
    mode = step.displace.mode if step.displace is not None else None
    try:
        set_xdp(site, step.point, program, old, mode)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.EBUSY, errno.ENODEV}:
            raise stale(call, "the occupant changed") from error
        return old
    return program
