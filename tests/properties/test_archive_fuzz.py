# SPDX-License-Identifier: Apache-2.0
"""Archives that anybody may have written: read exactly as built, or refused; nothing else."""

from __future__ import annotations

import gzip
import zlib

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reconciler.errors import PackageError
from reconciler.packages import build_archive, open_archive, read_archive
from tests.signed_packages import OBJECT, manifest_bytes, object_bytes

EXAMPLES = settings(max_examples=300)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
folders = st.dictionaries(names, st.binary(max_size=2000), max_size=6)

GOOD = build_archive(b"a: 1\n", {"x.bpf.o": b"\x7fELF" * 40, "README.md": b"text"})
GOOD_TAR = gzip.decompress(GOOD)
PACKAGE = build_archive(manifest_bytes(), {OBJECT: object_bytes()})


def read_or_refuse(data: bytes) -> dict[str, bytes] | None:
    try:
        return read_archive(data, file="fuzz")
    except PackageError:
        return None


@EXAMPLES
@given(manifest=st.binary(max_size=100), files=folders)
def test_what_is_built_is_read_back_and_built_again_the_same(manifest: bytes, files: dict[str, bytes]) -> None:
    files.pop("package.yaml", None)
    data = build_archive(manifest, files)
    assert read_archive(data, file="") == {"package.yaml": manifest, **files}
    assert build_archive(manifest, dict(reversed(files.items()))) == data


@EXAMPLES
@given(data=st.binary(max_size=2000))
def test_junk_is_refused(data: bytes) -> None:
    assert read_or_refuse(data) is None
    found = read_or_refuse(gzip.compress(data, mtime=0))
    assert found in (None, {})


@EXAMPLES
@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_one_altered_byte_of_the_stream_changes_no_file(place: int, byte: int) -> None:
    assume(GOOD[place] != byte)
    altered = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    # gzip's time, level and system say nothing about the files, nor do the unused bits of a block's first byte.
    assert read_or_refuse(altered) in (None, read_archive(GOOD, file=""))
    if place not in range(4, 11):
        assert read_or_refuse(altered) is None


@EXAMPLES
@given(
    place=st.integers(0, len(GOOD_TAR) - 1),
    removed=st.integers(0, 600),
    inserted=st.one_of(st.binary(max_size=600), st.integers(0, 600).map(bytes)),
)
def test_an_altered_tar_is_refused_or_has_its_one_form(place: int, removed: int, inserted: bytes) -> None:
    altered = GOOD_TAR[:place] + inserted + GOOD_TAR[place + removed :]
    found = read_or_refuse(gzip.compress(altered, mtime=0))
    if found is not None:
        parts = dict(found)
        again = gzip.decompress(build_archive(parts.pop("package.yaml", b""), parts))
        # The same members; the order of the file may be another one than the builder's.
        assert len(again) == len(altered) or "package.yaml" not in found


@EXAMPLES
@given(cut=st.integers(0, len(GOOD) - 1), tail=st.binary(max_size=20))
def test_a_cut_stream_is_refused(cut: int, tail: bytes) -> None:
    assume(GOOD[:cut] + tail != GOOD)
    assert read_or_refuse(GOOD[:cut] + tail) is None
    assert read_or_refuse(GOOD + GOOD[:cut] + b"\0" + tail) is None


@EXAMPLES
@given(size=st.integers(0, 10_000), level=st.integers(0, 9), strategy=st.integers(0, 4))
def test_any_compression_of_a_good_tar_is_read(size: int, level: int, strategy: int) -> None:
    data = build_archive(b"", {"x": bytes(size)})
    stream = zlib.compressobj(level, zlib.DEFLATED, 31, 8, strategy)
    again = stream.compress(gzip.decompress(data)) + stream.flush()
    assert read_archive(again, file="") == read_archive(data, file="")


@settings(max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, len(PACKAGE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_an_altered_package_is_opened_or_a_package_error(changes: list[tuple[int, int]]) -> None:
    plain = bytearray(gzip.decompress(PACKAGE))
    for place, byte in changes:
        plain[place % len(plain)] = byte
    try:
        parsed, files = open_archive(gzip.compress(bytes(plain), mtime=0), file="fuzz")
    except PackageError:
        return
    assert {program.object for program in parsed.programs} <= set(files)
