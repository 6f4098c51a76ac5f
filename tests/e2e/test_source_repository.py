# SPDX-License-Identifier: Apache-2.0
"""The local repository: what is read from a commit, how commits relate, and what is left after an accident."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import ConfigError, Disposition, SourceError
from reconciler.source import (
    Ancestry,
    Checkout,
    Mark,
    Source,
    SourceAuth,
    SourceLimits,
    SourceMovedError,
    SourceSettings,
    _git,
    _repository,
    open_source,
)
from reconciler.source import _source as module
from tests.e2e.servers import GitRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES: dict[str, bytes | tuple[str, str]] = {"reconciler.yaml": b"kind: Repository\n", "chains/a.yaml": b"a"}
MAIN = "refs/heads/main"


@pytest.fixture(params=["sha1", "sha256"])
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> GitRepository:
    return GitRepository(tmp_path / "repos" / "policy.git", object_format=request.param)


@pytest.fixture
def remote(tmp_path: Path) -> GitRepository:
    """One of them, where the object format makes no difference."""
    return GitRepository(tmp_path / "repos" / "policy.git")


@pytest.fixture
def opened() -> Iterator[Callable[..., Source]]:
    sources: list[Source] = []

    def make(repository: GitRepository, name: str = "git", **limits: float) -> Source:
        settings = settings_for(repository)
        limited = replace(settings, limits=replace(settings.limits, **limits))  # type: ignore[arg-type]
        sources.append(open_source(limited, repository.path.parent.parent / "state" / name))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def settings_for(repository: GitRepository) -> SourceSettings:
    return SourceSettings(url=f"file://{repository.path}", ref=MAIN, allow_file=True)


def fetched(source: Source) -> str:
    commit = source.resolve()
    source.fetch(commit)
    return commit


def checkout(source: Source) -> Checkout:
    return source.checkout(fetched(source))


def problems(found: Checkout) -> dict[str, str]:
    return {problem.file or "": problem.message for problem in found.problems}


# --- reading -----------------------------------------------------------------------------------------------


def test_manifests_are_read_and_nothing_else(repository: GitRepository, opened: Callable[..., Source]) -> None:
    repository.commit(
        {
            **FILES,
            "chains/deep/er/b.yaml": b"\xff\0",
            "packages/p-1.tar.gz": b"p" * 5000,
            "README.md": b"r",
            ".gitattributes": b"* eol=crlf\n",
            "chains/.gitattributes": b"x",
        }
    )
    source = opened(repository)
    found = checkout(source)
    assert found.files == {
        "reconciler.yaml": b"kind: Repository\n",
        "chains/.gitattributes": b"x",
        "chains/a.yaml": b"a",
        "chains/deep/er/b.yaml": b"\xff\0",
    }
    assert list(found.files) == sorted(found.files, key=lambda path: path)
    assert found.problems == ()
    assert found.blobs("packages/p-1.tar.gz", 5000) == b"p" * 5000
    assert found.blobs("packages/other.tar.gz", 5000) is None
    assert found.blobs("elsewhere/p-1.tar.gz", 5000) is None
    with pytest.raises(SourceError) as caught:
        found.blobs("packages/p-1.tar.gz", 4999)
    assert caught.value.reason == "SourceTooLarge"
    for odd in ("packages", "README.md/x", "packages/p-1.tar.gz/x"):
        with pytest.raises(SourceError, match="expected"):
            found.blobs(odd, 5000)
    assert sorted(path.name for path in source_files(repository)) == []


def source_files(repository: GitRepository) -> list[Path]:
    state = repository.path.parent.parent / "state"
    return [path for path in state.rglob("*") if path.name.endswith((".yaml", ".tar.gz", ".md"))]


def test_a_commit_describes_itself(repository: GitRepository, opened: Callable[..., Source]) -> None:
    first = repository.commit(FILES, message="one")
    second = repository.commit(FILES, message="two \x1b[31m\n\nbody", date="1700000123 +0200")
    source = opened(repository)
    assert fetched(source) == second
    info = source.describe(second)
    assert info.id == second
    assert info.parents == (first,)
    assert info.subject == "two \x1b[31m"
    assert info.author == "Alice <alice@example.com>"
    assert info.time == 1700000123
    assert info.tree == repository.git("rev-parse", f"{second}^{{tree}}")
    assert source.read_commit(second) == repository.raw(second)


def test_what_is_not_a_full_id_is_no_commit(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit(FILES)
    source = opened(remote)
    head = fetched(source)
    for text in (head[:12], "HEAD", MAIN, "--all", "-h", head.upper() + "A", "", head + "\n"):
        for call in (source.read_commit, source.checkout, source.promote, source.fetch, source.describe):
            with pytest.raises(SourceError):
                call(text)
    tree = remote.git("rev-parse", f"{head}^{{tree}}")
    with pytest.raises(SourceError, match="got a tree"):
        source.read_commit(tree)
    with pytest.raises(SourceError) as caught:
        source.read_commit("0" * 40)
    assert caught.value.reason == "ObjectMissing"


def test_what_cannot_be_a_manifest_is_a_problem_by_path(
    repository: GitRepository, opened: Callable[..., Source]
) -> None:
    blob = repository.blob(b"/proc/self/environ")
    gitlink = repository.commit(FILES, ref=None, parents=())
    repository.commit(
        {
            **FILES,
            "chains/absolute.yaml": ("120000", blob),
            "chains/folder": ("120000", repository.blob(b"..")),
            "chains/module": ("160000", gitlink),
            "chains/run.yaml": ("100755", blob),
            "chains/b c.yaml": b"",
            "chains/-x": b"",
            "chains/new\nline": b"",
            "chains/\u202egnp.yaml": b"",
            "chains/m\u00fcller.yaml": b"",
            "chains/back\\slash": b"",
            "chains/Twin.yaml": b"1",
            "chains/twin.yaml": b"2",
            "chains/" + "l" * 300: b"",
        }
    )
    found = checkout(opened(repository))
    assert problems(found).keys() == {
        "chains/absolute.yaml", "chains/folder", "chains/module", "chains/run.yaml", "chains/b c.yaml", "chains/-x",
        "chains/new\nline", "chains/\u202egnp.yaml", "chains/m\u00fcller.yaml", "chains/back\\slash",
        "chains/twin.yaml",
        "chains/" + "l" * 300,
    }  # fmt: skip
    assert "symbolic link" in problems(found)["chains/absolute.yaml"]
    assert "submodule" in problems(found)["chains/module"]
    assert "executable" in problems(found)["chains/run.yaml"]
    assert "Twin.yaml" in problems(found)["chains/twin.yaml"]
    assert found.files.keys() == {"reconciler.yaml", "chains/a.yaml", "chains/Twin.yaml"}


@pytest.mark.parametrize(
    ("mode", "said"),
    [("120000", "symbolic link"), ("160000", "submodule"), ("100644", "100644"), ("100755", "executable")],
)
def test_chains_must_be_a_directory_and_the_root_file_a_file(
    remote: GitRepository, opened: Callable[..., Source], mode: str, said: str
) -> None:
    target = remote.commit(FILES, ref=None, parents=()) if mode == "160000" else remote.blob(b"elsewhere")
    remote.commit({"reconciler.yaml": ("120000", remote.blob(b"x")), "chains": (mode, target)})
    found = checkout(opened(remote))
    assert found.files == {}
    assert said in problems(found)["chains"]
    assert "symbolic link" in problems(found)["reconciler.yaml"]
    remote.commit({"reconciler.yaml/x": b"", "other": b""})
    found = checkout(opened(remote, "second"))
    assert "directory" in problems(found)["reconciler.yaml"]


def raw_tree(*entries: tuple[bytes, bytes, str]) -> bytes:
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)


@pytest.mark.parametrize("name", [b"..", b".", b".git", b".GIT", b"a/b", b"GIT~1", b"\xff\xfe"])
def test_names_that_git_writes_only_when_forced(
    remote: GitRepository, opened: Callable[..., Source], name: bytes
) -> None:
    blob = remote.blob(b"x")
    chains = remote.write_tree(raw_tree((b"100644", name, blob)))
    remote.commit(tree=remote.write_tree(raw_tree((b"40000", b"chains", chains))))
    source = opened(remote)
    commit = source.resolve()
    if name == b"\xff\xfe":  # for git a name like any other
        source.fetch(commit)
        found = source.checkout(commit)
        assert found.files == {}
        assert len(found.problems) == 1
    else:
        with pytest.raises(SourceError) as caught:
            source.fetch(commit)
        assert caught.value.reason == "ObjectsRefused"


def test_an_object_that_fails_gits_check_is_not_fetched(remote: GitRepository, opened: Callable[..., Source]) -> None:
    blob = remote.blob(b"x")
    twice = remote.write_tree(raw_tree((b"100644", b"a", blob), (b"100644", b"a", blob)))
    remote.commit(tree=remote.write_tree(raw_tree((b"40000", b"chains", twice))))
    source = opened(remote)
    commit = source.resolve()
    with pytest.raises(SourceError) as caught:
        source.fetch(commit)
    assert caught.value.reason == "ObjectsRefused"
    assert caught.value.disposition is Disposition.STALLED
    assert source.marked(Mark.CANDIDATE) is None


def test_a_commit_that_is_none_is_refused(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit(FILES)
    source = opened(remote)
    head = remote.commit(FILES)
    remote.git("tag", "-a", "-m", "x", "v1", head)
    branch = remote.path / "refs" / "heads" / "main"  # written directly: update-ref refuses a branch that is no commit
    for oid in (remote.git("rev-parse", f"{head}^{{tree}}"), remote.blob(b"x"), remote.git("rev-parse", "v1")):
        branch.write_text(f"{oid}\n")
        with pytest.raises(SourceError):
            source.fetch(source.resolve())
    branch.write_text(f"{head}\n")
    assert source.resolve() == head


# --- limits ------------------------------------------------------------------------------------------------


def test_large_files_are_problems_and_the_others_are_read(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit({**FILES, "chains/big.yaml": b"x" * 1001, "chains/fits.yaml": b"x" * 1000})
    found = checkout(opened(remote, file_bytes=1000))
    assert problems(found).keys() == {"chains/big.yaml"}
    assert found.files.keys() == {"reconciler.yaml", "chains/a.yaml", "chains/fits.yaml"}


def test_all_files_together_have_a_limit(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit({f"chains/{number}.yaml": b"x" * 100 for number in range(30)})
    found = checkout(opened(remote, total_bytes=1000))
    assert "together" in problems(found)["chains"]
    assert len(found.files) == 10


def test_too_many_files_and_too_deep_ones(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit({f"chains/{number}.yaml": b"" for number in range(30)})
    assert "at most 20 files" in problems(checkout(opened(remote, files=20)))["chains"]
    remote.commit({"chains/" + "d/" * 20 + "x.yaml": b"", "chains/a.yaml": b"a"})
    found = checkout(opened(remote, "second", depth=4))
    assert found.files.keys() == {"chains/a.yaml"}
    assert problems(found) == {"chains/d/d/d/d": "expected at most 4 levels of directories"}


def test_a_tree_that_names_itself_many_times_costs_nothing(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    # 40^10 files in ten small objects.
    tree = remote.tree({"x.yaml": b"x"})
    for _ in range(10):
        tree = remote.tree({f"d{number}": ("040000", tree) for number in range(40)})
    remote.commit(tree=remote.tree({"chains": ("040000", tree)}))
    found = checkout(opened(remote))
    assert found.files == {}
    assert "at most 20000 files" in problems(found)["chains"]


def test_large_trees_and_commits_are_refused_before_they_are_read(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    blob = remote.blob(b"x")
    remote.commit({f"chains/{number:05}.yaml": ("100644", blob) for number in range(500)})
    with pytest.raises(SourceError) as caught:
        checkout(opened(remote, tree_bytes=10_000))
    assert caught.value.reason == "SourceTooLarge"
    remote.commit(FILES, message="m" * 5000)
    with pytest.raises(SourceError) as caught:
        checkout(opened(remote, "second", commit_bytes=4000))
    assert caught.value.reason == "SourceTooLarge"


def test_a_pack_that_is_too_large_is_cut_off(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit({**FILES, "packages/big": os.urandom(3 << 20)})
    source = opened(remote, pack_bytes=1 << 20)
    commit = source.resolve()
    with pytest.raises(SourceError) as caught:
        source.fetch(commit)
    assert caught.value.reason == "SourceTooLarge"
    objects = remote.path.parent.parent / "state" / "git" / "objects"
    assert sum(path.stat().st_size for path in objects.rglob("*") if path.is_file()) < 1 << 20
    assert not list(objects.rglob("tmp_*"))


def test_a_repository_that_is_too_large_takes_nothing_more(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    remote.commit({**FILES, "packages/big": os.urandom(1 << 20)})
    source = opened(remote, repository_bytes=1 << 19)
    first = fetched(source)
    source.promote(first)
    remote.commit(FILES)
    commit = source.resolve()
    with pytest.raises(SourceError) as caught:
        source.fetch(commit)
    assert caught.value.reason == "SourceTooLarge"
    assert source.checkout(first).problems == ()


# --- history -----------------------------------------------------------------------------------------------


def test_ancestry_has_five_outcomes(repository: GitRepository, opened: Callable[..., Source]) -> None:
    first = repository.commit(FILES)
    second = repository.commit(FILES, message="second")
    source = opened(repository)
    fetched(source)
    source.promote(second)
    other = repository.commit(FILES, parents=(), message="other")
    fetched(source)
    unknown = "0" * len(first)
    assert source.ancestry(first, first) is Ancestry.EQUAL
    assert source.ancestry(first, second) is Ancestry.DESCENDANT
    assert source.ancestry(second, first) is Ancestry.REWOUND
    assert source.ancestry(second, other) is Ancestry.UNRELATED
    for pair in ((unknown, second), (second, unknown), (unknown, unknown), ("0" * 40, "0" * 64)):
        assert source.ancestry(*pair) is Ancestry.UNKNOWN


def test_new_commits_are_those_of_the_first_parent_line_oldest_first(
    repository: GitRepository, opened: Callable[..., Source]
) -> None:
    first = repository.commit(FILES)
    side = repository.commit(FILES, ref=None, parents=(first,), message="side")
    second = repository.commit(FILES, message="second")
    merge = repository.commit(FILES, parents=(second, side), message="merge")
    last = repository.commit(FILES, message="last")
    source = opened(repository)
    fetched(source)
    assert source.new_commits(first, last) == (second, merge, last)
    assert source.new_commits(second, last) == (merge, last)
    assert source.new_commits(last, last) == ()
    assert source.new_commits(None, last) == (last,)
    with pytest.raises(SourceError):
        source.new_commits("0" * len(first), last)


def test_a_watermark_behind_the_second_parent_hides_no_commit_of_the_line(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    first = remote.commit(FILES)
    watermark = remote.commit(FILES, message="applied")
    feature = remote.commit(FILES, ref=None, parents=(first,), message="feature")
    # A merge the other way round: the line now runs through the feature.
    head = remote.commit(FILES, parents=(feature, watermark), message="merge")
    source = opened(remote)
    fetched(source)
    assert source.ancestry(watermark, head) is Ancestry.DESCENDANT
    assert source.new_commits(watermark, head) == (feature, head)


def test_too_many_new_commits_are_refused_with_what_to_do(remote: GitRepository, opened: Callable[..., Source]) -> None:
    first = remote.commit(FILES)
    for number in range(4):
        remote.commit(FILES, message=str(number))
    source = opened(remote, new_commits=3)
    head = fetched(source)
    with pytest.raises(SourceError, match="reconciler accept") as caught:
        source.new_commits(first, head)
    assert caught.value.reason == "TooManyCommits"
    assert source.new_commits(remote.git("rev-parse", f"{head}~3"), head)[-1] == head


def test_a_force_push_is_fetched_so_that_it_can_be_explained(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    first = remote.commit(FILES)
    second = remote.commit(FILES, message="second")
    source = opened(remote)
    source.promote(fetched(source))
    remote.git("update-ref", MAIN, first)
    assert fetched(source) == first
    assert source.applied() == second
    assert source.ancestry(second, first) is Ancestry.REWOUND


def test_a_ref_that_moves_between_poll_and_fetch_is_resolved_again(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    remote.commit(FILES)
    source = opened(remote)
    stale = source.resolve()
    moved = remote.commit(FILES, message="moved")
    with pytest.raises(SourceMovedError) as caught:
        source.fetch(stale)
    assert caught.value.disposition is Disposition.RETRY
    assert moved in str(caught.value)
    assert fetched(source) == moved


def test_a_replacement_at_the_source_is_never_fetched_nor_followed(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    remote.commit(FILES)
    evil = remote.commit({**FILES, "chains/a.yaml": b"evil"}, ref=None, parents=())
    head = remote.head()
    assert head is not None
    raw = remote.raw(head)
    remote.git("update-ref", f"refs/replace/{head}", evil)
    source = opened(remote)
    found = checkout(source)
    assert found.files["chains/a.yaml"] == b"a"
    # Also not when somebody puts one into the local repository.
    local = remote.path.parent.parent / "state" / "git"
    subprocess.run(
        ["git", f"--git-dir={local}", "fetch", "-q", str(remote.path), f"+{evil}:refs/replace/{head}"], check=True
    )
    plain = subprocess.run(
        ["git", f"--git-dir={local}", "show", f"{head}:chains/a.yaml"], capture_output=True, check=True
    )
    assert plain.stdout == b"evil"
    assert source.checkout(head).files["chains/a.yaml"] == b"a"
    assert source.read_commit(head) == raw


def test_tags_and_other_branches_stay_where_they_are(remote: GitRepository, opened: Callable[..., Source]) -> None:
    head = remote.commit(FILES)
    remote.git("tag", "v1", head)
    remote.commit({"x": b"secret"}, ref="refs/heads/other", parents=())
    source = opened(remote)
    fetched(source)
    local = remote.path.parent.parent / "state" / "git"
    refs = subprocess.run(["git", f"--git-dir={local}", "for-each-ref"], capture_output=True, check=True).stdout
    assert refs.decode().split() == [head, "commit", "refs/reconciler/candidate"]


# --- the environment ---------------------------------------------------------------------------------------


def test_nothing_of_the_parents_environment_reaches_git(
    remote: GitRepository, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote.commit(FILES)
    trace = tmp_path / "trace"
    poison = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "url.file:///elsewhere/.insteadOf",
        "GIT_CONFIG_VALUE_0": f"file://{remote.path}",
        "GIT_CONFIG_KEY_1": "core.fsmonitor",
        "GIT_CONFIG_VALUE_1": f"touch {tmp_path}/fsmonitor",
        "GIT_CONFIG_PARAMETERS": "'protocol.file.allow=never'",
        "GIT_DIR": "/nonexistent",
        "GIT_OBJECT_DIRECTORY": "/nonexistent",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": "/nonexistent",
        "GIT_TRACE": str(trace),
        "GIT_TRACE2": str(trace),
        "GIT_EXEC_PATH": "/nonexistent",
        "GIT_SSH_COMMAND": "false",
        "GIT_PROXY_COMMAND": "false",
        "GIT_NAMESPACE": "x",
        "GIT_REPLACE_REF_BASE": "refs/reconciler/",
        "LD_PRELOAD": "",
        "https_proxy": "http://127.0.0.1:1",
        "LANGUAGE": "de",
        "LC_ALL": "de_DE.UTF-8",
    }
    for name, value in poison.items():
        monkeypatch.setenv(name, value)
    found = checkout(opened(remote))
    assert found.files["chains/a.yaml"] == b"a"
    assert not trace.exists()
    assert not (tmp_path / "fsmonitor").exists()


def test_file_urls_and_odd_settings_are_refused_when_the_source_is_opened(
    remote: GitRepository, tmp_path: Path
) -> None:
    settings = settings_for(remote)
    missing = tmp_path / "missing"
    https = replace(settings, url="https://localhost/p")
    ssh = replace(settings, url="ssh://localhost/p")
    refused = {
        "allowFile": replace(settings, allow_file=False),
        "scheme": replace(settings, url="ext::sh -c id"),
        "fully qualified": replace(settings, ref="main"),
        "sshKeyFile": ssh,
        "proxy is for https": replace(ssh, auth=SourceAuth(proxy="http://localhost:1")),
        "of the form": replace(https, auth=SourceAuth(proxy="socks5://user:s3cret@localhost:1")),
        "plain characters": replace(https, auth=SourceAuth(ca_file=tmp_path / "a b%h")),
    }
    for words, each in refused.items():
        with pytest.raises(ConfigError) as caught:
            open_source(each, tmp_path / "state" / "git")
        if words != "scheme":
            assert words in str(caught.value)
        assert "s3cret" not in str(caught.value)
    for auth in (SourceAuth(token_file=missing), SourceAuth(ca_file=missing)):
        source = open_source(replace(https, auth=auth), tmp_path / "state" / "git")
        with pytest.raises(SourceError) as failed:
            source.resolve()
        assert failed.value.reason == "AuthenticationFailed"
    for content in (b"", b"two\nlines", b"\xff\xfe", b"x" * 20_000):
        missing.write_bytes(content)
        missing.chmod(0o600)
        source = open_source(replace(https, auth=SourceAuth(token_file=missing)), tmp_path / "state" / "git")
        with pytest.raises(SourceError, match="one line"):
            source.resolve()


# --- accidents ---------------------------------------------------------------------------------------------


def test_opening_needs_neither_network_nor_a_repository(remote: GitRepository, opened: Callable[..., Source]) -> None:
    source = opened(remote)
    assert source.applied() is None
    assert not source.maintain()
    for call in (source.read_commit, source.checkout, source.fetch):
        with pytest.raises(SourceError) as caught:
            call("0" * 40)
        assert caught.value.reason == "NeverReached"
    assert not source.probe(5)  # an empty repository has no such ref
    remote.commit(FILES)
    assert source.probe(5)


def test_leftovers_of_a_killed_fetch_are_swept_when_opening(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    remote.commit(FILES)
    source = opened(remote)
    source.promote(fetched(source))
    local = remote.path.parent.parent / "state" / "git"
    leftovers = [
        local / "objects" / "pack" / "tmp_pack_AbCdEf",
        local / "objects" / "pack" / "tmp_idx_AbCdEf",
        local / "objects" / "pack" / "pack-0123.pack",
        local / "objects" / "pack" / "pack-4567.keep",
        local / "objects" / "pack" / "pack-89ab.pack.temp",
        local / "objects" / "tmp_obj_AbCdEf",
        local / "objects" / "cd" / "tmp_obj_AbCdEf",
        local / "objects" / "cd" / "0123.temp",
        local / "refs" / "reconciler" / "candidate.lock",
        local / "packed-refs.lock",
        local / "HEAD.lock",
        local / "shallow.lock",
        local / "config.lock",
    ]
    (local / "objects" / "cd").mkdir(exist_ok=True)
    for path in leftovers:
        path.write_bytes(b"half")
    (local / "objects" / "tmp_objdir-incoming-x" / "pack").mkdir(parents=True)
    (local / "config").write_text("[core]\n\tbare = true\n\tsshCommand = id\n")
    second = opened(remote)
    assert [path for path in leftovers if path.exists()] == []
    assert not (local / "objects" / "tmp_objdir-incoming-x").exists()
    assert "sshCommand" not in (local / "config").read_text()
    remote.commit({**FILES, "chains/b.yaml": b"b"})
    assert checkout(second).files["chains/b.yaml"] == b"b"


def test_a_shallow_or_broken_local_repository_is_refused_with_what_to_do(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    head = remote.commit(FILES)
    fetched(opened(remote))
    local = remote.path.parent.parent / "state" / "git"
    (local / "shallow").write_text(f"{head}\n")
    with pytest.raises(SourceError) as caught:
        opened(remote)
    assert caught.value.reason == "ShallowSource"
    (local / "shallow").unlink()
    (local / "HEAD").unlink()
    with pytest.raises(SourceError, match="remove it") as caught:
        opened(remote)
    assert caught.value.reason == "RepositoryDamaged"


def test_objects_that_changed_on_the_disk_are_noticed(remote: GitRepository, opened: Callable[..., Source]) -> None:
    remote.commit(FILES)
    source = opened(remote)
    head = fetched(source)
    (pack,) = (remote.path.parent.parent / "state" / "git" / "objects" / "pack").glob("*.pack")
    content = bytearray(pack.read_bytes())
    pack.chmod(0o600)
    for at in range(12, len(content) - 20):
        content[at] ^= 0x55
    pack.write_bytes(content)
    with pytest.raises(SourceError):
        source.checkout(head)


def test_another_writer_is_waited_for_and_then_reported(
    remote: GitRepository, opened: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.commit(FILES)
    source = opened(remote)
    head = fetched(source)
    monkeypatch.setattr(_repository, "LOCK_TIMEOUT", 0.1)
    with (remote.path.parent.parent / "state" / "git.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SourceError) as caught:
            source.promote(head)
        assert caught.value.reason == "Locked"
        # Opening and reading go on.
        assert opened(remote).checkout(head).problems == ()
    source.promote(head)


def test_a_git_that_is_too_old_or_missing_is_said(
    remote: GitRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MINIMUM_GIT", (99, 0))
    with pytest.raises(SourceError, match=r"99\.0") as caught:
        open_source(settings_for(remote), tmp_path / "state" / "git")
    assert caught.value.reason == "GitTooOld"
    monkeypatch.setitem(_git.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(SourceError, match="Debian: git") as caught:
        open_source(settings_for(remote), tmp_path / "state" / "git")
    assert caught.value.reason == "GitMissing"


def test_a_local_repository_of_another_user_is_refused_with_the_reason(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    remote.commit(FILES)
    os.chown(remote.path, 65534, 65534)
    with pytest.raises(SourceError) as caught:
        opened(remote).resolve()
    assert caught.value.reason == "OwnerRefused"


def test_a_disk_that_refuses_is_said(remote: GitRepository, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError) as caught:
        open_source(settings_for(remote), tmp_path / "file" / "git")
    assert caught.value.reason == "RepositoryUnavailable"


def test_an_old_process_that_stops_answering_or_dies_is_an_error_and_the_next_read_works(
    remote: GitRepository, opened: Callable[..., Source]
) -> None:
    remote.commit(FILES)
    source = opened(remote, read_timeout=1.0)
    head = fetched(source)
    source.checkout(head)
    for number, reason in ((signal.SIGSTOP, "SourceTimeout"), (signal.SIGKILL, "RepositoryDamaged")):
        for pid in descendants_named("git"):
            os.kill(pid, number)
        with pytest.raises(SourceError) as caught:
            source.checkout(head)
        assert caught.value.reason == reason
        assert source.checkout(head).problems == ()


def test_processes_end_with_the_source(remote: GitRepository, tmp_path: Path) -> None:
    remote.commit(FILES)
    with closing(open_source(settings_for(remote), tmp_path / "state" / "git")) as source:
        checkout(source)
        running = descendants_named("git")
        assert running
    assert descendants_named("git") - running == set()
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)


def descendants_named(name: str) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2].split()[1]) == os.getpid() and f"({name})" in fields[0] + ")":
                found.add(int(entry.name))
    return found


def test_default_limits_are_positive() -> None:
    limits = SourceLimits()
    assert all(getattr(limits, name) > 0 for name in limits.__dataclass_fields__)
