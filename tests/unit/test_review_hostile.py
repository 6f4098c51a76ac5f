# SPDX-License-Identifier: Apache-2.0
"""Pull requests that attack whoever reviews them: what the command says stays well-formed, bounded and true."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft7Validator

from reconciler import packages, review, trust
from reconciler.cli import _archives
from tests.command import reconciler
from tests.elf_objects import compile_program, strip
from tests.manifests import REPOSITORY, chain, member, text
from tests.signed_packages import OBJECT, Key, Signed, manifest_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SARIF = Draft7Validator(json.loads((Path(__file__).parents[1] / "data/sarif/sarif-schema-2.1.0.json").read_text()))
INJECTION = (
    "x`</details></summary>\n# @everyone ![p](http://evil/p.png) <script>alert(1)</script> <img src=x onerror=y> "
    "[a](javascript:b) \x1b[2J\x1b]8;;http://evil\x07 \u202e %%{init: {'securityLevel': 'loose'}}%% "
    'click a0 href "http://evil" ```\n---\n/close\n'
)
TAGS = {"details", "summary", "code"}


@dataclass(frozen=True)
class Repository:
    """A Git repository that is written object by object, so that nothing refuses what attackers would write."""

    path: Path

    def git(self, *arguments: str, data: bytes = b"") -> str:
        done = subprocess.run(
            ["git", "-C", self.path, "-c", "core.protectNTFS=false", *arguments],
            input=data,
            check=True,
            capture_output=True,
        )
        said: bytes = done.stdout
        return said.decode().strip()

    def blob(self, data: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", data=data)

    def commit(self, files: Mapping[str | bytes, bytes | tuple[str, bytes]], parent: str | None = None) -> str:
        """A commit of files, `(mode, content)` for what is no plain file; a gitlink's content is a commit id."""
        entries: dict[bytes, tuple[str, bytes]] = {}
        for name, value in files.items():
            path = name.encode() if isinstance(name, str) else name
            entries[path] = ("100644", value) if isinstance(value, bytes) else value
        stream = [b"commit refs/heads/made\ncommitter a <a@example.com> 1700000000 +0000\ndata 1\nm\n"]
        stream += [b"from %s\n" % parent.encode()] if parent else []
        stream.append(b"deleteall\n")
        for path, (mode, data) in entries.items():
            quoted = b'"%s"' % path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
            if mode == "160000":
                stream.append(b"M 160000 %s %s\n" % (data, quoted))
            else:
                stream.append(b"M %s inline %s\ndata %d\n%s\n" % (mode.encode(), quoted, len(data), data))
        self.git("update-ref", "-d", "refs/heads/made")
        self.git("fast-import", "--quiet", "--force", data=b"".join(stream))
        return self.git("rev-parse", "refs/heads/made")


@dataclass(frozen=True)
class Said:
    """Everything that one review said."""

    document: Any
    markdown: str
    sarif: Any
    table: str

    @property
    def ids(self) -> set[str]:
        return {finding["id"] for finding in self.document["findings"]}

    def message(self, rule: str) -> str:
        found: str = next(each["message"] for each in self.document["findings"] if each["id"] == rule)
        return found


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "clone")
    subprocess.run(["git", "init", "-q", made.path], check=True)
    return made


KEY = Key.make()


@functools.cache
def demo() -> Signed:
    return Signed.make(KEY)


def member_of(signed: Signed, name: str = "limit", **fields: Any) -> dict[str, Any]:
    ref = signed.ref()
    package = {"name": ref.name, "version": ref.version, "digest": ref.digest}
    return member(name, package=package, program="prog", **fields)


def tree(*chains: Any, signed: Signed | None = None) -> dict[str | bytes, Any]:
    files: dict[str | bytes, Any] = {"reconciler.yaml": REPOSITORY}
    files |= {f"packages/{name}": data for name, data in (signed or demo()).files.items()}
    files |= {f"chains/{number}.yaml": text(each) for number, each in enumerate(chains)}
    return files


def edge(name: str = "edge", **spec: Any) -> dict[str, Any]:
    return chain(name, **{"members": [member_of(demo())], **spec})


def reviewed(
    repository: Repository, head: Mapping[str | bytes, Any], base: Mapping[str | bytes, Any] | None = None
) -> Said:
    """The review of `head` by the command; that it is well-formed, bounded and harmless is checked here."""
    old = repository.commit(tree(edge()) if base is None else base)
    new = repository.commit(head, parent=old)
    folder = repository.path.parent
    files = {kind: folder / f"review.{kind}" for kind in ("json", "markdown", "sarif")}
    ran = reconciler(
        *("review", old, new, "--repository", repository.path, "--now", "2026-06-01"),
        *(each for kind, file in files.items() for each in (f"--{kind}", file)),
    )
    assert ran.code == 0, ran.err
    said = Said(
        document=json.loads(files["json"].read_bytes()),
        markdown=files["markdown"].read_text("utf-8"),
        sarif=json.loads(files["sarif"].read_bytes()),
        table=ran.out,
    )
    assert files["json"].stat().st_size <= review.MAX_DOCUMENT_BYTES
    check_markdown(said.markdown)
    check_sarif(said.sarif)
    assert plain(said.table)
    assert len(said.table) <= 500_000
    # What was written can be shown again, and shows the same.
    assert reconciler("review", "--from", files["json"], "-o", "markdown").out == said.markdown
    return said


def plain(shown: str) -> bool:
    """Whether nothing in it moves a cursor, colours, links or turns the direction."""
    return not any(unicodedata.category(each) in ("Cc", "Cf", "Co", "Cs") for each in shown if each != "\n")


class Tags(HTMLParser):
    """What of a comment is HTML: only our own tags, all of them closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert attrs == []
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_markdown(comment: str) -> None:
    assert len(comment.encode("utf-16-le")) // 2 <= review.MAX_MARKDOWN
    assert plain(comment)
    pictures = re.findall(r"^```mermaid\n(.*?)^```$", comment, flags=re.DOTALL | re.MULTILINE)
    for picture in pictures:
        allowed = (
            r"flowchart LR|  subgraph (before|after)|    direction LR|  end|"
            r'    ([ab]\d+\["([A-Za-z0-9 ._/:,()+*?-]|#9[13];)*"\]( --> )?)+'
        )
        assert all(re.fullmatch(allowed, line) for line in picture.splitlines()), picture
        assert "://" not in picture
    bare = re.sub(r"^```mermaid\n.*?^```$", "", comment, flags=re.DOTALL | re.MULTILINE)
    assert all(line.count("`") % 2 == 0 for line in bare.splitlines())
    bare = re.sub(r"`[^`\n]+`", "", bare).replace("<!-- reconciler-review -->", "")
    tags = Tags()
    tags.feed(bare)
    tags.close()
    assert tags.open == []
    words = re.sub(r"</?(details|summary|code)>", "", bare)
    assert not re.search(r"[<>@\[\]!`~$|\\]|://|www[.]|^\s*/|^ {4}", words, flags=re.MULTILINE), words


def check_sarif(document: Any) -> None:
    (run,) = document["runs"]
    shown = {**document, "runs": [{**run, "results": run["results"][:200]}]}  # the validator is slow, the others alike
    assert [error.message for error in SARIF.iter_errors(shown)] == []
    for result in run["results"]:
        assert plain(result["message"]["text"])
        for location in result["locations"]:
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert re.fullmatch(r"(reconciler\.yaml|(chains|hosts|packages)/[A-Za-z0-9._~%/-]+)", uri), uri
            assert ".." not in uri.split("/")


# --- manifests ---------------------------------------------------------------------------------------------

HEAD = b"apiVersion: reconciler/v1alpha1\nkind: Chain\nmetadata: {name: edge}\nspec: "
BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)
BROKEN = {
    "aliases": BOMB,
    "deep flow": HEAD + b"[" * 100_000,
    "deep blocks": HEAD + b"".join(b"\n" + b" " * n + b"a:" for n in range(1, 400)),
    "huge": HEAD + b"{a: '" + b"x" * (1 << 20) + b"'}",
    "many nodes": HEAD + b"[" + b"1," * 400_000 + b"]",
    "many documents": b"---\n{}\n" * 5_000,
    "a tag that would run": HEAD + b"!!python/object/apply:os.system ['touch /tmp/owned']",
    "no text": b"\xff\xfe\x00" * 100,
    "nul": HEAD + b"\x00",
    "words of another finding": HEAD + b"{'at least one chain': 1}",
    "one key twice": HEAD + b"{priority: 1, priority: 2}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_manifest_that_is_made_to_break_parsers_is_a_finding_and_no_removal(
    name: str, repository: Repository
) -> None:
    said = reviewed(repository, tree() | {"chains/0.yaml": BROKEN[name]})
    assert "RV001" in said.ids
    assert said.document["verdict"] == "blocked"
    assert said.document["chains"] == []  # the chain stands as it was
    assert all(len(finding["message"]) < 2_000 for finding in said.document["findings"])


def test_ten_thousand_chains_are_all_counted(repository: Repository) -> None:
    chains = [edge(f"c{n:05}", priority=n % 1000 + 1, onBroken="pass") for n in range(10_000)]
    files: dict[str | bytes, Any] = {
        f"chains/{start}.yaml": text(*chains[start : start + 500]) for start in range(0, 10_000, 500)
    }
    said = reviewed(repository, tree() | files)
    assert len(said.document["chains"]) == 10_001  # all of these, and the one that is gone
    (left,) = re.findall(
        r"\*\*Left out, because a comment has a limit:\*\* (.*)\. All of it is in review\.json", said.markdown
    )
    missing = sum(int(count) for count in re.findall(r"(\d+) chains", left))
    assert said.markdown.count("<details><summary>Chain ") + missing == 10_001
    assert "more chains; -o json has all of them" in said.table
    assert said.sarif["runs"][0].get("properties", {}).get("leftOut", 0) == max(
        0, len(said.document["findings"]) - len(said.sarif["runs"][0]["results"])
    )


# --- texts -------------------------------------------------------------------------------------------------


def test_texts_of_manifests_stay_texts_wherever_they_are_shown(repository: Repository) -> None:
    head = edge(
        members=[member_of(demo(), params={"rate": INJECTION, INJECTION: 1})],
        acknowledge=[{"finding": "RV012", "why": INJECTION, "until": "2026-12-31"}],
        hosts={"matchLabels": {"role": INJECTION}},
    )
    other = text(edge(INJECTION)).replace(b"XDP", b"xdp")
    group = {
        "apiVersion": "reconciler/v1alpha1",
        "kind": "HostGroup",
        "metadata": {"name": INJECTION},
        "spec": {"labels": {"role": INJECTION}},
    }
    said = reviewed(repository, tree(head) | {"chains/other.yaml": other, "hosts/g.yaml": text(group)})
    assert {"RV001", "RV055"} <= said.ids


def test_texts_of_a_group_that_changes_stay_texts(repository: Repository) -> None:
    """Names of interfaces may hold almost anything, and identities all of it."""

    def group(**spec: Any) -> dict[str | bytes, Any]:
        head = {"apiVersion": "reconciler/v1alpha1", "kind": "HostGroup", "metadata": {"name": "edge"}}
        return {"hosts/edge.yaml": text({**head, "spec": {"labels": {"role": "edge"}, **spec}})}

    nasty = ["`<b>`@every", "<script>@every", "![a](b)|]]"]
    words = "".join(each for each in INJECTION if each.isprintable())
    signer = {"name": "ci", "packages": ["*"], "identity": words, "issuer": words}
    changed = {"secureMode": "enforce", "policy": {"signers": [signer], "tolerations": ["cilium"]}}
    more = edge(hook={"type": "xdp", "interfaces": ["*"]})
    said = reviewed(
        repository,
        tree(more) | group(interfaces=[{"names": ["eth0", *nasty]}], **changed),
        tree(edge()) | group(interfaces=[{"names": ["eth0"]}], secureMode="audit"),
    )
    assert {"RV039", "RV053"} <= said.ids
    assert "secureMode audit → enforce; policy.signers not said → said; " in said.message("RV053")
    assert nasty[0] in said.message("RV053")  # told as it is, and escaped only where it is shown


def test_a_reason_and_a_parameter_that_are_accepted_stay_texts(repository: Repository) -> None:
    words = "".join(each for each in INJECTION if each.isprintable())
    said = reviewed(
        repository,
        tree(
            edge(
                members=[member_of(demo(), params={"rate": words})],
                acknowledge=[{"finding": "RV012", "why": words, "until": "2026-12-31"}],
            )
        ),
    )
    assert "RV050" in said.ids
    assert words in said.message("RV050")  # told as it is, and escaped only where it is shown


NAMES = {
    "newline": b"chains/a\n# evil.yaml",
    "terminal": b"chains/\x1b[2Jx.yaml",
    "no UTF-8": b"chains/\xff\xfe.yaml",
    "direction": "chains/\u202elmay.x.yaml".encode(),
    "HTML": b"chains/<img src=x onerror=y>`</details>@all.yaml",
    "quotes": b'chains/"\\x.yaml',
    "long": b"chains/" + b"a" * 250 + b".yaml",
    "option": b"chains/--json=x.yaml",
    "group": b"hosts/a\n@all<script>.yaml",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_stays_a_text(name: str, repository: Repository) -> None:
    said = reviewed(repository, tree(edge()) | {NAMES[name]: text(edge("other"))})
    assert said.ids & {"RV001", "RV055"}, said.ids


# --- paths -------------------------------------------------------------------------------------------------

OUTSIDE = [
    "../../etc/passwd",
    "chains/../../x",
    "/etc/passwd",
    "file:///etc/passwd",
    "chains//x",
    "chains/./x",
    "chains/a\nb",
]
OUTSIDE += ["chains/\ud800", "https://evil/x", "C:\\x", "chains/%2e%2e/x", "chains/a?b#c", "", "packages", "\0"]


@pytest.mark.parametrize("path", OUTSIDE, ids=ascii)
def test_a_place_outside_of_the_repository_never_reaches_code_scanning(path: str) -> None:
    finding = review.Finding(id="RV001", message="m", file=path, line=3)
    made = review.Review(base="a" * 40, head="b" * 40, kind="commits", now="2026-01-02", findings=(finding,))
    document = json.loads(review.to_json_text(review.render_sarif(made, version="1")))
    check_sarif(document)
    check_markdown(review.render_markdown(made))


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../../../../etc/passwd", b"../reconciler.yaml", b"."])
@pytest.mark.parametrize("place", ["chains/0.yaml", "chains", "reconciler.yaml", "hosts/x.yaml"])
def test_a_symbolic_link_is_never_followed(place: str, target: bytes, repository: Repository) -> None:
    files = {name: data for name, data in tree(edge()).items() if not str(name).startswith(place)}
    said = reviewed(repository, files | {place: ("120000", target)})
    assert said.ids & {"RV001", "RV055"}
    assert "root:" not in json.dumps(said.document)
    assert said.document["chains"] == [] or place == "chains"


def test_a_symbolic_link_in_place_of_a_package_is_never_followed(repository: Repository) -> None:
    new = Signed.make(KEY, version="2.0.0")
    files = tree(edge(members=[member_of(new)])) | {f"packages/{name}": data for name, data in new.files.items()}
    said = reviewed(repository, files | {"packages/demo-2.0.0.tar.gz": ("120000", b"demo-1.0.0.tar.gz")})
    assert "RV002" in said.ids


@pytest.mark.parametrize("place", ["chains/sub", "chains", "hosts", "packages", "chains/0.yaml"])
def test_a_submodule_is_never_entered(place: str, repository: Repository) -> None:
    files = {name: data for name, data in tree(edge(priority=7)).items() if not str(name).startswith(place)}
    modules = b'[submodule "x"]\n\tpath = chains\n\turl = ext::sh -c "touch /tmp/owned"\n'
    said = reviewed(repository, files | {place: ("160000", b"1" * 40), ".gitmodules": modules})
    assert said.ids & {"RV001", "RV002", "RV055"}


def test_the_work_tree_is_read_without_following_links(repository: Repository) -> None:
    base = repository.commit(tree(edge()))
    repository.git("checkout", "-q", base)
    secret = repository.path.parent / "secret.yaml"
    secret.write_bytes(text(edge("secret")))
    (repository.path / "chains/0.yaml").unlink()
    (repository.path / "chains/0.yaml").symlink_to(secret)
    (repository.path / "hosts").symlink_to(repository.path.parent)
    os.mkfifo(repository.path / "chains/pipe.yaml")
    ran = reconciler("review", base, "--worktree", "--repository", repository.path, "-o", "json")
    assert ran.code == 0
    assert "RV001" in {finding["id"] for finding in ran.json["findings"]}
    assert "secret" not in {each["name"] for each in ran.json["chains"]}


@pytest.mark.parametrize(("folder", "finding"), [("chains", "RV001"), ("hosts", "RV055"), ("tests", "")])
def test_a_folder_of_the_work_tree_that_is_a_link_is_told_and_not_followed(
    folder: str, finding: str, repository: Repository
) -> None:
    base = repository.commit(tree(edge()))
    repository.git("checkout", "-q", base)
    outside = repository.path.parent / "outside"
    outside.mkdir()
    (outside / "secret.yaml").write_bytes(b"hunter2: hunter2\n")
    shutil.rmtree(repository.path / folder, ignore_errors=True)
    (repository.path / folder).symlink_to(outside)
    said = reconciler("review", base, "--worktree", "--repository", repository.path, "-o", "json")
    assert finding in {"", *(each["id"] for each in said.json["findings"])}
    checked = reconciler("validate", repository.path)
    assert f"{folder}: expected a directory, got a symbolic link" in checked.out
    assert "hunter2" not in said.out + checked.out


def test_packages_of_the_work_tree_are_read_without_following_links(repository: Repository) -> None:
    base = repository.commit(tree(edge()))
    repository.git("checkout", "-q", base)
    (repository.path / "packages").rename(repository.path.parent / "packages")
    (repository.path / "packages").symlink_to(repository.path.parent / "packages")
    said = reconciler("review", base, "--worktree", "--repository", repository.path, "-o", "json")
    assert "RV002" in {each["id"] for each in said.json["findings"]}
    assert "in the same commit, got" in reconciler("validate", repository.path).out


def test_what_is_no_repository_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / ".git").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    assert reconciler("review", "HEAD~1", "HEAD", "--repository", tmp_path / "work").code == 1
    assert list((tmp_path / "scratch").iterdir()) == []


# --- packages ----------------------------------------------------------------------------------------------


def archive(files: Mapping[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A package as `tar` would make it, with whatever is in it."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as made:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data) if kind == tarfile.REGTYPE else 0
            entry.type = kind if name != "package.yaml" else tarfile.REGTYPE
            entry.linkname = "/etc/passwd"
            made.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def doubling(role: str, maps: int = 60) -> bytes:
    """Few bytes of types that have 2^14 leaves, in many maps: each is fine by itself."""
    structs = "struct s0 { unsigned a, b; };" + "".join(
        f"struct s{number} {{ struct s{number - 1} a, b; }};" for number in range(1, 14)
    )
    fields = "__uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1); __type(key, unsigned); __type(value, struct s13)"
    names = [f"m{number}" for number in range(maps)]
    declared = "".join(f'struct {{ {fields}; }} {name} SEC(".maps");' for name in names)
    listed = "".join(f"    - {{name: {name}, role: {role}}}\n" for name in names)
    text = manifest_bytes("demo", "2.0.0") + f"  maps:\n{listed}".encode()
    return packages.build_archive(text, {OBJECT: strip(compile_program(structs + declared))})


OTHER = manifest_bytes("demo", "2.0.0")
PACKED: dict[str, Callable[[], bytes]] = {
    "unpacks to a gibibyte": lambda: gzip.compress(bytes(1 << 30), 1),
    "one file of 100 MiB": lambda: archive({"package.yaml": OTHER, OBJECT: bytes(100 << 20)}),
    "a link": lambda: archive({"package.yaml": OTHER, OBJECT: b""}, tarfile.SYMTYPE),
    "a path outside": lambda: archive({"package.yaml": OTHER, "../../x": b"x"}),
    "ten thousand files": lambda: archive({"package.yaml": OTHER, **{f"f{n}": b"" for n in range(10_000)}}),
    "types that explode in state": lambda: doubling("state"),
    "types that explode in configuration": lambda: doubling("config"),
    "YAML that explodes": lambda: archive({"package.yaml": BOMB, OBJECT: b"x"}),
    "cut off": lambda: demo().archive[: len(demo().archive) // 2],
    "no archive": lambda: b"#!/bin/sh\n",
    "empty": lambda: b"",
}


@pytest.mark.parametrize("name", PACKED)
def test_an_archive_that_is_made_to_hurt_is_a_finding(name: str, repository: Repository) -> None:
    made = Signed("demo", "2.0.0", PACKED[name](), demo().bundle)
    said = reviewed(repository, tree(edge(members=[member_of(made)]), signed=made))
    assert "RV002" in said.ids
    assert said.document["verdict"] == "blocked"


def test_many_large_archives_end_at_a_limit_for_all_of_them(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_archives, "MAX_TOTAL_BYTES", 1 << 20)
    large = [
        Signed("demo", f"2.0.{n}", archive({"package.yaml": OTHER, OBJECT: os.urandom(300 << 10)}), demo().bundle)
        for n in range(4)
    ]
    files = tree(edge(members=[member_of(each, f"m{n}") for n, each in enumerate(large)]))
    files |= {f"packages/demo-{each.version}.tar.gz": each.archive for each in large}
    said = reviewed(repository, files)
    assert "expected at most 1 MiB of packages in one review" in json.dumps(said.document)
    assert said.document["verdict"] == "blocked"


def objects() -> Iterator[tuple[str, bytes]]:
    """Objects as fuzzers of libbpf find them: cut, with wild offsets, counts and sizes."""
    good = packages.open_archive(demo().archive, file="x")[1][OBJECT]
    yield "cut", good[: len(good) // 2]
    yield "header only", good[:64]
    yield "sections everywhere", good[:40] + b"\xff" * 8 + good[48:]
    yield "many sections", good[:60] + b"\xff\xff" + good[62:]
    yield "no names", good[:62] + b"\xff\xff" + good[64:]
    yield "other machine", good[:18] + b"\x3e\x00" + good[20:]
    for at in range(64, len(good), max(1, len(good) // 12)):
        yield f"ones at {at}", good[:at] + b"\xff" * 16 + good[at + 16 :]


def test_an_object_that_is_made_to_crash_is_never_given_to_libbpf(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        name: Signed("demo", "2.0.0", archive({"package.yaml": OTHER, OBJECT: data}), demo().bundle)
        for name, data in objects()
    }
    opened: list[object] = []
    monkeypatch.setattr("ctypes.CDLL.__init__", lambda *arguments, **_: opened.append(arguments))
    for name, signed in made.items():
        said = reviewed(repository, tree(edge(members=[member_of(signed)]), signed=signed))
        assert said.document["chains"][0]["change"] == "changed", name
        assert ("RV002" in said.ids) == (said.document["verdict"] == "blocked"), name
    assert opened == []


def test_a_bundle_that_claims_somebody_is_told_as_a_claim(repository: Repository) -> None:
    claim = json.loads(demo().bundle)
    made = Signed.make(Key.make(), version="2.0.0")
    for bundle in (json.dumps(claim).encode(), b"{}", b"[" * 100_000, b"\xff", b""):
        forged = Signed("demo", "2.0.0", made.archive, bundle)
        said = reviewed(repository, tree(edge(members=[member_of(forged)]), signed=forged))
        assert said.ids & {"RV022", "RV042", "RV004", "RV002"}


def test_another_signature_of_the_same_package_is_told_although_no_chain_changes(repository: Repository) -> None:
    other = Key.make()
    forged = Signed("demo", "1.0.0", demo().archive, trust.sign(demo().archive, other.private))
    said = reviewed(repository, tree(edge(), signed=forged))
    assert said.ids == {"RV022"}
    assert (
        said.message("RV022")
        == f"signed by {other.fingerprint} (key), as claimed, before by {KEY.fingerprint} (key), as claimed"
    )
    assert said.document["chains"] == []
    assert said.document["verdict"] == "weaker"
    taken = Signed("demo", "1.0.0", demo().archive, b"{}")
    assert "signed by nobody" in reviewed(repository, tree(edge(), signed=taken)).message("RV022")
    again = Signed("demo", "1.0.0", demo().archive, trust.sign(demo().archive, KEY.private))
    assert reviewed(repository, tree(edge(), signed=again)).ids == set()
