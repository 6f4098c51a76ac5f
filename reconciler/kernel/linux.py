# SPDX-License-Identifier: Apache-2.0
"""The `Kernel` protocol on Linux, with bpf(2), libbpf, rtnetlink and bpffs.

This module joins the parts and owns what lives longer than one call: the worker thread that enters namespaces, the
descriptors of our `next` arrays (which lose their slots with their last reference), and the probed features.
Constructing it does nothing; the pin directory is made, and bpffs mounted, with the first pin.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reconciler.errors import KernelError, NotSupportedError, StaleError
from reconciler.kernel import MemberStats, Progress, Scope, _attach, _bpf, _evict, _features, _grace, _netns, _verify
from reconciler.kernel._failing import STALE, failing
from reconciler.kernel._load import load_generation
from reconciler.kernel._objects import MapKeeper, links_now, read_link, walk_pins
from reconciler.kernel._pins import Pins, identity_of
from reconciler.kernel._site import Site, first_pin
from reconciler.kernel._snapshot import Reader, look
from reconciler.model import (
    STATS_COUNTERS,
    Attach,
    AttachKind,
    ChangeMode,
    Detach,
    Evict,
    Features,
    Generation,
    HookPoint,
    HookState,
    Identity,
    LoadedGeneration,
    LoadedMap,
    MapRole,
    OwnedAttachment,
    Package,
    PinKind,
    Snapshot,
    Support,
    Switch,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from reconciler.kernel._netlink import Device

DEFAULT_PIN_DIR = Path("/sys/fs/bpf/reconciler")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")
_COUNTER = struct.Struct("=QQ")
_XDP_PASS = 2


class LinuxKernel:
    """This host's kernel.

    Args:
        pin_dir: directory on bpffs that is ours alone.
        expedite: "never" keeps expedited grace periods off whatever the host could do.
        force: answers instead of probes, by feature name, "membarrier" or "map-in-map".
    """

    def __init__(
        self,
        *,
        pin_dir: Path = DEFAULT_PIN_DIR,
        expedite: Literal["auto", "never"] = "auto",
        force: Mapping[str, Support] | None = None,
    ) -> None:
        self._pins = Pins(pin_dir)
        self._policy: Literal["auto", "never"] = expedite
        self._force = dict(force or {})
        self._worker = _netns.Worker()
        self._keeper = MapKeeper()
        self._known: dict[int, Mapping[int, Device]] = {}
        self._made: set[tuple[int | None, HookPoint]] = set()  # links, since the last snapshot
        self._features: Features | None = None
        self._other_program: int | None = None

    def close(self) -> None:
        """Release every descriptor. Idempotent; nothing is detached."""
        self._keeper.close()
        self._worker.close()
        if self._other_program is not None:
            os.close(self._other_program)
            self._other_program = None

    # --- observing -----------------------------------------------------------------------------------------

    def boot_id(self) -> str:
        """The kernel's boot id."""
        with failing(f"read {_BOOT_ID}"):
            return _BOOT_ID.read_text(encoding="ascii").strip()

    def features(self) -> Features:
        """Probed features, cached for the process."""
        if self._features is None:
            self._features = _features.probe(self._worker, self._force)
        return self._features

    def snapshot(self, scope: Scope) -> Snapshot:
        """Read interfaces, hooks, programs, links and our pins."""
        self._made.clear()
        pins = walk_pins(self._pins, self._keeper)
        with failing("read programs by id (CAP_SYS_ADMIN)"):
            seen = look(self._reader(), scope, pins)
        return Snapshot(
            boot_id=self.boot_id(),
            features=self.features(),
            interfaces=tuple(seen.interfaces),
            hooks=seen.hooks,
            programs=seen.programs,
            links=seen.model_links(),
            pins=tuple(pins.pins),
            folders=tuple(pins.folders),
            maps=pins.maps,
            namespaces=seen.namespaces,
            missing=tuple(seen.missing),
            complete=seen.complete and pins.complete,
            bpffs_id=self._pins.filesystem_id(),
        )

    def read_hook(self, point: HookPoint) -> HookState:
        """Read one hook again (settled or not). Raises KernelError ENODEV when its interface is gone."""
        return self._read_hook(point, None)

    def _read_hook(self, point: HookPoint, expected: int | None) -> HookState:
        """The hook; `expected` is the link that is looked for, so that not all links need to be read."""
        path = f"links/{point.key}"
        pinned: dict[int, str] = {}
        reader = self._reader()

        def links(mode: str, program: int) -> Iterable[_bpf.LinkFacts]:
            own = self._own_link(path)
            if own is not None and (own.prog_id, own.ifindex) == (program, point.ifindex):
                pinned[own.id] = path
                return (own,)  # then nobody else's can hold the hook
            if not reader.held_by_link(point, mode):
                return ()
            known = read_link(expected) if expected is not None else None
            if known is not None and (known.prog_id, known.ifindex) == (program, point.ifindex):
                return (known,)
            return links_now()

        with failing(f"read {point}"):
            return reader.hook(point, pinned, links)

    def _own_link(self, path: str) -> _bpf.LinkFacts | None:
        """The link at the hook's own pin."""
        with suppress(KernelError, OSError), self._pins.opened(path) as link:  # none, or not a link
            return _bpf.link_info(link)
        return None

    def _reader(self) -> Reader:
        return Reader(
            worker=self._worker,
            tcx=self.features().tcx is not Support.NO,
            other_program=self._unattached_program,
            known=self._known,
        )

    def _unattached_program(self) -> int:
        if self._other_program is None:
            self._other_program = _bpf.load_trivial(_bpf.ProgType.XDP, _XDP_PASS, _bpf.BPF_XDP)
        return self._other_program

    def _site(self) -> Site:
        return Site(self._pins, self._reader())

    # --- generations ---------------------------------------------------------------------------------------

    def load(self, generation: Generation, packages: Mapping[str, Package]) -> LoadedGeneration:
        """Load, join, fill, freeze and pin; nothing of it stays when it fails."""
        loaded, arrays = load_generation(self._pins, generation, packages)
        for path, descriptor in arrays.items():
            self._keeper.hold(path, descriptor)
        return loaded

    def unload(self, pins: tuple[str, ...]) -> None:
        """Unpin paths and the folders that become empty; what does not exist is fine. Without paths: ours, if empty."""
        for path in pins:
            self._pins.unlink(path)
            self._keeper.release(path)
        if not pins:
            self._pins.remove_root()

    def first_program(self, generation: str) -> Identity:
        """Identity of the first program of a pinned generation."""
        path = first_pin(generation)
        with self._pins.opened(path) as descriptor, failing(f"read {path}"):
            return identity_of(descriptor, PinKind.PROGRAM)

    def repin(self, path: str, kind: PinKind, identity: Identity) -> None:
        """Pin an existing object of ours again. Raises StaleError when it is gone."""
        call = f"pin {path} again"
        held = self._keeper.held(path) if kind is PinKind.MAP else None
        if held is not None and identity_of(held, kind) == identity:
            self._pins.pin(held, path)
            return
        opened = {PinKind.PROGRAM: _bpf.prog_by_id, PinKind.MAP: _bpf.map_by_id, PinKind.LINK: _bpf.link_by_id}
        with failing(call, STALE):
            descriptor = opened[kind](identity.id)
        with _bpf.closing(descriptor):
            if identity_of(descriptor, kind) != identity:
                raise StaleError(call, errno.ESTALE, f"{kind} id {identity.id} names another one now")
            self._pins.pin(descriptor, path)

    # --- attachments ---------------------------------------------------------------------------------------

    def attach(self, steps: Sequence[Attach], first: Mapping[str, Identity]) -> Progress[OwnedAttachment]:
        """Attach the pinned first program of each step's generation."""
        with self._site() as site:
            progress = site.in_order(lambda step: self._attach(site, step, first[step.generation]), steps)
        self._made.update((owned.link_id, owned.point) for owned in progress.done)
        return progress

    def _attach(self, site: Site, step: Attach, first: Identity) -> OwnedAttachment:
        if step.displace is not None and step.kind is AttachKind.XDP_LINK:
            state = self._read_hook(step.point, step.displace.link_id)
            return _evict.attach_displacing(site, step, first, state)
        return _attach.attach(site, step, first)

    def switch(self, steps: Sequence[Switch], first: Mapping[str, Identity]) -> Progress[OwnedAttachment]:
        """Replace atomically, comparing with `step.program`."""
        with self._site() as site:
            progress = site.in_order(lambda step: _attach.switch(site, step, first[step.generation]), steps)
            return replace(progress, done=_verify.with_modes(site, progress.done))

    def change_mode(self, step: ChangeMode, first: Identity) -> tuple[OwnedAttachment, float]:
        """Detach and attach in another mode; returns the attachment and the seconds without any program."""
        with self._site() as site:
            return _attach.change_mode(site, step, first)

    def detach(self, steps: Sequence[Detach]) -> Progress[None]:
        """Unlink, then detach at once. A link that is gone or defunct already is fine, its pin goes."""
        with self._site() as site:
            return site.together(partial(_attach.detach, site), steps)

    def evict(self, step: Evict) -> None:
        """Remove a foreign attachment after reading it again."""
        try:
            state = self._read_hook(step.point, step.attachment.link_id)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            raise StaleError(f"evict from {step.point}", errno.ENODEV, "the interface is gone") from error
        with self._site() as site:
            _evict.evict(site, step, state)

    def not_alive(
        self, attachments: Sequence[OwnedAttachment], first: Mapping[str, Identity]
    ) -> tuple[OwnedAttachment, ...]:
        """Those that are not there, or do not run exactly the program in `first`, by generation."""
        with self._site() as site:
            return _verify.not_alive(site, attachments, first, self._made)

    # --- grace periods -------------------------------------------------------------------------------------

    def drain(self) -> str:
        """Wait one grace period; returns the way ("membarrier" or "map-in-map")."""
        return _grace.drain(self.features().drain)

    def expedite(self) -> AbstractContextManager[bool]:
        """Expedited grace periods for a batch, restored at the end; yields whether it took effect."""
        return _grace.expedited(self._policy, allowed=self.features().expedite is Support.YES)

    def grace_setting(self) -> int | None:
        """The value of rcu_expedited now, None where it cannot be read or must not be touched."""
        if self._policy == "never" or self.features().expedite is not Support.YES:
            return None
        return _grace.setting()

    def restore_grace(self, value: int) -> None:
        """After a crash: write `value` back, if the file still reads 1."""
        _grace.restore(value)

    # --- counters ------------------------------------------------------------------------------------------

    def stats(self, generation: LoadedGeneration) -> Iterator[MemberStats]:
        """Counters of every member that has a stats map, summed over CPUs."""
        for item in generation.maps:
            if item.role is MapRole.STATS:
                yield MemberStats(chain=item.chain, member=item.member, counters=self._counters(item))

    def _counters(self, item: LoadedMap) -> Mapping[str, tuple[int, int]]:
        with self._pins.opened(item.pin) as descriptor, failing(f"read {item.pin}"):
            facts = _bpf.map_info(descriptor)
            if (facts.type, facts.value_size) != (_bpf.MapType.PERCPU_ARRAY, _COUNTER.size):
                raise NotSupportedError(f"read {item.pin}", errno.EINVAL, "not a per-CPU array of {packets, bytes}")
            size = _COUNTER.size * _possible_cpus()
            counters = {}
            for index, name in enumerate(STATS_COUNTERS[: facts.max_entries]):
                raw = _bpf.map_lookup(descriptor, struct.pack("=I", index), size)
                rows = list(_COUNTER.iter_unpack(raw))
                counters[name] = (sum(row[0] for row in rows), sum(row[1] for row in rows))
            return counters


def _possible_cpus() -> int:
    """How many values a per-CPU map has for each key ("0-3" means 4: the kernel counts up to the highest)."""
    text = _POSSIBLE_CPUS.read_text(encoding="ascii").strip()
    return int(text.replace(",", "-").rsplit("-", 1)[-1]) + 1
