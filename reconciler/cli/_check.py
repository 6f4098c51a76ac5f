# SPDX-License-Identifier: Apache-2.0
"""The verb check: whether this host has what the reconciler needs, and what to do where it has not."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import click

from reconciler.cli import DEFAULT_CONFIG
from reconciler.cli._output import say, say_json, table
from reconciler.errors import ConfigError, ExitCode, ReconcilerError
from reconciler.kernel.about import (
    BPFFS,
    MINIMUM_LIBBPF,
    bpffs_mounts,
    can_mount_bpffs,
    has_bcc,
    is_passing,
    libbpf_version,
)
from reconciler.model import Support

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.cli._group import Context
    from reconciler.config import Config
    from reconciler.model import Features

State: TypeAlias = Literal["ok", "missing", "optional", "note"]

DISTRIBUTION: Final = "ebpf-reconciler"
MINIMUM_PYTHON: Final = (3, 11)
SSH_KEYGEN: Final = Path("/usr/bin/ssh-keygen")
SECONDS: Final = 20.0
"""For a tool that only says its version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One prerequisite; only `missing` makes the verb fail."""

    name: str
    state: State
    detail: str
    hint: str = ""


FEATURES: Final = "kernel features"
"""The finding that stands for all of them where they were not probed."""


@click.command()
@click.pass_obj
def check(context: Context) -> int:
    """What this host needs and has. Exit 0: everything that is needed is there, 1: something is missing."""
    config, finding = _config(context)
    found = [*_programs(), finding, *_kernel(config), *_notes(config)]
    if context.output == "json":
        say_json(found)
    else:
        table(("", "WHAT", "FOUND", "WHAT TO DO"), [(item.state, item.name, item.detail, item.hint) for item in found])
        missing = [item.name for item in found if item.state == "missing"]
        unknown = any(item.name == FEATURES for item in found)
        there = "nothing is missing so far" if unknown else "everything that is needed is there"
        say(f"missing: {', '.join(missing)}" if missing else there)
    return ExitCode.ERROR if any(item.state == "missing" for item in found) else ExitCode.OK


# --- programs and libraries --------------------------------------------------------------------------------


def _programs() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info >= MINIMUM_PYTHON
    yield Finding(
        name="python", state="ok" if enough else "missing", detail=version, hint="" if enough else "install 3.11"
    )
    yield _distributions()
    yield _git()
    has_keygen = SSH_KEYGEN.is_file()
    yield Finding(
        name="ssh-keygen",
        state="ok" if has_keygen else "missing",
        detail=str(SSH_KEYGEN) if has_keygen else "none",
        hint="" if has_keygen else "apt install openssh-client",
    )
    yield _libbpf()
    bcc = has_bcc()
    yield Finding(
        name="bcc",
        state="ok" if bcc else "optional",
        detail="can be imported" if bcc else "none",
        hint="" if bcc else "only for packages with C source: apt install python3-bpfcc",
    )


def _distributions() -> Finding:
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            name="python packages", state="missing", detail="not installed", hint=f"pip install {DISTRIBUTION}"
        )
    names = [re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in wanted if "extra ==" not in text]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        hint = f"pip install {' '.join(missing)}"
        return Finding(name="python packages", state="missing", detail=f"without {', '.join(missing)}", hint=hint)
    return Finding(name="python packages", state="ok", detail=f"all {len(names)}")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _git() -> Finding:
    from reconciler.source import MINIMUM_GIT  # noqa: PLC0415  # without GitPython the rest is still said

    least = ".".join(map(str, MINIMUM_GIT))
    try:
        done = subprocess.run(["git", "version"], capture_output=True, text=True, check=True, timeout=SECONDS)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return Finding(name="git", state="missing", detail="none", hint=f"apt install git ({least} or newer)")
    match = re.search(r"(\d+)\.(\d+)(?:\.\d+)*", done.stdout)
    if match is None or (int(match[1]), int(match[2])) < MINIMUM_GIT:
        return Finding(name="git", state="missing", detail=done.stdout.strip(), hint=f"install {least} or newer")
    return Finding(name="git", state="ok", detail=match[0])


def _libbpf() -> Finding:
    least = ".".join(map(str, MINIMUM_LIBBPF))
    version = libbpf_version()
    if version is None:
        return Finding(name="libbpf", state="missing", detail="none", hint=f"apt install libbpf1 ({least} or newer)")
    detail = ".".join(map(str, version))
    if version < MINIMUM_LIBBPF:
        return Finding(name="libbpf", state="missing", detail=detail, hint=f"install {least} or newer")
    return Finding(name="libbpf", state="ok", detail=detail)


# --- the configuration -------------------------------------------------------------------------------------


def _config(context: Context) -> tuple[Config | None, Finding]:
    path = context.config_path
    if path == DEFAULT_CONFIG and not Path(path).exists():
        hint = "`reconciler init DIR` writes one to try things out"
        return None, Finding(name="configuration", state="optional", detail=f"none at {path}", hint=hint)
    try:
        config = context.config
    except ConfigError as error:
        first = str(error.diagnostics()[0])
        return None, Finding(name="configuration", state="missing", detail=first, hint=f"reconciler validate {path}")
    return config, Finding(name="configuration", state="ok", detail=path)


def _notes(config: Config | None) -> Iterator[Finding]:
    if config is not None and config.trust.commits.unsafe_allow_unsigned:
        hint = "give trust.commits.allowedSigners instead"
        yield Finding(name="commits", state="note", detail="UNSAFE: taken whoever made them", hint=hint)
    yield Finding(
        name="forges",
        state="note",
        detail="a forge signs merges with its own PGP key, which hosts refuse",
        hint="merge by fast-forward, or let a bot with an SSH key merge",
    )


# --- the kernel --------------------------------------------------------------------------------------------


def _kernel(config: Config | None) -> Iterator[Finding]:
    yield _bpffs(config)
    if os.geteuid() != 0:
        yield Finding(name=FEATURES, state="note", detail="not probed", hint="run `sudo reconciler check`")
        return
    from reconciler.kernel.linux import LinuxKernel  # noqa: PLC0415  # only root gets this far

    kernel = LinuxKernel()
    try:
        features = kernel.features()
    except ReconcilerError as error:
        yield Finding(name=FEATURES, state="missing", detail=str(error), hint="a kernel with BPF is needed")
        return
    finally:
        kernel.close()
    yield from _features(features)


def _bpffs(config: Config | None) -> Finding:
    place = Path(config.paths.pins if config is not None else BPFFS / "reconciler")
    mounts = bpffs_mounts()
    if place.is_relative_to(BPFFS) and is_passing():
        hint = "pins end with it: enter network namespaces with `nsenter --net=/run/netns/NAME`"
        return Finding(name="bpffs", state="note", detail="only in this mount namespace (`ip netns exec`?)", hint=hint)
    if any(place.is_relative_to(mount) for mount in mounts):
        return Finding(name="bpffs", state="ok", detail=next(m for m in mounts if place.is_relative_to(m)))
    if place.is_relative_to(BPFFS) and can_mount_bpffs():
        return Finding(name="bpffs", state="ok", detail=f"mounted on {BPFFS} when it is needed")
    return Finding(name="bpffs", state="missing", detail=f"none around {place}", hint=f"mount -t bpf bpf {BPFFS}")


def _features(features: Features) -> Iterator[Finding]:
    def needed(name: str, support: Support, hint: str) -> Finding:
        state: State = "missing" if support is Support.NO else "ok" if support is Support.YES else "note"
        return Finding(name=name, state=state, detail=str(support), hint="" if state == "ok" else hint)

    def useful(name: str, support: Support, otherwise: str) -> Finding:
        state: State = "ok" if support is Support.YES else "optional"
        return Finding(name=name, state=state, detail=str(support), hint="" if state == "ok" else otherwise)

    yield needed("BTF of the kernel", features.btf, "a kernel with CONFIG_DEBUG_INFO_BTF")
    yield needed("XDP links", features.xdp_link, "Linux 5.9 or newer")
    yield useful("tcx", features.tcx, "clsact is used instead")
    if features.tcx is not Support.YES:
        yield needed("clsact", features.clsact, "modprobe sch_ingress cls_bpf")
    ways = ", ".join(features.drain)
    hint = "" if ways else "without it nothing can be replaced"
    yield Finding(name="waiting for packets", state="ok" if ways else "missing", detail=ways or "no way", hint=hint)
    yield useful("expedited grace periods", features.expedite, "many hooks at once take longer")
