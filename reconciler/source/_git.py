# SPDX-License-Identifier: Apache-2.0
"""Runs git: an empty environment, an allow-list of transports, limits, and a process group that dies as one.

GitPython only starts the processes (its object model needs FETCH_HEAD, and fails on SHA-256 repositories). Because
it merges `env=` into the parent's environment, every command starts with `env -i`, so that neither a
GIT_CONFIG_COUNT nor a proxy of the parent reaches git.

Invariants: secrets are in no argument list and in no environment (they travel as a configuration file that exists in
memory only, named by an inherited descriptor); what git prints never leaves this package unredacted; a command that
was started has ended, with all its children, when the call returns.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Final

from reconciler._imports import without_init
from reconciler.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

MINIMUM_GIT: Final = (2, 34)
"""2.32 brought GIT_CONFIG_GLOBAL; 2.34 is the oldest that a supported distribution still ships (Ubuntu 22.04)."""
MAX_OUTPUT: Final = 4 << 20
"""Bytes that a command may print; ls-remote of one ref prints about 60."""
MAX_MESSAGES: Final = 64 << 10
"""Bytes of standard error that are looked at; more is read and dropped."""
MAX_HEADERS: Final = 256 << 10
"""Bytes of traced headers, and all that a poll may write; a poll of a common forge traces about 6 KiB."""
WATCH_SECONDS: Final = 2.0
"""Seconds between two looks at what a command writes to the disk."""
TERM_GRACE: Final = 2.0
"""Seconds between SIGTERM, on which git removes its temporary files, and SIGKILL."""

ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    # Without it `git replace` could put an unsigned commit in the place of a signed one.
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": "/dev/null",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PROTOCOL_FROM_USER": "0",
    "GIT_TRACE_CURL_NO_DATA": "1",
    "GIT_TRACE_REDACT": "1",
}
# git ignores keys that it does not know, so a key from a newer version does no harm on an older one.
OPTIONS: Final = (
    "protocol.allow=never",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.symlinks=false",
    "core.protectNTFS=true",
    "core.protectHFS=true",
    "core.attributesFile=/dev/null",
    "core.bigFileThreshold=1m",
    "core.packedGitWindowSize=32m",
    "core.packedGitLimit=256m",
    "core.fsync=objects,derived-metadata,reference",
    "core.commitGraph=false",
    "submodule.recurse=false",
    "gc.auto=0",
    "gc.autoDetach=false",
    "maintenance.auto=false",
    "pack.threads=1",
    "advice.graftFileDeprecated=false",
)
NETWORK_OPTIONS: Final = (
    "protocol.version=2",
    "fetch.recurseSubmodules=false",
    "fetch.fsckObjects=true",
    "transfer.fsckObjects=true",
    "transfer.bundleURI=false",
    "fetch.bundleURI=",
    "fetch.writeCommitGraph=false",
    # Always one pack, never loose objects: so the limit on a file's size is a limit on the fetch.
    "fetch.unpackLimit=1",
    "http.followRedirects=false",
    "http.sslVerify=true",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=20",
    "credential.helper=",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that ended by itself.

    Attributes:
        code: its exit status.
        output: what it printed.
        messages: raw standard error; never printed as it is.
        headers: what git traced of the HTTP exchange, credentials left out by git; never printed.
    """

    code: int
    output: bytes
    messages: bytes
    headers: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What a command needs to talk to the source: prepared once from the settings by `_remote.py`.

    Attributes:
        transport: the one that is allowed: https, ssh or file.
        environment: added to `ENVIRONMENT`; holds no secrets.
        config: a git configuration file with what must not be seen in an argument list.
        secrets: what must not be seen in a message either.
        memory_bytes: RLIMIT_AS of git and of its children.
        file_bytes: RLIMIT_FSIZE of git and of its children.
        trace_headers: whether `Completed.headers` is wanted; `file_bytes` bounds it.
    """

    transport: str
    environment: dict[str, str]
    config: bytes = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    memory_bytes: int
    file_bytes: int
    trace_headers: bool = False


class GitRunner:
    """Starts git commands on one bare repository, and ends them."""

    def __init__(self, git_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to `ENVIRONMENT`, for example where new objects go."""
        self._git_dir = git_dir
        self._environment = dict(environment or {})
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def run(
        self,
        *arguments: str,
        timeout: float,
        remote: Remote | None = None,
        watch: Callable[[], None] | None = None,
        git_dir: Path | None = None,
    ) -> Completed:
        """Run `git ARGUMENTS` to its end.

        Args:
            arguments: the subcommand and what follows; never a secret.
            timeout: seconds until the whole process group is ended.
            remote: given for commands that may talk to the source; without it every transport is refused.
            watch: called every `WATCH_SECONDS`; what it raises ends the command, and is raised here.
            git_dir: another repository than the runner's own.

        Raises:
            SourceError: git is missing, ran longer than `timeout`, printed more than `MAX_OUTPUT`, or was cancelled.
        """
        with contextlib.ExitStack() as stack:
            inherited: dict[str, int] = {}
            if remote is not None and remote.config:
                inherited["GIT_CONFIG_GLOBAL"] = stack.enter_context(memory_file(remote.config))
            if remote is not None and remote.trace_headers:
                # The only way to a header such as Retry-After; git replaces credentials by "<redacted>".
                inherited["GIT_TRACE_CURL"] = stack.enter_context(memory_file(b""))
            command = self._command(arguments, remote, inherited, git_dir or self._git_dir)
            process = self._start(command, stdin=None, inherit=tuple(inherited.values()))
            stack.callback(self._finish, process)
            done = self._drain(process, arguments[0], timeout, watch)
            trace = inherited.get("GIT_TRACE_CURL")
            return done if trace is None else replace(done, headers=os.pread(trace, MAX_HEADERS, 0))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that is spoken to over pipes, without network; end it with `stop`."""
        return self._start(self._command(arguments, None, {}, self._git_dir), stdin=subprocess.PIPE, inherit=())

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End what `start` returned, and close its pipes; safe to call twice."""
        self._finish(process)

    def cancel(self) -> None:
        """End every running command from another thread; each fails with reason `Cancelled`."""
        with self._lock:
            self._cancelled.set()
            for process in self._running.values():
                _signal_group(process, signal.SIGKILL)

    def version(self, timeout: float) -> tuple[int, ...]:
        """The version of git, for example (2, 39, 5).

        Raises:
            SourceError: there is no git.
        """
        answer = self.run("version", timeout=timeout)
        if answer.code != 0:
            raise _no_git()
        words = answer.output.decode("ascii", "replace").split()
        numbers = words[2].split(".") if len(words) > 2 else []  # noqa: PLR2004 - "git version 2.39.5"
        return tuple(int(number) for number in numbers if number.isdigit())

    def _command(
        self, arguments: Sequence[str], remote: Remote | None, inherited: Mapping[str, int], git_dir: Path
    ) -> list[str]:
        environment = ENVIRONMENT | self._environment
        options = list(OPTIONS)
        prefix: list[str] = []
        if remote is None:
            environment["GIT_ALLOW_PROTOCOL"] = ""
        else:
            environment |= remote.environment
            environment["GIT_ALLOW_PROTOCOL"] = remote.transport
            options += [*NETWORK_OPTIONS, f"protocol.{remote.transport}.allow=always"]
            # A killed agent takes its git along; the helpers of git end when their pipes do.
            prefix = [
                "/usr/bin/setpriv",
                "--pdeathsig=KILL",
                "--",
                "/usr/bin/prlimit",
                f"--as={remote.memory_bytes}",
                f"--fsize={remote.file_bytes}",
                "--core=0",
                "--",
            ]
        environment |= {name: f"/proc/self/fd/{descriptor}" for name, descriptor in inherited.items()}
        variables = [f"{name}={value}" for name, value in environment.items()]
        flags = [part for option in options for part in ("-c", option)]
        return [*prefix, "/usr/bin/env", "-i", *variables, "git", *flags, f"--git-dir={git_dir}", *arguments]

    def _start(self, command: list[str], *, stdin: int | None, inherit: Sequence[int]) -> subprocess.Popen[bytes]:
        if self._cancelled.is_set():
            raise SourceError("the source was told to stop", reason="Cancelled")
        git = _git_python()
        process: subprocess.Popen[bytes] | None
        try:
            # "/" as the working directory: nothing is discovered, and no mount is kept busy.
            handle = git.Git("/").execute(
                command, istream=stdin, as_process=True, shell=False, start_new_session=True, pass_fds=tuple(inherit)
            )
        except git.GitCommandNotFound as error:
            raise _no_git() from error
        except OSError as error:
            raise SourceError(f"expected to start git: {error.strerror}", reason="GitNotStarted") from error
        process, handle.proc = handle.proc, None  # its destructor must not touch the process that we own
        assert process is not None  # noqa: S101 - as_process=True always has one
        with self._lock:
            self._running[process.pid] = process
            if self._cancelled.is_set():
                _signal_group(process, signal.SIGKILL)
        return process

    def _drain(
        self, process: subprocess.Popen[bytes], name: str, timeout: float, watch: Callable[[], None] | None
    ) -> Completed:
        output, messages = bytearray(), bytearray()
        deadline = time.monotonic() + timeout
        try:
            for stream, chunk in read_pipes(process, deadline, watch):
                if stream is process.stdout:
                    output += chunk
                    if len(output) > MAX_OUTPUT:
                        raise SourceError(f"git {name}: expected at most {MAX_OUTPUT} bytes", reason="SourceTooLarge")
                elif len(messages) < MAX_MESSAGES:
                    messages += chunk
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            message = f"git {name}: expected an end within {timeout:g} s; it was ended"
            raise SourceError(message, reason="SourceTimeout") from None
        if self._cancelled.is_set():
            raise SourceError("the source was told to stop", reason="Cancelled")
        return Completed(code=code, output=bytes(output), messages=bytes(messages))

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process.returncode is None:
            _signal_group(process, signal.SIGTERM)
            _await_exit(process, TERM_GRACE)
            # Also when git itself is gone by now: its helpers share the group.
            _signal_group(process, signal.SIGKILL)
            process.wait()
        with self._lock:
            self._running.pop(process.pid, None)


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """A descriptor of an anonymous file that a child can open as /proc/self/fd/N."""
    descriptor = os.memfd_create("reconciler", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield descriptor
    finally:
        os.close(descriptor)


def read_pipes(
    process: subprocess.Popen[bytes], deadline: float, watch: Callable[[], None] | None = None
) -> Iterator[tuple[IO[bytes], bytes]]:
    """What a process prints, as it prints it, until both pipes end.

    Args:
        process: with pipes.
        deadline: monotonic seconds.
        watch: called every `WATCH_SECONDS`.

    Raises:
        TimeoutError: `deadline` passed.
    """
    next_look = time.monotonic() + WATCH_SECONDS
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError  # also of a process that never stops to print
            if watch is not None and now >= next_look:
                watch()
                next_look = time.monotonic() + WATCH_SECONDS
            ready = selector.select(min(deadline - now, WATCH_SECONDS) if watch is not None else deadline - now)
            for key, _ in ready:
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                chunk = os.read(key.fd, 1 << 16)
                if chunk:
                    yield stream, chunk
                else:
                    selector.unregister(stream)


@functools.cache
def _git_python() -> ModuleType:
    with without_init("gitdb"), without_init("git"):
        from git import cmd  # noqa: PLC0415 - 18 ms that verbs without a source need not pay
    return cmd


def _no_git() -> SourceError:
    return SourceError(
        "expected git, env, prlimit and setpriv in /usr/bin (Debian: git, coreutils, util-linux)", reason="GitMissing"
    )


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group outlives its leader as long as a member lives, and its number is not given away before; the
    # leader is not reaped before this call.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _await_exit(process: subprocess.Popen[bytes], seconds: float) -> None:
    # Waits without reaping, so that the group's number stays ours.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)
