# SPDX-License-Identifier: Apache-2.0
"""The source against real servers: git over https with a CA of its own, and sshd."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import Disposition, SourceError
from reconciler.source import Source, SourceAuth, SourceLimits, SourceSettings, _git, open_source
from tests.e2e.servers import (
    Authority,
    GitRepository,
    Handler,
    HttpsServer,
    SshServer,
    connect_proxy,
    cut,
    descendants,
    everything_visible,
    fetching,
    files_https,
    git_https,
    redirect,
    secret,
    ssh_key,
    ssh_server,
    stall,
    status,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES: dict[str, bytes | tuple[str, str]] = {
    "reconciler.yaml": b"kind: Repository\n",
    "chains/edge.yaml": b"kind: Chain\n",
}
MAIN = "refs/heads/main"
FORMATS = ("sha1", "sha256")


@pytest.fixture
def repository(tmp_path: Path) -> GitRepository:
    repository = GitRepository(tmp_path / "repos" / "policy.git")
    repository.commit(FILES)
    return repository


@pytest.fixture
def https(repository: GitRepository, tmp_path: Path) -> Iterator[HttpsServer]:
    with git_https(repository.path.parent, tmp_path / "https") as server:
        yield server


def over_https(server: HttpsServer, folder: Path, **changes: object) -> Source:
    auth = SourceAuth(ca_file=server.ca_file)
    return make(folder, server.url("policy.git"), auth, **changes)


def make(folder: Path, url: str, auth: SourceAuth, **limits: object) -> Source:
    settings = SourceSettings(url=url, ref=MAIN, auth=auth, allow_file=True, limits=SourceLimits(**limits))  # type: ignore[arg-type]
    return open_source(settings, folder / "git")


def refusal(source: Source) -> SourceError:
    with closing(source), pytest.raises(SourceError) as caught:
        source.resolve()
    return caught.value


# --- what works --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("object_format", FORMATS)
def test_https_with_a_token_resolves_fetches_and_reads(tmp_path: Path, object_format: str) -> None:
    repository = GitRepository(tmp_path / "repos" / "policy.git", object_format=object_format)
    first = repository.commit(FILES)
    token = secret(tmp_path / "token", "s3cret\n")
    with git_https(repository.path.parent, tmp_path / "https") as server:
        server.token = "s3cret"
        auth = SourceAuth(ca_file=server.ca_file, token_file=token)
        with closing(make(tmp_path, server.url("policy.git"), auth)) as source:
            assert source.resolve() == first
            source.fetch(first)
            assert dict(source.checkout(first).files) == FILES
            second = repository.commit({**FILES, "chains/b.yaml": b"b"})
            assert source.resolve() == second
            source.fetch(second)
            assert source.checkout(second).files["chains/b.yaml"] == b"b"
            assert source.new_commits(first, second) == (second,)


@pytest.mark.parametrize("form", ["{token}", "robot:{token}", "Bearer {token}"])
def test_the_token_file_may_hold_a_token_a_pair_or_a_bearer(https: HttpsServer, tmp_path: Path, form: str) -> None:
    token = secret(tmp_path / "token", form.format(token="s3cret"))
    https.token = "s3cret"
    auth = SourceAuth(ca_file=https.ca_file, token_file=token)
    with closing(make(tmp_path, https.url("policy.git"), auth)) as source:
        assert len(source.resolve()) == 40


@pytest.mark.parametrize("object_format", FORMATS)
def test_ssh_resolves_fetches_and_reads(tmp_path: Path, object_format: str) -> None:
    repository = GitRepository(tmp_path / "repos" / "policy.git", object_format=object_format)
    head = repository.commit(FILES)
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server, closing(over_ssh(server, tmp_path)) as source:
        assert source.resolve() == head
        source.fetch(head)
        assert dict(source.checkout(head).files) == FILES
        assert source.probe(10)


def over_ssh(server: SshServer, folder: Path, key: Path | None = None, **limits: object) -> Source:
    auth = SourceAuth(ssh_key_file=key or server.key_file, known_hosts_file=server.known_hosts)
    return make(folder, server.url("policy.git"), auth, **limits)


def test_a_poll_is_one_connection_of_a_few_hundred_bytes_and_unchanged_means_no_fetch(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    commit = repository.head()
    lines = "".join(f"create refs/pull/{number}/head {commit}\n" for number in range(2000))
    repository.git("update-ref", "--stdin", stdin=lines.encode())
    with closing(over_https(https, tmp_path)) as source:
        head = source.resolve()
        assert [request.path.partition("/")[2] for request in https.requests] == [
            "policy.git/info/refs?service=git-upload-pack",
            "policy.git/git-upload-pack",
        ]
        assert https.sent < 1000
        source.fetch(head)
        https.requests.clear()
        source.fetch(head)
        assert https.requests == []


def test_whoever_expects_something_asks_and_fetches_over_one_connection(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    with closing(over_https(https, tmp_path)) as source:
        assert source.pull() == repository.head()
        head = repository.commit(FILES | {"chains/other.yaml": b"kind: Chain\n"})
        https.requests.clear()
        assert source.pull() == head
        assert [request.method for request in https.requests] == ["GET", "POST", "POST"]
        assert "chains/other.yaml" in source.checkout(head).files
        https.requests.clear()
        assert source.pull() == head
        assert [request.method for request in https.requests] == ["GET", "POST"]


def test_a_pull_that_fails_says_what_a_poll_would(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    with closing(over_https(https, tmp_path)) as source:
        source.pull()
        https.fault = status(429, Retry_After="70")
        for requests in (2, 1):  # the second time nothing is fetched before it answers again
            https.requests.clear()
            with pytest.raises(SourceError) as caught:
                source.pull()
            assert (caught.value.reason, caught.value.retry_after) == ("SourceThrottled", 70)
            assert len(https.requests) == requests
        https.fault = None
        head = repository.commit(FILES | {"chains/other.yaml": b"kind: Chain\n"})
        assert source.pull() == head
        repository.git("update-ref", "-d", MAIN)
        with pytest.raises(SourceError) as caught:
            source.pull()
        assert caught.value.reason == "RefMissing"
        repository.git("update-ref", MAIN, head)
        assert source.pull() == head


def test_a_pull_refuses_an_annotated_tag(https: HttpsServer, repository: GitRepository, tmp_path: Path) -> None:
    repository.git("tag", "v1")
    settings = SourceSettings(url=https.url("policy.git"), ref="refs/tags/v1", auth=SourceAuth(ca_file=https.ca_file))
    with closing(open_source(settings, tmp_path / "git")) as source:
        source.pull()
        repository.git("tag", "-f", "-a", "-m", "a tag", "v1")
        with pytest.raises(SourceError) as caught:
            source.pull()
        assert caught.value.reason == "RefRefused"


def test_a_pull_that_takes_too_long_becomes_a_question_and_a_fetch(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    with closing(over_https(https, tmp_path, resolve_timeout=5.0)) as source:
        source.pull()
        head = repository.commit(FILES | {"chains/other.yaml": b"kind: Chain\n"})
        stalled: list[Handler] = []

        def first(handler: Handler) -> bool:
            stalled.append(handler)
            return len(stalled) == 1 and stall()(handler)

        https.fault = fetching(first)
        assert source.pull() == head
        assert len(stalled) == 2


def test_a_client_certificate_is_presented(repository: GitRepository, tmp_path: Path) -> None:
    clients = Authority.make(tmp_path, "clients")
    certificate, key = clients.issue(tmp_path, "client", host="agent")
    with git_https(repository.path.parent, tmp_path / "https", clients=clients) as server:
        auth = SourceAuth(ca_file=server.ca_file, client_cert_file=certificate, client_key_file=key)
        with closing(make(tmp_path, server.url("policy.git"), auth)) as source:
            assert source.probe(10)
        with closing(over_https(server, tmp_path)) as source:
            assert not source.probe(10)


def test_a_proxy_is_used_when_it_is_configured_and_its_password_stays_secret(
    https: HttpsServer, tmp_path: Path
) -> None:
    with connect_proxy("pr0xy-s3cret") as proxy:
        for password, reached in (("pr0xy-s3cret", True), ("wr0ng-s3cret", False)):
            file = secret(tmp_path / "proxy", f"agent:{password}\n")
            auth = SourceAuth(ca_file=https.ca_file, proxy=f"http://127.0.0.1:{proxy.port}", proxy_auth_file=file)
            source = make(tmp_path, https.url("policy.git"), auth)
            if reached:
                with closing(source):
                    assert source.probe(10)
                continue
            error = refusal(source)
            assert error.reason == "AuthenticationFailed"
            assert "s3cret" not in str(error)
        assert proxy.heads[0].startswith(f"CONNECT localhost:{https.port} ")


# --- who is on the other side ------------------------------------------------------------------------------


def test_another_authority_is_refused(https: HttpsServer, tmp_path: Path) -> None:
    other = Authority.make(tmp_path, "other")
    error = refusal(make(tmp_path, https.url("policy.git"), SourceAuth(ca_file=other.file)))
    assert error.reason == "TlsRefused"
    assert https.requests == []


def test_a_private_server_is_refused_without_its_authority(https: HttpsServer, tmp_path: Path) -> None:
    assert refusal(make(tmp_path, https.url("policy.git"), SourceAuth())).reason == "TlsRefused"


IN_ANOTHER_ROOT = """
import sys
from pathlib import Path
from reconciler.errors import SourceError
from reconciler.source import SourceAuth, SourceSettings, open_source
url, ca_file, folder = sys.argv[1:]
for auth in (SourceAuth(), SourceAuth(ca_file=Path(ca_file))):
    source = open_source(SourceSettings(url=url, ref="refs/heads/main", auth=auth), Path(folder))
    try:
        source.resolve()
        print("resolved")
    except SourceError as error:
        print(error.reason)
    source.close()
"""


def test_with_a_ca_file_the_authorities_of_the_system_do_not_count(https: HttpsServer, tmp_path: Path) -> None:
    system = tmp_path / "system"
    system.mkdir()
    bundle = https.ca_file.read_bytes()
    (system / "ca-certificates.crt").write_bytes(bundle)
    (system / "0.pem").write_bytes(bundle)
    mine = Authority.make(tmp_path, "mine").file
    program = [sys.executable, "-c", IN_ANOTHER_ROOT, https.url("policy.git"), str(mine), str(tmp_path / "git")]
    # In a mount namespace of its own this host's authorities are those of the server.
    command = f'mount --bind {system} /etc/ssl/certs && exec "$@"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", command, "sh", *program], capture_output=True, check=False)
    assert done.stdout.decode().split() == ["resolved", "TlsRefused"], done.stderr.decode()


@pytest.mark.parametrize(("host", "days"), [("elsewhere.example", (-1, 30)), ("localhost", (-30, -1))])
def test_a_wrong_name_and_an_expired_certificate_are_refused(
    repository: GitRepository, tmp_path: Path, host: str, days: tuple[int, int]
) -> None:
    authority = Authority.make(tmp_path, "mine")
    certificate = authority.issue(tmp_path, "bad", host=host, days=days)
    with git_https(repository.path.parent, tmp_path / "https", certificate=certificate) as server:
        error = refusal(make(tmp_path, server.url("policy.git"), SourceAuth(ca_file=authority.file)))
    assert error.reason == "TlsRefused"


def test_a_wrong_token_is_refused_and_appears_nowhere(https: HttpsServer, tmp_path: Path) -> None:
    token = secret(tmp_path / "token", "wr0ng-t0ken")
    https.token = "s3cret"
    auth = SourceAuth(ca_file=https.ca_file, token_file=token)
    error = refusal(make(tmp_path, https.url("policy.git"), auth))
    assert error.reason == "AuthenticationFailed"
    assert error.disposition is Disposition.BACKOFF
    assert "wr0ng" not in str(error)


def test_the_token_is_in_no_argument_list_and_no_environment(https: HttpsServer, tmp_path: Path) -> None:
    token = secret(tmp_path / "token", "s3cret-t0ken")
    encoded = base64.b64encode(b"x-access-token:s3cret-t0ken")
    https.fault = stall()
    auth = SourceAuth(ca_file=https.ca_file, token_file=token)
    with closing(make(tmp_path, https.url("policy.git"), auth)) as source:
        thread = threading.Thread(target=lambda: _quietly(source))
        thread.start()
        try:
            assert wait_until(lambda: bool(https.requests))
            seen = b"".join(everything_visible(pid) for pid in descendants(os.getpid()))
        finally:
            source.cancel()
            thread.join()
    assert b"ls-remote" in seen
    assert b"s3cret" not in seen
    assert encoded not in seen
    assert https.requests[0].headers["Authorization"] == f"Basic {encoded.decode()}"


def _quietly(source: Source) -> None:
    with pytest.raises(SourceError, match="told to stop"):
        source.probe(20)


@pytest.mark.parametrize("hosts", ["other", "empty", "unknown"])
def test_ssh_refuses_a_host_key_that_is_not_the_known_one(
    repository: GitRepository, tmp_path: Path, hosts: str
) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        key = ssh_key(tmp_path / "other_host")
        other = " ".join(Path(f"{key}.pub").read_text().split()[:2])
        lines = {"other": f"[127.0.0.1]:{server.port} {other}\n", "empty": "", "unknown": f"else {server.host_key}\n"}
        server.known_hosts.write_text(lines[hosts])
        error = refusal(over_ssh(server, tmp_path))
        assert server.known_hosts.read_text() == lines[hosts]
    assert error.reason == "HostKeyRefused"


def test_ssh_refuses_a_revoked_host_key(repository: GitRepository, tmp_path: Path) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        server.known_hosts.write_text(server.known_hosts.read_text() + f"@revoked * {server.host_key}\n")
        error = refusal(over_ssh(server, tmp_path))
    assert error.reason == "HostKeyRefused"


def test_ssh_takes_hashed_known_hosts(repository: GitRepository, tmp_path: Path) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        subprocess.run(["ssh-keygen", "-H", "-f", str(server.known_hosts)], check=True, capture_output=True)
        with closing(over_ssh(server, tmp_path)) as source:
            assert source.probe(10)


def test_ssh_with_a_key_that_the_server_does_not_know(repository: GitRepository, tmp_path: Path) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        error = refusal(over_ssh(server, tmp_path, ssh_key(tmp_path / "stranger")))
    assert error.reason == "AuthenticationFailed"


def test_ssh_with_a_key_file_that_others_can_read(repository: GitRepository, tmp_path: Path) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        server.key_file.chmod(0o644)
        error = refusal(over_ssh(server, tmp_path))
    assert error.reason == "CredentialsUnsafe"
    assert "sshKeyFile" in str(error)
    assert "got mode 0644; run chmod go=" in str(error)


# --- answers that are none ---------------------------------------------------------------------------------


def test_a_redirect_is_refused_and_leaks_no_credentials(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    token = secret(tmp_path / "token", "s3cret")
    with git_https(repository.path.parent, tmp_path / "other") as other:
        https.fault = redirect(lambda path: f"https://localhost:{other.port}{path}")
        auth = SourceAuth(ca_file=https.ca_file, token_file=token)
        error = refusal(make(tmp_path, https.url("policy.git"), auth))
        assert other.requests == []
    assert error.reason == "RedirectRefused"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "AuthenticationFailed"),
        (403, "AuthenticationFailed"),
        (404, "NotARepository"),
        (429, "SourceThrottled"),
        (500, "SourceUnavailable"),
        (503, "SourceUnavailable"),
    ],
)
def test_http_errors_have_reasons(https: HttpsServer, tmp_path: Path, code: int, reason: str) -> None:
    https.fault = status(code, b"<html>\x1b[31mno</html>", Retry_After="1")
    error = refusal(over_https(https, tmp_path))
    assert error.reason == reason
    assert "\x1b" not in str(error)
    assert "<html>" not in str(error)


def test_what_the_server_says_is_redacted_and_cleaned(https: HttpsServer, tmp_path: Path) -> None:
    token = secret(tmp_path / "token", "s3cret-t0ken")

    def echo(handler: Handler) -> bool:
        said = (
            f"ERR \x1b[31m{handler.headers['Authorization']} https://agent:pw@elsewhere/ s3cret-t0ken\u202e\n".encode()
        )
        body = b"001e# service=git-upload-pack\n0000" + f"{len(said) + 4:04x}".encode() + said
        handler.reply(200, body, Content_Type="application/x-git-upload-pack-advertisement")
        return True

    https.fault = echo
    auth = SourceAuth(ca_file=https.ca_file, token_file=token)
    error = refusal(make(tmp_path, https.url("policy.git"), auth))
    assert "remote error" in str(error)
    assert str(error).isprintable()
    for word in ("s3cret", base64.b64encode(b"x-access-token:s3cret-t0ken").decode(), "agent:pw"):
        assert word not in str(error)


def test_a_captive_portal_is_no_repository_with_the_ref(https: HttpsServer, tmp_path: Path) -> None:
    https.fault = status(200, b"<html>please log in</html>", Content_Type="text/html")
    error = refusal(over_https(https, tmp_path))
    assert error.reason == "RefMissing"
    assert "log in" not in str(error)


def test_a_server_that_is_gone(repository: GitRepository, tmp_path: Path) -> None:
    with git_https(repository.path.parent, tmp_path / "https") as server:
        source = over_https(server, tmp_path)
        head = source.resolve()
        source.fetch(head)
    with closing(source):
        assert not source.probe(5)
        with pytest.raises(SourceError) as caught:
            source.resolve()
        assert caught.value.reason == "SourceUnavailable"
        # What was fetched can be read without the server.
        assert source.checkout(head).files["reconciler.yaml"] == FILES["reconciler.yaml"]
        source.promote(head)
        assert source.applied() == head


def test_a_server_that_stalls_is_left_after_the_timeout_with_all_processes(https: HttpsServer, tmp_path: Path) -> None:
    https.fault = stall()
    before = descendants(os.getpid())
    error = refusal(over_https(https, tmp_path, resolve_timeout=1.0))
    assert error.reason == "SourceTimeout"
    assert descendants(os.getpid()) <= before


def test_a_fetch_that_stalls_leaves_nothing_and_the_next_one_works(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    with closing(over_https(https, tmp_path, fetch_timeout=1.0)) as source:
        head = source.resolve()
        https.fault = fetching(stall())
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
        assert caught.value.reason == "SourceTimeout"
        https.fault = None
        source.fetch(head)
        assert source.checkout(head).problems == ()


def test_a_pack_that_breaks_off_leaves_nothing(https: HttpsServer, tmp_path: Path) -> None:
    with closing(over_https(https, tmp_path)) as source:
        head = source.resolve()
        start = b"000dpackfile\n0011\x01PACK\0\0\0\x02\0\0\0\x63"
        https.fault = fetching(cut(start, "application/x-git-upload-pack-result"))
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
        assert caught.value.reason == "SourceUnavailable"
        assert caught.value.disposition is Disposition.BACKOFF
        assert not list((tmp_path / "git" / "objects").rglob("tmp_*"))
        assert source.applied() is None
        https.fault = None
        source.fetch(head)


def test_an_ssh_server_that_stalls_is_left_with_all_processes(repository: GitRepository, tmp_path: Path) -> None:
    before = descendants(os.getpid())
    with ssh_server(repository.path.parent, tmp_path / "ssh", command="sleep 60") as server:
        source = over_ssh(server, tmp_path, resolve_timeout=2.0)
        own = descendants(os.getpid())
        assert refusal(source).reason == "SourceTimeout"
        assert {pid for pid in descendants(os.getpid()) - own if b"ssh://" in everything_visible(pid)} == set()
    assert descendants(os.getpid()) <= before


def test_a_server_that_says_nothing_at_all(tmp_path: Path) -> None:
    key = ssh_key(tmp_path / "key")
    (tmp_path / "known_hosts").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        auth = SourceAuth(ssh_key_file=key, known_hosts_file=tmp_path / "known_hosts")
        for url in (f"https://127.0.0.1:{port}/p", f"ssh://127.0.0.1:{port}/p"):
            assert refusal(make(tmp_path, url, auth, resolve_timeout=1.0)).reason == "SourceTimeout"


def test_a_flood_of_refs_that_look_like_the_ref_is_cut_off(repository: GitRepository, tmp_path: Path) -> None:
    head = repository.head()
    lines = "".join(f"{head}\trefs/heads/{number:08}/refs/heads/main\n" for number in range(60_000))
    (repository.path / "info").mkdir(exist_ok=True)
    (repository.path / "info" / "refs").write_text(f"{head}\trefs/heads/main\n{lines}")
    with files_https(repository.path.parent, tmp_path / "https") as server:
        assert refusal(over_https(server, tmp_path)).reason == "SourceTooLarge"


FETCHES = """
import sys
from pathlib import Path
from reconciler.source import SourceAuth, SourceSettings, open_source
url, ca_file, folder, commit = sys.argv[1:]
settings = SourceSettings(url=url, ref="refs/heads/main", auth=SourceAuth(ca_file=Path(ca_file)))
open_source(settings, Path(folder)).fetch(commit)
"""


def test_a_killed_agent_takes_its_git_along_and_the_next_one_starts(https: HttpsServer, tmp_path: Path) -> None:
    with closing(over_https(https, tmp_path)) as source:
        head = source.resolve()
        https.fault = fetching(stall())
        before = len(https.requests)
        arguments = [https.url("policy.git"), str(https.ca_file), str(tmp_path / "git"), head]
        agent = subprocess.Popen([sys.executable, "-c", FETCHES, *arguments])
        assert wait_until(lambda: any(b"fetch" in everything_visible(pid) for pid in descendants(agent.pid)))
        assert wait_until(lambda: len(https.requests) >= before + 3)
        writing = {pid for pid in descendants(agent.pid) if b"\0fetch\0" in everything_visible(pid)}
        assert writing
        agent.kill()
        agent.wait()
        assert wait_until(lambda: not any(everything_visible(pid) for pid in writing))
        https.fault = None
        with closing(over_https(https, tmp_path)) as second:
            second.fetch(head)
            assert second.checkout(head).problems == ()


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from reconciler.errors import SourceError
from reconciler.source import SourceSettings, open_source
url, folder = sys.argv[1:]
source = open_source(SourceSettings(url=url, ref="refs/heads/main", allow_file=True), Path(folder) / "git")
try:
    source.fetch(source.resolve())
except SourceError as error:
    print(error.reason, sum(1 for path in Path(folder).rglob("tmp_*")))
source.close()
"""


def test_a_full_disk_is_said_and_leaves_nothing(repository: GitRepository, tmp_path: Path) -> None:
    repository.commit({**FILES, "packages/big": os.urandom(4 << 20)})
    small = tmp_path / "small"
    small.mkdir()
    program = [sys.executable, "-c", ON_A_SMALL_DISK, f"file://{repository.path}", str(small)]
    command = f'mount -t tmpfs -o size=1m none {small} && exec "$@"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", command, "sh", *program], capture_output=True, check=False)
    assert done.stdout.decode().split() == ["DiskFull", "0"], done.stderr.decode()


def test_probing_can_be_cancelled_from_another_thread(https: HttpsServer, tmp_path: Path) -> None:
    https.fault = stall()
    with closing(over_https(https, tmp_path)) as source:
        thread = threading.Thread(target=lambda: _quietly(source))
        thread.start()
        assert wait_until(lambda: bool(https.requests))
        began = time.monotonic()
        source.cancel()
        thread.join(10)
        assert not thread.is_alive()
        assert time.monotonic() - began < 20
        with pytest.raises(SourceError, match="told to stop"):
            source.resolve()


def test_a_folder_of_static_files_is_enough_but_its_alternates_are_not_followed(
    repository: GitRepository, tmp_path: Path
) -> None:
    head = repository.head()
    assert head is not None
    repository.git("update-server-info")
    with files_https(repository.path.parent, tmp_path / "https") as server:
        with closing(over_https(server, tmp_path)) as source:
            assert source.resolve() == head
            source.fetch(head)
            assert dict(source.checkout(head).files) == FILES
        elsewhere = tmp_path / "elsewhere" / "policy.git"
        shutil.copytree(repository.path, elsewhere)
        with files_https(elsewhere.parent, tmp_path / "other") as other:
            alternates = repository.path / "objects" / "info" / "http-alternates"
            alternates.write_text(other.url("policy.git/objects\n"))
            tree = repository.git("rev-parse", f"{head}^{{tree}}")
            (repository.path / "objects" / tree[:2] / tree[2:]).unlink()
            with closing(
                make(tmp_path / "second", server.url("policy.git"), SourceAuth(ca_file=server.ca_file))
            ) as two:
                two.resolve()
                with pytest.raises(SourceError):
                    two.fetch(head)
            assert other.requests == []


@pytest.mark.parametrize(("files", "size"), [(64, 1 << 16), (800, 8)])
def test_static_files_cannot_fill_the_disk(
    repository: GitRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, size: int
) -> None:
    # Loose objects come one by one, so no limit on a file's size limits them; each takes a block, however small it is.
    monkeypatch.setattr(_git, "WATCH_SECONDS", 0.01)
    first = repository.head()
    assert first is not None
    limits = {"repository_bytes": 1 << 18, "pack_bytes": 1 << 18}
    objects = tmp_path / "git" / "objects"
    with files_https(repository.path.parent, tmp_path / "https") as server:
        repository.git("update-server-info")
        with closing(over_https(server, tmp_path, **limits)) as source:
            source.fetch(source.resolve())
            source.promote(first)
            junk = {f"junk/{number}": os.urandom(size) for number in range(files)}
            repository.commit({**FILES, **junk})
            repository.git("update-server-info")
            with pytest.raises(SourceError) as caught:
                source.fetch(source.resolve())
            assert caught.value.reason == "SourceTooLarge"
            assert "the fetch was ended" in str(caught.value)
            assert sum(path.stat().st_size for path in objects.rglob("*") if path.is_file()) < 3 << 20
            # What was refused makes room for what is acceptable.
            repository.git("update-ref", MAIN, repository.commit({**FILES, "chains/b.yaml": b"b"}, parents=(first,)))
            repository.git("update-server-info")
            head = source.resolve()
            source.fetch(head)
            assert source.checkout(head).files["chains/b.yaml"] == b"b"
            assert sum(path.stat().st_size for path in objects.rglob("*") if path.is_file()) < 1 << 18


def test_a_process_that_never_stops_to_print_is_left_all_the_same() -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with pytest.raises(TimeoutError):
                for _ in _git.read_pipes(process, time.monotonic() + 0.2):
                    pass
        finally:
            process.kill()


def test_a_shallow_server_is_refused(repository: GitRepository, tmp_path: Path) -> None:
    repository.commit({**FILES, "chains/b.yaml": b"b"})
    shallow = tmp_path / "shallow" / "policy.git"
    repository.git("clone", "--quiet", "--bare", "--depth=1", f"file://{repository.path}", str(shallow))
    with git_https(shallow.parent, tmp_path / "https") as server, closing(over_https(server, tmp_path)) as source:
        head = source.resolve()
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
    assert caught.value.reason == "ShallowSource"
    assert not (tmp_path / "git" / "shallow").exists()


def test_a_server_that_becomes_shallow_is_not_taken_for_one_without_news(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    with closing(over_https(https, tmp_path)) as source:
        first = source.resolve()
        source.fetch(first)
        repository.commit({**FILES, "chains/b.yaml": b"b"})
        repository.commit({**FILES, "chains/b.yaml": b"c"})
        shallow = tmp_path / "shallow"
        repository.git("clone", "--quiet", "--bare", "--depth=1", f"file://{repository.path}", str(shallow))
        shutil.rmtree(repository.path)
        shallow.rename(repository.path)
        # git ends with 0 and leaves the ref as it was.
        for ask in (source.pull, lambda: source.fetch(source.resolve())):
            with pytest.raises(SourceError) as caught:
                ask()
            assert caught.value.reason == "ShallowSource"
        assert source.checkout(first).problems == ()


def test_a_ref_that_is_gone_and_an_empty_repository(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    repository.git("update-ref", "-d", MAIN)
    error = refusal(over_https(https, tmp_path))
    assert error.reason == "RefMissing"
    # A longer name that ends like the ref is not the ref.
    repository.commit(FILES, ref="refs/heads/x/refs/heads/main", parents=())
    assert refusal(over_https(https, tmp_path)).reason == "RefMissing"


def test_a_source_that_changes_its_object_format_is_refused(tmp_path: Path) -> None:
    old = GitRepository(tmp_path / "repos" / "policy.git")
    head = old.commit(FILES)
    with git_https(old.path.parent, tmp_path / "https") as server, closing(over_https(server, tmp_path)) as source:
        source.resolve()
        source.fetch(head)
        shutil.rmtree(old.path)
        GitRepository(old.path, object_format="sha256").commit(FILES)
        with pytest.raises(SourceError) as caught:
            source.resolve()
        assert caught.value.reason == "ObjectFormatChanged"
        assert caught.value.disposition is Disposition.STALLED
        assert source.checkout(head).problems == ()
