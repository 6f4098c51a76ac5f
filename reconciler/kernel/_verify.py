# SPDX-License-Identifier: Apache-2.0
"""A look back after a batch: the mode of each link of XDP, and whether attachments are there and run what they should.

Interfaces are read in one dump for each namespace, unless there are few.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from reconciler.errors import KernelError, StaleError
from reconciler.kernel import _bpf, _filters, _hooks
from reconciler.kernel._attach import planned_link
from reconciler.kernel._netlink import Route
from reconciler.kernel._site import by_namespace
from reconciler.model import AttachKind, HookKind, OwnedAttachment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reconciler.kernel._netlink import Device
    from reconciler.kernel._site import Site
    from reconciler.model import Identity

FEW: Final = 16
"""Interfaces up to which asking for each is cheaper than a dump of all."""


def with_modes(site: Site, made: Sequence[OwnedAttachment]) -> tuple[OwnedAttachment, ...]:
    """The mode that a switch kept; the link does not say it. None when the interface has just gone."""
    found: dict[int, str | None] = {}
    for group in by_namespace(owned for owned in made if owned.point.kind is HookKind.XDP):
        try:
            devices = site.reader.inside(group[0].point, partial(_devices_now, site, group))
        except OSError:
            continue
        found |= {id(owned): _mode(devices.get(owned.point.ifindex)) for owned in group}
    return tuple(replace(owned, mode=found[id(owned)]) if id(owned) in found else owned for owned in made)


def _mode(device: Device | None) -> str | None:
    return device.xdp[0][0] if device is not None and device.xdp else None


def not_alive(
    site: Site, attachments: Iterable[OwnedAttachment], first: Mapping[str, Identity]
) -> tuple[OwnedAttachment, ...]:
    """Those that are not there, or do not run exactly the program in `first`, by generation."""
    missing: list[OwnedAttachment] = []
    for group in by_namespace(attachments):
        try:
            missing += site.reader.inside(group[0].point, partial(_missing, site, group, first))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise KernelError("check attachments", error.errno or 0, os.strerror(error.errno or 0)) from error
            missing += group  # with its namespace
    return tuple(missing)


def _missing(site: Site, group: Sequence[OwnedAttachment], first: Mapping[str, Identity]) -> list[OwnedAttachment]:
    devices = _devices_now(site, [owned for owned in group if owned.point.kind is HookKind.XDP])
    query = _bpf.TcxQuery()
    return [owned for owned in group if not _alive(site, owned, first[owned.generation], devices, query)]


def _devices_now(site: Site, group: Sequence[OwnedAttachment]) -> dict[int, Device]:
    """The interfaces of `group` in the calling thread's namespace; those that are gone are left out."""
    wanted = {owned.point.ifindex for owned in group}
    found: dict[int, Device] = {}
    with Route() as route:
        if len(wanted) > FEW:
            return route.devices(site.reader.known.get(group[0].point.netns_inode))
        for ifindex in wanted:
            try:
                found[ifindex] = route.device(ifindex)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
    return found


def _alive(
    site: Site, owned: OwnedAttachment, first: Identity, devices: Mapping[int, Device], query: _bpf.TcxQuery
) -> bool:
    call = f"check {owned.point}"
    ifindex, kind = owned.point.ifindex, owned.point.kind
    try:
        site.program(call, first)
        if owned.kind is AttachKind.CLSACT_FILTER:
            with Route() as route:
                found = route.filters(ifindex, _hooks.TC_PARENTS[kind])
            return any(_filters.matches(item, owned.filter) and item.program_id == first.id for item in found)
        if owned.kind is AttachKind.TCX_LINK:
            return (first.id, owned.link_id) in query(ifindex, _hooks.TCX_TYPES[kind]).entries
        device = devices.get(ifindex)
        if device is None or not any(program == first.id for _, program in device.xdp):
            return False
        with planned_link(site, call, owned.pin, owned.link_id) as (_, facts):
            return (facts.prog_id, facts.ifindex) == (first.id, ifindex)
    except StaleError:
        return False
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
