# SPDX-License-Identifier: Apache-2.0
"""Writes docs/manifests.md and docs/configuration.md from the schemas; with --check it only says what differs."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from reconciler._documents import Field, fields_of, schema_of
from reconciler._documents import _yaml as limits
from reconciler.config import shipped_names, shipped_tolerations
from reconciler.manifest import _parse as files
from reconciler.review import RULES, Family

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Generated from schema/v1alpha1 by `make docs`; edit the schemas or scripts/generate_docs.py. -->"

YAML_RULES = f"""\
YAML is read as a notation for JSON: `true`, `false`, `null` and numbers in JSON's grammar; everything else is text, so
`12:30`, `yes`, `on` and `010` stay text. Refused, with line and column: keys that stand twice, anchors, aliases, merge
keys, tags, directives, byte order marks, control characters and bidirectional overrides, integers beyond 64 bits. So
are unknown fields. A file has at most {limits.MAX_BYTES >> 20} MiB, {limits.MAX_DEPTH} levels and
{limits.MAX_NODES:,} values. All findings are reported at once, each as `FILE:LINE:COLUMN: what was expected, what was
got (at JSON POINTER)`.

`reconciler explain FIELD` prints this page field by field: `reconciler explain chain.spec.hook`. The schemas are JSON
Schema 2020-12; editors that know YAML can use them (`# yaml-language-server: $schema=…/chain.schema.json`)."""

MANIFESTS = f"""\
A repository of manifests holds one file `{files.REPOSITORY_FILE}` at its root, of kind Repository, and any number of
files below `{files.CHAINS_FOLDER}` that end in {" or ".join(f"`{s}`" for s in files.SUFFIXES)}, of kind Chain; several
documents per file, separated by `---`, are fine. Other files below `{files.CHAINS_FOLDER}` are a finding, so that a
mistyped name is noticed, but for {", ".join(f"`*{s}`" for s in files.IGNORED_SUFFIXES)} and
{", ".join(f"`{name}`" for name in sorted(files.IGNORED_NAMES))}. Archives of packages lie in `packages/`.

{YAML_RULES}

## Which findings stop which host

A host adopts a commit whole or not at all. What stops it is what concerns it:

* `{files.REPOSITORY_FILE}` concerns every host.
* A file below `{files.CHAINS_FOLDER}` concerns the hosts that its new *or* its previous version selects.
* A file whose selector cannot be read concerns the hosts that its previous version selected; if there was none, every
  host. Files that cannot be read at all (symbolic links, files too large) count as such.
* Rules between chains concern the hosts that select both.

`reconciler validate` checks for every host.

## Globs

`*` is any text, `?` any one character, `[abc]` and `[a-f]` one of, `[!a-f]` none of; a glob always matches the whole
name. Host names are compared without regard to case, as a whole and by their first label: `edge-17` means
`edge-17.corp.example` as well, `edge-17.corp.example` nothing else. A chain without a selector is for every host.

## Rules beyond the schema

* Chain names are unique in the repository, member names in their chain.
* Two chains that can meet on a hook (their hosts, kinds of hook, namespaces and interfaces can all match at once; of
  globs this is decided exactly) have different priorities, the same `mode` or `end`, and at most 33 members together.
* Verdicts are those of the hook's type; on tc `pass` is `ok`, `drop` is `shot` and `unspec` is `next`.
* `health.stats` names members of its chain, `health.tcp` IP addresses and ports.
* A repository without chains is refused unless `spec.allowEmpty` says that it is meant.

What depends on packages (whether there is such a program, whether it can honour that `proceedOn`, whether values fit
their types) is checked when a plan is made."""

CONFIGURATION = f"""\
One file of kind Config, by default `/etc/reconciler/config.yaml`. It says whom this host trusts, so it, every file that
it names and every folder above them must be writable by nobody but root (or whoever runs the reconciler): that is
checked each time it is read. Keys, trust roots and lists of signers are read with it; tokens, ssh keys and client
certificates are read when they are used. Nothing in the repository of manifests can change anything here.

{YAML_RULES}"""


def page(title: str, introduction: str, kinds: list[str]) -> str:
    """One page: what holds for all of it, then each kind."""
    parts = [NOTICE, "", f"# {title}", "", introduction]
    for kind in kinds:
        parts += ["", *_kind(kind)]
    return "\n".join(parts).rstrip() + "\n"


def _kind(kind: str) -> list[str]:
    schema = schema_of(kind)
    example = yaml.safe_dump(schema["examples"][0], sort_keys=False, default_flow_style=None, width=100)
    lines = [f"## {kind}", "", schema["description"], "", "```yaml", example.rstrip(), "```"]
    fields = fields_of(kind)
    for field in fields:
        below = [each for each in fields if _parent(each.path) == field.path and each.path]
        if below:
            lines += ["", *_section(kind, field, below)]
    return lines


def _section(kind: str, field: Field, below: list[Field]) -> list[str]:
    if not field.path:
        below = [each for each in below if each.path not in ("apiVersion", "kind")]
    name = f"{kind}: `{field.path}`" if field.path else f"{kind}: fields"
    lines = [f"### {name}", ""]
    if field.path:
        lines += [_escape(field.description), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    return lines + [_row(each) for each in below]


def _row(field: Field) -> str:
    name = field.path.removesuffix("[]").removesuffix(".*").rpartition(".")[2] or "*any name*"
    if field.path.endswith(".*"):
        name = "*any name*"
    default = "**required**" if field.required else f"`{field.default}`" if field.default is not None else ""
    note = f"Only with `type: {field.only_for}`. " if field.only_for is not None else ""
    known = ", ".join(f"`{value}`" for value in field.values) if field.type.startswith("list") else ""
    values = f" One of {known}." if known else ""
    cell = name if name.startswith("*") else f"`{name}`"
    return f"| {cell} | {_escape(field.type)} | {default} | {note}{_escape(field.description)}{values} |"


def _parent(path: str) -> str:
    return path.rpartition(".")[0].removesuffix("[]")


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


FINDINGS = """\
What `reconciler review` finds. An id never changes its meaning and is never given to something else. The severity
decides about `--fail-on`; an acknowledged finding does not count ([review.md](review.md#acknowledgements))."""

FAMILIES = {
    Family.BLOCKED: "Hosts would refuse the change",
    Family.WEAKER: "More gets through, or less is checked",
    Family.RISK: "Costs and risks",
    Family.UNKNOWN: "What the review cannot tell",
    Family.PAPER: "Groups and acknowledgements",
}


def _findings() -> str:
    notice = "<!-- Generated from reconciler/review/_rules.py by `make docs`. -->"
    lines = [notice, "", "# Findings of a review", "", FINDINGS]
    for family, title in FAMILIES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| id | severity | finding | raised when | why it matters |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {rule.id} | {rule.severity} | {rule.title} | {_escape(rule.condition)} | {_escape(rule.reason)} |"
            for rule in RULES.values()
            if rule.family is family
        ]
    return "\n".join(lines) + "\n"


def _shipped() -> str:
    lines = ["## Tolerations that ship", "", "Named by `secureMode.tolerations`; none is in force unless it is named."]
    for name in shipped_names():
        lines += ["", f"### `{name}`", "", "| rule | matches | why | owner |", "|---|---|---|---|"]
        for rule in shipped_tolerations(name):
            matches = {
                "hooks": ", ".join(rule.hooks),
                "attach": ", ".join(rule.attach),
                "programName": rule.program_name,
                "tag": rule.tag,
                "filterName": rule.filter_name,
            }
            shown = "; ".join(f"{key} `{value}`" for key, value in matches.items() if value)
            lines.append(f"| `{rule.name}` | {shown} | {rule.why} | {rule.owner} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Path inside the checkout to content."""
    configuration = page("Configuration of a host", CONFIGURATION, ["Config", "Tolerations"])
    return {
        "docs/manifests.md": page(
            "Manifests", MANIFESTS, ["Repository", "Chain", "HostGroup", "Package", "PacketTest"]
        ),
        "docs/configuration.md": f"{configuration}\n{_shipped()}",
        "docs/findings.md": _findings(),
    }


def main(arguments: list[str]) -> int:
    """Writes the pages, or with --check compares them; 1 if one differs."""
    check = "--check" in arguments
    stale = []
    for name, content in pages().items():
        path = ROOT / name
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        stale.append(name)
        if not check:
            path.write_text(content, encoding="utf-8")
            print(f"wrote {name}")
    if check and stale:
        print(f"expected generated pages to be current, got older ones: {', '.join(stale)}; run `make docs`")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
