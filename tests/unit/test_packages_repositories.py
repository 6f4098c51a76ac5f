# SPDX-License-Identifier: Apache-2.0
"""Repositories: the same commit, a folder, a web server; what they do wrong is a RepositoryError."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from reconciler import packages
from reconciler._connect import connect
from reconciler.errors import RepositoryError, SignatureError, SourceError
from reconciler.model import PackageRef
from reconciler.packages import FolderRepository, GitRepository, HttpsRepository
from tests.e2e import servers
from tests.signed_packages import Key, Signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.packages import Repository

REF = PackageRef(name="demo", version="1.0.0-rc.1+build.5", digest="sha256:" + "0" * 64)
NAME = "demo-1.0.0-rc.1+build.5.tar.gz"
FILES = {NAME: b"archive", NAME + ".sigstore.json": b"bundle"}


def fails(repository: Repository, words: str, ref: PackageRef = REF) -> str:
    with pytest.raises(RepositoryError, match=words) as raised:
        repository.fetch(ref)
    return str(raised.value)


# --- the same commit ---------------------------------------------------------------------------------------


def test_git_reads_the_packages_folder_with_limits() -> None:
    asked: list[tuple[str, int]] = []

    def blobs(path: str, limit: int) -> bytes | None:
        asked.append((path, limit))
        return FILES.get(path.removeprefix("packages/"))

    assert GitRepository(blobs).fetch(REF) == (b"archive", b"bundle")
    limits = [packages.MAX_ARCHIVE_BYTES, packages.MAX_BUNDLE_BYTES]
    assert asked == list(zip((f"packages/{name}" for name in FILES), limits, strict=True))


def test_git_says_which_file_the_commit_lacks() -> None:
    fails(GitRepository(lambda path, limit: None), r"packages/demo-1\.0\.0.*tar\.gz in the same commit")
    half = GitRepository(lambda path, limit: b"a" if path == f"packages/{NAME}" else None)
    with pytest.raises(SignatureError, match=r"sigstore\.json in the same commit") as raised:
        half.fetch(REF)
    assert raised.value.reason == "Unsigned"


def test_git_passes_on_why_a_blob_cannot_be_read() -> None:
    def blobs(path: str, limit: int) -> bytes | None:
        raise SourceError(f"expected at most {limit} bytes")

    fails(GitRepository(blobs), "at most")


# --- a folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    for name, data in FILES.items():
        (path / name).write_bytes(data)
    return path


def test_a_folder_holds_archive_and_bundle(folder: Path) -> None:
    assert FolderRepository(folder).fetch(REF) == (b"archive", b"bundle")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_one_of_the_files_says_which(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in fails(FolderRepository(folder), "cannot read")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_not_left_through_symbolic_links(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    fails(FolderRepository(folder), "symbolic link")


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_does_not_hang_a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    fails(FolderRepository(folder), "regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    fails(FolderRepository(folder), "regular file")


def test_a_file_that_is_too_large_is_not_read_whole(folder: Path) -> None:
    with (folder / NAME).open("wb") as file:
        file.truncate(1 << 40)
    fails(FolderRepository(folder), "more than")


@pytest.mark.parametrize("part", ["..", "a/../b", "/etc/passwd", "", "a\0", "a\n", ".a", "a b"])
def test_names_that_would_leave_the_place_reach_no_repository(folder: Path, part: str) -> None:
    def blobs(path: str, limit: int) -> bytes | None:
        raise AssertionError(path)

    for ref in (
        PackageRef(name=part, version="1.0.0", digest=REF.digest),
        PackageRef(name="demo", version=part, digest=REF.digest),
    ):
        for repository in (GitRepository(blobs), FolderRepository(folder), HttpsRepository("https://localhost:1")):
            fails(repository, "plain package name", ref)


# --- a web server ------------------------------------------------------------------------------------------


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[servers.HttpsServer]:
    with servers.files_https(folder, tmp_path) as running:
        yield running


def over_https(server: servers.HttpsServer, path: str = "", **fields: object) -> HttpsRepository:
    return HttpsRepository(server.url(path), **{"ca_file": server.ca_file, "seconds": 20.0, **fields})  # type: ignore[arg-type]  # tests name the fields


def test_a_web_server_holds_archive_and_bundle(server: servers.HttpsServer) -> None:
    assert over_https(server).fetch(REF) == (b"archive", b"bundle")
    assert [request.path for request in server.requests] == ["/" + name for name in FILES]


def test_a_whole_package_comes_as_it_is(folder: Path, server: servers.HttpsServer) -> None:
    made = Signed.make(Key.make())
    for name, data in made.files.items():
        (folder / name).write_bytes(data)
    assert over_https(server).fetch(made.ref()) == (made.archive, made.bundle)


def test_the_token_is_sent_and_never_shown(server: servers.HttpsServer, tmp_path: Path) -> None:
    server.token = "s3cret-token"
    token_file = tmp_path / "token"
    servers.secret(token_file, "s3cret-token\n")
    assert over_https(server, token_file=token_file).fetch(REF) == (b"archive", b"bundle")
    servers.secret(token_file, "wr0ng-token\n")
    assert "wr0ng" not in fails(over_https(server, token_file=token_file), "401")
    token_file.chmod(0o640)
    assert "got mode 0640" in fails(over_https(server, token_file=token_file), "token file")
    fails(over_https(server), "401")


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"\xff", b"a\x07"])
def test_a_file_that_holds_no_token_sends_nothing(server: servers.HttpsServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    (tmp_path / "token").chmod(0o600)
    fails(over_https(server, token_file=tmp_path / "token"), "token")
    fails(over_https(server, token_file=tmp_path / "none"), "token")
    assert not server.requests


def test_a_token_does_not_follow_a_redirect(server: servers.HttpsServer, tmp_path: Path) -> None:
    servers.secret(tmp_path / "token", "s3cret-token")
    server.fault = servers.redirect(lambda path: f"https://127.0.0.1:{server.port}{path}")
    fails(over_https(server, token_file=tmp_path / "token"), "302")
    assert len(server.requests) == 1


def test_only_the_configured_authority_counts(server: servers.HttpsServer, tmp_path: Path) -> None:
    other = servers.Authority.make(tmp_path, "other")
    fails(over_https(server, ca_file=other.file), "certificate")
    fails(over_https(server, ca_file=None), "certificate")
    fails(over_https(server, ca_file=tmp_path / "none.pem"), "No such file")
    assert not server.requests


def test_a_certificate_for_another_host_is_refused(folder: Path, tmp_path: Path) -> None:
    authority = servers.Authority.make(tmp_path, "named")
    pair = authority.issue(tmp_path, "named-server", host="other.example.org")
    with servers.git_https(folder, tmp_path, certificate=pair) as running:
        fails(HttpsRepository(running.url(""), ca_file=authority.file, seconds=20.0), "certificate|doesn't match")


@pytest.mark.parametrize("code", [204, 206, 301, 404, 429, 500, 503])
def test_a_status_other_than_200_is_said(server: servers.HttpsServer, code: int) -> None:
    server.fault = servers.status(code, b"" if code == 204 else b"<html>")
    fails(over_https(server), f"got {code}")


def test_more_than_allowed_is_not_read(server: servers.HttpsServer) -> None:
    server.fault = servers.only("sigstore.json", servers.status(200, bytes(packages.MAX_BUNDLE_BYTES + 1)))
    fails(over_https(server), "at most")


def test_an_answer_that_ends_early_is_said(server: servers.HttpsServer) -> None:
    server.fault = servers.cut(b"half", "application/gzip")
    fails(over_https(server), "stopped early")


def test_a_server_that_says_nothing_ends_at_the_deadline(server: servers.HttpsServer) -> None:
    server.fault = servers.stall()
    fails(over_https(server, seconds=0.5), "within 0.5 s")


def test_all_files_of_a_pass_share_a_deadline(server: servers.HttpsServer) -> None:
    # A slow server of many packages would keep a pass for as long as it likes, one file after the other.
    repository = over_https(server, until=time.monotonic() + 1.0)
    server.fault = servers.stall()
    fails(repository, "no whole answer within")
    asked = len(server.requests)
    for _ in range(100):
        fails(repository, "no time left in this pass")
    assert len(server.requests) == asked


def test_a_deadline_that_has_passed_asks_nothing(server: servers.HttpsServer) -> None:
    fails(over_https(server, seconds=0.0), "within 0 s")
    assert not server.requests


def drip(prefix: bytes) -> Callable[[servers.Handler], bool]:
    """Send `prefix`, then one byte every 50 ms until the client goes away."""

    def fault(handler: servers.Handler) -> bool:
        handler.wfile.write(prefix)
        with contextlib.suppress(OSError):
            while not handler.server.ending.wait(0.05):
                handler.wfile.write(b"a")
        return True

    return fault


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n", id="chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="body without length"),
        pytest.param(b"", id="status line"),
    ],
)
def test_a_server_that_sends_a_byte_now_and_then_ends_at_the_deadline(
    server: servers.HttpsServer, prefix: bytes
) -> None:
    server.fault = drip(prefix)
    fails(over_https(server, seconds=1.0), "within 1 s")


def test_a_server_that_never_shakes_hands_ends_at_the_deadline(folder: Path, tmp_path: Path) -> None:
    listener = socket.create_server((servers.LOOPBACK, 0))
    ending = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x20\x00")  # a handshake record of 8192 bytes begins
            while not ending.wait(0.05):
                connection.sendall(b"\0")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        fails(HttpsRepository(f"https://127.0.0.1:{listener.getsockname()[1]}", seconds=1.0), "within 1 s|handshake")
    finally:
        ending.set()
        thread.join()
        listener.close()


def test_nobody_there_is_said() -> None:
    listener = socket.create_server((servers.LOOPBACK, 0))
    port = listener.getsockname()[1]
    listener.close()
    fails(HttpsRepository(f"https://127.0.0.1:{port}", seconds=5.0), "refused")
    fails(HttpsRepository("https://does-not-exist.invalid", seconds=5.0), "https://does-not-exist.invalid")


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "ftp://localhost", "https://", "https://u:p@localhost", "localhost", "https://localhost:x"],
)
def test_other_urls_are_refused(url: str) -> None:
    fails(HttpsRepository(url), "expected a URL")


def test_a_proxy_of_the_environment_does_not_count(
    server: servers.HttpsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert over_https(server).fetch(REF) == (b"archive", b"bundle")


def test_the_environment_adds_no_authority_and_no_file_of_keys(
    server: servers.HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    assert over_https(server).fetch(REF) == (b"archive", b"bundle")
    assert not keys.exists()
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", str(server.ca_file.parent))
    fails(over_https(server, ca_file=None), "certificate")


IN_ANOTHER_ROOT = """
import sys
from reconciler.model import PackageRef
from reconciler.packages import HttpsRepository
ref = PackageRef(name="demo", version="1.0.0-rc.1+build.5", digest="sha256:" + "0" * 64)
print(HttpsRepository(sys.argv[1], seconds=20.0).fetch(ref))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_a_ca_file_the_authorities_of_the_system_count(server: servers.HttpsServer, tmp_path: Path) -> None:
    system = tmp_path / "system"
    system.mkdir()
    (system / "ca-certificates.crt").write_bytes(server.ca_file.read_bytes())
    command = f'mount --bind {system} /etc/ssl/certs && exec "$@"'
    program = [sys.executable, "-c", IN_ANOTHER_ROOT, server.url("")]
    done = subprocess.run(["unshare", "-m", "sh", "-c", command, "sh", *program], capture_output=True, check=False)
    assert done.stdout.strip() == b"(b'archive', b'bundle')", done.stderr.decode()


def test_an_address_that_cannot_be_one_and_a_thread_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(HttpsRepository(f"https://{'a' * 64}.test", seconds=5.0), "cannot be the name of a host")

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        fails(HttpsRepository("https://localhost", seconds=5.0), "no thread to look up localhost")


def test_each_address_of_a_name_is_tried(server: servers.HttpsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def several(host: str, port: int, **options: int) -> list[tuple[object, ...]]:
        return [*real("127.0.0.1", 1, **options), *real(host, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    assert over_https(server).fetch(REF) == (b"archive", b"bundle")
    # All of them share the time: who does not answer at the first is not waited for again at the second.
    asked: list[float | None] = []

    def silent(made: socket.socket, address: object) -> None:
        asked.append(made.gettimeout())
        time.sleep(made.gettimeout() or 0)
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", silent)
    with pytest.raises(TimeoutError):
        connect("localhost", server.port, 0.2)
    assert len(asked) == 1
