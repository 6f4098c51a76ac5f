# SPDX-License-Identifier: Apache-2.0
"""Archives: built the same twice, read without believing them."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest

from reconciler import packages
from reconciler.errors import PackageError
from reconciler.packages import build_archive, build_folder, open_archive, read_archive
from tests.signed_packages import OBJECT, manifest_bytes, object_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEMBERS = {"package.yaml": b"a: 1\n", "x.bpf.o": b"\x7fELF" + bytes(3000)}


def header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.USTAR_FORMAT)


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:  # noqa: A002
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=format) as file:
        for info, data in members:
            info.size = len(data) if info.isreg() else info.size
            file.addfile(info, io.BytesIO(data) if info.isreg() else None)
    # tarfile pads to a record of 10240 bytes.
    return output.getvalue().rstrip(b"\0").ljust(file.offset - 1024, b"\0") + bytes(1024)


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def zipped(plain: bytes) -> bytes:
    return gzip.compress(plain, mtime=0)


def plain_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(member(name), data) for name, data in MEMBERS.items()]


def refused(data: bytes, words: str) -> None:
    with pytest.raises(PackageError, match=words) as raised:
        read_archive(data, file="demo-1.0.0.tar.gz")
    assert raised.value.diagnostics()[0].file == "demo-1.0.0.tar.gz"


# --- building ----------------------------------------------------------------------------------------------


def test_what_is_built_is_read_back() -> None:
    data = build_archive(MEMBERS["package.yaml"], {"x.bpf.o": MEMBERS["x.bpf.o"]})
    assert read_archive(data, file="") == MEMBERS


def test_order_and_time_do_not_change_the_digest() -> None:
    files = {"b.bpf.o": b"2", "a.bpf.o": b"1", "README.md": b"3"}
    first = build_archive(b"a: 1\n", files)
    second = build_archive(b"a: 1\n", dict(sorted(files.items())))
    assert first == second
    assert packages.digest_of(first) == ("sha256:bc85c0f49aa5dc016654b2f46c324b9392d978877df47f6ca00cd157f1ff8ece")


def test_gnu_tar_and_gzip_read_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(build_archive(MEMBERS["package.yaml"], {"x.bpf.o": MEMBERS["x.bpf.o"]}))
    subprocess.run(["gzip", "-t", "a.tar.gz"], cwd=tmp_path, check=True)
    listed = subprocess.run(["tar", "-tvzf", "a.tar.gz"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["-rw-r--r--"] * 2
    subprocess.run(["tar", "-xzf", "a.tar.gz"], cwd=tmp_path, check=True)
    assert (tmp_path / "x.bpf.o").read_bytes() == MEMBERS["x.bpf.o"]


def test_another_compression_is_read(tmp_path: Path) -> None:
    made = gzip.decompress(build_archive(MEMBERS["package.yaml"], {"x.bpf.o": MEMBERS["x.bpf.o"]}))
    for level in ("-1", "-9"):
        data = subprocess.run(["gzip", "-n", level], input=made, check=True, capture_output=True).stdout
        assert read_archive(data, file="") == MEMBERS


def test_large_files_take_several_stored_blocks() -> None:
    files = {"x.bpf.o": bytes(range(256)) * 1024}
    data = build_archive(b"a: 1\n", files)
    assert read_archive(data, file="")["x.bpf.o"] == files["x.bpf.o"]
    assert gzip.decompress(data)[:12] == b"package.yaml"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/a", "a b", ".hidden", "ä", "a" * 101, "a\n"])
def test_names_that_no_reader_would_take_are_not_built(name: str) -> None:
    with pytest.raises(PackageError, match="file name"):
        build_archive(b"", {name: b""})


def make_folder(path: Path, **files: bytes) -> Path:
    path.mkdir(exist_ok=True)
    content = {"package.yaml": manifest_bytes(), OBJECT: object_bytes(), **files}
    for name, data in content.items():
        (path / name).write_bytes(data)
    return path


def test_a_folder_becomes_a_package_and_only_what_belongs_into_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo", **{"README.md": b"# demo\n", "notes.txt": b"private"})
    name, data = build_folder(folder)
    assert name == "demo-1.0.0.tar.gz"
    parsed, files = open_archive(data, file=name)
    assert (parsed.name, sorted(files)) == ("demo", ["README.md", "package.yaml", OBJECT])
    assert build_folder(folder) == (name, data)


def test_objects_may_lie_in_another_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    (tmp_path / "build").mkdir()
    (folder / OBJECT).rename(tmp_path / "build" / OBJECT)
    assert build_folder(folder, tmp_path / "build") == build_folder(make_folder(tmp_path / "other"))


def test_a_folder_without_its_object_or_manifest_is_no_package(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    (folder / OBJECT).unlink()
    with pytest.raises(PackageError, match=OBJECT):
        build_folder(folder)
    (folder / "package.yaml").unlink()
    with pytest.raises(PackageError, match=r"package\.yaml"):
        build_folder(folder)


def test_a_file_that_no_reader_would_take_is_not_built(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    with (folder / OBJECT).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(PackageError, match="at most"):
        build_folder(folder)


# --- opening -----------------------------------------------------------------------------------------------


def test_a_manifest_is_compared_with_the_objects() -> None:
    text = manifest_bytes().replace(b"{name: prog,", b"{name: other,")
    with pytest.raises(PackageError, match="other") as raised:
        open_archive(build_archive(text, {OBJECT: object_bytes()}), file="demo")
    assert all(finding.file == "demo:package.yaml" for finding in raised.value.diagnostics())


def test_an_object_that_the_manifest_names_must_be_there() -> None:
    with pytest.raises(PackageError, match=OBJECT):
        open_archive(build_archive(manifest_bytes(), {}), file="demo")


def test_a_file_that_nobody_names_is_refused_and_sources_are_not() -> None:
    files = {OBJECT: object_bytes(), "prog.bpf.c": b"int x;", "chain.h": b"", "README.md": b""}
    assert set(open_archive(build_archive(manifest_bytes(), files), file="demo")[1]) == {"package.yaml", *files}
    with pytest.raises(PackageError, match=r"other\.bpf\.o"):
        open_archive(build_archive(manifest_bytes(), {**files, "other.bpf.o": object_bytes()}), file="demo")


def test_an_object_that_is_no_object_is_refused_with_the_other_findings() -> None:
    with pytest.raises(PackageError) as raised:
        open_archive(build_archive(manifest_bytes(), {OBJECT: b"\x7fELF", "junk": b""}), file="demo")
    files = [finding.file for finding in raised.value.diagnostics()]
    assert files == [OBJECT, "demo:package.yaml"]


def test_an_archive_without_a_manifest_is_refused() -> None:
    with pytest.raises(PackageError, match=r"package\.yaml"):
        open_archive(zipped(tar((member(OBJECT), object_bytes()))), file="demo")


# --- gitops.md 3.3, 16: what hostile archives hold ---------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../b", "./x.bpf.o", "folder/x.bpf.o", "..", ".", "", "a\\b", "x\x07", ".x"]
)
def test_names_with_folders_or_control_characters_are_refused(name: str) -> None:
    refused(zipped(tar((member(name), b"x"))), "expected")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param(tarfile.LNKTYPE, {"linkname": "package.yaml"}, id="hard link"),
        pytest.param(tarfile.SYMTYPE, {"linkname": "/etc/shadow"}, id="symbolic link"),
        pytest.param(tarfile.CHRTYPE, {"devmajor": 1, "devminor": 1}, id="character device"),
        pytest.param(tarfile.BLKTYPE, {"devmajor": 8}, id="block device"),
        pytest.param(tarfile.DIRTYPE, {}, id="folder"),
        pytest.param(tarfile.FIFOTYPE, {}, id="fifo"),
        pytest.param(tarfile.CONTTYPE, {}, id="contiguous"),
        pytest.param(tarfile.AREGTYPE, {}, id="old regular"),
        pytest.param(tarfile.GNUTYPE_SPARSE, {}, id="sparse"),
        pytest.param(tarfile.GNUTYPE_LONGNAME, {}, id="long name"),
        pytest.param(tarfile.XHDTYPE, {}, id="extended header"),
        pytest.param(tarfile.XGLTYPE, {}, id="global extended header"),
        pytest.param(b"Z", {}, id="unknown"),
    ],
)
def test_what_is_no_regular_file_is_refused(kind: bytes, fields: dict[str, object]) -> None:
    refused(zipped(header(member("x", type=kind, **fields)) + bytes(1024)), "regular files only")


def test_a_path_in_an_extended_header_is_refused() -> None:
    info = member("x", pax_headers={"path": "../../evil"})
    refused(zipped(tar((info, b"x"), format=tarfile.PAX_FORMAT)), "regular files only")


def test_a_size_in_an_extended_header_is_refused() -> None:
    info = member("x", pax_headers={"size": "0", "GNU.sparse.realsize": "1000000"})
    refused(zipped(tar((info, b"x" * 600), format=tarfile.PAX_FORMAT)), "regular files only")


def test_a_name_that_is_there_twice_is_refused() -> None:
    refused(zipped(tar((member("x"), b"1"), (member("x"), b"2"))), "twice")


@pytest.mark.parametrize(
    "fields",
    [{"mode": 0o755}, {"mode": 0o4644}, {"mtime": 1}, {"uid": 1}, {"gid": 1}, {"uname": "root"}, {"linkname": "x"}],
    ids=str,
)
def test_headers_that_say_more_than_name_and_size_are_refused(fields: dict[str, object]) -> None:
    refused(zipped(header(member("x", **fields)) + bytes(1024)), "plain header")


def test_too_many_members_are_refused() -> None:
    headers = b"".join(header(member(f"f{index}")) for index in range(100))
    refused(zipped(headers * 100 + bytes(1024)), "at most 64 files")


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compressobj(1, wbits=31)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(256)) + bomb.flush()
    assert len(data) < packages.MAX_ARCHIVE_BYTES // 16
    tracemalloc.start()
    refused(data, "unpacked")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 << 20


def test_a_size_beyond_the_limit_or_the_end_is_refused() -> None:
    refused(zipped(header(member("x", size=1 << 30)) + bytes(1024)), "at most")
    refused(zipped(header(member("x", size=1 << 20)) + bytes(1024)), "ends within")
    negative = bytearray(header(member("x")))
    negative[124:136] = b"\xff" * 12  # base-256: -1
    total = sum(negative[:148]) + sum(negative[156:512]) + 256
    negative[148:156] = f"{total:06o}\0 ".encode()
    refused(zipped(bytes(negative) + bytes(1024)), "expected")


def test_an_archive_that_is_too_large_is_not_unpacked() -> None:
    refused(zipped(b"") + bytes(packages.MAX_ARCHIVE_BYTES), "at most")


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda good: b"", "gzip", id="empty"),
        pytest.param(lambda good: good[:9], "gzip", id="half a header"),
        pytest.param(lambda good: good[:-1], "too early", id="truncated by one byte"),
        pytest.param(lambda good: good[: len(good) // 2], "too early", id="half"),
        pytest.param(lambda good: good + b"\0", "behind", id="trailing byte"),
        pytest.param(lambda good: good + good, "behind", id="concatenated gzip"),
        pytest.param(zipped, "ends within", id="nested gzip"),
        pytest.param(lambda good: _flip(good, len(good) - 1), "damaged", id="length"),
        pytest.param(lambda good: _flip(good, len(good) - 8), "damaged", id="checksum"),
        pytest.param(lambda good: _flip(good, 0), "gzip", id="magic"),
        pytest.param(lambda good: good[:3] + b"\x08" + good[4:10] + b"name\0" + good[10:], "header", id="file name"),
        pytest.param(lambda good: b"PK\x03\x04" + good, "gzip", id="zip"),
        pytest.param(lambda good: zlib.compress(gzip.decompress(good)), "gzip", id="zlib"),
    ],
)
def test_a_damaged_stream_is_refused(change: Callable[[bytes], bytes], words: str) -> None:
    good = zipped(tar(*plain_members()))
    assert read_archive(good, file="") == MEMBERS
    refused(change(good), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda good: b"", "empty blocks", id="empty"),
        pytest.param(lambda good: good[:512], "ends within", id="only a header"),
        pytest.param(lambda good: good[:-1024], "empty blocks", id="no end"),
        pytest.param(lambda good: good[:-1024] + b"x" * 1024, "regular files only", id="junk instead of the end"),
        pytest.param(lambda good: good[:-1] + b"x", "nothing else", id="junk in the end"),
        pytest.param(lambda good: good + bytes(512), "nothing else", id="a third empty block"),
        pytest.param(lambda good: good[:-512], "two empty blocks", id="one empty block"),
        pytest.param(lambda good: good[:-300], "two empty blocks", id="half an empty block"),
        pytest.param(lambda good: good + good, "nothing else", id="a second tar"),
        pytest.param(lambda good: good[:1000] + b"x" + good[1001:], "zeros behind", id="junk in the padding"),
        pytest.param(lambda good: _flip(good, 150), "plain header", id="header checksum"),
    ],
)
def test_a_damaged_tar_is_refused(change: Callable[[bytes], bytes], words: str) -> None:
    refused(zipped(change(tar(*plain_members()))), words)
