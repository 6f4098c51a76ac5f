# SPDX-License-Identifier: Apache-2.0
"""The source under fire: Apache and sshd as they are deployed, credentials that rotate, and a server that is hostile.

What a web server does is asked of Apache; what only a broken or hostile one does, of the server of `servers.py`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import Disposition, SourceError
from reconciler.source import Ancestry, Source, SourceAuth, SourceLimits, SourceSettings, open_source
from tests.e2e.apache import THROTTLED_SECONDS, apache
from tests.e2e.servers import (
    Authority,
    GitRepository,
    HttpsServer,
    advertising,
    cut,
    cut_short,
    drip,
    fetching,
    flood,
    git_https,
    secret,
    ssh_key,
    ssh_server,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.apache import Apache

FILES: dict[str, bytes | tuple[str, str]] = {"reconciler.yaml": b"kind: Repository\n", "chains/a.yaml": b"a"}
MAIN = "refs/heads/main"
ADVERTISEMENT = "application/x-git-upload-pack-advertisement"
RESULT = "application/x-git-upload-pack-result"


@pytest.fixture
def repository(tmp_path: Path) -> GitRepository:
    repository = GitRepository(tmp_path / "repos" / "policy.git")
    repository.commit(FILES)
    return repository


@pytest.fixture
def web(repository: GitRepository, tmp_path: Path) -> Iterator[Apache]:
    with apache(repository.path.parent, tmp_path / "www") as server:
        yield server


@pytest.fixture
def token(tmp_path: Path) -> Path:
    return secret(tmp_path / "token", "agent:s3cret\n")


@pytest.fixture
def https(repository: GitRepository, tmp_path: Path) -> Iterator[HttpsServer]:
    with git_https(repository.path.parent, tmp_path / "https") as server:
        yield server


def source_of(folder: Path, url: str, auth: SourceAuth, **limits: object) -> Source:
    settings = SourceSettings(url=url, ref=MAIN, auth=auth, allow_file=True, limits=SourceLimits(**limits))  # type: ignore[arg-type]
    return open_source(settings, folder / "git")


def hostile(server: HttpsServer, folder: Path, **limits: object) -> Source:
    return source_of(folder, server.url("policy.git"), SourceAuth(ca_file=server.ca_file), **limits)


def fetched(source: Source) -> str:
    head = source.resolve()
    source.fetch(head)
    return head


def refusal(source: Source) -> SourceError:
    with pytest.raises(SourceError) as caught:
        source.resolve()
    return caught.value


# --- a web server as it is deployed ------------------------------------------------------------------------


def test_apache_with_a_private_authority_and_a_token(
    web: Apache, repository: GitRepository, tmp_path: Path, token: Path
) -> None:
    auth = SourceAuth(ca_file=web.ca_file, token_file=token)
    with closing(source_of(tmp_path, web.url("policy.git"), auth)) as source:
        first = fetched(source)
        assert dict(source.checkout(first).files) == FILES
        second = repository.commit({**FILES, "chains/b.yaml": b"b"})
        assert fetched(source) == second
        assert source.new_commits(first, second) == (second,)
        # A poll is one advertisement and one list of refs; nothing is fetched twice.
        before = len(web.requests())
        assert fetched(source) == second
        assert [line.split()[0] for line in web.requests()[before:]] == ["GET", "POST"]
    assert "s3cret" not in "".join(web.requests())


@pytest.mark.parametrize(
    ("place", "reason", "wait"),
    [
        ("forbidden", "AuthenticationFailed", None),
        ("moved", "RedirectRefused", None),
        ("plain", "RedirectRefused", None),
        ("loop", "RedirectRefused", None),
        ("busy", "SourceThrottled", THROTTLED_SECONDS),
        ("down", "SourceUnavailable", THROTTLED_SECONDS),
        ("broken", "SourceUnavailable", None),
        ("absent", "NotARepository", None),
    ],
)
def test_what_apache_answers_has_a_reason_and_says_how_long_to_wait(
    web: Apache, tmp_path: Path, token: Path, place: str, reason: str, wait: float | None
) -> None:
    auth = SourceAuth(ca_file=web.ca_file, token_file=token)
    with closing(source_of(tmp_path, web.url("policy.git", place=place), auth)) as source:
        error = refusal(source)
    assert (error.reason, error.retry_after) == (reason, wait)
    assert error.disposition is Disposition.BACKOFF
    assert len(web.requests()) == 1  # neither followed nor repeated


@pytest.mark.parametrize(("host", "days"), [("elsewhere.example", (-1, 30)), ("localhost", (-30, -1))])
def test_apache_with_a_wrong_name_or_an_expired_certificate(
    repository: GitRepository, tmp_path: Path, token: Path, host: str, days: tuple[int, int]
) -> None:
    authority = Authority.make(tmp_path, "mine")
    certificate = authority.issue(tmp_path, "bad", host=host, days=days)
    with apache(repository.path.parent, tmp_path / "www", authority=authority, certificate=certificate) as server:
        auth = SourceAuth(ca_file=authority.file, token_file=token)
        with closing(source_of(tmp_path, server.url("policy.git"), auth)) as source:
            assert refusal(source).reason == "TlsRefused"
        assert server.requests() == []


def test_a_forward_proxy(web: Apache, tmp_path: Path, token: Path) -> None:
    file = secret(tmp_path / "proxy", "agent:s3cret\n")
    proxy = f"http://127.0.0.1:{web.proxy_port}"
    auth = SourceAuth(ca_file=web.ca_file, token_file=token, proxy=proxy, proxy_auth_file=file)
    with closing(source_of(tmp_path, web.url("policy.git"), auth)) as source:
        head = fetched(source)
        assert f"CONNECT localhost:{web.port} HTTP/1.1 200" in web.requests()
        # As it rotates, it is read again; what stands in the URL or the file is in no message.
        for content, hidden in (("agent:wr0ng p@ss/w%rd", "wr0ng"), ("s3cret", "s3cret"), (":s3cret", "s3cret")):
            secret(file, f"{content}\n")
            error = refusal(source)
            assert error.reason == "AuthenticationFailed"
            assert hidden not in str(error)
        web.let_in("agent", "n3w p@ss/w%rd:#")
        secret(token, "agent:n3w p@ss/w%rd:#\n")
        secret(file, "agent:n3w p@ss/w%rd:#\n")
        assert source.resolve() == head
        file.chmod(0o644)
        assert refusal(source).reason == "CredentialsUnsafe"


# --- credentials that rotate while the agent runs ----------------------------------------------------------


def test_a_token_that_rotates_is_read_again_at_each_poll(web: Apache, tmp_path: Path, token: Path) -> None:
    auth = SourceAuth(ca_file=web.ca_file, token_file=token)
    with closing(source_of(tmp_path, web.url("policy.git"), auth)) as source:
        head = source.resolve()
        web.let_in("agent", "n3xt")
        error = refusal(source)
        assert error.reason == "AuthenticationFailed"
        assert "s3cret" not in str(error)
        assert not source.probe(10)
        secret(token, "agent:n3xt\n")
        assert source.resolve() == head
        token.unlink()
        assert refusal(source).reason == "AuthenticationFailed"


def test_an_authority_that_rotates_is_read_again_at_each_poll(
    repository: GitRepository, tmp_path: Path, token: Path
) -> None:
    old, new = (Authority.make(tmp_path, name) for name in ("old", "new"))
    trusted = tmp_path / "trusted.pem"
    shutil.copy(old.file, trusted)
    auth = SourceAuth(ca_file=trusted, token_file=token)
    with (
        apache(repository.path.parent, tmp_path / "www", authority=new) as server,
        closing(source_of(tmp_path, server.url("policy.git"), auth)) as source,
    ):
        assert refusal(source).reason == "TlsRefused"
        secret(trusted, old.file.read_text() + new.file.read_text())  # both, for the time of the change
        fetched(source)


@pytest.mark.parametrize("what", ["mode", "owner", "folder", "kind"])
def test_credentials_that_are_not_roots_alone_are_refused_at_the_next_poll(
    web: Apache, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    token = secret(folder / "token", "agent:s3cret\n")
    auth = SourceAuth(ca_file=web.ca_file, token_file=token)
    with closing(source_of(tmp_path, web.url("policy.git"), auth)) as source:
        source.resolve()
        seen = len(web.requests())
        if what == "mode":
            token.chmod(0o640)
        elif what == "owner":
            os.chown(token, 65534, 0)
        elif what == "folder":
            folder.chmod(0o777)
        else:
            token.unlink()
            os.mkfifo(token, 0o600)
        error = refusal(source)
        assert error.reason == "CredentialsUnsafe"
        assert str(folder) in str(error)
        assert "s3cret" not in str(error)
        assert len(web.requests()) == seen  # it was not sent


@pytest.mark.parametrize("name", ["ca_file", "client_key_file", "ssh_key_file", "known_hosts_file"])
def test_no_file_of_the_credentials_may_be_written_by_others(tmp_path: Path, name: str) -> None:
    files = {}
    for each in ("ca_file", "client_key_file", "ssh_key_file", "known_hosts_file"):
        files[each] = secret(tmp_path / each, "x")
    over_ssh = name in ("ssh_key_file", "known_hosts_file")
    names = ("ssh_key_file", "known_hosts_file") if over_ssh else ("ca_file", "client_key_file")
    auth = SourceAuth(**{each: files[each] for each in names})  # type: ignore[arg-type]
    with closing(source_of(tmp_path, f"{'ssh' if over_ssh else 'https'}://127.0.0.1:1/p", auth)) as source:
        assert refusal(source).reason != "CredentialsUnsafe"
        files[name].chmod(0o622)
        error = refusal(source)
    assert error.reason == "CredentialsUnsafe"
    assert "got mode 0622" in str(error)


def test_an_ssh_host_key_that_changes_is_refused_until_root_says_so(repository: GitRepository, tmp_path: Path) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        auth = SourceAuth(ssh_key_file=server.key_file, known_hosts_file=server.known_hosts)
        with closing(source_of(tmp_path, server.url("policy.git"), auth)) as source:
            head = fetched(source)
            server.new_host_key()
            error = refusal(source)
            assert error.reason == "HostKeyRefused"
            assert source.checkout(head).problems == ()  # what is here stays readable
            secret(server.known_hosts, server.known_hosts_line())
            assert source.resolve() == head


def test_an_ssh_key_that_is_revoked_or_replaced_at_the_server(repository: GitRepository, tmp_path: Path) -> None:
    with ssh_server(repository.path.parent, tmp_path / "ssh") as server:
        key = tmp_path / "key"
        shutil.copy(server.key_file, key)
        auth = SourceAuth(ssh_key_file=key, known_hosts_file=server.known_hosts)
        with closing(source_of(tmp_path, server.url("policy.git"), auth)) as source:
            head = source.resolve()
            server.revoked_keys.write_text(Path(f"{server.key_file}.pub").read_text())
            assert refusal(source).reason == "AuthenticationFailed"
            fresh = ssh_key(tmp_path / "fresh")
            server.authorize(fresh)
            secret(key, fresh.read_text())
            assert source.resolve() == head


# --- a server that is hostile, or breaks -------------------------------------------------------------------


def test_a_byte_a_second_ends_with_the_timeout(https: HttpsServer, tmp_path: Path) -> None:
    with closing(hostile(https, tmp_path, resolve_timeout=1.5, fetch_timeout=1.5)) as source:
        head = source.resolve()
        https.fault = fetching(drip(RESULT, 0.2))
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
        assert caught.value.reason == "SourceTimeout"
        https.fault = drip(ADVERTISEMENT, 0.2)
        assert refusal(source).reason == "SourceTimeout"
        https.fault = None
        source.fetch(head)


@pytest.mark.parametrize("kind", [ADVERTISEMENT, "text/plain"])
def test_an_answer_without_an_end_is_bounded(https: HttpsServer, tmp_path: Path, kind: str) -> None:
    https.fault = flood(kind)
    with closing(hostile(https, tmp_path)) as source:
        assert refusal(source).reason == "SourceTooLarge"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_pack_that_is_cut_leaves_nothing_and_the_next_fetch_works(
    https: HttpsServer, repository: GitRepository, tmp_path: Path, share: float
) -> None:
    repository.commit({**FILES, "packages/p": os.urandom(1 << 16)})
    with closing(hostile(https, tmp_path)) as source:
        head = source.resolve()
        https.fault = fetching(cut_short(repository.path.parent, share))
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
        assert caught.value.disposition is Disposition.BACKOFF
        assert not list((tmp_path / "git" / "objects").rglob("tmp_*"))
        https.fault = None
        source.fetch(head)
        assert source.checkout(head).problems == ()


def test_an_answer_that_is_not_what_its_encoding_says(https: HttpsServer, tmp_path: Path) -> None:
    https.fault = status(200, b"no gzip", Content_Type=ADVERTISEMENT, Content_Encoding="gzip")
    with closing(hostile(https, tmp_path)) as source:
        assert refusal(source).disposition is Disposition.BACKOFF


def test_what_a_server_says_beside_a_pack_chooses_no_reason(https: HttpsServer, tmp_path: Path) -> None:
    said = b"fsck error\rfatal: mismatched algorithms\nerror: 429\n"
    answer = b"000dpackfile\n" + b"%04x\x02" % (len(said) + 5) + said
    https.fault = fetching(cut(answer, RESULT))
    with closing(hostile(https, tmp_path)) as source:
        head = source.resolve()
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
    # What git itself says of the end depends on which of its processes sees it first.
    assert caught.value.reason in {"SourceUnavailable", "NotARepository"}
    assert caught.value.disposition is Disposition.BACKOFF


LIES = {
    "a commit that is not there": ("1" * 40, MAIN),
    "an id that is none": ("1" * 39, MAIN),
    "an id of another format": ("1" * 64, MAIN),
    "another ref": ("1" * 40, "refs/heads/mainz"),
    "an option for a ref": ("1" * 40, "--upload-pack=id"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_refs_are_never_taken_for_a_commit(
    https: HttpsServer, repository: GitRepository, tmp_path: Path, lie: str
) -> None:
    with closing(hostile(https, tmp_path)) as source:
        head = fetched(source)
        source.promote(head)
        https.fault = advertising(LIES[lie])
        with pytest.raises(SourceError):
            fetched(source)
        assert source.applied() == head
        https.fault = None
        assert fetched(source) == head


def test_two_commits_for_one_ref_are_refused(https: HttpsServer, repository: GitRepository, tmp_path: Path) -> None:
    head = repository.head()
    assert head is not None
    https.fault = advertising((head, MAIN), ("1" * 40, MAIN))
    with closing(hostile(https, tmp_path)) as source:
        error = refusal(source)
    assert error.reason == "NotARepository"
    assert error.disposition is Disposition.STALLED


def test_an_older_commit_is_advertised_and_another_one_is_sent(
    https: HttpsServer, repository: GitRepository, tmp_path: Path
) -> None:
    first = repository.head()
    assert first is not None
    second = repository.commit({**FILES, "chains/b.yaml": b"b"})
    with closing(hostile(https, tmp_path)) as source:
        https.fault = advertising((first, MAIN))
        assert source.resolve() == first
        https.fault = None
        with pytest.raises(SourceError) as caught:
            source.fetch(first)
        assert second in str(caught.value)
        assert caught.value.disposition is Disposition.RETRY


def test_rewinds_forks_and_another_repository_behind_the_same_address(
    web: Apache, repository: GitRepository, tmp_path: Path, token: Path
) -> None:
    first = repository.head()
    assert first is not None
    applied = repository.commit({**FILES, "chains/b.yaml": b"b"})
    auth = SourceAuth(ca_file=web.ca_file, token_file=token)
    with closing(source_of(tmp_path, web.url("policy.git"), auth)) as source:
        source.promote(fetched(source))
        repository.git("update-ref", MAIN, first)
        assert source.ancestry(applied, fetched(source)) is Ancestry.REWOUND
        fork = repository.commit({**FILES, "chains/c.yaml": b"c"})
        assert fetched(source) == fork
        assert source.ancestry(applied, fork) is Ancestry.UNRELATED
        shutil.rmtree(repository.path)
        other = GitRepository(repository.path).commit(FILES, message="elsewhere")
        assert fetched(source) == other
        assert source.ancestry(applied, other) is Ancestry.UNRELATED
        # Back again, and forward: none of that touched what was applied (A-B-A).
        shutil.rmtree(repository.path)
        shutil.copytree(tmp_path / "git", tmp_path / "backup")
        again = GitRepository(repository.path)
        again.git("fetch", "--quiet", str(tmp_path / "backup"), f"refs/reconciler/applied:{MAIN}")
        after = again.commit({**FILES, "chains/d.yaml": b"d"})
        assert source.ancestry(applied, fetched(source)) is Ancestry.DESCENDANT
        assert source.new_commits(applied, after) == (after,)
        assert source.applied() == applied


def test_a_server_that_loses_what_was_applied_cannot_hide_it(
    web: Apache, repository: GitRepository, tmp_path: Path, token: Path
) -> None:
    applied = repository.commit({**FILES, "chains/b.yaml": b"b"})
    auth = SourceAuth(ca_file=web.ca_file, token_file=token)
    with closing(source_of(tmp_path, web.url("policy.git"), auth)) as source:
        source.promote(fetched(source))
        repository.git("update-ref", MAIN, repository.git("rev-parse", f"{applied}^"))
        repository.git("reflog", "expire", "--expire=now", "--all")
        repository.git("gc", "--quiet", "--prune=now")
        head = fetched(source)
        assert source.ancestry(applied, head) is Ancestry.REWOUND
        assert source.checkout(applied).files["chains/b.yaml"] == b"b"


# --- what is huge, deep or odd inside a pack ---------------------------------------------------------------


def loose(repository: GitRepository, kind: str, content: bytes) -> str:
    """An object written without git, which would take one process for each."""
    data = b"%s %d\0" % (kind.encode(), len(content)) + content
    oid = hashlib.sha1(data).hexdigest()
    path = repository.path / "objects" / oid[:2] / oid[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(data, 1))
    return oid


def entry(mode: bytes, name: bytes, oid: str) -> bytes:
    return mode + b" " + name + b"\0" + bytes.fromhex(oid)


def local(repository: GitRepository, folder: Path, **limits: object) -> Source:
    return source_of(folder, f"file://{repository.path}", SourceAuth(), **limits)


def test_trees_of_ten_thousand_levels(repository: GitRepository, tmp_path: Path) -> None:
    tree = loose(repository, "tree", entry(b"100644", b"x.yaml", repository.blob(b"x")))
    for _ in range(10_000):
        tree = loose(repository, "tree", entry(b"40000", b"d", tree))
    repository.commit(tree=loose(repository, "tree", entry(b"40000", b"chains", tree)))
    with closing(local(repository, tmp_path)) as source:
        found = source.checkout(fetched(source))
    assert found.files == {}
    assert "at most 16 levels" in found.problems[0].message


def test_a_tree_of_very_many_entries(repository: GitRepository, tmp_path: Path) -> None:
    blob = repository.blob(b"x")
    chains = loose(repository, "tree", b"".join(entry(b"100644", b"%07d" % number, blob) for number in range(130_000)))
    repository.commit(tree=loose(repository, "tree", entry(b"40000", b"chains", chains)))
    with closing(local(repository, tmp_path)) as source:
        head = fetched(source)
        with pytest.raises(SourceError) as caught:
            source.checkout(head)
    assert caught.value.reason == "SourceTooLarge"


def test_a_large_blob_of_nothing_travels_small_and_is_not_read(repository: GitRepository, tmp_path: Path) -> None:
    repository.commit({**FILES, "chains/zero.yaml": b"\0" * (64 << 20)})
    with closing(local(repository, tmp_path)) as source:
        found = source.checkout(fetched(source))
    (problem,) = found.problems
    assert problem.file == "chains/zero.yaml"
    assert found.files.keys() == FILES.keys()


@pytest.mark.parametrize("what", ["parents", "message"])
def test_a_commit_that_is_larger_than_any_commit(repository: GitRepository, tmp_path: Path, what: str) -> None:
    parent = repository.head()
    assert parent is not None
    raw = repository.raw(parent)
    if what == "message":
        raw += b"m" * (1 << 20)
    else:
        head, _, rest = raw.partition(b"\nauthor ")
        raw = head + b"\nparent " + (parent.encode() + b"\nparent ") * 99_999 + parent.encode() + b"\nauthor " + rest
    repository.git("update-ref", MAIN, loose(repository, "commit", raw))
    with closing(local(repository, tmp_path)) as source, pytest.raises(SourceError) as caught:
        fetched(source)
    assert caught.value.reason == "SourceTooLarge"


def test_grafts_in_the_local_repository_change_no_ancestry(repository: GitRepository, tmp_path: Path) -> None:
    first = repository.head()
    assert first is not None
    other = repository.commit(FILES, parents=(), message="unrelated")
    with closing(local(repository, tmp_path)) as source:
        fetched(source)
        repository.git("update-ref", MAIN, first)
        fetched(source)
        (tmp_path / "git" / "info").mkdir(exist_ok=True)
        (tmp_path / "git" / "info" / "grafts").write_text(f"{other} {first}\n")
        assert source.ancestry(first, other) is Ancestry.UNRELATED


def test_other_places_for_bundles_and_objects_are_not_looked_at(repository: GitRepository, tmp_path: Path) -> None:
    # What a server could offer, and what somebody could leave in the repository on this host.
    bundle = tmp_path / "evil.bundle"
    repository.git("bundle", "create", "--quiet", str(bundle), MAIN)
    for name, value in {
        "uploadpack.advertiseBundleURIs": "true",
        "bundle.version": "1",
        "bundle.mode": "all",
        "bundle.x.uri": f"file://{bundle}",
        "uploadpack.packObjectsHook": f"touch {tmp_path}/hooked; exit 1; :",
    }.items():
        repository.git("config", name, value)
    with closing(local(repository, tmp_path)) as source:
        head = fetched(source)
        assert source.checkout(head).problems == ()
    assert not (tmp_path / "hooked").exists()
    assert "bundle" not in (tmp_path / "git" / "config").read_text()


def test_hooks_attributes_and_configuration_of_a_repository_do_nothing(
    repository: GitRepository, tmp_path: Path
) -> None:
    repository.commit(
        {
            **FILES,
            ".gitattributes": b"* filter=evil eol=crlf export-subst working-tree-encoding=UTF-16\n",
            "chains/.gitattributes": b"*.yaml filter=lfs diff=evil\n",
            "chains/subst.yaml": b"$Format:%H$\n",
            ".gitconfig": b"[core]\n\tfsmonitor = evil\n",
        }
    )
    with closing(local(repository, tmp_path)) as source:
        fetched(source)
        hook = tmp_path / "git" / "hooks" / "reference-transaction"
        hook.parent.mkdir()
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
        hook.chmod(0o755)
        head = repository.commit({**FILES, "chains/subst.yaml": b"$Format:%H$\r\n"})
        source.promote(fetched(source))
        assert source.checkout(head).files["chains/subst.yaml"] == b"$Format:%H$\r\n"
    assert not (tmp_path / "hooked").exists()


@pytest.mark.parametrize("line", ["url = -u./evil", "url = ext::sh -c id", "path = -x", "update = !touch /tmp/x"])
def test_submodules_with_options_in_them_are_not_even_stored(
    repository: GitRepository, tmp_path: Path, line: str
) -> None:
    module = f'[submodule "x"]\n\tpath = chains\n\turl = https://x/y\n\t{line}\n'.encode()
    repository.commit({**FILES, ".gitmodules": module})
    with closing(local(repository, tmp_path)) as source:
        head = source.resolve()
        if line.startswith("url = ext"):
            source.fetch(head)  # for git a URL like any other; nothing here ever looks at it
            assert source.checkout(head).files.keys() == FILES.keys()
            return
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
    assert caught.value.reason == "ObjectsRefused"


# --- refs that are not what they seem ----------------------------------------------------------------------


def test_a_tag_of_the_same_name_is_not_the_branch(repository: GitRepository, tmp_path: Path) -> None:
    head = repository.head()
    assert head is not None
    other = repository.commit(FILES, ref=None, parents=(), message="other")
    repository.git("update-ref", "refs/tags/main", other)
    repository.git("update-ref", "refs/heads/refs/heads/main", other)
    repository.git("update-ref", "refs/tags/refs/heads/main", other)
    with closing(local(repository, tmp_path)) as source:
        assert fetched(source) == head


def test_a_branch_that_is_a_link_is_followed_at_the_server_and_a_circle_is_no_ref(
    repository: GitRepository, tmp_path: Path
) -> None:
    head = repository.head()
    assert head is not None
    repository.git("update-ref", "refs/heads/real", head)
    repository.git("symbolic-ref", MAIN, "refs/heads/real")
    with closing(local(repository, tmp_path)) as source:
        assert fetched(source) == head
        repository.git("symbolic-ref", "refs/heads/real", MAIN)
        assert refusal(source).disposition is Disposition.BACKOFF
        repository.git("symbolic-ref", "HEAD", "refs/heads/elsewhere")  # where HEAD points is no matter
        (repository.path / "refs" / "heads" / "main").write_text(f"{head}\n")
        assert source.resolve() == head


def varint(number: int) -> bytes:
    """A size as deltas write it."""
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def test_deltas_that_unfold_into_gigabytes_end_with_a_limit(https: HttpsServer, tmp_path: Path) -> None:
    """Each delta is its base 128 times: 64 KiB, 8 MiB, 1 GiB, in a pack of few KiB."""
    base = bytes(1 << 16)
    body = bytearray()

    def add(kind: int, content: bytes, size: int, reference: bytes = b"") -> None:
        head = bytearray([kind << 4 | size & 0xF])
        size >>= 4
        while size:
            head[-1] |= 0x80
            head.append(size & 0x7F)
            size >>= 7
        body.extend(head + reference + zlib.compress(content))

    add(3, base, len(base))
    size, oid = len(base), hashlib.sha1(b"blob %d\0" % len(base) + base).digest()
    for times in (128, 128):
        # Copy instructions of at most 64 KiB (a size of 0 means that), 16 MiB with three bytes of size.
        piece = min(size, 1 << 16)
        copies = [(at, piece) for at in range(0, size, piece)] * times
        delta = varint(size) + varint(size * times)
        for at, _ in copies:
            delta += b"\x8f" + at.to_bytes(4, "little")
        add(7, delta, len(delta), oid)
        size *= times
        if size <= 8 << 20:
            oid = hashlib.sha1(b"blob %d\0" % size + bytes(size)).digest()
    pack = b"PACK" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(body)
    pack += hashlib.sha1(pack).digest()
    assert len(pack) < 1 << 20
    answer = b"000dpackfile\n"
    for at in range(0, len(pack), 60_000):
        piece_of_pack = pack[at : at + 60_000]
        answer += b"%04x\x01" % (len(piece_of_pack) + 5) + piece_of_pack
    https.fault = fetching(status(200, answer + b"0000", Content_Type=RESULT))
    with closing(hostile(https, tmp_path, memory_bytes=512 << 20)) as source:
        head = source.resolve()
        with pytest.raises(SourceError) as caught:
            source.fetch(head)
        assert caught.value.reason == "SourceTooLarge"
        assert not list((tmp_path / "git" / "objects").rglob("tmp_*"))
