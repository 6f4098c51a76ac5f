# SPDX-License-Identifier: Apache-2.0
"""Our cls_bpf filter on a clsact qdisc, where there is no tcx.

The kernel has no compare-and-swap here: the filter is read right before a change and verified after it, and a lost
race is reported as stale. A filter of ours carries the name of its generation.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

from reconciler.errors import KernelError, OccupiedError, StaleError
from reconciler.kernel import _bpf
from reconciler.kernel._failing import OCCUPIED, STALE, failing
from reconciler.kernel._netlink import BLOCK, CLSACT_HANDLE, BpfFilter, Route
from reconciler.kernel._pins import identity_of
from reconciler.model import (
    Attach,
    Detach,
    FilterId,
    HookPoint,
    Identity,
    OwnedAttachment,
    PinKind,
    Switch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.kernel._snapshot import Reader

T = TypeVar("T")


def matches(item: BpfFilter, wanted: FilterId | None) -> bool:
    """Whether an observed filter has this identity."""
    return wanted is not None and (
        (item.parent, item.prio, item.handle, item.protocol, item.chain)
        == (wanted.parent, wanted.prio, wanted.handle, wanted.protocol, wanted.chain)
    )


def find(route: Route, point: HookPoint, wanted: FilterId) -> BpfFilter | None:
    """The filter with this identity, None when there is none (any more)."""
    # A parent that is no minor of clsact's handle is the index of a shared block.
    ifindex = point.ifindex if wanted.parent >= CLSACT_HANDLE else BLOCK
    return next((item for item in route.filters(ifindex, wanted.parent) if matches(item, wanted)), None)


def _inside(reader: Reader, point: HookPoint, work: Callable[[Route], T]) -> T:
    def call() -> T:
        with Route() as route:
            return work(route)

    return reader.inside(point, call)


def _message(point: HookPoint, wanted: FilterId, generation: str) -> BpfFilter:
    return BpfFilter(
        ifindex=point.ifindex,
        parent=wanted.parent,
        prio=wanted.prio,
        protocol=wanted.protocol,
        chain=wanted.chain,
        handle=wanted.handle,
        program_id=0,
        name=generation,
        direct_action=True,
    )


def _wanted(call: str, wanted: FilterId | None) -> FilterId:
    if wanted is None:
        raise KernelError(call, errno.EINVAL, "a step about a filter must name it")
    return wanted


# === attach ================================================================================================


def attach(reader: Reader, step: Attach, program: int, first: Identity) -> OwnedAttachment:
    """Create the qdisc if planned, and the filter; neither stays when the other fails."""
    call = f"RTM_NEWTFILTER {step.point}"
    wanted = _wanted(call, step.filter)
    with failing(call, OCCUPIED):
        made = _inside(reader, step.point, lambda route: _attach(route, call, step, wanted, program, first))
    return OwnedAttachment(point=step.point, kind=step.kind, generation=step.generation, filter=wanted, made_qdisc=made)


def _attach(route: Route, call: str, step: Attach, wanted: FilterId, program: int, first: Identity) -> bool:
    """Whether the qdisc was made here."""
    ifindex = step.point.ifindex
    made = _ensure_qdisc(route, call, ifindex, create=step.make_qdisc)
    try:
        route.set_filter(_message(step.point, wanted, step.generation), program, replace=False)
        _verify(route, call, step.point, wanted, first)
    except (OSError, KernelError):
        if made and not route.any_filter(ifindex):
            route.delete_clsact(ifindex)
        raise
    return made


def _ensure_qdisc(route: Route, call: str, ifindex: int, *, create: bool) -> bool:
    """Whether it was made here. Raises OccupiedError when a foreign `ingress` qdisc sits in its place."""
    route.device(ifindex)  # ENODEV, rather than what a qdisc on no interface gives
    there = route.clsact(ifindex).get(ifindex)
    if there is None and create:
        try:
            route.add_clsact(ifindex)
        except FileExistsError:  # somebody was faster
            there = route.clsact(ifindex).get(ifindex)
        else:
            return True
    if there == "ingress":
        raise OccupiedError(call, errno.EEXIST, "an ingress qdisc of somebody else is in the place of clsact")
    if there is None:
        raise StaleError(call, errno.ENOENT, "the clsact qdisc that was there is gone")
    return False


def _verify(route: Route, call: str, point: HookPoint, wanted: FilterId, first: Identity) -> None:
    found = find(route, point, wanted)
    if found is None or found.program_id != first.id:
        got = "none" if found is None else str(found.program_id)
        raise StaleError(call, errno.ESTALE, f"lost a race: expected program {first.id} after the change, got {got}")


# === switch ================================================================================================


def switch(reader: Reader, step: Switch, program: int, first: Identity) -> OwnedAttachment:
    """Replace the filter's program in one step, if it is `step.program` still."""
    call = f"RTM_NEWTFILTER replace {step.point}"
    wanted = _wanted(call, step.filter)

    def work(route: Route) -> None:
        found = find(route, step.point, wanted)
        _same_program(call, found, step.program)
        route.set_filter(_message(step.point, wanted, step.generation), program, replace=True)
        _verify(route, call, step.point, wanted, first)

    with failing(call, STALE):
        _inside(reader, step.point, work)
    return OwnedAttachment(point=step.point, kind=step.kind, generation=step.generation, filter=wanted)


def _same_program(call: str, found: BpfFilter | None, planned: Identity) -> None:
    if found is None or found.program_id != planned.id:
        got = "no filter" if found is None else f"program {found.program_id}"
        raise StaleError(call, errno.ESTALE, f"expected program {planned.id}, got {got}")
    with _bpf.closing(_bpf.prog_by_id(planned.id)) as descriptor:
        if identity_of(descriptor, PinKind.PROGRAM) != planned:
            raise StaleError(call, errno.ESTALE, f"program id {planned.id} names another program now")


# === detach, evict =========================================================================================


def detach(reader: Reader, step: Detach, program: int | None) -> None:
    """Delete our filter, and the qdisc if that is planned and nobody else uses it.

    Args:
        program: id of the generation's first program; None when its pin is gone, then the filter's name decides.

    Raises:
        StaleError: another program is in our filter's place.
    """
    call = f"RTM_DELTFILTER {step.point}"
    wanted = _wanted(call, step.filter)

    def work(route: Route) -> None:
        found = find(route, step.point, wanted)
        if found is not None:
            ours = found.program_id == program if program is not None else found.name == step.generation
            if not ours:
                raise StaleError(call, errno.ESTALE, f"the filter runs program {found.program_id}, which is not ours")
            _delete(route, call, step.point, found)
        if step.remove_qdisc and route.clsact(step.point.ifindex) and not route.any_filter(step.point.ifindex):
            route.delete_clsact(step.point.ifindex)

    try:
        with failing(call):
            _inside(reader, step.point, work)
    except KernelError as error:
        if error.errno != errno.ENODEV or _there(reader, step.point):
            raise  # gone with its interface is fine, if that is gone


def _there(reader: Reader, point: HookPoint) -> bool:
    try:
        return _inside(reader, point, lambda route: route.name(point.ifindex) is not None)
    except OSError:
        return False


def evict(reader: Reader, point: HookPoint, gone: FilterId, program: Identity) -> None:
    """Delete a foreign filter. Raises StaleError when it does not run `program` any more."""
    call = f"RTM_DELTFILTER {point}"

    def work(route: Route) -> None:
        found = find(route, point, gone)
        _same_program(call, found, program)
        if found is not None:
            _delete(route, call, point, found)

    with failing(call, STALE):
        _inside(reader, point, work)


def _delete(route: Route, call: str, point: HookPoint, found: BpfFilter) -> None:
    route.delete_filter(found)
    wanted = FilterId(
        parent=found.parent, prio=found.prio, handle=found.handle, protocol=found.protocol, chain=found.chain
    )
    again = find(route, point, wanted)
    if again is not None:
        detail = f"lost a race: program {again.program_id} is in the place of the deleted filter"
        raise StaleError(call, errno.ESTALE, detail)
