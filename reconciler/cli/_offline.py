# SPDX-License-Identifier: Apache-2.0
"""A host on paper: recording one, and the plan that it would make of a commit, without it and without a kernel."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler import manifest
from reconciler import plan as plans
from reconciler.cli._archives import PackageReader
from reconciler.cli._output import note, say, say_json, say_plan
from reconciler.cli._tree import read_file
from reconciler.config import SecureMode, trust_digest
from reconciler.errors import ExitCode, PackageError
from reconciler.kernel import Scope
from reconciler.model import HOST_NETNS, STATE_VERSION, HostFacts, Package, Signer, SourceRecord, to_builtins
from reconciler.source import Clone
from reconciler.state import decode_record
from reconciler.state import read_file as read_state

if TYPE_CHECKING:
    from reconciler.cli._group import Context
    from reconciler.config import Config
    from reconciler.kernel import Kernel
    from reconciler.model import Inventory, PackageRef, Plan

MAX_RECORD_BYTES: Final = 64 << 20
"""4,000 interfaces with two programs each make about 8 MiB."""
NETNS_FOLDER: Final = Path("/run/netns")
"""Where `ip netns` keeps names."""
NOBODY: Final = Signer(name="nobody", identity="not verified", issuer="none")
"""Stands where a verified signer would: such packages never leave this module."""


def record_host(
    config: Config, kernel: Kernel, inventory: Inventory, facts: HostFacts, netns: tuple[str, ...]
) -> plans.HostRecord:
    """Everything that this host's plans depend on, as it is now.

    Args:
        config: of the host.
        kernel: to be read.
        inventory: as the last pass saved it.
        facts: who this host is.
        netns: names of the namespaces to look at; empty: all that have one.
    """
    names = netns or tuple(sorted({HOST_NETNS, *_named(), *(owned.point.netns for owned in inventory.attachments)}))
    scope = Scope(namespaces=names)
    earlier = kernel.snapshot(scope) if config.secure.mode is SecureMode.ENFORCE else None
    data = read_state(Path(config.paths.state) / "source.json")
    source = decode_record(data, SourceRecord, STATE_VERSION, "source.json") if data is not None else SourceRecord()
    return plans.HostRecord(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        facts=facts,
        policy=trust_digest(config),
        kernel=os.uname().release,
        snapshot=kernel.snapshot(scope),
        inventory=inventory,
        secure=config.secure,
        guardrail=config.guardrail,
        applied=source.applied.id if source.applied else None,
        applied_digest=source.state_digest,
        earlier=earlier,
        detach_revoked=config.trust.on_revoked == "detach",
    )


def _named() -> list[str]:
    try:
        return sorted(entry.name for entry in NETNS_FOLDER.iterdir())
    except FileNotFoundError:
        return []


def read_record(path: Path) -> plans.HostRecord:
    """A record from a file.

    Raises:
        InputError: it cannot be read, is damaged, or was written by a newer version.
    """
    return plans.decode_record(read_file(path, MAX_RECORD_BYTES), file=str(path))


def plan_from(context: Context, path: Path, folder: Path, revision: str) -> int:
    """What the recorded host would do with a commit of the clone at `folder`; prints it as `plan` does."""
    record = read_record(path)
    made, digest = _plan(record, folder, revision)
    if context.output == "json":
        say_json({**to_builtins(made), "digest": made.digest})
    else:
        say(f"{record.facts.name} as recorded at {record.at}, with packages that nobody verified here")
        say_plan(made)
        say(f"State {digest[:12]}")
    if made.guard.exceeded and made.state_digest != record.applied_digest:
        note("the host would refuse this: its guardrail needs `apply --confirm`")
        return ExitCode.GUARDRAIL
    return ExitCode.CHANGES if made.steps or made.drift or made.pending else ExitCode.OK


def _plan(record: plans.HostRecord, folder: Path, revision: str) -> tuple[Plan, str]:
    with Clone(folder) as clone:
        checkout = clone.commit(clone.resolve(revision))
        previous = clone.commit(record.applied) if record.applied and clone.holds(record.applied) else None
        desired = manifest.parse(
            checkout.files,
            host=record.facts,
            problems=checkout.problems,
            previous=previous.files if previous else None,
            previous_problems=previous.problems if previous else (),
        )
        reader = PackageReader()
        packages: dict[str, Package] = {}
        for ref in sorted({member.package for chain in desired.chains for member in chain.members}):
            found = reader.read(ref, checkout.blobs)
            if found is None or isinstance(found, str):
                raise PackageError(f"package {ref.name} {ref.version}: {found or _elsewhere(ref)}")
            packages[ref.digest] = Package(ref=ref, manifest=found.manifest, objects=found.objects, signer=NOBODY)
    digest = manifest.state_digest(desired)
    return plans.plan_offline(record, desired, packages, digest), digest


def _elsewhere(ref: PackageRef) -> str:
    return f"expected it in the commit, got the repository {ref.repository}, which only hosts reach"
