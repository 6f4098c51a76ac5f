# SPDX-License-Identifier: Apache-2.0
"""The verb init: a policy repository, keys and a host configuration that work at once.

Everything is made beside DIR and nothing else on the host changes. What it writes is checked with the same code that
a host uses before the verb says that it is done; whatever fails, nothing of it stays.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from reconciler import manifest, packages, trust
from reconciler._resources import names, resource
from reconciler.cli import _templates as templates
from reconciler.cli._output import note, say, say_json
from reconciler.config import load_config
from reconciler.errors import ExitCode, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.cli._group import Context

EXAMPLE: Final = "ratelimit"
"""The package of the example chain."""

PUBLIC: Final = ("allowed_signers", "package.pub")
"""Public keys that the host's configuration names; they lie beside it."""

PLAIN: Final = re.compile(r"[A-Za-z0-9._~+=,@/-]+")
"""Paths that stand for themselves in a file:// URL."""

SECONDS: Final = 60.0
"""For one run of git or ssh-keygen, which take milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where everything goes; absolute.

    Attributes:
        policy: the work tree.
        source: the bare repository that the host polls.
        keys: private keys, readable by nobody else.
        config: the host's configuration; public keys lie beside it.
    """

    policy: Path
    source: Path
    keys: Path
    config: Path

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.policy, self.source, self.keys, self.config.parent)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--keys", type=click.Path(path_type=Path), help="Folder for the private keys.  [default: DIR-keys]")
@click.option(
    "--host-config", type=click.Path(path_type=Path), help="The host's configuration.  [default: DIR-host/config.yaml]"
)
@click.pass_obj
def init(context: Context, *, directory: Path, keys: Path | None, host_config: Path | None) -> int:
    """Write a policy repository to DIR, with keys and a host configuration beside it, that works at once."""
    policy = _absolute(directory)
    places = Places(
        policy=policy,
        source=policy.with_name(f"{policy.name}.git"),
        keys=_absolute(keys) if keys else policy.with_name(f"{policy.name}-keys"),
        config=_absolute(host_config) if host_config else policy.with_name(f"{policy.name}-host") / "config.yaml",
    )
    _check_free(places)
    _check_trusted(places.config.parent)
    existed = {path for path in places.all if path.exists()}
    try:
        commit = _write(places)
        _check_result(places)
    except BaseException:
        _undo(places, existed)
        raise
    _report(context, places, commit)
    return ExitCode.OK


def _absolute(path: Path) -> Path:
    # Not resolve(): what lies beside DIR lies beside the name that was given, also if that is a link.
    return Path(os.path.normpath(path.absolute()))


def _undo(places: Places, existed: set[Path]) -> None:
    for path in places.all:
        if path not in existed:
            shutil.rmtree(path, ignore_errors=True)
    for path in existed - {places.config.parent}:
        # They were empty.
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name in (places.config.name, *PUBLIC):
        places.config.with_name(name).unlink(missing_ok=True)


# --- before anything is written ----------------------------------------------------------------------------


def _check_free(places: Places) -> None:
    for path in (places.policy, places.source, places.keys):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"{path}: expected an empty folder or none, got something; choose another DIR, nothing was changed"
            )
    if places.config.exists():
        raise InputError(
            f"{places.config}: expected no file, got one; choose another with --host-config, nothing was changed"
        )
    if not PLAIN.fullmatch(str(places.source)):
        raise InputError(
            f"{places.source}: expected a path of letters, digits and ._~+=,@- since it becomes a URL, got another"
        )
    for path in (places.source, places.keys, places.config):
        if path.is_relative_to(places.policy):
            raise InputError(
                f"{path}: expected a place outside of the repository {places.policy}; keys never go into it"
            )


def _check_trusted(folder: Path) -> None:
    # Root reads a configuration only from where nobody else could have put it: better said now than by the first plan.
    if os.geteuid() != 0:
        return
    for place in (folder, *folder.parents):
        try:
            status = place.stat()
        except FileNotFoundError:
            continue
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or others:
            raise InputError(
                f"{place}: expected a folder that only root can write, since a host trusts no other configuration; "
                "choose another DIR (/srv/policy for example), or --host-config /etc/reconciler/config.yaml"
            )


# --- writing -----------------------------------------------------------------------------------------------


def _write(places: Places) -> str:
    """All of it; returns the commit's id."""
    name = _name(places.policy.name)
    places.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    places.keys.chmod(0o700)
    places.config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    places.policy.mkdir(mode=0o755, parents=True, exist_ok=True)
    signer = f"{name}@localhost"
    _make_commit_key(places, signer)
    _make_package_key(places)
    _write_repository(places, name)
    commit = _commit(places, name, signer)
    _write_config(places, name, commit)
    return commit


def _name(text: str) -> str:
    """A name that the schema accepts, as near to the folder's as can be."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "policy"


def _make_commit_key(places: Places, signer: str) -> None:
    key = places.keys / "commit"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", signer, "-f", str(key))
    kind, data = key.with_suffix(".pub").read_text(encoding="ascii").split()[:2]
    allowed = places.config.with_name("allowed_signers")
    _put(allowed, f'{signer} namespaces="git" {kind} {data}\n'.encode("ascii"))


def _make_package_key(places: Places) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # 50 ms that no other verb should pay
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _put(places.keys / "package.pem", private, mode=0o600)
    _put(places.keys / "package.pub", public)
    _put(places.config.with_name("package.pub"), public)


def _write_repository(places: Places, name: str) -> None:
    example = _write_package(places)
    _put(places.policy / "reconciler.yaml", templates.repository(name).encode())
    _put(places.policy / "chains" / "demo.yaml", templates.chain(example).encode())
    public_key = (places.keys / "package.pub").read_text(encoding="ascii")
    _put(places.policy / "hosts" / "demo.yaml", templates.group(name, public_key).encode())
    _put(places.policy / "tests" / "demo.yaml", templates.packet_test().encode())
    _put(places.policy / "README.md", templates.readme(name).encode())
    _put(places.policy / ".gitignore", templates.GITIGNORE.encode())
    for source, (target, mode) in templates.CI_FILES.items():
        text = resource("ci", source).replace(b"@VERSION@", metadata.version("ebpf-reconciler").encode())
        _put(places.policy / target, text, mode=mode)
    _put(places.policy / ".pre-commit-config.yaml", templates.PRE_COMMIT.encode())
    for schema in names("schema"):
        _put(places.policy / "schema" / schema, resource("schema", schema))


def _write_package(places: Places) -> templates.Example:
    """The example's archive as it ships, and a signature over it by the key that was just made."""
    archives = [name for name in names("packages") if re.fullmatch(rf"{EXAMPLE}-[0-9][^/]*\.tar\.gz", name)]
    if not archives:
        raise InputError(f"expected the package {EXAMPLE} among the files that ship, got none; run `make packages`")
    archive = archives[-1]
    data = resource("packages", archive)
    _put(places.policy / "packages" / archive, data)
    bundle = trust.sign(data, (places.keys / "package.pem").read_bytes())
    _put(places.policy / "packages" / f"{archive}.sigstore.json", bundle)
    shipped, _ = packages.open_archive(data, file=archive)
    return templates.Example(name=shipped.name, version=shipped.version, digest=packages.digest_of(data))


def _commit(places: Places, name: str, signer: str) -> str:
    """The first commit, signed and pushed to the bare repository; later ones are signed without anybody asking."""
    git = _Git(places.policy)
    git.run("init", "--quiet", "--template=", "--initial-branch=main", str(places.policy))
    for key, value in (
        ("user.name", name),
        ("user.email", signer),
        ("gpg.format", "ssh"),
        ("user.signingkey", str(places.keys / "commit")),
        ("gpg.ssh.allowedSignersFile", str(places.config.with_name("allowed_signers"))),
        ("commit.gpgsign", "true"),
    ):
        git.run("config", key, value)
    git.run("add", "--all")
    git.run("commit", "--quiet", "--message", f"{name}: limit new connections on {templates.DEMO_INTERFACE}")
    git.run("init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(places.source))
    git.run("remote", "add", "origin", str(places.source))
    git.run("push", "--quiet", "--set-upstream", "origin", "main")
    return git.run("rev-parse", "HEAD")


def _write_config(places: Places, name: str, commit: str) -> None:
    own = f"{name}-{hashlib.sha256(os.fsencode(places.policy)).hexdigest()[:6]}"
    host = templates.Host(
        schema=str(places.policy / "schema" / "v1alpha1" / "config.schema.json"),
        url=places.source.as_uri(),
        commit=commit,
        state=f"{places.config.parent}/state",
        pins=f"/sys/fs/bpf/reconciler-{own}",
        run=f"/run/reconciler-{own}",
    )
    _put(places.config, templates.config(name, host).encode())


@dataclass(frozen=True, slots=True)
class _Git:
    """git in one work tree, without anything of the user's or the system's configuration."""

    directory: Path

    def run(self, *arguments: str) -> str:
        return _run("git", "-C", str(self.directory), *arguments)


def _run(*command: str) -> str:
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    try:
        done = subprocess.run(  # noqa: S603  # fixed programs, no shell
            command,
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise InputError(f"expected the program {command[0]}, got none; see `reconciler check`") from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"{shlex.join(command)}: {error.stderr.strip() or f'exit {error.returncode}'}") from error
    return done.stdout.strip()


def _put(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(data)


# --- afterwards --------------------------------------------------------------------------------------------


def _check_result(places: Places) -> None:
    """What a host would say of it; an error here is one of ours, and better shown now."""
    files = {
        path.relative_to(places.policy).as_posix(): path.read_bytes()
        for path in (places.policy / "reconciler.yaml", places.policy / "chains" / "demo.yaml")
    }
    validation = manifest.parse_all(files)
    if validation.findings:
        raise InputError(validation.findings)
    load_config(places.config)


def _report(context: Context, places: Places, commit: str) -> None:
    following = tuple(_next(places))
    if context.output == "json":
        say_json(
            {
                "repository": str(places.policy),
                "source": str(places.source),
                "keys": str(places.keys),
                "config": str(places.config),
                "commit": commit,
                "next": following,
            }
        )
        return
    say(f"repository     {places.policy}")
    say(f"source         {places.source}")
    say(f"private keys   {places.keys}")
    say(f"configuration  {places.config}")
    say(f"first commit   {commit}")
    say()
    say("Next:" if os.geteuid() == 0 else "Next, on a host, as root (hosts trust only configuration that root owns):")
    for command in following:
        say(f"  {command}")
    if os.geteuid() != 0:
        note("to try it on this machine at once, run `init` as root, in a folder such as /srv/policy")


def _next(places: Places) -> Iterator[str]:
    """Three commands."""
    end, peer = templates.DEMO_INTERFACE, templates.DEMO_PEER
    yield f"ip link add {end} type veth peer name {peer} && ip link set {end} up && ip link set {peer} up"
    for verb in ("plan", "apply"):
        yield f"{_command()} --config {shlex.quote(str(places.config))} {verb}"


def _command() -> str:
    """How this program was called, so that the printed commands work as they are."""
    if sys.argv[0].endswith("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m reconciler"
    found = shutil.which("reconciler")
    if found is not None and Path(found).resolve() == Path(sys.argv[0]).resolve():
        return "reconciler"
    return shlex.quote(os.path.abspath(sys.argv[0]))  # noqa: PTH100  # a link stays one
