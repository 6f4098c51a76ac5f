# SPDX-License-Identifier: Apache-2.0
"""The local repository over years: many small fetches, heads that were refused, a limit, and death in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from reconciler import _points
from reconciler.errors import SourceError
from reconciler.source import Mark, Source, SourceLimits, SourceSettings, open_source
from reconciler.source import _source as module
from tests.e2e.servers import GitRepository

if TYPE_CHECKING:
    from functools import partial
    from pathlib import Path
    from typing import Any

FILES: dict[str, bytes | tuple[str, str]] = {"reconciler.yaml": b"kind: Repository\n", "chains/a.yaml": b"a"}
MAIN = "refs/heads/main"
KIB = 1 << 10


@pytest.fixture
def remote(tmp_path: Path) -> GitRepository:
    return GitRepository(tmp_path / "repos" / "policy.git")


def opened(remote: GitRepository, **limits: float) -> Source:
    url = f"file://{remote.path}"
    settings = SourceSettings(url=url, ref=MAIN, allow_file=True, limits=SourceLimits(**limits))  # type: ignore[arg-type]
    return open_source(settings, store(remote))


def store(remote: GitRepository) -> Path:
    return remote.path.parent.parent / "state" / "git"


def fetched(source: Source) -> str:
    head = source.resolve()
    source.fetch(head)
    return head


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def packs(remote: GitRepository) -> int:
    return len(list((store(remote) / "objects" / "pack").glob("*.pack")))


def loose(remote: GitRepository) -> int:
    return len(list((store(remote) / "objects").glob("??/*")))


def git(remote: GitRepository, *arguments: str) -> str:
    done = subprocess.run(["git", f"--git-dir={store(remote)}", *arguments], capture_output=True, check=True)
    return done.stdout.decode().strip()


# --- many fetches ------------------------------------------------------------------------------------------


def history(remote: GitRepository, count: int) -> list[str]:
    """That many commits, each with a change of one of 200 manifests of about 2 KiB; oldest first."""
    stream = []
    for number in range(count):
        content = f"kind: Chain\nnumber: {number}\n" + "".join(f"line{at}: {at * number}\n" for at in range(120))
        data = content.encode()
        stream.append(
            f"commit {MAIN}\nmark :{number + 1}\ncommitter A <a@example.com> {1_700_000_000 + number} +0000\n"
            f"data 6\nchange\nM 100644 inline chains/{number % 200:03}.yaml\ndata {len(data)}\n".encode()
            + data
            + b"\n"
        )
    marks = remote.path / "marks"
    remote.git("fast-import", "--quiet", f"--export-marks={marks}", stdin=b"".join(stream))
    ids = dict(line.split() for line in marks.read_text().splitlines())
    return [ids[f":{number + 1}"] for number in range(count)]


def follow(remote: GitRepository, count: int, *, progress: int = 0) -> None:
    """Poll, fetch, apply and maintain after each of `count` commits, as the agent does; then look at what is there."""
    commits = history(remote, count)
    branch = remote.path / "refs" / "heads" / "main"
    began, most = time.monotonic(), 0
    with closing(opened(remote)) as source:
        for number, commit in enumerate(commits):
            branch.write_text(f"{commit}\n")
            assert fetched(source) == commit
            source.promote(commit)
            most = max(most, packs(remote))
            source.maintain()
            if progress and (number + 1) % progress == 0:
                say(
                    f"{number + 1} fetches: {size_of(store(remote)) // KIB} KiB, {packs(remote)} packs, "
                    f"{loose(remote)} loose, {time.monotonic() - began:.0f} s"
                )
        assert source.applied() == commits[-1]
        assert source.checkout(commits[0]).files.keys() == {"chains/000.yaml"}
    assert int(git(remote, "rev-list", "--count", "refs/reconciler/applied")) == count
    assert git(remote, "fsck", "--connectivity-only") == ""
    assert most <= module.MAX_PACKS + 1
    assert loose(remote) == 0
    remote.git("repack", "-a", "-d", "-q")
    best = size_of(remote.path / "objects" / "pack")
    say(f"{count} fetches: {size_of(store(remote)) // KIB} KiB here, {best // KIB} KiB in one pack at the server")
    assert size_of(store(remote)) < 4 * best + 512 * KIB
    assert [path.name for path in store(remote).parent.iterdir() if path.name.endswith((".new", ".old"))] == []


def say(line: str) -> None:
    """For whoever runs the long version, with `-s`."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def test_a_hundred_fetches_stay_a_few_packs(remote: GitRepository) -> None:
    follow(remote, 110)


@pytest.mark.torture
def test_ten_thousand_fetches_stay_a_few_packs(remote: GitRepository) -> None:
    follow(remote, 10_000, progress=1000)


def test_packs_are_joined_when_there_are_many(remote: GitRepository) -> None:
    with closing(opened(remote)) as source:
        commits = []
        for number in range(7):
            commits.append(remote.commit({**FILES, "chains/n.yaml": str(number).encode()}))
            fetched(source)
        source.promote(commits[2])
        assert packs(remote) == 7
        assert not source.maintain()
        assert source.maintain(packs=3)
        assert packs(remote) == 1
        assert source.checkout(commits[2]).files["chains/n.yaml"] == b"2"
        assert source.checkout(commits[-1]).files["chains/n.yaml"] == b"6"
        assert not source.maintain(packs=3)


def test_joining_that_takes_too_long_is_left_alone_for_a_while(remote: GitRepository) -> None:
    with closing(opened(remote, repack_timeout=0.0)) as source:
        for number in range(4):
            remote.commit({**FILES, "chains/n.yaml": str(number).encode()})
            fetched(source)
        remote.commit(FILES)
        head = fetched(source)
        with pytest.raises(SourceError) as caught:
            source.maintain(packs=2)
        assert caught.value.reason == "SourceTimeout"
        assert not source.maintain(packs=2)
        assert source.checkout(head).problems == ()
        assert not list((store(remote) / "objects" / "pack").glob("tmp_*"))


# --- the limit ---------------------------------------------------------------------------------------------


def heavy(remote: GitRepository, packages: int = 1, **rest: object) -> str:
    files = {f"packages/{number}": os.urandom(100 * KIB) for number in range(packages)}
    return remote.commit({**FILES, **files}, **rest)  # type: ignore[arg-type]


def test_refused_heads_never_fill_the_disk_and_the_watermark_stays(remote: GitRepository) -> None:
    with closing(opened(remote, repository_bytes=500 * KIB)) as source:
        first = remote.commit(FILES)
        fetched(source)
        source.promote(first, Mark.GOOD)
        applied = remote.commit({**FILES, "chains/b.yaml": b"b"})
        fetched(source)
        source.promote(applied)
        rebuilt, refused = 0, applied
        for _ in range(12):
            refused = heavy(remote, parents=())
            fetched(source)
            before = (store(remote)).stat().st_ino
            source.maintain()
            rebuilt += before != store(remote).stat().st_ino
            assert size_of(store(remote)) < 700 * KIB
        assert rebuilt >= 2
        # The head that was refused last is not fetched again at each poll.
        assert source.marked(Mark.CANDIDATE) == refused
        assert source.checkout(applied).files["chains/b.yaml"] == b"b"
        assert source.marked(Mark.GOOD) == first
        assert source.checkout(first).problems == ()
        new = remote.commit({**FILES, "chains/c.yaml": b"c"}, parents=(applied,))
        assert fetched(source) == new
        assert source.new_commits(applied, new) == (new,)


def test_what_is_wanted_and_too_large_is_said_without_copying_it_each_time(remote: GitRepository) -> None:
    with closing(opened(remote, repository_bytes=150 * KIB)) as source:
        applied = heavy(remote, 2)
        fetched(source)
        source.promote(applied)
        remote.commit({**FILES, "chains/b.yaml": b"b"})
        head = source.resolve()
        places = set()
        for _ in range(3):
            with pytest.raises(SourceError) as caught:
                source.fetch(head)
            assert caught.value.reason == "SourceTooLarge"
            places.add(store(remote).stat().st_ino)
        assert len(places) == 1
        assert source.checkout(applied).problems == ()
        assert source.applied() == applied


# --- death in the middle -----------------------------------------------------------------------------------


@pytest.fixture
def over_the_limit(remote: GitRepository) -> str:
    """What was applied, in a repository that the next maintenance rebuilds."""
    with closing(opened(remote)) as source:
        applied = remote.commit({**FILES, "chains/b.yaml": b"b"})
        fetched(source)
        source.promote(applied)
        for _ in range(3):
            heavy(remote, parents=())
            fetched(source)
    return applied


def maintain_until(remote: GitRepository, last: int) -> bool:
    """Maintenance in a process that dies right after its point number `last`; whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(name: str, call: partial[Any]) -> Any:
            nonlocal count
            result = call()
            count += 1
            if count == last:
                os._exit(7)
            return result

        status = 1
        try:
            _points.hook = hook
            source = opened(remote, repository_bytes=250 * KIB)
            count = 0  # opening has its own tests
            source.maintain()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 7)
    return code == 7


def test_a_rebuild_that_dies_anywhere_converges(remote: GitRepository, over_the_limit: str) -> None:
    points = 0
    while maintain_until(remote, points + 1):
        points += 1
        with closing(opened(remote)) as source:
            assert source.applied() == over_the_limit
            assert source.checkout(over_the_limit).files["chains/b.yaml"] == b"b"
        assert sorted(path.name for path in store(remote).parent.iterdir()) == ["git", "git.empty", "git.lock"]
        # The whole again for the next death.
        with closing(opened(remote)) as source:
            for _ in range(3):
                heavy(remote, parents=())
                fetched(source)
    assert points >= 4  # init, local fetch, two renames
    assert size_of(store(remote)) < 250 * KIB


@pytest.mark.parametrize(
    "name",
    ["git init", "write git config", "chmod git", "fsync git", "git fetch locally", "rename git away", "rename git"],
)
def test_a_rebuild_that_fails_anywhere_leaves_the_repository_as_it_was(
    remote: GitRepository, over_the_limit: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(point: str, call: partial[Any]) -> Any:
        if point == name:
            raise OSError(28, "No space left on device")
        return call()

    with closing(opened(remote, repository_bytes=250 * KIB)) as source:
        before = store(remote).stat().st_ino
        with monkeypatch.context() as patch:
            patch.setattr(_points, "hook", hook)
            with pytest.raises(SourceError) as caught:
                source.maintain()
        assert caught.value.reason == "DiskFull"
        assert store(remote).stat().st_ino == before
        assert source.checkout(over_the_limit).problems == ()
        assert source.maintain()
        assert source.applied() == over_the_limit
        assert store(remote).stat().st_ino != before
