# SPDX-License-Identifier: Apache-2.0
"""Globs, host selectors and interfaces."""

from __future__ import annotations

import pytest

from reconciler import manifest
from reconciler._documents import GlobError, parse_glob
from reconciler.model import HostFacts, HostSelector, TcHook, XdpHook


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("eth0", ["eth0"], ["eth", "eth00", "ETH0", ""]),
        ("eth*", ["eth", "eth0", "eth10.5"], ["xeth0"]),
        ("*", ["", "x"], []),
        ("**", ["", "x"], []),
        ("e*h*0", ["eh0", "eth0", "e-hh-00"], ["eth1", "th0"]),
        ("eth?", ["eth0", "ethé"], ["eth", "eth10"]),
        ("eth[0-2a]", ["eth0", "eth2", "etha"], ["eth3", "eth-"]),
        ("eth[!0-2]", ["eth3", "ethx"], ["eth0", "eth2", "eth"]),
        ("eth[-0]", ["eth-", "eth0"], ["eth1"]),
        ("eth[0-]", ["eth-", "eth0"], ["eth1"]),
        ("[*?[]", ["*", "?", "["], ["x"]),
        ("a]", ["a]"], ["a"]),
        ("[]", None, None),
        ("[!]", None, None),
        ("[a", None, None),
        ("[9-0]", None, None),
        ("[\u0000-\uffff]", None, None),
    ],
)
def test_globs_match_whole_names(glob: str, matching: list[str] | None, other: list[str] | None) -> None:
    if matching is None or other is None:
        with pytest.raises(GlobError):
            parse_glob(glob)
        return
    parsed = parse_glob(glob)
    assert [name for name in matching + other if parsed.matches(name)] == matching


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("eth0", "eth0", True),
        ("eth0", "eth1", False),
        ("eth*", "*0", True),
        ("eth*", "veth*", False),
        ("*", "*", True),
        ("a*b", "a*c", False),
        ("a*b*", "*c", True),
        ("eth[0-4]", "eth[5-9]", False),
        ("eth[0-5]", "eth[5-9]", True),
        ("eth[!0-9]", "eth[0-9]", False),
        ("eth[!0-9]", "eth[0-9a]", True),
        ("eth[!0]", "eth[!1]", True),
        ("eth?", "eth??", False),
        ("eth?", "[!e]*", False),
        ("", "*", True),
        ("", "?", False),
        # Both can only match names of 16 characters and more, which no interface has.
        ("aaaaaaaa*", "*bbbbbbbb", False),
        ("aaaaaaaa*", "*bbbbbbb", True),
        ("?" * 16, "*", False),
    ],
)
def test_two_globs_meet_if_some_name_of_an_interface_matches_both(one: str, other: str, *, meet: bool) -> None:
    a, b = parse_glob(one), parse_glob(other)
    assert a.intersects(b, longest=15) is meet
    assert b.intersects(a, longest=15) is meet


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        (HostSelector(), True),
        (HostSelector(match_labels={"role": "edge"}), True),
        (HostSelector(match_labels={"role": "Edge"}), False),
        (HostSelector(match_labels={"role": "edge", "site": "fra"}), True),
        (HostSelector(match_labels={"role": "edge", "rack": "1"}), False),
        (HostSelector(names=("edge-17",)), True),
        (HostSelector(names=("EDGE-*",)), True),
        (HostSelector(names=("edge-17.corp.example",)), True),
        (HostSelector(names=("edge-17.other.example",)), False),
        (HostSelector(names=("edge",)), False),
        (HostSelector(names=("db-*", "*-17")), True),
        (HostSelector(names=("db-*",)), False),
        (HostSelector(match_labels={"role": "db"}, names=("edge-17",)), False),
    ],
)
def test_a_selector_means_hosts_by_label_and_name(selector: HostSelector, *, selected: bool) -> None:
    host = HostFacts(name="Edge-17.corp.example", labels={"role": "edge", "site": "fra"})
    assert manifest.selects(selector, host) is selected


def test_a_short_host_name_is_not_found_by_a_pattern_with_a_domain() -> None:
    host = HostFacts(name="edge-17", labels={})
    assert manifest.selects(HostSelector(names=("edge-17",)), host)
    assert not manifest.selects(HostSelector(names=("edge-17.corp.example",)), host)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (HostSelector(), HostSelector(names=("a",)), True),
        (HostSelector(match_labels={"role": "a"}), HostSelector(match_labels={"role": "b"}), False),
        (HostSelector(match_labels={"role": "a"}), HostSelector(match_labels={"site": "b"}), True),
        (HostSelector(names=("a*",)), HostSelector(names=("b*",)), False),
        (HostSelector(names=("a*", "c")), HostSelector(names=("b*", "C")), True),
        # One names the host by its first label, the other in full.
        (HostSelector(names=("edge-1",)), HostSelector(names=("edge-1.corp.example",)), True),
        (HostSelector(names=("edge-1",)), HostSelector(names=("edge-2.corp.example",)), False),
    ],
)
def test_two_selectors_meet_if_some_host_can_be_meant_by_both(
    one: HostSelector, other: HostSelector, *, meet: bool
) -> None:
    assert manifest.hosts_meet(one, other) is meet
    assert manifest.hosts_meet(other, one) is meet


def test_two_hooks_meet_on_an_interface_of_one_namespace_and_one_kind() -> None:
    xdp = XdpHook(interfaces=("lo", "eth*"))
    assert manifest.hooks_meet(xdp, XdpHook(interfaces=("eth0",)))
    assert not manifest.hooks_meet(xdp, XdpHook(interfaces=("wlan0",)))
    assert not manifest.hooks_meet(xdp, XdpHook(interfaces=("eth0",), netns="blue"))
    assert not manifest.hooks_meet(xdp, TcHook(direction="ingress", interfaces=("eth0",)))
    assert not manifest.hooks_meet(
        TcHook(direction="egress", interfaces=("eth0",)), TcHook(direction="ingress", interfaces=("eth0",))
    )


def test_an_interface_is_meant_by_any_of_its_patterns() -> None:
    assert manifest.interface_matches(["lo", "eth[01]"], "eth1")
    assert not manifest.interface_matches(["lo", "eth[01]"], "eth2")
    assert not manifest.interface_matches([], "eth2")
