# SPDX-License-Identifier: Apache-2.0
"""A case of `review`, read from YAML: a repository before, what a change does to it, and what the review must say.

base: name of a chain to what differs from `CHAIN`; default {edge: {}}
head: a merge patch (RFC 7396) on `base`: mappings are merged, null removes, everything else replaces
groups, head-groups: likewise, HostGroups; default none
recorded: recorded hosts by name: the spec of a HostGroup and `held`, interface to {program, tolerated} on its XDP hook
repository, head-repository: likewise, the spec of reconciler.yaml
files, head-files: raw files; in head-files null removes
now: date; default 2026-06-01
conflict: what does not merge
expect: ids of all findings that count, in any order; each once
  acknowledged: ids of the others
  says: texts that findings, lines or hooks must hold
  unsaid: texts that nothing may hold
  chains: "CHANGE NAME" of every chain that changes; only checked if given
  hooks: "GROUP: HOOK: CHANGES" of every hook that changes; only checked if given
looks-like: ids that the change resembles and must not raise

Members are a mapping in order of execution. A package is the name of a shipped one, or {use, version, patch, params,
maps, signer, objects, missing}: a variant of its package.yaml (`patch` is a merge patch; `params` and `maps` change
fields by name, the value `gone` removes one), signed by somebody, with objects or without any.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from reconciler import manifest, packages, review
from reconciler._resources import names, resource
from reconciler.model import HostGroup, Occupant, PackageRef, Signer

if TYPE_CHECKING:
    from pathlib import Path

Fields = dict[str, Any]

CHAIN: Fields = {
    "hosts": {"matchLabels": {"role": "edge"}},
    "priority": 100,
    "hook": {"type": "xdp", "interfaces": ["eth0", "eth1"]},
    "members": {"limit": {"package": "ratelimit"}},
}
PROGRAMS = {"ratelimit": "ratelimit", "firewall": "firewall_xdp", "flowcount": "flowcount"}
SIGNER = Signer(name="claimed", identity="SHA256:" + "A" * 43, issuer="key")


@functools.cache
def shipped(name: str) -> tuple[Fields, dict[str, bytes]]:
    """package.yaml as values, and the objects, of a package that ships."""
    (archive,) = (each for each in names("packages") if each.startswith(f"{name}-") and each.endswith(".tar.gz"))
    parsed, files = packages.open_archive(resource("packages", archive), file=archive)
    return yaml.safe_load(files["package.yaml"]), {each.object: files[each.object] for each in parsed.programs}


def merge(value: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(value) if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), item)
    return merged


@dataclass
class Built:
    """One side."""

    tree: review.Tree
    packages: dict[PackageRef, review.ReviewPackage | str]


@dataclass
class Case:
    """One file."""

    data: Fields

    @staticmethod
    def read(path: Path) -> Case:
        return Case(yaml.safe_load(path.read_text(encoding="utf-8")))

    @property
    def sides(self) -> tuple[Built, Built]:
        data = self.data
        base = data.get("base", {"edge": {}})
        base = {name: merge(CHAIN, spec) for name, spec in base.items()}
        added = {name: merge(CHAIN, {}) for name in data.get("head", {}) if name not in base}
        head = merge({**base, **added}, data.get("head", {}))
        groups, repository = data.get("groups", {}), data.get("repository", {})
        files = data.get("files", {})
        return (
            build("base", base, groups, repository, files),
            build(
                "head",
                head,
                merge(groups, data.get("head-groups", {})),
                merge(repository, data.get("head-repository", {})),
                merge(files, data.get("head-files", {})),
            ),
        )

    def make(self) -> review.Review:
        return self.make_of(*self.sides)

    def make_of(self, base: Built, head: Built) -> review.Review:
        """The review of other sides, all else as the case says."""
        hosts = tuple(recorded(name, fields) for name, fields in self.data.get("recorded", {}).items())
        now = str(self.data.get("now", "2026-06-01"))
        return make(base, head, now=now, problem=self.data.get("conflict"), hosts=hosts)


def recorded(name: str, fields: Fields) -> HostGroup:
    """A host as `review.group_of` gives it."""
    spec = {field: item for field, item in fields.items() if field != "held"} | {"names": [name]}
    read = manifest.parse_groups({"hosts/x.yaml": text({**head("HostGroup", name), "spec": spec})})
    assert not read.findings, read.findings
    occupants = tuple(
        Occupant(netns="host", interface=each, program=said["program"], tolerated_by=said.get("tolerated"))
        for each, said in fields.get("held", {}).items()
    )
    return replace(read.groups[0], occupants=occupants, file="")


def make(
    base: Built,
    head: Built,
    *,
    now: str = "2026-06-01",
    problem: str | None = None,
    hosts: tuple[HostGroup, ...] = (),
) -> review.Review:
    """The review, as the command would make it."""
    reading = review.read(base.tree, head.tree)
    refs = [{ref for ref in refs if ref.repository == "git"} for refs in reading.refs]
    looked = [
        {ref: side.packages.get(ref, "expected it in the repository, got none") for ref in chosen}
        for chosen, side in zip(refs, (base, head), strict=True)
    ]
    kind: review.Kind = "branch" if problem else "commits"
    return review.make(reading, (looked[0], looked[1]), kind=kind, now=now, problem=problem, hosts=hosts)


def build(name: str, chains: Fields, groups: Fields, repository: Fields, files: Fields) -> Built:
    """A tree of the given chains, each in a file of its own, and their packages."""
    found: dict[PackageRef, review.ReviewPackage | str] = {}
    written: dict[str, bytes] = {
        "reconciler.yaml": text({**head("Repository", "corp"), **({"spec": repository} if repository else {})})
    }
    for chain, spec in chains.items():
        file = spec.pop("file", f"chains/{chain}.yaml")
        members = [member(each, fields, found) for each, fields in spec["members"].items() if fields is not None]
        order = spec.pop("order", None)
        if order is not None:
            members.sort(key=lambda each: order.index(each["name"]))
        written[file] = text({**head("Chain", chain), "spec": {**spec, "members": members}})
    for group, spec in groups.items():
        written[f"hosts/{group}.yaml"] = text({**head("HostGroup", group), "spec": spec})
    for path, content in files.items():
        written[path] = content.encode()
    return Built(review.Tree(name=name, files=written), found)


def head(kind: str, name: str) -> Fields:
    return {"apiVersion": "reconciler/v1alpha1", "kind": kind, "metadata": {"name": name}}


def text(document: Any) -> bytes:
    return json.dumps(document, indent=1).encode()


def member(name: str, fields: Fields, found: dict[PackageRef, review.ReviewPackage | str]) -> Fields:
    """A member as a manifest writes it; its package goes to `found`."""
    said = fields["package"]
    wanted: Fields = {"use": said} if isinstance(said, str) else said
    if "digest" in wanted:
        return {"name": name, "program": PROGRAMS.get(wanted["name"], "main"), **fields}
    ref, package = variant(json.dumps(wanted, sort_keys=True))
    found[ref] = package
    plain = {"name": ref.name, "version": ref.version, "digest": ref.digest}
    if "repository" in wanted:
        plain["repository"] = wanted["repository"]
        del found[ref]
    return {"name": name, "program": PROGRAMS.get(ref.name, "main"), **fields, "package": plain}


@functools.cache
def variant(wanted: str) -> tuple[PackageRef, review.ReviewPackage | str]:
    """A shipped package, or one made up; equal descriptions are one package."""
    fields: Fields = json.loads(wanted)
    raw, objects = shipped(fields["use"]) if "use" in fields else ({}, {})
    raw = merge(raw, fields.get("patch", {}))
    if "version" in fields:
        raw["metadata"]["version"] = fields["version"]
    for kind in ("maps", "params"):
        changes = fields.get(kind, {})
        kept = [merge(each, changes.get(each["name"], {})) for each in raw["spec"].get(kind, [])]
        raw["spec"][kind] = [{key: item for key, item in each.items() if item != "gone"} for each in kept]
    digest = "sha256:" + hashlib.sha256(wanted.encode()).hexdigest()
    parsed = manifest.parse_package(text(raw), file="package.yaml")
    ref = PackageRef(name=parsed.name, version=parsed.version, digest=digest)
    if "missing" in fields:
        return ref, fields["missing"]
    signer = fields.get("signer", SIGNER.identity)
    who = None if signer is False else Signer(name="claimed", identity=signer, issuer=fields.get("issuer", "key"))
    return ref, review.ReviewPackage(
        ref=ref,
        manifest=parsed,
        objects={} if fields.get("objects") is False else objects,
        signer=who,
        verified=fields.get("verified", True),
    )
