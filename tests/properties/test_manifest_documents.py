# SPDX-License-Identifier: Apache-2.0
"""Manifests: formatting never matters, anything is read or refused with a place, and others never stop a host."""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reconciler import manifest
from reconciler._documents import read_documents
from reconciler.errors import ManifestError, PackageError
from reconciler.model import Chain, HostFacts, digest_of
from tests.manifests import DB, DIGEST, EDGE, REPOSITORY, text

# --- chains ------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
SYMBOLS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.sampled_from(["", "yes", "12:30", "1e3", "010"])
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(SYMBOLS, SCALARS, max_size=3))
INTERFACES = st.lists(st.sampled_from(["eth*", "eth0", "lo", "v?", "[a-f]*"]), min_size=1, max_size=4, unique=True)
Strategies: TypeAlias = dict[str, st.SearchStrategy[Any]]


def mapping(required: Strategies, optional: Strategies) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


HOOKS = st.one_of(
    mapping(
        {"type": st.just("xdp"), "interfaces": INTERFACES},
        {"mode": st.sampled_from(["auto", "native", "generic"]), "netns": st.sampled_from(["host", "blue"])},
    ),
    mapping(
        {"type": st.just("tc"), "interfaces": INTERFACES, "direction": st.sampled_from(["ingress", "egress"])},
        {"end": st.sampled_from(["next", "pass"]), "netns": st.sampled_from(["host", "blue"])},
    ),
)
VERDICTS = st.lists(st.sampled_from(["pass", "drop", "redirect"]), max_size=3, unique=True)
MEMBERS = mapping(
    {
        "name": NAMES,
        "package": mapping(
            {"name": NAMES, "version": st.just("1.0.0"), "digest": st.just(DIGEST)}, {"repository": NAMES}
        ),
        "program": SYMBOLS,
    },
    {
        "proceedOn": VERDICTS,
        "params": st.dictionaries(SYMBOLS, VALUES, max_size=3),
        "allowStateLoss": st.booleans(),
        "maps": st.dictionaries(
            SYMBOLS,
            st.fixed_dictionaries(
                {
                    "entries": st.lists(
                        st.fixed_dictionaries({"key": st.integers(0, 99), "value": VALUES}),
                        max_size=3,
                        unique_by=lambda entry: str(entry["key"]),
                    )
                }
            ),
            max_size=2,
        ),
    },
)
SELECTORS = mapping(
    {},
    {
        "matchLabels": st.dictionaries(st.sampled_from(["role", "site"]), st.sampled_from(["edge", "db"])),
        "names": st.lists(st.sampled_from(["edge-*", "*-1", "db-1"]), unique=True),
    },
)
SPECS = mapping(
    {
        "priority": st.integers(0, 65535),
        "hook": HOOKS,
        "members": st.lists(MEMBERS, min_size=1, max_size=3, unique_by=lambda member: str(member["name"])),
    },
    {
        "hosts": SELECTORS,
        "onBroken": st.sampled_from(["drop", "pass"]),
        "stateScope": st.sampled_from(["chain", "interface"]),
        "health": mapping({}, {"source": st.booleans(), "tcp": st.just([{"connect": "10.0.0.1:1"}])}),
    },
)


def document(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "reconciler/v1alpha1", "kind": "Chain", "metadata": {"name": name}, "spec": spec}


CHAINS = st.builds(document, NAMES, SPECS)


def only(data: bytes) -> Chain:
    """The value of the only chain in `data`."""
    found = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/a.yaml": data})
    assert found.findings == ()
    (chain,) = found.chains
    return chain


def shuffled(value: Any, draw: Any) -> Any:
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(sorted(value)))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


class JsonDumper(yaml.SafeDumper):
    """Quotes text that is a number in JSON ("1e3"), which PyYAML's own rules leave plain."""


def quoted(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    number = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if number else None)


JsonDumper.add_representer(str, quoted)


@given(CHAINS, st.data())
def test_the_order_of_keys_and_the_style_never_matter(chain: dict[str, Any], data: st.DataObject) -> None:
    expected = only(json.dumps(chain).encode())
    other = shuffled(chain, data.draw)
    style = data.draw(st.sampled_from([None, True, False]))
    width = data.draw(st.sampled_from([20, 200]))
    dumped = yaml.dump(other, Dumper=JsonDumper, default_flow_style=style, width=width, sort_keys=False)
    for form in (
        json.dumps(other, indent=3).encode(),
        json.dumps(other, separators=(",", ":")).encode(),
        dumped.encode(),
        b"# a comment\n---\n" + json.dumps(other).encode() + b"\n...\n",
        json.dumps(other, indent=1).replace("\n", "\r\n").encode(),
    ):
        found = only(form)
        assert found == expected
        assert digest_of(found) == digest_of(expected)


@given(CHAINS, st.data())
def test_the_order_of_lists_without_order_never_matters(chain: dict[str, Any], data: st.DataObject) -> None:
    expected = only(json.dumps(chain).encode())
    spec = chain["spec"]
    places = [(spec["hook"], "interfaces"), (spec.get("hosts", {}), "names")]
    places += [(member, "proceedOn") for member in spec["members"]]
    for place, key in places:
        if key in place:
            place[key] = data.draw(st.permutations(place[key]))
    assert digest_of(only(json.dumps(chain).encode())) == digest_of(expected)


# --- hosts -------------------------------------------------------------------------------------------------


@given(st.lists(SPECS, max_size=3), st.data())
def test_what_does_not_concern_a_host_never_stops_it(specs: list[dict[str, Any]], data: st.DataObject) -> None:
    """Faults in files that select other hosts only change nothing for this one."""
    others = {"matchLabels": {"role": "db"}}
    files = {"reconciler.yaml": REPOSITORY}
    for index, spec in enumerate(specs):
        fields = {**spec, "hosts": {"matchLabels": {"role": "edge"}}, "priority": index}
        mode = {"mode": "auto"} if spec["hook"]["type"] == "xdp" else {"end": "next"}
        files[f"chains/mine-{index}.yaml"] = text(
            document(f"mine-{index}", {**fields, "hook": {**spec["hook"], **mode}})
        )
    foreign = text(document("foreign", {"hosts": others, "priority": 0, "hook": {}, "members": 7}))
    before = {**files, "chains/foreign.yaml": foreign}
    expected = manifest.parse(before, host=EDGE)
    # Even what cannot be read at all stops only those whom its last version selected.
    cut = data.draw(st.integers(0, len(foreign) - 1))
    broken = data.draw(
        st.sampled_from([foreign[:cut], b"", b"\xff", b"a: &x *x", foreign.replace(b"hosts", b"host", 1)])
    )
    now = {**files, "chains/foreign.yaml": broken}
    mistyped = broken == foreign.replace(b"hosts", b"host", 1)
    # A selector that was mistyped reads as one for every host.
    assert findings_for(EDGE, now, before) == ({"chains/foreign.yaml"} if mistyped else set())
    assert findings_for(DB, now, before) == {"chains/foreign.yaml"}
    if not mistyped:
        assert manifest.parse(now, host=EDGE, previous=before) == expected


def findings_for(host: HostFacts, files: dict[str, bytes], before: dict[str, bytes] | None = None) -> set[str | None]:
    """The files whose findings stop `host`; every refusal has findings."""
    try:
        manifest.parse(files, host=host, previous=before)
    except ManifestError as error:
        return {finding.file for finding in error.findings} or {"nothing"}
    return set()


# --- anything ----------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(b"apiVersion: reconciler/v1alpha1\n", b"kind: Chain\n", b"metadata: {name: a}\n", b"spec:\n", b"  hook:\n"),
        *(b"    type: xdp\n", b"    interfaces: [eth0]\n", b"  members:\n", b"    - name: a\n", b"  priority: 1\n"),
        *(b"---\n", b"...\n", b"- ", b"? ", b": ", b"[", b"]", b"{", b"}", b",", b"&a ", b"*a", b"!t ", b"<<: ", b"'"),
        *(b'"', b"|\n", b">\n", b"#", b"%YAML 1.2\n", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\xc2\x85"),
        *(b"\xe2\x80\xae", b"\xe2\x80\xa8", b"1e999", b"9" * 30, b"~", b"null", b"true", b"@", b"`", b"\\ud800"),
    ]
)
ANYTHING = st.one_of(st.lists(PIECES, max_size=30).map(b"".join), st.binary(max_size=200))


@settings(max_examples=300)
@given(ANYTHING)
@example(b"[" * 100_000)
@example(b"{a: " * 50_000)
@example(b"- " * 100_000)
@example(b"? " * 50_000)
@example(b"a:\n" + b" " * 50_000 + b"- b")
@example(b"&a " * 10_000)
@example(b"? [" * 300_000)
@example(b"x" * 500_000 + b": 1")
def test_any_bytes_are_read_or_refused_with_a_place(data: bytes) -> None:
    documents, findings = read_documents(data, file="chains/x.yaml")
    assert documents or findings
    result = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/x.yaml": data})
    assert result.findings or result.chains
    for finding in result.findings:
        assert finding.file == "chains/x.yaml"
        assert finding.line is not None
        assert 1 <= finding.line <= 2 + sum(map(data.count, (b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8")))
        assert finding.column is not None
        assert finding.column >= 1
    for host in (EDGE, HostFacts(name="", labels={})):
        found = findings_for(host, {"reconciler.yaml": REPOSITORY, "chains/x.yaml": data})
        assert found == {"chains/x.yaml"}
    with pytest.raises(PackageError, match="expected"):
        manifest.parse_package(data, file="package.yaml")


JSON = st.recursive(
    st.one_of(st.none(), SCALARS, st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in below for found in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@settings(max_examples=300)
@given(CHAINS, JSON, st.data())
def test_a_chain_with_anything_anywhere_is_a_chain_or_findings_inside_it(
    chain: dict[str, Any], new: Any, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(places(chain)))
    changed = replaced(chain, path, new)
    result = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/a.yaml": json.dumps(changed).encode()})
    assert bool(result.findings) != bool(result.chains)
    for finding in result.findings:
        assert finding.pointer is not None
        assert "expected" in finding.message
        assert "is not valid under any" not in finding.message
