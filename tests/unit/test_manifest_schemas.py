# SPDX-License-Identifier: Apache-2.0
"""The schemas as the users' contract: complete, alike where they say the same, and equal to what the code does."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from reconciler import config, manifest
from reconciler._documents import _schema, fields_of, schema_of
from reconciler.errors import InputError
from reconciler.model import (
    MAX_CHAIN_MEMBERS,
    STATS_COUNTERS,
    TC_ALIASES,
    TC_VERDICTS,
    XDP_VERDICTS,
    AttachKind,
    HookKind,
    HostFacts,
    MapRole,
    OnBroken,
    StateScope,
    TcEnd,
    XdpMode,
)
from scripts import generate_docs
from tests.manifests import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(json.loads(path.read_text())["title"] for path in ROOT.glob("schema/v1alpha1/*.schema.json"))


def subschemas(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema that describes a value, with its place."""
    if "$ref" in schema or "type" in schema or "const" in schema:
        yield where, schema
    for key in ("properties", "$defs"):
        for name, below in schema.get(key, {}).items():
            yield from subschemas(below, f"{where}/{key}/{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from subschemas(schema[key], f"{where}/{key}")


def test_every_kind_has_a_schema() -> None:
    assert sorted(manifest.KINDS) == FILES


@pytest.mark.parametrize("kind", FILES)
def test_a_schema_is_one_of_draft_2020_12(kind: str) -> None:
    schema = schema_of(kind)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["kind"]["const"] == kind


@pytest.mark.parametrize("kind", FILES)
def test_every_value_is_described_and_every_mapping_is_closed(kind: str) -> None:
    schema = schema_of(kind)
    for where, each in subschemas(schema):
        # A reference that says nothing more has the words of what it refers to, which are looked at as well.
        assert each.get("description") or each.keys() == {"$ref"}, where
        if each.get("type") == "object":
            # A hook is closed by the branch for its type.
            assert "additionalProperties" in each or "allOf" in each, where
        if "pattern" in each:
            assert each["pattern"].startswith("^"), where
            assert each["pattern"].endswith("$"), where
            assert each["x-expected"], where
        if each.get("type") == "array":
            assert "maxItems" in each, where
        if each.get("type") == "string":
            assert {"pattern", "enum", "maxLength"} & each.keys(), where


@pytest.mark.parametrize("kind", FILES)
def test_no_schema_asks_which_of_several_forms_is_meant(kind: str) -> None:
    text = json.dumps(schema_of(kind))
    assert '"oneOf"' not in text
    assert '"anyOf"' not in text


def keywords(schema: Any) -> set[str]:
    """Every keyword that can refuse a value, anywhere in a schema."""
    found: set[str] = schema.keys() - {
        "properties",
        "$defs",
        "if",
        "description",
        "examples",
        "default",
        "x-expected",
        "title",
    }
    below = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("allOf", [])]
    below += [schema[key] for key in ("items", "additionalProperties", "propertyNames", "then") if key in schema]
    return found.union(*(keywords(each) for each in below if isinstance(each, dict)))


@pytest.mark.parametrize("kind", FILES)
def test_every_rule_that_a_schema_uses_has_words(kind: str) -> None:
    structure = {"$schema", "$ref", "allOf", "then", "items", "propertyNames", "additionalProperties", "required"}
    assert keywords(schema_of(kind)) - structure <= _schema._RULES.keys()


@pytest.mark.parametrize("kind", FILES)
def test_every_definition_is_used(kind: str) -> None:
    text = json.dumps(schema_of(kind))
    for name in schema_of(kind)["$defs"]:
        assert f'"#/$defs/{name}"' in text, name


def test_definitions_of_one_name_are_equal_in_all_schemas() -> None:
    for one, other in itertools.combinations(FILES, 2):
        a, b = schema_of(one)["$defs"], schema_of(other)["$defs"]
        for name in a.keys() & b.keys():
            assert a[name] == b[name], (one, other, name)


def enum(kind: str, path: str) -> list[str]:
    """Values of a field by path, over all branches."""
    found = [value for field in fields_of(kind) if field.path == path for value in field.values]
    assert found, path
    return found


def test_closed_sets_are_those_of_the_model() -> None:
    chain = "spec.hook"
    assert enum("Chain", f"{chain}.mode") == list(XdpMode)
    assert enum("Chain", f"{chain}.end") == list(TcEnd)
    assert enum("Chain", "spec.onBroken") == list(OnBroken)
    assert enum("Chain", "spec.stateScope") == list(StateScope)
    assert enum("Chain", "spec.health.stats[].counter") == list(STATS_COUNTERS[1:])
    verdicts = {*XDP_VERDICTS, *TC_VERDICTS, *TC_ALIASES}
    assert set(enum("Chain", "spec.members[].proceedOn")) == verdicts
    assert set(enum("Package", "spec.programs[].proceedOn")) == verdicts
    assert enum("Package", "spec.programs[].hooks") == list(HookKind)
    assert enum("Package", "spec.maps[].role") == list(MapRole)
    assert enum("Config", "spec.secureMode.tolerate[].hooks") == list(HookKind)
    assert enum("Config", "spec.secureMode.tolerate[].attach") == list(AttachKind)
    assert enum("Config", "spec.secureMode.mode") == list(config.SecureMode)
    assert schema_of("Chain")["properties"]["spec"]["properties"]["members"]["maxItems"] == MAX_CHAIN_MEMBERS


@pytest.mark.parametrize("kind", FILES)
def test_the_example_of_a_schema_is_accepted(kind: str) -> None:
    (example,) = schema_of(kind)["examples"]
    data = json.dumps(example).encode()
    match kind:
        case "HostGroup":
            assert manifest.parse_groups({"hosts/a.yaml": data}).groups
        case "Chain":
            host = HostFacts(name="edge-1", labels={"role": "edge"})
            assert manifest.parse({"reconciler.yaml": REPOSITORY, "chains/a.yaml": data}, host=host).chains
        case "Repository":
            assert manifest.parse_all({"reconciler.yaml": data}).repository == "corp-edge"
        case "Package":
            assert manifest.parse_package(data, file="package.yaml").name == "ratelimit"
        case "Config":
            parsed = config.parse_config(data, file="c", folder="/etc", read=lambda path: path.encode())
            assert parsed.trust.signers
        case "PacketTest":
            _, findings = manifest.parse_tests({"t": data}, None)
            assert findings == ()
        case _:
            assert config.parse_tolerations(data, file="t")[0] == "cilium"


def test_defaults_of_the_configuration_are_those_of_the_schema() -> None:
    """A file that writes every default out means the same as one that leaves all out."""
    source = {"url": "https://git.example/x"}
    head = {"apiVersion": "reconciler/v1alpha1", "kind": "Config"}

    def parse(spec: dict[str, Any]) -> config.Config:
        data = json.dumps({**head, "spec": spec}).encode()
        return config.parse_config(data, file="c", folder="/etc", read=lambda _: b"")

    written = _with_defaults(schema_of("Config"), schema_of("Config")["properties"]["spec"], {"source": source})
    assert written["paths"]["state"] == "/var/lib/reconciler"
    assert written["source"]["interval"] == "5m"
    assert parse(written) == parse({"source": source})
    assert dataclasses.asdict(parse({"source": source})) == dataclasses.asdict(
        config.Config(source=config.SourceConfig(url=source["url"]))
    )


def test_defaults_of_a_chain_are_those_of_the_schema() -> None:
    schema = schema_of("Chain")
    document = json.loads(json.dumps(schema["examples"][0]))
    for hook in (
        {"type": "xdp", "interfaces": ["a"]},
        {"type": "tc", "interfaces": ["a"], "direction": "egress"},
    ):
        branch = {"properties": schema["$defs"][f"{hook['type']}Hook"]["properties"]}
        spec = {**document["spec"], "hook": hook}
        written = _with_defaults(schema, schema["properties"]["spec"], spec)
        written["hook"] = _with_defaults(schema, branch, hook)
        assert len(written["hook"]) > len(hook)
        found = [
            manifest.parse_all(
                {"reconciler.yaml": REPOSITORY, "chains/a.yaml": json.dumps({**document, "spec": each}).encode()}
            )
            for each in (spec, written)
        ]
        assert found[0].findings == found[1].findings == ()
        assert found[0].chains == found[1].chains


def _with_defaults(root: Any, schema: Any, value: dict[str, Any]) -> dict[str, Any]:
    """`value` with every default of the schema written out."""
    filled = dict(value)
    for name, entry in schema.get("properties", {}).items():
        each = {**root["$defs"].get(entry.get("$ref", "").removeprefix("#/$defs/"), {}), **entry}
        if name not in filled and "default" in each:
            filled[name] = each["default"]
        if isinstance(filled.get(name), dict):
            filled[name] = _with_defaults(root, each, filled[name])
    return filled


# --- what is made of them ----------------------------------------------------------------------------------


def test_the_generated_pages_are_current() -> None:
    assert generate_docs.main(["--check"]) == 0


def test_a_stale_page_is_named_and_written(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(generate_docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/manifests.md").write_text("old")
    assert generate_docs.main(["--check"]) == 1
    assert (
        "got older ones: docs/manifests.md, docs/configuration.md, docs/findings.md; run `make docs`"
        in capsys.readouterr().out
    )
    assert generate_docs.main([]) == 0
    assert generate_docs.main(["--check"]) == 0


def test_every_field_can_be_explained_and_stands_on_a_page() -> None:
    pages = "\n".join(generate_docs.pages().values())
    for kind in manifest.KINDS:
        for field in fields_of(kind):
            name = f"{kind}.{field.path}" if field.path else kind
            said = manifest.explain(name)
            assert said.splitlines()[0].startswith(kind)
            assert field.description.split()[0] in said
            last = field.path.rpartition(".")[2].removesuffix("[]")
            assert last in ("", "*", "apiVersion", "kind") or f"| `{last}` |" in pages


def test_explain_finds_a_field_by_the_end_of_its_path() -> None:
    assert (
        manifest.explain("hook.mode")
        == manifest.explain("chain.spec.hook.mode")
        == manifest.explain("CHAIN/spec/hook/mode")
    )
    assert manifest.explain("hook.mode") == (
        "Chain.spec.hook.mode\n"
        "  auto | native | generic; optional; default auto\n"
        "  only with type: xdp\n"
        "\n"
        "`native` runs in the driver, `generic` after the kernel has built its own\n"
        "packet; `auto` takes native where the driver can. Chains that share a hook must\n"
        "agree.\n"
    )
    assert "  only with type: xdp or tc\n" in manifest.explain("spec.hook.interfaces")
    members = manifest.explain("chain.spec.members")
    assert members.startswith("Chain.spec.members\n  list of 1 to 33 mappings; required\n")
    assert "\n  proceedOn       Verdicts after which" in members
    assert "\n  program*        The program" in members
    assert "Values: aborted, drop," in manifest.explain("chain.spec.members.proceedOn")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "chain.spec.hooks",
            "expected a field such as chain.spec.hook, got 'chain.spec.hooks'; did you mean chain.spec.hook",
        ),
        (
            "",
            "expected a field such as chain.spec.hook, got ''; kinds are Repository, Chain, HostGroup, Package, ",
        ),
        ("qqqqqqqq", "got 'qqqqqqqq'; kinds are"),
        (
            "proceedOn",
            "expected one field, got 'proceedOn', which can be any of: Chain.spec.members[].proceedOn, Package.",
        ),
    ],
)
def test_explain_says_what_there_is(path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        manifest.explain(path)
    assert message in str(caught.value)
