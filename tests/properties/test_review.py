# SPDX-License-Identifier: Apache-2.0
"""A review says what plans do, nothing of no change, the same of every spelling, and finds what is weakened."""

from __future__ import annotations

import ipaddress
import json
import os
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reconciler import review
from reconciler.model import PackageRef, TcHook
from reconciler.review import ReviewPackage
from reconciler.review._coverage import coverage_of
from tests.cases.review_case import CHAIN, Built, Case, build, head, make, merge, text
from tests.properties.test_convergence import INTERFACES, states, world_with
from tests.sim.world import shipped

if TYPE_CHECKING:
    from reconciler.model import Chain, DesiredState

EXAMPLES = int(os.environ.get("RECONCILER_EXAMPLES", "40"))
bounded = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

GROUP: dict[str, Any] = {
    "host": {"names": ["host"], "interfaces": [{"names": ["lo", *INTERFACES]}], "guardrail": {"share": "100%"}}
}


def written(chain: Chain) -> dict[str, Any]:
    """A chain as a manifest."""
    hook: dict[str, Any] = {"type": chain.hook.type, "interfaces": list(chain.hook.interfaces)}
    if isinstance(chain.hook, TcHook):
        hook["direction"] = chain.hook.direction
    members = []
    for each in chain.members:
        package = {"name": each.package.name, "version": each.package.version, "digest": each.package.digest}
        members.append({"name": each.name, "package": package, "program": each.program, "params": dict(each.params)})
    return {**head("Chain", chain.name), "spec": {"priority": chain.priority, "hook": hook, "members": members}}


def side(state: DesiredState, name: str = "side") -> Built:
    """A repository that wants this state on the one host of `GROUP`."""
    files = {"reconciler.yaml": text({**head("Repository", "test"), "spec": {"allowEmpty": True}})}
    files |= {f"chains/{chain.name}.yaml": text(written(chain)) for chain in state.chains}
    files |= {f"hosts/{group}.yaml": text({**head("HostGroup", group), "spec": spec}) for group, spec in GROUP.items()}
    packages: dict[PackageRef, ReviewPackage | str] = {
        package.ref: ReviewPackage(ref=package.ref, manifest=package.manifest, objects=package.objects, verified=True)
        for package in shipped().values()
    }
    return Built(review.Tree(name=name, files=files), packages)


@bounded
@given(first=states(), second=states())
def test_a_review_names_what_the_plan_of_a_converged_host_does(first: DesiredState, second: DesiredState) -> None:
    world = world_with(None)
    world.converge(first)
    planned = {
        (change.where, change.kind.value, f"{change.chain}/{change.member}") for change in world.plan(second).changes
    }
    made = make(side(first), side(second))
    told = {
        (hook.hook, kind, member) for cohort in made.cohorts for hook in cohort.hooks for kind, member in hook.changes
    }
    assert told == planned


@bounded
@given(state=states())
def test_a_review_of_no_change_is_empty(state: DesiredState) -> None:
    assert make(side(state), side(state)).empty


@bounded
@given(first=states(), second=states(), data=st.data())
def test_keys_files_and_their_names_do_not_matter(
    first: DesiredState, second: DesiredState, data: st.DataObject
) -> None:
    base, change = side(first), side(second)
    plain = make(base, change)
    files = {}
    for path, content in change.tree.files.items():
        folder, _, name = path.rpartition("/")
        moved = f"{folder}/{data.draw(st.integers(0, 9))}-{name}" if folder == "chains" else path
        files[moved] = respelled(json.loads(content), data).encode()
    again = make(base, Built(review.Tree(name="side", files=files), change.packages))
    assert [(each.id, each.message, each.chain) for each in again.findings] == [
        (each.id, each.message, each.chain) for each in plain.findings
    ]
    assert again.cohorts == plain.cohorts


def respelled(value: Any, data: st.DataObject) -> str:
    """The same document with keys in another order and other blanks."""

    def mixed(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: mixed(each[key]) for key in data.draw(st.permutations(sorted(each)))}
        return [mixed(item) for item in each] if isinstance(each, list) else each

    return json.dumps(mixed(value), indent=data.draw(st.sampled_from([None, 1, 4])))


# --- weakening ---------------------------------------------------------------------------------------------

NETWORK = st.builds(
    lambda address, length: str(ipaddress.ip_network((address, length), strict=False)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
FIREWALL = {"limit": None, "wall": {"package": "firewall"}}
COUNT = {"limit": None, "count": {"package": "flowcount"}}


def listed(name: str, *items: Any) -> dict[str, Any]:
    return {"package": "firewall", "maps": {name: {"entries": list(items)}}}


def cidrs(name: str, networks: set[str]) -> dict[str, Any]:
    return {"edge": {"members": {**FIREWALL, "wall": {"package": "firewall", "maps": {name: entries(networks)}}}}}


def entries(keys: Any) -> dict[str, Any]:
    return {"entries": [{"key": key, "value": 0} for key in sorted(keys)]}


def addresses(networks: set[str]) -> set[tuple[int, int]]:
    """First and last address of what is covered, from the standard library alone."""
    merged = ipaddress.collapse_addresses(ipaddress.IPv4Network(each) for each in networks)
    return {(int(each.network_address), int(each.broadcast_address)) for each in merged}


def ids(base: Any, change: Any, repository: Any = None) -> set[str]:
    case = Case({"base": base, "head": change, "head-repository": repository or {}})
    return {finding.id for finding in case.make().findings}


@bounded
@given(before=st.sets(NETWORK, min_size=1, max_size=6), after=st.sets(NETWORK, max_size=6))
def test_a_deny_that_covers_less_and_an_allow_that_covers_more_are_found(before: set[str], after: set[str]) -> None:
    def covered(networks: set[str], by: set[str]) -> bool:
        whole = addresses(by)
        return all(any(low <= first and last <= high for low, high in whole) for first, last in addresses(networks))

    one, other = coverage_of("cidr", sorted(before)), coverage_of("cidr", sorted(after))
    assert one is not None
    assert other is not None
    lost = not one.minus(other).empty
    assert lost != covered(before, after)
    assume(before != after)
    assert ("RV018" in ids(cidrs("deny_v4", before), cidrs("deny_v4", after))) == lost
    assert ("RV017" in ids(cidrs("allow_v4", after), cidrs("allow_v4", before))) == lost


@given(
    before=st.sets(st.integers(0, 255), max_size=20),
    after=st.sets(st.integers(0, 255), max_size=20),
)
def test_coverage_is_arithmetic_of_sets(before: set[int], after: set[int]) -> None:
    one, other = coverage_of("port", sorted(before)), coverage_of("port", sorted(after))
    assert one is not None
    assert other is not None
    ranges = one.minus(other).ranges.get(0, ())
    left = {port for first, last in ranges for port in range(first, last + 1)}
    assert left == before - after


def packaged(name: str, before: Any, after: Any) -> tuple[Any, Any]:
    """A chain of its own whose package becomes another one."""
    one, other = ({"members": {"limit": {"package": {"use": "ratelimit", **each}}}} for each in (before, after))
    return {name: {**one, "priority": 500 + len(name)}}, {name: other}


OLD, NEW = {"key": "10.0.0.0/8", "value": 0}, {"key": "10.0.0.0/9", "value": 0}
WEAKER: dict[str, tuple[Any, Any]] = {
    "RV010": ({"more": {"priority": 300}}, {"more": None}),
    "RV011": ({"edge": {"members": {"gone": {"package": "firewall"}}}}, {"edge": {"members": {"gone": None}}}),
    "RV012": ({}, {"edge": {"hook": {"interfaces": ["eth1"]}}}),
    "RV013": ({}, {"edge": {"hosts": {"matchLabels": {"site": "x"}}}}),
    "RV015": ({}, {"edge": {"onBroken": "pass"}}),
    "RV016": ({}, {"edge": {"health": {"source": False}}}),
    "RV019": (
        {"edge": {"members": {"limit": {"params": {"rate": 7}}}}},
        {"edge": {"members": {"limit": {"params": {"rate": 8}}}}},
    ),
    "RV020": ({}, {"edge": {"members": {"limit": {"params": {"drop_malformed": False}}}}}),
    "RV021": ({}, {"edge": {"members": {"limit": {"proceedOn": ["pass", "drop"]}}}}),
    "RV017": (
        {"allows": {"priority": 401, "members": {**FIREWALL, "wall": listed("allow_v4", NEW)}}},
        {"allows": {"members": {"wall": {"maps": {"allow_v4": {"entries": [OLD]}}}}}},
    ),
    "RV018": (
        {"denies": {"priority": 402, "members": {**FIREWALL, "wall": listed("deny_v4", OLD)}}},
        {"denies": {"members": {"wall": {"maps": {"deny_v4": {"entries": [NEW]}}}}}},
    ),
    "RV022": packaged("a", {"version": "1.0.1"}, {"version": "1.0.2", "signer": "SHA256:" + "B" * 43}),
    "RV023": packaged("bb", {"version": "1.10.0"}, {"version": "1.9.0"}),
    "RV024": (
        {"mirror": {"hook": {"type": "tc", "direction": "egress"}, "members": COUNT}},
        {"mirror": {"hook": {"end": "pass"}}},
    ),
    "RV025": ({}, {}),  # reconciler.yaml, and no chain
    "RV026": packaged(
        "ccc",
        {"version": "1.0.1"},
        {"version": "1.0.2", "params": {"burst_ms": {"description": "x", "weakens": "lower"}}},
    ),
    "RV027": (
        {"edge": {"members": {"wall": {"package": "firewall"}}}},
        {"edge": {"members": {"wall": {"params": {"default_verdict": "ALLOW"}}}}},
    ),
    "RV028": (
        {"skips": {"priority": 403, "members": {"limit": {"proceedOn": ["pass"]}, "wall": {"package": "firewall"}}}},
        {"skips": {"members": {"limit": {"proceedOn": ["tx"]}}}},
    ),
}
"""Every weakening by its id: what must be there before, and the change. RV014 follows from others."""
HARMLESS: list[Any] = [
    {"edge": {"priority": 77}},
    {"edge": {"stateScope": "interface"}},
    {"new": {"priority": 400, "members": FIREWALL}},
    {"edge": {"members": {"zz": {"package": "firewall", "params": {"drop_malformed": True}}}}},
    {"edge": {"members": {"limit": {"params": {"burst_ms": 500}}}}},
    {"edge": {"health": {"tcp": [{"connect": "10.0.0.1:1"}]}}},
]


@bounded
@given(
    chosen=st.sets(st.sampled_from(sorted(WEAKER)), min_size=1, max_size=4),
    noise=st.sets(st.integers(0, len(HARMLESS) - 1)),
)
def test_every_weakening_is_found_among_others_and_nothing_else_is(chosen: set[str], noise: set[int]) -> None:
    base: Any = {"edge": {}}
    change: Any = {}
    for each in sorted(chosen):
        base, change = merge(base, WEAKER[each][0]), merged(change, WEAKER[each][1])
    for number in sorted(noise):
        change = merged(change, HARMLESS[number])
    found = ids(base, change, {"allowEmpty": True} if "RV025" in chosen else None)
    weaker = {each for each in found if review.RULES[each].family is review.Family.WEAKER}
    # A selector or hook that leaves places leaves them empty as well.
    assert weaker - {"RV014"} == chosen


def test_every_weakening_is_generated() -> None:
    assert {rule.id for rule in review.RULES.values() if rule.family is review.Family.WEAKER} == {*WEAKER, "RV014"}


def merged(one: Any, other: Any) -> Any:
    """Two merge patches as one: null stays what it is."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return {
            key: merged(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
            for key in keys
        }
    return other


def test_the_chain_of_cases_is_one() -> None:
    built = build("x", {"edge": merge(CHAIN, {})}, {}, {}, {})
    assert make(built, built).empty
