# SPDX-License-Identifier: Apache-2.0
"""Strict YAML: what is read, what is refused, and where findings point."""

from __future__ import annotations

import pytest
import yaml

from reconciler import _documents
from reconciler._documents import _yaml
from reconciler.errors import Diagnostic


def read(text: str | bytes) -> tuple[object, list[str]]:
    """The value of the only document, and the findings as people see them."""
    data = text.encode() if isinstance(text, str) else text
    documents, findings = _documents.read_documents(data, file="a.yaml")
    return (documents[0].value if documents else None), [str(finding) for finding in findings]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("", None),
        ("0", 0),
        ("-17", -17),
        ("18446744073709551615", (1 << 64) - 1),
        ("-9223372036854775808", -(1 << 63)),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        ("1E-2", 0.01),
        # What other readers of YAML turn into something else stays text.
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("True", "True"),
        ("~", "~"),
        ("12:30", "12:30"),
        ("12:30:00", "12:30:00"),
        ("010", "010"),
        ("0x1f", "0x1f"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("+1", "+1"),
        ("1.", "1."),
        (".5", ".5"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("NaN", "NaN"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  a\n  b\n", "a\nb\n"),
        (">\n  a\n  b\n", "a b\n"),
        ("é😀", "é😀"),
        ("[1, [2, {b: 3}]]", [1, [2, {"b": 3}]]),
    ],
)
def test_scalars_have_the_types_of_json_and_nothing_else(text: str, value: object) -> None:
    assert read(f"a: {text}") == ({"a": value}, [])


def test_keys_are_always_text() -> None:
    assert read("1: a\ntrue: b\n~: c\n'<<': d\n") == ({"1": "a", "true": "b", "~": "c", "<<": "d"}, [])


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("a: 1\nb: 2\na: 3", "a.yaml:3:1: expected each key once, got 'a' again; it stands in line 1 already (at /a)"),
        ("a: {b: 1, b: {c: [1]}}", "a.yaml:1:11: expected each key once, got 'b' again; it stands in line 1 already"),
        ("a: &x 1", "a.yaml:1:4: expected no anchors, got &x; remove it (at /a)"),
        ("a: *x", "a.yaml:1:4: expected a value, got the alias *x; write the value itself (at /a)"),
        ("a: {<<: {b: 1}}", "a.yaml:1:5: expected no merge keys, got <<; write the fields out (at /a)"),
        ("a: !!python/object/apply:os.system [id]", "a.yaml:1:4: expected no tags, got tag:yaml.org,2002:python"),
        ("a: !mine x", "a.yaml:1:4: expected no tags, got !mine"),
        ("a: !!str 1", "a.yaml:1:4: expected no tags, got tag:yaml.org,2002:str"),
        ("!!str a: 1", "a.yaml:1:1: expected a key without anchor or tag, got one; remove it"),
        ("&k a: 1", "a.yaml:1:1: expected a key without anchor or tag, got one; remove it"),
        ("*k : 1", "a.yaml:1:1: expected text as key, got an alias"),
        ("? [a, {b: c}]\n: 1", "a.yaml:1:3: expected text as key, got a collection"),
        ('"a\\tb": 1\n"a\\0b": 2', "a.yaml:2:1: expected printable text as key, got control characters"),
        ('a: "\\0"', "a.yaml:1:4: expected printable text, got control characters (at /a)"),
        ("a: 18446744073709551616", "a.yaml:1:4: expected a number of at most 64 bits, got a larger one"),
        ("a: -9223372036854775809", "a.yaml:1:4: expected a number of at most 64 bits, got a larger one"),
        ("a: " + "9" * 10000, "a.yaml:1:4: expected a number of at most 64 bits, got a larger one"),
        ("a: 1e999", "a.yaml:1:4: expected a number of at most 64 bits, got a larger one"),
        ("%YAML 1.1\n---\na: 1", "expected no YAML directives, got one; remove the line that starts with %"),
        ("%TAG ! tag:x,2000:\n---\na: 1", "expected no YAML directives"),
        ("", "a.yaml:1:1: expected at least one document, got an empty file; delete it or fill it"),
        ("# nothing\n", "expected at least one document, got an empty file"),
        ("a: [1,", "a.yaml:2:1: expected YAML, got: did not find expected node content (while parsing a flow node)"),
        ("a:\n\t- b", "a.yaml:2:1: expected spaces, got a tab; YAML is indented with spaces only"),
        ("é:\n  b: 1\n\tc: 2", "a.yaml:3:1: expected spaces, got a tab"),
        ("a: @b", "a.yaml:1:4: expected YAML, got: found character that cannot start any token"),
        ("a:\n  b: 1\n  c:2\n  d: 3", "a.yaml:3:3: expected a key, a colon and a space (`key: value`), got text"),
        ("a: 'b", "expected YAML, got: found unexpected end of stream"),
        ("a: b: c", "a.yaml:1:5: expected YAML, got: mapping values are not allowed in this context"),
        ('a: "\\ud800"', "expected YAML, got: found invalid Unicode character escape code"),
        ("a: \x00", "a.yaml:1:4: expected printable text, got the character U+0000; remove it"),
        ("b: 1\na: x\x1b[31m", "a.yaml:2:5: expected printable text, got the character U+001B; remove it"),
        ("# a \u202e b", "a.yaml:1:5: expected printable text, got the character U+202E; remove it"),
        ("a: \ufeffb", "a.yaml:1:4: expected printable text, got the character U+FEFF; remove it"),
        (b"\xef\xbb\xbfa: 1", "expected UTF-8 without a byte order mark, got one; save the file without it"),
        ("a: 1".encode("utf-16"), "expected UTF-8, got a UTF-16 byte order mark; save the file as UTF-8"),
        ("a: 1".encode("utf-16-le"), "expected printable text, got the character U+0000"),
        (b"a: 1\nb: \xc3\xa9\xff", "a.yaml:2:5: expected UTF-8, got byte 0xff"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_place(text: str | bytes, finding: str) -> None:
    _, findings = read(text)
    assert len(findings) == 1
    assert finding in findings[0]


def test_all_findings_are_reported_at_once_and_the_rest_is_read() -> None:
    value, findings = read("a: &x 1\nb: *x\nc: !t 2\nd: 3\nd: {e: [5]}\n<<: {}\n? [k]\n: [v]\ng: 9\n")
    assert value == {"a": 1, "b": None, "c": "2", "d": 3, "g": 9}
    assert [finding.split(": ")[0] for finding in findings] == [
        "a.yaml:1:4", "a.yaml:2:4", "a.yaml:3:4", "a.yaml:5:1", "a.yaml:6:1", "a.yaml:7:3",
    ]  # fmt: skip


def test_what_is_refused_is_not_believed() -> None:
    (document,), _ = _documents.read_documents(b"a: {b: 1, b: 2}\nc: {<<: {d: 1}}\ne: {f: 1}\n", file="a.yaml")
    believed = {pointer: document.believable(pointer) for pointer in ("", "/a", "/a/b", "/c", "/c/x", "/e", "/e/f")}
    assert believed == {"": False, "/a": False, "/a/b": False, "/c": False, "/c/x": False, "/e": True, "/e/f": True}
    assert document.within_broken("/a/b")
    assert not document.within_broken("/a")
    assert not document.within_broken("/c")


def test_several_documents_have_positions_in_their_file() -> None:
    documents, findings = _documents.read_documents(b"a: 1\n---\nb:\n  - x\n  - c~/d: y\n...\n---\n", file="a.yaml")
    assert not findings
    assert [document.value for document in documents] == [{"a": 1}, {"b": ["x", {"c~/d": "y"}]}, None]
    second = documents[1]
    assert second.finding("m", "/b/1/c~0~1d") == Diagnostic(
        message="m", file="a.yaml", line=5, column=11, pointer="/b/1/c~0~1d"
    )
    assert second.finding("m", "/b/1/c~0~1d", at_key=True).column == 5
    # What is not there is placed at the nearest that is.
    assert second.finding("m", "/b/7/x/y").line == 4
    assert second.finding("m", "/b/0", at_key=True).line == 4
    assert _documents.Document(file="b.yaml").finding("m", "/x").line == 1


def test_depth_is_limited_without_recursion() -> None:
    deep = _yaml.MAX_DEPTH
    assert read("[" * deep + "]" * deep)[1] == []
    for text in ("[" * 100_000, "[" * (deep + 1) + "]" * (deep + 1), "- " * 100_000, "{a: " * 5000, "? [" * 200_000):
        value, findings = read(text)
        assert value is None
        assert f"expected at most {deep} levels, got more; make it flatter" in findings[-1]


def test_a_million_laughs_cost_nothing() -> None:
    lines = ["a: &a [lol, lol]"] + [
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]" for n in range(20)
    ]
    _, findings = read("\n".join(lines))
    assert len(findings) == 21 + 40


def test_the_size_of_a_file_is_limited() -> None:
    assert "expected at most 1048576 bytes, got 1048577" in read(b"#" * (_yaml.MAX_BYTES + 1))[1][0]
    assert read(b"a: 1 #" + b"x" * (_yaml.MAX_BYTES - 6)) == ({"a": 1}, [])


def test_the_number_of_values_and_documents_is_limited() -> None:
    assert "expected at most 200000 values in a file, got more" in read("[" + "1," * _yaml.MAX_NODES + "]")[1][0]
    documents, findings = _documents.read_documents(b"---\n" * (_yaml.MAX_DOCUMENTS + 1), file="a.yaml")
    assert len(documents) == _yaml.MAX_DOCUMENTS
    assert "expected at most 1000 documents" in findings[0].message


def test_a_long_key_around_many_values_takes_no_memory() -> None:
    # The pointer of each value repeats the key: 20,000 values below 100,000 characters would take 2 GB.
    text = "? " + "k" * 100_000 + "\n: [" + "1," * 20_000 + "1]\n"
    documents, findings = _documents.read_documents(text.encode(), file="a.yaml")
    assert documents == ()
    assert [finding.message for finding in findings] == [
        "expected shorter keys, got long ones around many values; shorten them"
    ]
    nested = "{" + "k" * 500 + ": "
    deep = nested * 20 + "[" + "1," * 20_000 + "1]" + "}" * 20
    assert _documents.read_documents(deep.encode(), file="a.yaml")[0] == ()


def test_the_number_of_findings_is_limited_but_never_hides_that_reading_ended() -> None:
    _, findings = read("a: 1\n" * 500 + "b: [")
    assert len(findings) == _yaml.MAX_FINDINGS + 1
    assert "did not find expected node content" in findings[-1]


def test_an_error_of_the_parser_without_a_place_is_a_finding() -> None:
    # Noncharacters pass our own check; libyaml refuses them without a mark.
    (finding,) = read("a: \uffff")[1]
    assert finding.startswith("a.yaml:1:1: expected YAML, got something else: ")


def test_the_slower_parser_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_yaml, "_LOADER", yaml.BaseLoader)
    assert read("a: [1, yes, {b: 010}]\n") == ({"a": [1, "yes", {"b": "010"}]}, [])
    assert "expected YAML, got: expected the node content" in read("a: [")[1][0]
