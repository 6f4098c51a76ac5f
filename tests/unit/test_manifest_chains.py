# SPDX-License-Identifier: Apache-2.0
"""Chains: values, and what the schema and the rules beyond it refuse, with the words that people get."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler import manifest
from reconciler.errors import ManifestError
from reconciler.model import (
    TC_VERDICTS,
    XDP_VERDICTS,
    Chain,
    Health,
    HostSelector,
    MapEntry,
    Member,
    OnBroken,
    PackageRef,
    StateScope,
    StatsCheck,
    TcEnd,
    TcHook,
    TcpCheck,
    XdpHook,
    XdpMode,
)
from tests.manifests import DIGEST, EDGE, REPOSITORY, chain, files, member, text

FULL = f"""\
apiVersion: reconciler/v1alpha1
kind: Chain
metadata:
  name: edge-ingress
spec:
  hosts: {{matchLabels: {{site: fra, role: edge}}, names: [EDGE-*, edge-1]}}
  priority: 100
  hook:
    type: tc
    direction: egress
    interfaces: ["veth*", eth0]
    netns: blue
    end: pass
  onBroken: pass
  stateScope: interface
  members:
    - name: connlimit
      package: {{name: connlimit, version: 1.2.0-rc.1+b7, digest: "{DIGEST}", repository: mirror}}
      program: connlimit_tc
      proceedOn: [pass, next]
      params: {{zeta: true, alpha: [1, 2], when: 12:30}}
      allowStateLoss: true
      maps:
        ports: {{entries: [{{key: 443, value: {{limit: 1}}}}, {{key: 22, value: {{limit: 2}}}}]}}
        empty: {{entries: []}}
  health:
    source: false
    tcp: [{{connect: "[2001:db8::1]:443", within: 1500ms}}, {{connect: 10.0.0.1:80}}]
    stats: [{{member: connlimit, counter: dropped, below: 12.5%}}]
"""


def findings(*chains: dict[str, Any]) -> list[str]:
    """What `validate` says, without the file."""
    return [str(each).partition(":")[2] for each in manifest.parse_all(files(*chains)).findings]


def test_a_chain_with_everything() -> None:
    found = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/a/b.yml": FULL.encode()})
    assert found.findings == ()
    assert found.repository == "corp-edge"
    assert found.allow_empty is False
    assert found.chains == (
        Chain(
            name="edge-ingress",
            hosts=HostSelector(match_labels={"role": "edge", "site": "fra"}, names=("edge-*", "edge-1")),
            priority=100,
            hook=TcHook(direction="egress", interfaces=("eth0", "veth*"), netns="blue", end=TcEnd.PASS),
            on_broken=OnBroken.PASS,
            state_scope=StateScope.INTERFACE,
            members=(
                Member(
                    name="connlimit",
                    package=PackageRef(name="connlimit", version="1.2.0-rc.1+b7", digest=DIGEST, repository="mirror"),
                    program="connlimit_tc",
                    proceed_on=("next", "ok"),
                    params={"alpha": [1, 2], "when": "12:30", "zeta": True},
                    maps={
                        "empty": (),
                        "ports": (MapEntry(key=443, value={"limit": 1}), MapEntry(key=22, value={"limit": 2})),
                    },
                    allow_state_loss=True,
                ),
            ),
            health=Health(
                source=False,
                tcp=(TcpCheck(connect="[2001:db8::1]:443", within=1.5), TcpCheck(connect="10.0.0.1:80", within=5.0)),
                stats=(StatsCheck(member="connlimit", counter="dropped", below=0.125, over=10.0),),
            ),
            file="chains/a/b.yml",
        ),
    )


def test_a_chain_with_nothing_optional_gets_the_defaults() -> None:
    (found,) = manifest.parse_all(files(chain(hosts=None))).chains
    assert found == Chain(
        name="edge",
        hook=XdpHook(interfaces=("eth*",)),
        priority=100,
        members=(
            Member(
                name="limit", package=PackageRef(name="ratelimit", version="1.0.0", digest=DIGEST), program="ratelimit"
            ),
        ),
        file="chains/0.yaml",
    )


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_xdp_modes(mode: str) -> None:
    (found,) = manifest.parse_all(files(chain(hook={"type": "xdp", "interfaces": ["a"], "mode": mode}))).chains
    assert found.hook == XdpHook(interfaces=("a",), mode=XdpMode(mode))


def test_every_verdict_of_a_hook_is_known_and_no_other() -> None:
    tc = {"type": "tc", "direction": "ingress", "interfaces": ["a"]}
    on_xdp = chain(members=[member(proceedOn=list(XDP_VERDICTS))])
    on_tc = chain(hook=tc, members=[member(proceedOn=list(TC_VERDICTS))])
    found = manifest.parse_all(files(on_xdp, on_tc | {"metadata": {"name": "b"}}))
    assert found.findings == ()
    assert [each.members[0].proceed_on for each in found.chains] == [tuple(XDP_VERDICTS), tuple(TC_VERDICTS)]
    assert manifest.parse_all(files(chain(members=[member(proceedOn=[])]))).chains[0].members[0].proceed_on == ()


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a check of a number", {"health": {"tcp": [{"connect": 1}]}}, "expected text, got the number 1; put it in quotes"),
    ("a check of a long text", {"health": {"tcp": [{"connect": "1" * 65}]}}, "expected at most 64 characters, got 65"),
    ("an unknown field", {"prio": 1}, "expected a known field, got 'prio'; did you mean 'priority'? (at /spec/prio)"),
    (
        "an unknown field like none",
        {"zzz": 1},
        "expected a known field, got 'zzz'; known here: acknowledge, health, hook, hosts,",
    ),
    ("a priority as text", {"priority": "1"}, "expected an integer, got the text '1' (at /spec/priority)"),
    ("a priority with a point", {"priority": 1.0}, "expected an integer, got the number 1.0 (at /spec/priority)"),
    ("a priority that is true", {"priority": True}, "expected an integer, got true (at /spec/priority)"),
    ("a negative priority", {"priority": -1}, "expected at least 0, got -1 (at /spec/priority)"),
    ("a huge priority", {"priority": 65536}, "expected at most 65535, got 65536 (at /spec/priority)"),
    ("no hook", {"hook": None}, "expected the field 'hook', got none; add it (at /spec)"),
    ("a hook that is a list", {"hook": []}, "expected a mapping, got a list (at /spec/hook)"),
    ("an unknown hook", {"hook": {"type": "cgroup"}}, "expected 'xdp' or 'tc', got 'cgroup' (at /spec/hook/type)"),
    (
        "a hook without type",
        {"hook": {"interfaces": ["a"]}},
        "expected the field 'type', got none; add it (at /spec/hook)",
    ),
    (
        "a field of the other hook",
        {"hook": {"type": "xdp", "interfaces": ["a"], "direction": "ingress"}},
        "expected a known field, got 'direction'; known here: interfaces, mode, netns, type (at /spec/hook/direction)",
    ),
    (
        "tc without direction",
        {"hook": {"type": "tc", "interfaces": ["a"]}},
        "expected the field 'direction', got none; add it (at /spec/hook)",
    ),
    (
        "no interfaces",
        {"hook": {"type": "xdp", "interfaces": []}},
        "expected at least 1 item, got 0 (at /spec/hook/interfaces)",
    ),
    (
        "an interface twice",
        {"hook": {"type": "xdp", "interfaces": ["a", "a"]}},
        "expected each item once, got one twice; remove it (at /spec/hook/interfaces)",
    ),
    (
        "an interface with a space",
        {"hook": {"type": "xdp", "interfaces": ["eth 0"]}},
        "expected the name of an interface or a glob, without spaces, '/' and ':', got 'eth 0' (at /spec/hook/interfa",
    ),
    (
        "an interface that ends in a line feed",
        {"hook": {"type": "xdp", "interfaces": ["eth0\n"]}},
        r"expected the name of an interface or a glob, without spaces, '/' and ':', got 'eth0\n' (at",
    ),
    (
        "an interface whose name is too long",
        {"hook": {"type": "xdp", "interfaces": ["a23456789012345", "a234567890123456"]}},
        "expected an interface name of at most 15 bytes, got 'a234567890123456', which none can have (at /spec/hook/i",
    ),
    (
        "an interface whose name has too many bytes",
        {"hook": {"type": "xdp", "interfaces": ["éééééééé"]}},
        "expected an interface name of at most 15 bytes, got 'éééééééé', which none can have",
    ),
    (
        "a glob that is too long",
        {"hook": {"type": "xdp", "interfaces": ["*" + "[ab]" * 16]}},
        "expected the name of an interface or a glob, without spaces",
    ),
    (
        "a glob that no name can match",
        {"hook": {"type": "xdp", "interfaces": ["*" + "?" * 16]}},
        "expected an interface name of at most 15 bytes, got '*????????????????', which none can have",
    ),
    (
        "a folder as interface",
        {"hook": {"type": "xdp", "interfaces": [".."]}},
        "expected the name of an interface, got '..' (at /spec/hook/interfaces/0)",
    ),
    (
        "a broken glob",
        {"hook": {"type": "xdp", "interfaces": ["eth["]}},
        "expected a ']' after the '[' in 'eth[', got none (at /spec/hook/interfaces/0)",
    ),
    (
        "a broken glob of hosts",
        {"hosts": {"names": ["edge-[9-0]"]}},
        "expected a range that runs upwards in 'edge-[9-0]', got 9-0 (at /spec/hosts/names/0)",
    ),
    (
        "an empty class",
        {"hosts": {"names": ["edge-[]"]}},
        "expected characters between '[' and ']' in 'edge-[]', got none (at /spec/hosts/names/0)",
    ),
    (
        "a namespace that is a path",
        {"hook": {"type": "xdp", "interfaces": ["a"], "netns": "../proc"}},
        "expected the name of a network namespace: letters, digits, '.', '_' and '-', not starting with '.', got '../",
    ),
    (
        "a label that is a number",
        {"hosts": {"matchLabels": {"rack": 7}}},
        "expected at most 63 letters, digits, '.', '_'",
    ),
    (
        "a label that is no name",
        {"hosts": {"matchLabels": {"a b": "x"}}},
        "expected a label of at most 63 letters, digits, '.', '_', '/' and '-' as key, got 'a b' (at /spec/hosts/matc",
    ),
    ("no members", {"members": []}, "expected at least 1 item, got 0 (at /spec/members)"),
    (
        "too many members",
        {"members": [member(f"m{n}") for n in range(34)]},
        "expected at most 33 items, got 34 (at /spec/members)",
    ),
    (
        "a member name twice",
        {"members": [member("a"), member("b"), member("a")]},
        "expected each member name once, got 'a' again; rename it (at /spec/members/2/name)",
    ),
    (
        "a member name in capitals",
        {"members": [member("Limit")]},
        "expected a name of at most 63 lower-case letters, digits and inner hyphens, got 'Limit' (at /spec/members/0/",
    ),
    (
        "a digest that is cut",
        {"members": [member(package={"name": "a", "version": "1.0.0", "digest": "sha256:12"})]},
        "expected 'sha256:' and 64 lower-case hex digits, got 'sha256:12' (at /spec/members/0/package/digest)",
    ),
    (
        "a version that is a number",
        {"members": [member(package={"name": "a", "version": 1.2, "digest": DIGEST})]},
        "expected a semantic version such as 1.2.0, got the number 1.2; put it in quotes (at /spec/members/0/package/",
    ),
    (
        "a version with a leading zero",
        {"members": [member(package={"name": "a", "version": "1.02.0", "digest": DIGEST})]},
        "expected a semantic version such as 1.2.0, got '1.02.0'",
    ),
    (
        "no digest",
        {"members": [member(package={"name": "a", "version": "1.0.0"})]},
        "expected the field 'digest', got none",
    ),
    (
        "an unknown verdict",
        {"members": [member(proceedOn=["psas"])]},
        "; did you mean 'pass'? (at /spec/members/0/proceedOn/0)",
    ),
    (
        "a verdict of the other hook",
        {"members": [member(proceedOn=["pass", "shot"])]},
        "expected a verdict of xdp ('aborted', 'drop', 'pass', 'tx' or 'redirect'), got 'shot' (at /spec/members/0/pr",
    ),
    (
        "a verdict of xdp on tc",
        {"hook": {"type": "tc", "direction": "ingress", "interfaces": ["a"]}, "members": [member(proceedOn=["tx"])]},
        "expected a verdict of tc ('next', 'ok', 'reclassify', 'shot', ",
    ),
    (
        "a verdict by two names",
        {
            "hook": {"type": "tc", "direction": "ingress", "interfaces": ["a"]},
            "members": [member(proceedOn=["ok", "pass"])],
        },
        "expected each verdict once, got 'pass', which is 'ok' (at /spec/members/0/proceedOn/1)",
    ),
    (
        "a parameter that is no identifier",
        {"members": [member(params={"max-rate": 1})]},
        "expected a C identifier as key, got 'max-rate' (at /spec/members/0/params/max-rate)",
    ),
    (
        "a parameter without value",
        {"members": [member(params={"rate": None})]},
        "expected a value, got nothing (at /spec/members/0/params/rate)",
    ),
    (
        "an entry without value",
        {"members": [member(maps={"ports": {"entries": [{"key": 1}]}})]},
        "expected the field 'value', got none; add it (at /spec/members/0/maps/ports/entries/0)",
    ),
    (
        "a key of a map twice",
        {
            "members": [
                member(
                    maps={
                        "m": {"entries": [{"key": {"a": 1, "b": 2}, "value": 1}, {"key": {"b": 2, "a": 1}, "value": 2}]}
                    }
                )
            ]
        },
        "expected each key once, got a mapping again; it is entry 0 already (at /spec/members/0/maps/m/entries/1/key)",
    ),
    (
        "a check of a name",
        {"health": {"tcp": [{"connect": "git.corp:443"}]}},
        "expected an IP address and a port, such as",
    ),
    (
        "a check without port",
        {"health": {"tcp": [{"connect": "10.0.0.1"}]}},
        "expected ADDRESS:PORT, such as 10.0.0.1:443",
    ),
    ("a check of port 0", {"health": {"tcp": [{"connect": "10.0.0.1:0"}]}}, "expected ADDRESS:PORT, such as"),
    ("a check of port 65536", {"health": {"tcp": [{"connect": "10.0.0.1:65536"}]}}, "expected ADDRESS:PORT, such as"),
    ("IPv6 without brackets", {"health": {"tcp": [{"connect": "2001:db8::1:443"}]}}, "expected ADDRESS:PORT, such as"),
    (
        "IPv4 in brackets",
        {"health": {"tcp": [{"connect": "[10.0.0.1]:443"}]}},
        "expected an IP address and a port, such as",
    ),
    ("IPv6 with a zone", {"health": {"tcp": [{"connect": "[fe80::1%eth0]:443"}]}}, "expected ADDRESS:PORT, such as"),
    (
        "a duration without unit",
        {"health": {"tcp": [{"connect": "10.0.0.1:1", "within": "5"}]}},
        "expected a duration such as 500ms, 30s, 5m or 24h, got '5' (at /spec/health/tcp/0/within)",
    ),
    (
        "a duration that is a number",
        {"health": {"tcp": [{"connect": "10.0.0.1:1", "within": 5}]}},
        "expected a duration such as 500ms, 30s, 5m or 24h, got the number 5; put it in quotes",
    ),
    (
        "a duration of zero",
        {"health": {"tcp": [{"connect": "10.0.0.1:1", "within": "0s"}]}},
        "expected a duration above zero and of at most 5m, got '0s' (at /spec/health/tcp/0/within)",
    ),
    (
        "a duration that is too long",
        {"health": {"stats": [{"member": "limit", "counter": "dropped", "below": "1%", "over": "6m"}]}},
        "expected a duration above zero and of at most 5m, got '6m' (at /spec/health/stats/0/over)",
    ),
    (
        "a share without percent",
        {"health": {"stats": [{"member": "limit", "counter": "dropped", "below": 0.5}]}},
        "expected a share from 0% to 100%, such as 50%, got the number 0.5; put it in quotes (at /spec/health/stats/0",
    ),
    (
        "a share above everything",
        {"health": {"stats": [{"member": "limit", "counter": "dropped", "below": "101%"}]}},
        "expected a share from 0% to 100%, such as 50%, got '101%'",
    ),
    (
        "a share that nothing is below of",
        {"health": {"stats": [{"member": "limit", "counter": "dropped", "below": "0%"}]}},
        "expected a share above 0%, got one that nothing is below of (at /spec/health/stats/0/below)",
    ),
    (
        "a counter of everything",
        {"health": {"stats": [{"member": "limit", "counter": "seen", "below": "1%"}]}},
        "expected 'passed', 'dropped', 'redirected', 'aborted' or 'broken', got 'seen' (at /spec/health/stats/0/count",
    ),
    (
        "a check of a member of no chain",
        {"health": {"stats": [{"member": "x", "counter": "broken", "below": "1%"}]}},
        "expected a member of this chain ('limit'), got 'x' (at /spec/health/stats/0/member)",
    ),
]


@pytest.mark.parametrize(("spec", "finding"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_what_is_wrong_in_a_chain_is_said_once_and_in_place(spec: dict[str, Any], finding: str) -> None:
    found = findings(chain(**spec))
    assert len(found) == 1
    assert finding in found[0]
    with pytest.raises(ManifestError):
        manifest.parse(files(chain(**spec)), host=EDGE)


@pytest.mark.parametrize(
    ("document", "finding"),
    [
        ([], "1:1: expected a mapping of kind Chain, got a list"),
        ("x", "1:1: expected a mapping of kind Chain, got 'x'"),
        (None, "1:1: expected a mapping of kind Chain, got nothing"),
        (
            chain() | {"apiVersion": "reconciler/v2"},
            "expected 'reconciler/v1alpha1', got 'reconciler/v2'; this version",
        ),
        (chain() | {"apiVersion": 1}, "expected 'reconciler/v1alpha1', got 1; this version reads no other"),
        (chain() | {"kind": "Repository"}, "expected 'Chain' here, got 'Repository' (at /kind)"),
        (chain() | {"kind": "chain"}, "expected 'Chain' here, got 'chain' (at /kind)"),
        (
            chain() | {"status": {}},
            "expected a known field, got 'status'; known here: apiVersion, kind, metadata, spec",
        ),
        (chain() | {"metadata": {}}, "expected the field 'name', got none; add it (at /metadata)"),
        (
            {"kind": "Chain", **{k: v for k, v in chain().items() if k != "apiVersion"}},
            "expected the field 'apiVersion'",
        ),
    ],
)
def test_what_is_no_chain_is_refused(document: Any, finding: str) -> None:
    found = [str(each) for each in manifest.parse_all(files(document)).findings]
    assert len(found) == 1
    assert finding in found[0]


def test_all_findings_of_all_documents_come_at_once() -> None:
    bad = text(
        chain("a", priority="x", members=[member("a", proceedOn=["ok"]), member("a", extra=1)]),
        chain("B", hook={"type": "tc"}),
        chain("c"),
    ).replace(b'"kind": "Chain"', b'"kind": "Chain", "kind": "Chain"', 1)
    found = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/x.yaml": bad})
    assert [finding.pointer for finding in found.findings] == [
        "/kind",
        "/spec/priority",
        "/spec/members/0/proceedOn/0",
        "/spec/members/1/name",
        "/spec/members/1/extra",
        "/metadata/name",
        "/spec/hook",
        "/spec/hook",
    ]
    assert [each.name for each in found.chains] == ["c"]


def test_findings_inside_what_yaml_refused_are_not_repeated() -> None:
    data = text(chain()).replace(b'"priority": 100', b'"priority": *x').replace(b'"eth*"', b'!t "eth*"')
    found = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/x.yaml": data})
    assert [finding.pointer for finding in found.findings] == ["/spec/priority", "/spec/hook/interfaces/0"]


def test_fields_that_a_merge_key_may_have_brought_are_not_missed() -> None:
    data = text(chain()).replace(b'"priority": 100,', b"<<: {priority: 3},")
    found = manifest.parse_all({"reconciler.yaml": REPOSITORY, "chains/x.yaml": data})
    assert [finding.message for finding in found.findings] == ["expected no merge keys, got <<; write the fields out"]
    assert found.chains == ()


def test_the_number_of_findings_about_the_form_is_limited() -> None:
    members = [member(f"m{n}", bad=n, worse=n, worst=n) for n in range(33)] + [{}] * 20
    found = manifest.parse_all(files(chain(members=members))).findings
    assert len(found) == 100
