# SPDX-License-Identifier: Apache-2.0
"""What a package's manifest promises and its object does not hold is refused by name; equal content, equal digest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import elf
from reconciler.model import (
    Features,
    HookKind,
    HookPoint,
    MapEntry,
    MapRole,
    MapSpec,
    Package,
    PackageManifest,
    ParamSpec,
    TcEnd,
)
from reconciler.plan import _generations as module
from reconciler.plan import verdicts
from reconciler.plan._generations import compile_chains, instantiate
from tests.signed_packages import OBJECT, object_bytes
from tests.sim.world import member, shipped, tc_chain, xdp_chain

if TYPE_CHECKING:
    from reconciler.model import Chain
    from reconciler.plan._generations import Content

POINT = HookPoint(kind=HookKind.XDP, netns_inode=1, ifindex=2, netns="host", interface="eth0")


def compiled(chain: Chain, package: Package) -> tuple[Content | None, list[str]]:
    point = replace(POINT, kind=chain.hook.kind)
    content, findings = compile_chains((chain,), point, {package.ref.digest: package}, Features())
    return content, [finding.message for finding in findings]


def with_manifest(name: str, **changes: Any) -> Package:
    package = shipped()[name]
    manifest: PackageManifest = replace(package.manifest, **changes)
    return replace(package, manifest=manifest)


def test_a_parameter_that_the_object_does_not_have_is_refused() -> None:
    package = with_manifest("ratelimit", params=(ParamSpec(name="ghost", description="", default=1),))
    content, (message,) = compiled(xdp_chain("edge", member("ratelimit")), package)
    assert content is None
    assert "ghost: the object has no such global" in message


def test_a_parameter_without_a_default_stays_as_the_object_has_it() -> None:
    params = tuple(replace(spec, default=None) for spec in shipped()["ratelimit"].manifest.params)
    content, messages = compiled(xdp_chain("edge", member("ratelimit")), with_manifest("ratelimit", params=params))
    assert messages == []
    assert content is not None
    assert {value.name for value in content.members[0].globals} == {
        "chain_proceed",
        "chain_last",
        "chain_end",
        "chain_broken",
    }


def test_an_object_without_the_globals_does_not_follow_the_contract() -> None:
    package = shipped()["ratelimit"]
    (program,) = package.manifest.programs
    manifest = replace(package.manifest, programs=(replace(program, name="prog", object=OBJECT),), params=(), maps=())
    package = replace(package, manifest=manifest, objects={OBJECT: object_bytes()})
    _, messages = compiled(xdp_chain("edge", member("ratelimit", program="prog")), package)
    assert [
        name for name in ("chain_proceed", "chain_last", "chain_end", "chain_broken") for m in messages if name in m
    ] == [
        "chain_proceed",
        "chain_last",
        "chain_end",
        "chain_broken",
    ]


@pytest.mark.parametrize("objects", [{}, {"ratelimit.bpf.o": b"no object"}])
def test_an_object_that_is_missing_or_none_is_refused(objects: dict[str, bytes]) -> None:
    package = replace(shipped()["ratelimit"], objects=objects)
    _, (message,) = compiled(xdp_chain("edge", member("ratelimit")), package)
    assert "object ratelimit.bpf.o" in message


def test_a_map_of_another_object_of_the_package_does_not_matter() -> None:
    maps = (*shipped()["ratelimit"].manifest.maps, MapSpec(name="ghost", role=MapRole.STATE))
    content, messages = compiled(xdp_chain("edge", member("ratelimit")), with_manifest("ratelimit", maps=maps))
    assert messages == []
    assert content is not None
    assert "ghost" not in {use.name for use in content.members[0].maps}


def test_entries_of_a_map_without_types_cannot_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    package = shipped()["ratelimit"]
    (program,) = package.manifest.programs
    real = elf.read_object(package.objects[program.object], name=program.object)
    untyped = replace(real, maps=tuple(replace(found, key_type_id=None) for found in real.maps))
    monkeypatch.setattr(module, "read_object", lambda data, name: untyped)
    declared = {"ports": (MapEntry(key=1, value=1),)}
    _, (message,) = compiled(xdp_chain("edge", member("ratelimit", maps=declared)), package)
    assert "has no BTF types" in message


def test_members_of_one_hook_share_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.read_object

    def read(data: bytes, name: str) -> elf.Object:
        found = real(data, name)
        frags = name.startswith("firewall")
        return replace(
            found, programs=tuple(replace(each, section="xdp.frags") if frags else each for each in found.programs)
        )

    monkeypatch.setattr(module, "read_object", read)
    packages = {package.ref.digest: package for package in shipped().values()}
    chain = xdp_chain("edge", member("ratelimit"), member("firewall"))
    _, (finding,) = compile_chains((chain,), POINT, packages, Features())
    assert finding.message.endswith(
        'expected all members of a hook in one section, got: edge/ratelimit is in section "xdp", '
        'edge/firewall is in section "xdp.frags"'
    )


def test_more_entries_than_a_map_holds_are_refused() -> None:
    package = shipped()["ratelimit"]
    (program,) = package.manifest.programs
    real = elf.read_object(package.objects[program.object], name=program.object)
    limit = next(found.max_entries for found in real.maps if found.name == "ports")
    ports = tuple(MapEntry(key=number, value=1) for number in range(limit + 1))
    _, messages = compiled(xdp_chain("edge", member("ratelimit", maps={"ports": ports})), package)
    assert f"expected at most {limit} entries, got {limit + 1}" in messages[0]


def test_tc_verdicts_have_the_names_of_xdp_too() -> None:
    known = verdicts(HookKind.TC_INGRESS)
    assert (known["pass"], known["drop"], known["next"]) == (known["ok"], known["shot"], -1)
    assert "next" not in verdicts(HookKind.XDP)


def proceed(content: Content | None) -> int:
    assert content is not None
    value = next(value for value in content.members[0].globals if value.name == "chain_proceed")
    return int.from_bytes(value.value, "little")


def test_proceed_on_becomes_a_mask_in_which_next_is_bit_31() -> None:
    chain = tc_chain("edge", member("flowcount", proceed_on=("next", "ok", "pipe")))
    content, _ = compiled(chain, shipped()["flowcount"])
    assert proceed(content) == 1 << 31 | 1 << 0 | 1 << 3
    content, _ = compiled(xdp_chain("edge", member("ratelimit", proceed_on=())), shipped()["ratelimit"])
    assert proceed(content) == 0


def test_equal_content_gives_an_equal_name_and_anything_else_another() -> None:
    chains = [
        tc_chain("edge", member("flowcount")),
        tc_chain("edge", member("flowcount", params={"by_port": False})),
        tc_chain("edge", member("flowcount", proceed_on=("next",))),
        tc_chain("edge", member("flowcount"), end=TcEnd.PASS),
        tc_chain("edge", member("flowcount"), direction="egress"),
        tc_chain("other", member("flowcount")),
        tc_chain("edge", member("flowcount", name="other")),
    ]
    contents = [compiled(chain, shipped()["flowcount"])[0] for chain in chains]
    assert len({content.digest for content in contents if content is not None}) == len(chains)
    again, _ = compiled(tc_chain("edge", member("flowcount"), file="elsewhere.yaml"), shipped()["flowcount"])
    assert again == contents[0]
    assert again is not None
    one, two = instantiate(again, 0, frozenset()), instantiate(again, 1, frozenset())
    assert one.digest == two.digest
    assert one.name != two.name
    assert "." not in one.name
