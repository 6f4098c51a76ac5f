# SPDX-License-Identifier: Apache-2.0
"""Network namespaces and interfaces of the fake kernel; the names under which hooks are found."""

from __future__ import annotations

import errno

from reconciler.errors import KernelError
from reconciler.model import HookKind, HookPoint
from tests.sim._objects import Device

FIRST_NETNS_INODE = 4026531840
"""As on a real machine: inode numbers of nsfs start near 0xF0000000."""


class Network:
    """Namespaces by name, interfaces by (namespace inode, ifindex)."""

    def __init__(self) -> None:
        self.namespaces: dict[str, int] = {}
        self.devices: dict[tuple[int, int], Device] = {}
        self._next_inode = FIRST_NETNS_INODE
        self._next_ifindex: dict[int, int] = {}

    # --- namespaces and interfaces -----------------------------------------------------------------------

    def add_namespace(self, name: str) -> int:
        """A new namespace with its loopback; the inode is never one that was seen before."""
        self._next_inode += 1
        self.namespaces[name] = self._next_inode
        self._next_ifindex[self._next_inode] = 1
        self.add_interface("lo", netns=name, native=False)
        return self._next_inode

    def add_interface(self, name: str, *, netns: str = "host", native: bool = True) -> int:
        """A new interface; returns its ifindex, which is new in this namespace."""
        inode = self.namespaces[netns]
        assert all(device.name != name for device in self._devices_in(inode)), f"{name} exists in {netns}"
        ifindex = self._next_ifindex[inode]
        self._next_ifindex[inode] += 1
        self.devices[inode, ifindex] = Device(netns=inode, ifindex=ifindex, name=name, native=native)
        return ifindex

    def remove_interface(self, name: str, *, netns: str = "host") -> None:
        """The interface goes, its links become defunct, its other attachments are gone."""
        self._remove_device(self.device(name, netns=netns))

    def rename_interface(self, old: str, new: str, *, netns: str = "host") -> None:
        self.device(old, netns=netns).name = new

    def recreate_interface(self, name: str, *, netns: str = "host") -> int:
        """The same name, a new interface; returns the new ifindex."""
        native = self.device(name, netns=netns).native
        self.remove_interface(name, netns=netns)
        return self.add_interface(name, netns=netns, native=native)

    def remove_namespace(self, name: str) -> None:
        inode = self.namespaces.pop(name)
        for device in self._devices_in(inode):
            self._remove_device(device)

    def device(self, name: str, *, netns: str = "host") -> Device:
        """The interface of that name. Raises LookupError when there is none."""
        inode = self.namespaces[netns]
        for device in self._devices_in(inode):
            if device.name == name:
                return device
        raise LookupError(f"no interface {name} in {netns}")

    def point(self, interface: str, kind: HookKind, *, netns: str = "host") -> HookPoint:
        """The hook point of an interface that exists."""
        return self.point_of(self.device(interface, netns=netns), kind)

    def point_of(self, device: Device, kind: HookKind) -> HookPoint:
        name = next((name for name, inode in self.namespaces.items() if inode == device.netns), "")
        return HookPoint(kind=kind, netns_inode=device.netns, ifindex=device.ifindex, netns=name, interface=device.name)

    def _devices_in(self, inode: int) -> list[Device]:
        return [device for device in self.devices.values() if device.netns == inode]

    def _remove_device(self, device: Device) -> None:
        del self.devices[device.netns, device.ifindex]

    def _device_at(self, point: HookPoint) -> Device:
        device = self.devices.get((point.netns_inode, point.ifindex))
        if device is None:
            raise KernelError(f"looking up {point}", errno.ENODEV, "the interface is gone")
        return device
