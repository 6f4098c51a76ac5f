# SPDX-License-Identifier: Apache-2.0
"""Files of a commit: what is a manifest, which findings stop which host, and rules between chains."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler import manifest
from reconciler.errors import Diagnostic, Disposition, ManifestError
from reconciler.model import Chain, DesiredState, HostFacts, digest_of_builtins, to_builtins
from tests.manifests import DB, EDGE, REPOSITORY, chain, files, member, text

EDGE_CHAIN = text(chain("edge"))
DB_CHAIN = text(chain("db", hosts={"matchLabels": {"role": "db"}}))
BROKEN_BODY = EDGE_CHAIN.replace(b'"priority": 100', b'"priority": "high"')
BROKEN_YAML = EDGE_CHAIN.replace(b'"priority": 100', b'"priority": [')
BROKEN_SELECTOR = EDGE_CHAIN.replace(b'"matchLabels"', b'"matchLabel"')


def repository(**chains: bytes | None) -> dict[str, bytes]:
    """A repository with chains/NAME.yaml for each name."""
    found = {f"chains/{name}.yaml": data for name, data in chains.items() if data is not None}
    return {"reconciler.yaml": REPOSITORY, **found}


def stopped(host: HostFacts, found: dict[str, bytes], **arguments: Any) -> set[str]:
    """The files whose findings stop `host`."""
    try:
        manifest.parse(found, host=host, **arguments)
    except ManifestError as error:
        return {finding.file or "" for finding in error.findings}
    return set()


def names(state: DesiredState) -> list[str]:
    return [each.name for each in state.chains]


# --- what a host gets --------------------------------------------------------------------------------------


def test_a_host_gets_the_chains_that_select_it_in_order() -> None:
    tc = {"type": "tc", "interfaces": ["eth0"]}
    found = files(
        chain("late", priority=200),
        chain("other", hosts={"names": ["db-*"]}),
        chain("egress", hook=tc | {"direction": "egress"}, priority=1),
        chain("ingress", hook=tc | {"direction": "ingress"}, priority=2),
        chain("everywhere", hosts={}, priority=50),
        chain("default", hosts=None, priority=51),
    )
    state = manifest.parse(found, host=EDGE)
    assert state.repository == "corp-edge"
    assert state.allow_empty is False
    assert names(state) == ["everywhere", "default", "late", "ingress", "egress"]
    assert names(manifest.parse(found, host=DB)) == ["everywhere", "default", "other"]


def test_the_digest_of_a_state_is_that_of_its_canonical_json_without_what_is_for_people() -> None:
    params = {"a": 1, "b": 1.5, "c": True, "d": "é", "e": [1, {"f": None}], "g": 2**64 - 1, "h": 1.0}
    maps = {"ports": {"entries": [{"key": 443, "value": {"x": [0, -1]}}]}}
    found = files(
        chain("edge", members=[member(params=params, maps=maps)], health={"tcp": [{"connect": "10.0.0.1:443"}]}),
        chain("tc", hook={"type": "tc", "interfaces": ["eth0"], "direction": "egress"}, stateScope="interface"),
    )
    state = manifest.parse(found, host=EDGE)
    plain = to_builtins(state)
    for each in plain["chains"]:
        assert each["file"]
        each["file"] = ""
        del each["acknowledge"]
    assert manifest.state_digest(state) == digest_of_builtins(plain)
    # A host keeps digests on disk, so another version must not say another one.
    assert manifest.state_digest(state) == "6fc885b63d4c6fdf08aecab88c24d4801fa6a627302b121dae4b7f786f2d6b86"


def test_a_host_that_nothing_selects_gets_nothing() -> None:
    assert manifest.parse(files(chain()), host=DB).chains == ()


def test_several_documents_in_one_file() -> None:
    found = {"reconciler.yaml": REPOSITORY, "chains/all.yml": text(chain("a"), chain("b", priority=1))}
    assert names(manifest.parse(found, host=EDGE)) == ["b", "a"]


def test_other_files_are_passed_over_but_not_below_chains() -> None:
    found = files(chain(), **{"packages/x.tar.gz": b"\xff", "README.md": b"#", "chains/README.md": b"#"})
    found |= {"chains/a/.gitkeep": b"", "chains/a/OWNERS": b"x", "chains/notes.txt": b": : :"}
    assert names(manifest.parse(found, host=EDGE)) == ["edge"]
    found |= {"chains/edge.yaml.bak": EDGE_CHAIN, "chains/x.json": b"{}", "chains/README": b""}
    result = manifest.parse_all(found)
    message = "expected a file that ends in .yaml or .yml, got another; rename it, or move it elsewhere"
    assert [(finding.file, finding.message) for finding in result.findings] == [
        ("chains/edge.yaml.bak", message),
        ("chains/x.json", message),
    ]


# --- reconciler.yaml ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (
            None,
            "reconciler.yaml: expected a document of kind Repository, got no such file; `reconciler init` writes one",
        ),
        (b"", "reconciler.yaml:1:1: expected at least one document, got an empty file"),
        (b"---\n", "reconciler.yaml:2:1: expected a mapping of kind Repository, got nothing"),
        (REPOSITORY.replace(b"Repository", b"Chain"), "reconciler.yaml:2:7: expected 'Repository' here, got 'Chain'"),
        (
            REPOSITORY.replace(b"v1alpha1", b"v9"),
            "reconciler.yaml:1:13: expected 'reconciler/v1alpha1', got 'reconciler/v9'",
        ),
        (REPOSITORY.replace(b"corp-edge", b"Corp"), "reconciler.yaml:3:18: expected a name of at most 63 lower-case"),
        (
            REPOSITORY + b"spec: {allowEmpty: maybe}",
            "reconciler.yaml:4:20: expected true or false, got the text 'maybe'",
        ),
        (
            REPOSITORY + b"---\n" + EDGE_CHAIN,
            "reconciler.yaml:5:1: expected one document, got several; chains lie below",
        ),
        (REPOSITORY + b"kind: Chain\n", "reconciler.yaml:4:1: expected each key once, got 'kind' again"),
    ],
)
def test_a_fault_in_reconciler_yaml_stops_every_host(data: bytes | None, finding: str) -> None:
    found = repository(edge=EDGE_CHAIN)
    if data is None:
        del found["reconciler.yaml"]
    else:
        found["reconciler.yaml"] = data
    for host in (EDGE, DB):
        with pytest.raises(ManifestError) as caught:
            manifest.parse(found, host=host, previous=repository(edge=EDGE_CHAIN))
        assert [str(each)[: len(finding)] for each in caught.value.findings] == [finding]
        assert caught.value.disposition is Disposition.STALLED
    result = manifest.parse_all(found)
    assert result.repository is None
    assert len(result.findings) == 1


def test_no_chains_at_all_are_refused_unless_that_is_meant() -> None:
    empty = repository()
    with pytest.raises(ManifestError, match=r"reconciler.yaml: expected at least one chain below chains/, got none"):
        manifest.parse(empty, host=EDGE, previous=repository(edge=EDGE_CHAIN))
    assert len(manifest.parse_all(empty | {"chains/README.md": b""}).findings) == 1
    empty["reconciler.yaml"] += b"spec: {allowEmpty: true}\n"
    assert manifest.parse(empty, host=EDGE) == DesiredState(repository="corp-edge", chains=(), allow_empty=True)
    assert manifest.parse_all(empty).allow_empty is True


def test_a_repository_of_broken_chains_is_not_called_empty() -> None:
    result = manifest.parse_all(repository(edge=BROKEN_YAML))
    assert [finding.file for finding in result.findings] == ["chains/edge.yaml"]


# --- which findings stop which host ------------------------------------------------------------------------


def test_a_fault_stops_the_hosts_that_the_file_selects_and_no_other() -> None:
    found = repository(edge=BROKEN_BODY, db=DB_CHAIN)
    assert stopped(EDGE, found) == {"chains/edge.yaml"}
    assert stopped(DB, found) == set()
    assert names(manifest.parse(found, host=DB)) == ["db"]


def test_a_fault_stops_the_hosts_that_the_file_selected_before() -> None:
    moved = text(chain("edge", hosts={"matchLabels": {"role": "db"}}, priority="high"))
    before = repository(edge=EDGE_CHAIN)
    assert stopped(EDGE, repository(edge=moved), previous=before) == {"chains/edge.yaml"}
    assert stopped(DB, repository(edge=moved), previous=before) == {"chains/edge.yaml"}
    assert stopped(HostFacts(name="x", labels={}), repository(edge=moved), previous=before) == set()
    # Without a fault it is simply no longer for this host.
    good = repository(edge=text(chain("edge", hosts={"matchLabels": {"role": "db"}})))
    assert manifest.parse(good, host=EDGE, previous=before).chains == ()


@pytest.mark.parametrize(
    "broken",
    [
        BROKEN_YAML,
        BROKEN_SELECTOR,
        b"",
        b"---\n",
        b"\xff",
        b"# only a comment\n",
        text([]),
        text({"kind": "Chian"}),
        EDGE_CHAIN.replace(b'"kind": "Chain"', b'"kind": "Chian"'),
        EDGE_CHAIN.replace(b'"kind": "Chain",', b""),
        EDGE_CHAIN.replace(b"v1alpha1", b"v1beta1"),
        EDGE_CHAIN.replace(b'"apiVersion": "reconciler/v1alpha1",', b""),
        EDGE_CHAIN.replace(b'"role": "edge"', b'"role": 7'),
        EDGE_CHAIN.replace(b'"role": "edge"', b'"role": *x'),
        EDGE_CHAIN.replace(b'"role": "edge"', b'"role": "edge", "role": "db"'),
        EDGE_CHAIN.replace(b'"role": "edge"', b'<<: {"role": "edge"}'),
        EDGE_CHAIN.replace(b'"spec": {', b'"spec": {"hosts": {"names": ["["]}}, "x": {'),
        EDGE_CHAIN.replace(b'"spec": {', b'"spec": [], "x": {'),
        EDGE_CHAIN.replace(b'"spec": {', b'"spec": {}, "spec": {'),
        b"<<: {}\n" + EDGE_CHAIN.replace(b"\n", b"")[1:-1],
        DB_CHAIN + b"\n---\na: [",
    ],
)
def test_a_selector_that_cannot_be_read_stops_whom_the_last_version_selected(broken: bytes) -> None:
    new = repository(edge=broken, db=DB_CHAIN)
    before = repository(edge=EDGE_CHAIN, db=DB_CHAIN)
    bystander = HostFacts(name="x", labels={})
    assert stopped(EDGE, new, previous=before) == {"chains/edge.yaml"}
    assert stopped(bystander, new, previous=before) == set()
    # A new file concerns every host, and so does any at the first start.
    assert stopped(bystander, new, previous=repository(db=DB_CHAIN)) == {"chains/edge.yaml"}
    assert stopped(bystander, new) == {"chains/edge.yaml"}
    # Once a host adopted a commit that holds the broken file, it does not mind it, nor another broken version of it.
    assert stopped(bystander, new, previous=new) == set()
    assert stopped(bystander, repository(edge=broken + b"\n#"), previous=new) == set()


def test_a_mistyped_selector_means_every_host_and_stops_every_host() -> None:
    mistyped = repository(edge=EDGE_CHAIN.replace(b'"hosts"', b'"host"'))
    assert stopped(DB, mistyped, previous=repository(edge=EDGE_CHAIN)) == {"chains/edge.yaml"}


def test_one_faulty_document_stops_the_hosts_of_the_others_in_its_file() -> None:
    found = repository(all=EDGE_CHAIN + b"\n---\n" + DB_CHAIN.replace(b'"priority": 100', b'"priority": null'))
    assert stopped(EDGE, found) == {"chains/all.yaml"}
    assert stopped(DB, found) == {"chains/all.yaml"}
    assert stopped(HostFacts(name="x", labels={}), found) == set()


def test_all_findings_that_concern_a_host_come_at_once() -> None:
    found = repository(a=BROKEN_BODY, b=BROKEN_YAML, c=EDGE_CHAIN, d=text(chain("d", priority=-1)))
    assert stopped(EDGE, found) == {"chains/a.yaml", "chains/b.yaml", "chains/d.yaml"}
    del found["reconciler.yaml"]
    assert stopped(EDGE, found) == {"reconciler.yaml", "chains/a.yaml", "chains/b.yaml", "chains/d.yaml"}


# --- what the reader of the tree could not give -------------------------------------------------------------


def problem(file: str | None) -> tuple[Diagnostic, ...]:
    return (Diagnostic(message="expected a regular file, got a symbolic link", file=file),)


def test_a_file_that_git_could_not_give_is_one_that_cannot_be_read() -> None:
    link = problem("chains/edge.yaml")
    before = repository(edge=EDGE_CHAIN, db=DB_CHAIN)
    now = repository(db=DB_CHAIN)
    assert stopped(EDGE, now, problems=link, previous=before) == {"chains/edge.yaml"}
    assert stopped(DB, now, problems=link, previous=before) == set()
    assert stopped(DB, now, problems=link, previous=now) == {"chains/edge.yaml"}
    assert stopped(DB, now, problems=link) == {"chains/edge.yaml"}
    # Adopted with the link in it, so it is not minded from then on, whatever becomes of the file.
    assert stopped(DB, now, problems=link, previous=now, previous_problems=link) == set()
    assert stopped(DB, repository(db=DB_CHAIN, edge=BROKEN_YAML), previous=now, previous_problems=link) == set()
    assert stopped(EDGE, repository(edge=BROKEN_BODY), previous=now, previous_problems=link) == {"chains/edge.yaml"}
    assert [finding.file for finding in manifest.parse_all(now, problems=link).findings] == ["chains/edge.yaml"]


def test_a_file_that_git_gave_only_in_part_is_one_that_cannot_be_read() -> None:
    found = repository(edge=EDGE_CHAIN)
    link = problem("chains/edge.yaml")
    assert stopped(DB, found, problems=link, previous=found) == set()
    assert stopped(DB, found, problems=link) == {"chains/edge.yaml"}


def test_a_limit_on_all_manifests_is_never_read_as_their_removal() -> None:
    # The reader of the tree reports what it left out at "chains": too many files, too many bytes, too many problems.
    before = repository(edge=EDGE_CHAIN, db=DB_CHAIN)
    left = repository(db=DB_CHAIN)
    left["reconciler.yaml"] += b"spec: {allowEmpty: true}\n"
    for host in (EDGE, DB):
        assert stopped(host, left, problems=problem("chains"), previous=before) == {"chains"}
        assert stopped(host, left, problems=problem("chains"), previous=left) == {"chains"}
    assert [finding.file for finding in manifest.parse_all(left, problems=problem("chains")).findings] == ["chains"]


def test_a_folder_that_looks_like_a_file_to_pass_over_is_not_passed_over() -> None:
    before = {"reconciler.yaml": REPOSITORY, "chains/OWNERS/edge.yaml": EDGE_CHAIN, "chains/db.yaml": DB_CHAIN}
    left = repository(db=DB_CHAIN)
    assert stopped(EDGE, left, problems=problem("chains/OWNERS"), previous=before) == {"chains/OWNERS"}
    assert stopped(EDGE, left, problems=problem("chains/OWNERS"), previous=left) == set()


def test_problems_elsewhere_stop_every_host_or_none() -> None:
    found = repository(edge=EDGE_CHAIN)
    assert stopped(DB, found, problems=problem(None), previous=found) == {""}
    assert stopped(DB, found, problems=problem("packages/link")) == set()
    assert stopped(DB, found, problems=problem("chains/README.md")) == set()
    assert len(manifest.parse_all(found, problems=problem(None)).findings) == 1
    del found["reconciler.yaml"]
    with pytest.raises(ManifestError, match="symbolic link"):
        manifest.parse(found, host=DB, problems=problem("reconciler.yaml"))


# --- rules between chains ----------------------------------------------------------------------------------


def conflicts(*chains: dict[str, Any]) -> list[str]:
    """What `validate` says about chains that are fine each for itself."""
    return [str(finding) for finding in manifest.parse_all(files(*chains)).findings]


def test_a_chain_name_stands_once() -> None:
    a, b = chain("same"), chain("same", hosts={"matchLabels": {"role": "db"}})
    (found,) = conflicts(a, b)
    assert found == (
        "chains/1.yaml:5:11: expected each chain name once, got 'same' again; it stands in chains/0.yaml already; "
        "rename one (at /metadata/name)"
    )
    # What does not concern a host does not stop it: only one of the two is for this one.
    assert names(manifest.parse(files(a, b), host=EDGE)) == ["same"]
    both = HostFacts(name="x", labels={"role": "edge"})
    assert stopped(both, files(a, chain("same", hosts={}, priority=1))) == {"chains/1.yaml"}


def test_chains_that_can_meet_need_different_priorities() -> None:
    (found,) = conflicts(
        chain("a"), chain("b", hosts={"names": ["edge-*"]}, hook={"type": "xdp", "interfaces": ["*0"]})
    )
    assert "expected another priority than that of chain 'a' (chains/0.yaml), which can run on the same hook" in found
    assert "got 100 too; change one (at /spec/priority)" in found


@pytest.mark.parametrize(
    "other",
    [
        {"priority": 101},
        {"hosts": {"matchLabels": {"role": "db"}}},
        {"hook": {"type": "xdp", "interfaces": ["veth*"]}},
        {"hook": {"type": "xdp", "interfaces": ["eth*"], "netns": "blue"}},
        {"hook": {"type": "tc", "direction": "ingress", "interfaces": ["eth*"]}},
    ],
)
def test_chains_that_cannot_meet_may_be_alike(other: dict[str, Any]) -> None:
    assert conflicts(chain("a"), chain("b", **other)) == []


def test_chains_on_one_hook_agree_in_mode_and_end() -> None:
    xdp = {"type": "xdp", "interfaces": ["eth*"]}
    (found,) = conflicts(chain("a", hook=xdp), chain("b", hook=xdp | {"mode": "generic"}, priority=1))
    assert "expected mode 'auto' like chain 'a' (chains/0.yaml), which can run on the same hook, got 'generic'" in found
    tc = {"type": "tc", "direction": "egress", "interfaces": ["eth*"]}
    (found,) = conflicts(chain("a", hook=tc | {"end": "pass"}), chain("b", hook=tc, priority=1))
    assert "expected end 'pass' like chain 'a'" in found
    assert conflicts(chain("a", hook=tc), chain("b", hook=tc, priority=1)) == []


def test_chains_on_one_hook_have_33_members_together() -> None:
    seventeen = [member(f"m{n}") for n in range(17)]
    assert conflicts(chain("a", members=seventeen), chain("b", members=seventeen[:16], priority=1)) == []
    (found,) = conflicts(chain("a", members=seventeen), chain("b", members=seventeen, priority=1))
    assert "expected at most 33 members with chain 'a' (chains/0.yaml), which can run on the same hook, got 34" in found


def test_a_conflict_stops_only_hosts_that_get_both() -> None:
    a, b = chain("a"), chain("b", hosts={"names": ["*-1"]})
    assert stopped(EDGE, files(a, b)) == {"chains/1.yaml"}
    assert stopped(DB, files(a, b)) == set()
    assert stopped(HostFacts(name="edge-2", labels={"role": "edge"}), files(a, b)) == set()


def test_comparing_chains_takes_bounded_work() -> None:
    # Globs that begin and end alike, and of which only a walk over both shows that they never meet in 15 characters.
    def globs(number: int) -> dict[str, Any]:
        return {"type": "xdp", "interfaces": [f"*{number:08}*{each:02}*" for each in range(20)]}

    assert not [line for line in conflicts(*(chain(f"c{n}", hook=globs(n)) for n in range(3))) if "fewer" in line]
    (*_, last) = conflicts(*(chain(f"c{n}", hook=globs(n), hosts={"names": [f"h{n}"]}) for n in range(60)))
    assert "expected fewer chains of equal priority with wildcards" in last


def test_a_bounded_number_of_conflicts_is_told() -> None:
    assert len(conflicts(*(chain(f"c{n}") for n in range(20)))) == manifest._parse.MAX_CONFLICTS


def test_a_file_may_be_renamed_while_others_change() -> None:
    before = repository(old=EDGE_CHAIN)
    state = manifest.parse(repository(new=EDGE_CHAIN), host=EDGE, previous=before)
    (found,) = state.chains
    assert isinstance(found, Chain)
    assert found.file == "chains/new.yaml"
