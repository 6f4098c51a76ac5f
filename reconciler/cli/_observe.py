# SPDX-License-Identifier: Apache-2.0
"""The verb observe: what the kernel holds on network hooks, and whose it is. Changes nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler import plan, policy
from reconciler.cli._compose import host_facts, make_kernel
from reconciler.cli._local import config_if_any, saved_inventory
from reconciler.cli._output import note, progress, say, say_json, table
from reconciler.config import Config, SecureMode, SourceConfig
from reconciler.errors import ExitCode, InputError, KernelError
from reconciler.kernel import Scope
from reconciler.model import HOST_NETNS, STATS_COUNTERS
from reconciler.status import clean

if TYPE_CHECKING:
    from reconciler.cli._group import Context
    from reconciler.config import SecureConfig
    from reconciler.kernel import Kernel, MemberStats
    from reconciler.model import Attachment, HookPoint, Inventory, Snapshot
    from reconciler.plan import Current
    from reconciler.policy import Stranger


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One attachment.

    Attributes:
        whose: "owned", "tolerated" or "foreign".
        watched: whether secure mode looks at this hook at all.
        by: generation of what is owned, or the rule that tolerates.
        removal: how a foreign one is removed.
    """

    netns: str
    interface: str
    hook: str
    attached: str
    program_id: int
    program: str
    whose: str
    watched: bool
    mode: str | None = None
    by: str | None = None
    removal: str | None = None


@click.command()
@click.option("--netns", multiple=True, metavar="NAME", help="Only these network namespaces (`host` is the host's).")
@click.option(
    "--record",
    "record_file",
    type=click.Path(path_type=Path),
    help="Also write what plans depend on to this file, for `plan --snapshot` and `review --snapshots`.",
)
@click.pass_obj
def observe(context: Context, *, netns: tuple[str, ...], record_file: Path | None) -> int:
    """What runs on this host's network hooks: ours, tolerated, or foreign and how it could be removed."""
    config = config_if_any(context) or Config(source=SourceConfig(url=""))
    secure = config.secure
    with progress("reading the kernel"):
        kernel = make_kernel(config)
        try:
            inventory = saved_inventory(Path(config.paths.state), kernel.boot_id())
            names = netns or _namespaces(secure, inventory)
            snapshot = kernel.snapshot(Scope(namespaces=names))
            counted = counters_of(kernel, inventory)
            if record_file is not None:
                _record(record_file, config, kernel, inventory, netns)
        finally:
            kernel.close()
    if netns and snapshot.missing:
        raise InputError(f"expected network namespaces that exist, got {', '.join(snapshot.missing)}; see `ip netns`")
    seen = seen_of(snapshot, inventory, secure)
    if context.output == "json":
        answer = {"namespaces": names, "complete": snapshot.complete, "secureMode": secure.mode}
        say_json({**answer, "attachments": seen, "members": counted})
    else:
        _print(seen, secure)
        _print_counters(counted)
    if snapshot.missing:
        absent = ", ".join(clean(name, 60) for name in snapshot.missing)
        note(f"there is no network namespace {absent}: nothing is watched there until it exists")
    if not snapshot.complete:
        note("the kernel changed while it was read, so this may not be all; run it again")
    return ExitCode.OK


def _record(path: Path, config: Config, kernel: Kernel, inventory: Inventory, netns: tuple[str, ...]) -> None:
    from reconciler.cli._offline import record_host  # noqa: PLC0415  # plans and packages are not needed otherwise

    record = record_host(config, kernel, inventory, host_facts(config), netns)
    try:
        path.write_bytes(plan.encode_record(record))
    except OSError as error:
        raise InputError(f"{path}: expected to write the record: {error.strerror}") from error


def counters_of(kernel: Kernel, inventory: Inventory) -> tuple[MemberStats, ...]:
    """The counters of every member that runs, by chain and member; a map that vanishes meanwhile is left out."""
    running = {owned.generation for owned in inventory.attachments}
    found: dict[tuple[str, str], MemberStats] = {}
    for generation in inventory.generations:
        if generation.name in running:
            with contextlib.suppress(KernelError):
                found |= {(stats.chain, stats.member): stats for stats in kernel.stats(generation)}
    return tuple(found[key] for key in sorted(found))


def _namespaces(secure: SecureConfig, inventory: Inventory) -> tuple[str, ...]:
    owned = {attachment.point.netns for attachment in inventory.attachments}
    return tuple(sorted({HOST_NETNS, *secure.namespaces, *owned}))


def seen_of(snapshot: Snapshot, inventory: Inventory, secure: SecureConfig) -> tuple[Seen, ...]:
    """Every attachment of the snapshot, by hook, in the order in which the kernel runs them."""
    current = plan.observe(snapshot, inventory).current
    ours = {point: found.attachment for point, found in current.items()}
    # Everything is shown, also where secure mode does not look: `watched` tells the difference.
    everywhere = replace(secure, namespaces=tuple(snapshot.namespaces), interfaces=("*",))
    strangers = policy.classify(snapshot, ours, everywhere, frozenset(ours))
    foreign = {(stranger.point, stranger.attachment): stranger for stranger in strangers}
    declared = frozenset(point.device for point in ours)
    found = []
    for point in sorted(snapshot.hooks, key=lambda each: (each.netns, each.interface, each.kind)):
        for attachment in snapshot.hooks[point].attachments:
            watched = secure.mode is not SecureMode.OFF and policy.watched(secure, point, declared)
            stranger = foreign.get((point, attachment))
            found.append(_seen(snapshot, point, attachment, current.get(point), stranger, watched=watched))
    return tuple(found)


def _seen(
    snapshot: Snapshot,
    point: HookPoint,
    attachment: Attachment,
    current: Current | None,
    stranger: Stranger | None,
    *,
    watched: bool,
) -> Seen:
    program = snapshot.programs.get(attachment.program_id)
    row = Seen(
        netns=point.netns,
        interface=point.interface,
        hook=point.kind,
        attached=attachment.kind,
        program_id=attachment.program_id,
        program=program.name if program is not None else "",
        whose="owned",
        watched=watched,
        mode=attachment.mode,
    )
    if stranger is None:
        return replace(row, by=current.generation if current is not None else None)
    if stranger.tolerated_by is not None:
        return replace(row, whose="tolerated", by=stranger.tolerated_by)
    return replace(row, whose="foreign", removal=stranger.method)


def _print(seen: tuple[Seen, ...], secure: SecureConfig) -> None:
    rows = []
    for row in seen:
        where = row.interface if row.netns == HOST_NETNS else f"{row.netns}/{row.interface}"
        attached = f"{row.attached} ({row.mode})" if row.mode else row.attached
        whose = row.whose if row.watched or row.whose == "owned" else f"{row.whose}, not watched"
        detail = f"removable by {row.removal}" if row.removal else (row.by or "")
        rows.append((where, row.hook, attached, row.program_id, row.program, whose, detail))
    table(("INTERFACE", "HOOK", "ATTACHED", "ID", "PROGRAM", "WHOSE", "DETAIL"), rows)
    counts = {whose: sum(row.whose == whose for row in seen) for whose in ("owned", "tolerated", "foreign")}
    say(f"{', '.join(f'{count} {whose}' for whose, count in counts.items())}; secure mode {secure.mode}")


def _print_counters(counted: tuple[MemberStats, ...]) -> None:
    if not counted:
        return
    say()
    rows = []
    for stats in counted:
        packets = [stats.counters.get(name, (0, 0))[0] for name in STATS_COUNTERS]
        rows.append((f"{stats.chain}/{stats.member}", *packets, stats.counters.get("seen", (0, 0))[1]))
    table(("PACKETS OF", *(name.upper() for name in STATS_COUNTERS), "BYTES"), rows)
