# SPDX-License-Identifier: Apache-2.0
"""A look back after a batch: the mode of each link of XDP, and whether attachments are there and run what they should.

Interfaces are read in one dump for each namespace, unless there are few.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from reconciler.errors import KernelError, StaleError
from reconciler.kernel import _bpf, _filters, _hooks
from reconciler.kernel._netlink import Route
from reconciler.kernel._site import by_namespace
from reconciler.model import AttachKind, HookKind, HookPoint, OwnedAttachment

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

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
    site: Site,
    attachments: Iterable[OwnedAttachment],
    first: Mapping[str, Identity],
    made: Container[tuple[int | None, HookPoint]],
) -> tuple[OwnedAttachment, ...]:
    """Those that are not there, or do not run exactly the program in `first`, by generation.

    `made` are links that this process attached to their hooks a moment ago: it is known that they belong there.
    """
    missing: list[OwnedAttachment] = []
    for group in by_namespace(attachments):
        try:
            missing += site.reader.inside(group[0].point, partial(_missing, site, group, first, made))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise KernelError("check attachments", error.errno or 0, os.strerror(error.errno or 0)) from error
            missing += group  # with its namespace
    return tuple(missing)


def _missing(
    site: Site,
    group: Sequence[OwnedAttachment],
    first: Mapping[str, Identity],
    made: Container[tuple[int | None, HookPoint]],
) -> list[OwnedAttachment]:
    xdp = [owned for owned in group if owned.point.kind is HookKind.XDP]
    sure = all((owned.link_id, owned.point) in made for owned in xdp)
    devices = None if sure else _devices_now(site, xdp)
    with Route() as route:
        check = _Check(site=site, route=route, query=_bpf.TcxQuery(), devices=devices)
        return [owned for owned in group if not check.alive(owned, first[owned.generation])]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """Looks at attachments of one namespace, in it; `devices` is None where links of XDP are known to belong here."""

    site: Site
    route: Route
    query: _bpf.TcxQuery
    devices: Mapping[int, Device] | None

    def alive(self, owned: OwnedAttachment, first: Identity) -> bool:
        """Whether it is there and runs `first`."""
        ifindex, kind = owned.point.ifindex, owned.point.kind
        try:
            self.site.program("check attachments", first)
            if owned.kind is AttachKind.CLSACT_FILTER:
                found = self.route.filters(ifindex, _hooks.TC_PARENTS[kind])
                return any(_filters.matches(item, owned.filter) and item.program_id == first.id for item in found)
            if owned.kind is AttachKind.TCX_LINK:
                return (first.id, owned.link_id) in self.query(ifindex, _hooks.TCX_TYPES[kind]).entries
            return self._linked(owned, first) and self._here(owned, first)
        except StaleError:
            return False
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise

    def _linked(self, owned: OwnedAttachment, first: Identity) -> bool:
        """Whether the link at our pin is attached to such an interface (a defunct one is to none) and runs `first`."""
        try:
            with self.site.pins.opened(owned.pin or "") as link:
                facts = _bpf.link_info(link)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        except OSError as error:
            if error.errno == errno.EINVAL:  # what is pinned there is no link
                return False
            raise
        return (facts.id, facts.prog_id, facts.ifindex) == (owned.link_id or facts.id, first.id, owned.point.ifindex)

    def _here(self, owned: OwnedAttachment, first: Identity) -> bool:
        """Whether that interface is in this namespace: a link follows it into one where its number may be the same."""
        ifindex = owned.point.ifindex
        if self.devices is None:
            if self.route.name(ifindex) == owned.point.interface:
                return True
            device: Device | None = self.route.device(ifindex)
        else:
            device = self.devices.get(ifindex)
        return device is not None and any(program == first.id for _, program in device.xdp)
