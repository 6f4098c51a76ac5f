# SPDX-License-Identifier: Apache-2.0
"""Attach, switch and detach what is ours: links on XDP and tcx, filters on clsact.

A link is compared by the kernel (`expected_revision`, `old_prog_fd`); a filter has no such guard and is read right
before and verified after. A link's pin is made before `attach` returns; if it cannot be, the link is detached again.
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

from reconciler.errors import KernelError, NotSupportedError, ReconcilerError, StaleError
from reconciler.kernel import Progress, _bpf, _filters, _hooks, in_order
from reconciler.kernel._failing import OCCUPIED, STALE, UNSUPPORTED, failing
from reconciler.kernel._netlink import Route
from reconciler.kernel._site import Site, first_pin, stale
from reconciler.model import (
    Attach,
    AttachKind,
    ChangeMode,
    Detach,
    HookPoint,
    Identity,
    OwnedAttachment,
    Switch,
    XdpMode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

AT_ONCE: Final = 128
"""Links that are held open at once; descriptors are limited to 1,024 by default."""


def attach(site: Site, step: Attach, first: Identity) -> OwnedAttachment:
    """Attach to a hook that holds nothing of ours, and pin."""
    program = site.first(step.generation, first)
    if step.kind is AttachKind.CLSACT_FILTER:
        return _filters.attach(site.reader, step, program, first)
    if step.pin is None:
        raise KernelError(f"attach {step.point}", errno.EINVAL, "a link needs a pin")
    call = f"BPF_LINK_CREATE {step.point}"
    if step.kind is AttachKind.TCX_LINK:
        with failing(call, {errno.EEXIST: StaleError}, STALE, UNSUPPORTED):
            link, mode = _create_tcx(site, step, program), None
    elif step.kind is AttachKind.XDP_LINK:
        with failing(call, OCCUPIED, UNSUPPORTED):
            link, mode = create_xdp(site, step.point, program, step.mode)
    else:
        raise NotSupportedError(call, errno.EOPNOTSUPP, f"ours are never attached as {step.kind}")
    with _bpf.closing(link):
        return pin_link(site, link, step, mode)


def _create_tcx(site: Site, step: Attach, program: int) -> int:
    if not site.reader.tcx:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no tcx")
    kind = _hooks.TCX_TYPES[step.point.kind]
    return site.reader.inside(
        step.point, lambda: _bpf.link_create_tcx(program, step.point.ifindex, kind, step.revision)
    )


def create_xdp(site: Site, point: HookPoint, program: int, mode: XdpMode) -> tuple[int, str]:
    """Create the link; auto is native, and generic only where the driver has none. The link, and the mode it got."""

    def create(name: str) -> int:
        return site.reader.inside(point, lambda: _create_xdp_here(program, point.ifindex, _hooks.XDP_FLAGS[name]))

    if mode is not XdpMode.AUTO:
        return create(mode.value), mode.value
    try:
        return create("native"), "native"
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return create("generic"), "generic"


def _create_xdp_here(program: int, ifindex: int, flags: int) -> int:
    try:
        return _bpf.link_create_xdp(program, ifindex, flags)
    except OSError as error:
        if error.errno == errno.EINVAL:  # also what the kernel says about an interface that is gone
            with Route() as route:
                route.device(ifindex)
        raise


def pin_link(
    site: Site, link: int, step: Attach | ChangeMode, mode: str | None, gap: float | None = None
) -> OwnedAttachment:
    """Pin a link just made, or detach it again."""
    try:
        with failing(f"read link of {step.point}"):
            number = _bpf.link_info(link).id
        site.pins.pin(link, step.pin or "")
    except KernelError:
        with suppress(OSError):
            _bpf.link_detach(link)
        raise
    kind = step.kind if isinstance(step, Attach) else AttachKind.XDP_LINK
    return OwnedAttachment(
        point=step.point,
        kind=kind,
        generation=step.generation,
        pin=step.pin,
        link_id=number,
        mode=mode,
        gap=gap,
    )


# === switch ================================================================================================


def switch(site: Site, step: Switch, first: Identity) -> OwnedAttachment:
    """Replace the program in one atomic step, if it is `step.program` still; the mode of XDP is not read."""
    new = site.first(step.generation, first)
    if step.kind is AttachKind.CLSACT_FILTER:
        return _filters.switch(site.reader, step, new, first)
    call = f"BPF_LINK_UPDATE {step.point}"
    with planned_link(site, call, step.pin, step.link_id) as (link, facts):
        old = site.program(call, step.program)
        if facts.ifindex != step.point.ifindex:
            raise stale(call, "the link is defunct: its interface is gone, or somebody detached it")
        try:
            # EPERM: the link runs another program than `old`.
            with failing(call, STALE, {errno.EPERM: StaleError}):
                _bpf.link_update(link, new, old)
        except StaleError as error:
            if _bpf.link_info(link).prog_id == step.program.id and error.errno == errno.EPERM:
                raise KernelError(call, errno.EPERM, "not permitted") from error
            raise
    return OwnedAttachment(
        point=step.point,
        kind=step.kind,
        generation=step.generation,
        pin=step.pin,
        link_id=step.link_id,
    )


@contextmanager
def planned_link(site: Site, call: str, pin: str | None, link_id: int | None) -> Iterator[tuple[int, _bpf.LinkFacts]]:
    """The link at our pin, and what it is. Raises StaleError when there is none, or another."""
    try:
        opened = site.pins.opened(pin or "")
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        raise stale(call, f"the pin {pin} is gone") from error
    with opened as link:
        with failing(call, {errno.EINVAL: StaleError}):  # EINVAL: what is pinned there is no link
            facts = _bpf.link_info(link)
        if link_id is not None and facts.id != link_id:
            raise stale(call, f"expected link {link_id} at {pin}, got {facts.id}")
        with failing(call):
            yield link, facts


# === change of mode ========================================================================================


def change_mode(
    site: Site, step: ChangeMode, first: Identity, clock: Callable[[], float] = time.monotonic
) -> tuple[OwnedAttachment, float]:
    """Detach and attach again; if that fails the old program is attached again in its old mode."""
    call = f"change XDP mode of {step.point}"
    program = site.first(step.generation, first)
    with planned_link(site, call, step.pin, step.link_id) as (link, before):
        if before.ifindex != step.point.ifindex:
            raise stale(call, "the link is defunct: its interface is gone, or somebody detached it")
        with failing(call, STALE):
            old = _bpf.prog_by_id(before.prog_id)
        with _bpf.closing(old):
            start = clock()
            with failing(call, STALE):
                _bpf.link_detach(link)
            try:
                with failing(call, OCCUPIED, UNSUPPORTED):
                    made, mode = create_xdp(site, step.point, program, step.mode)
                gap = clock() - start
                with _bpf.closing(made):
                    return _pin_again(site, made, step, mode), gap
            except KernelError:
                _restore(site, step, old)
                raise


def _pin_again(site: Site, made: int, step: ChangeMode, mode: str) -> OwnedAttachment:
    """The new link takes the old one's pin; the hook is free again if it cannot."""
    try:
        site.pins.unlink(step.pin)
    except KernelError:
        with suppress(OSError):
            _bpf.link_detach(made)
        raise
    return pin_link(site, made, step, mode)


def _restore(site: Site, step: ChangeMode, old: int) -> None:
    """Best effort: a hook in its old mode is better than none; the next pass finds what is at the pin."""
    with suppress(OSError, KernelError):
        made, _ = create_xdp(site, step.point, old, step.old_mode)
        with _bpf.closing(made):
            site.pins.unlink(step.pin)
            site.pins.pin(made, step.pin)


# === detach ================================================================================================


def detach(site: Site, steps: Sequence[Detach]) -> Progress[None]:
    """Detach neighbours of one namespace, in order; what is gone already is fine."""
    done: list[None] = []
    for is_filter, same in groupby(steps, lambda step: step.kind is AttachKind.CLSACT_FILTER):
        some = list(same)
        while some:
            now, some = some[:AT_ONCE], some[AT_ONCE:]
            progress = in_order(partial(_detach_filter, site), now) if is_filter else _detach_links(site, now)
            done += progress.done
            if progress.error is not None:
                return Progress(done=tuple(done), error=progress.error)
    return Progress(done=tuple(done))


def _detach_filter(site: Site, step: Detach) -> None:
    _filters.detach(site.reader, step, _program_of(site, step.generation))


def _detach_links(site: Site, steps: Sequence[Detach]) -> Progress[None]:
    """Unlink the pins of all, then LINK_DETACH one after the other, and only then let go of them.

    Whatever frees an object starts a grace period, and a detach that comes while one is under way waits for the rest of
    it and for another: half as much time again for all. A crash after the unlink lets go of the links, which detaches.
    """
    error: ReconcilerError | None = None
    with ExitStack() as opened:
        links: list[tuple[Detach, int | None, bool]] = []
        for step in steps:
            try:
                links.append((step, *_unpinned(site, opened, step)))
            except ReconcilerError as failure:
                error = failure
                break
        for number, (step, link, _) in enumerate(links):
            try:
                if link is not None:
                    detach_link(link, f"BPF_LINK_DETACH {step.point}")
            except KernelError as failure:
                for attached, held, was_pinned in links[number:]:
                    if was_pinned and held is not None and attached.pin is not None:
                        with suppress(KernelError):  # without a pin it ends with its descriptor
                            site.pins.pin(held, attached.pin)
                return Progress(done=(None,) * number, error=failure)
    return Progress(done=(None,) * len(links), error=error)


def _unpinned(site: Site, opened: ExitStack, step: Detach) -> tuple[int | None, bool]:
    """The link to detach, if there is one, and whether it was pinned; its pin is gone by now."""
    call = f"BPF_LINK_DETACH {step.point}"
    if step.pin is None or not site.pins.exists(step.pin):
        return _link_without_pin(opened, step, call), False
    link, _ = opened.enter_context(planned_link(site, call, step.pin, step.link_id))
    site.pins.unlink(step.pin)
    return link, True


def detach_link(link: int, call: str) -> None:
    """LINK_DETACH, which is fine for a link that is defunct already."""
    with failing(call):
        try:
            _bpf.link_detach(link)
        except OSError as error:
            if error.errno != errno.ENOLINK:
                raise


def _link_without_pin(opened: ExitStack, step: Detach, call: str) -> int | None:
    """Somebody unlinked our pin and something else still holds the link."""
    if step.link_id is None:
        return None
    with failing(call):
        try:
            link = _bpf.link_by_id(step.link_id)
        except FileNotFoundError:
            return None
        opened.enter_context(_bpf.closing(link))
        facts = _bpf.link_info(link)
    kind = _bpf.LinkType.XDP if step.kind is AttachKind.XDP_LINK else _bpf.LinkType.TCX
    return link if (facts.type, facts.ifindex) == (kind, step.point.ifindex) else None


def _program_of(site: Site, generation: str) -> int | None:
    """Id of a generation's first program, None when it is not pinned any more."""
    path = first_pin(generation)
    if not site.pins.exists(path):
        return None
    with site.pins.opened(path) as descriptor, failing(f"read {path}"):
        return _bpf.prog_info(descriptor).id
