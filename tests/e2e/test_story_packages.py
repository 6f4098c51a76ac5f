# SPDX-License-Identifier: Apache-2.0
"""Packages of one's own, from wherever the host gets them, refused by the verifier, and revoked."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tests.e2e.lab import Archive, Lab, chain, entries, member
from tests.e2e.servers import files_https
from tests.kernel import support
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Kit

PACKAGE: dict[str, Any] = {
    "apiVersion": "reconciler/v1alpha1",
    "kind": "Package",
    "metadata": {"name": "member", "version": "0.1.0"},
    "spec": {
        "description": "drops UDP and TCP ports",
        "license": "GPL-2.0-only OR BSD-2-Clause",
        "programs": [
            {
                "name": name,
                "type": "xdp",
                "object": "member.bpf.o",
                "hooks": ["xdp"],
                "proceedOn": ["pass"],
                "description": text,
            }
            for name, text in (("member", "drops ports"), ("broken", "reads beyond the packet"))
        ],
        "maps": [
            {"name": "next", "role": "next", "description": "the next member"},
            {"name": "stats", "role": "stats", "description": "counters"},
            {"name": "hits", "role": "state", "stateVersion": 1, "description": "packets"},
            {"name": "deny", "role": "config", "description": "ports that are dropped"},
            {"name": "nets", "role": "config", "keyFormat": "cidr", "description": "networks that are dropped"},
            {"name": "table", "role": "config", "description": "a port that is dropped"},
        ],
        "params": [
            {"name": "verdict", "description": "what a packet gets", "default": 2},
            {"name": "mark_offset", "description": "where a byte is written", "default": 65535},
            {"name": "mark", "description": "which byte is written", "default": 0},
        ],
        "features": [],
    },
}


def own_package(lab: Lab) -> Archive:
    """Compiled here; built, signed and inspected with the command. It lies in `lab.folder`, its signature beside it."""
    folder = lab.folder / "member"
    folder.mkdir()
    (folder / "package.yaml").write_text(json.dumps(PACKAGE, indent=1))
    (folder / "member.bpf.o").write_bytes(support.compile_program(support.PROGS / "member.bpf.c", "HOOK_XDP"))
    key = lab.folder / "release.pem"
    key.write_bytes(lab.kit.release.private)
    key.chmod(0o600)
    path = lab.folder / "member-0.1.0.tar.gz"
    lab.reconciler("package", "build", str(folder), "--into", str(lab.folder)).expect(0)
    lab.reconciler("package", "sign", str(path), "--key", str(key)).expect(0)
    shown = lab.reconciler("package", "inspect", str(path)).expect(0)
    made = Archive("member", "0.1.0", path.read_bytes())
    assert made.digest in shown.out
    assert path.with_name(path.name + ".sigstore.json").is_file()
    return made


def test_a_package_of_one_s_own_and_one_that_the_verifier_refuses(lab: Lab) -> None:
    archive = own_package(lab)
    kit, hook = lab.kit, lab.hook()
    archives = (archive, kit.firewall)
    denies = {"deny": entries((DROP_PORT, 1))}
    own = member("own", archive, "member", maps=denies)
    good = lab.commit(chain("edge", own, hook=hook), archives=archives)
    lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)
    assert lab.counters()["own"]["dropped"] == 1
    verdicts = lab.reconciler("verify", "--archive", str(lab.folder / archive.file)).expect(0).json["verdicts"]
    assert [(each["reason"], each["signer"]["name"]) for each in verdicts] == [("Verified", "release")]

    # All or nothing: what could be attached beside it is not.
    before, pins = lab.xdp_id(), lab.pinned()
    other = chain("tc", lab.wall(kind="tc-ingress"), hook=lab.hook("tc-ingress"))
    broken = member("own", archive, "broken", maps=denies)
    bad = lab.commit(chain("edge", broken, hook=hook), other, archives=archives)
    refused = lab.apply().expect(1, "VerifierRejected")
    assert refused.json["outcome"]["failed"]["step"]["step"] == "load"
    assert refused.json["outcome"]["undo_failures"] == []
    assert (lab.xdp_id(), lab.pinned()) == (before, pins)
    status = lab.reconciler("status").expect(1).json
    assert (status["applied"]["id"], status["refusal"]["commit"]) == (good, bad)
    # Not tried again, until somebody pushes something else.
    again = lab.apply()
    assert (again.code, again.json["outcome"]) == (1, None)
    lab.commit(chain("edge", own, hook=hook), other, archives=archives)
    lab.apply().expect(0, "Applied")
    assert {each["hook"] for each in lab.attached()} == {"xdp", "tc-ingress"}


def test_packages_come_from_folders_and_web_servers(lab: Lab, tmp_path: Path, kit: Kit) -> None:
    folders = {"local": kit.firewall, "mirror": kit.ratelimit}
    for name, archive in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / archive.file).write_bytes(archive.data)
        (folder / f"{archive.file}.sigstore.json").write_bytes(kit.release.sign(archive.data))
    wall = lab.wall() | {"package": kit.firewall.ref | {"repository": "local"}}
    limit = lab.limit(5) | {"package": kit.ratelimit.ref | {"repository": "mirror"}}
    lab.commit(chain("edge", limit, wall, hook=lab.hook()), archives=(kit.flowcount,))
    with ExitStack() as stack:
        server = stack.enter_context(files_https(tmp_path / "mirror", tmp_path / "https"))
        web = {"url": server.url("").rstrip("/"), "caFile": str(server.ca_file)}
        lab.config["repositories"] = [
            {"name": "local", "folder": {"path": str(tmp_path / "local")}},
            {"name": "mirror", "https": web},
        ]
        lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)
    # Both are in the host's own store now: repair needs neither.
    (tmp_path / "local" / kit.firewall.file).unlink()
    next((lab.pins / "links").iterdir()).unlink()
    lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)
    # A new package does, and what runs stays when it cannot be had.
    program = lab.xdp_id()
    more = lab.wall(archive=kit.firewall_next) | {"package": kit.firewall_next.ref | {"repository": "mirror"}}
    lab.commit(chain("edge", more, hook=lab.hook()), archives=(kit.flowcount,))
    assert lab.apply().expect(1).steps == []
    assert lab.xdp_id() == program


def test_what_is_revoked_runs_on_with_an_alarm_unless_the_host_says_otherwise(lab: Lab, kit: Kit) -> None:
    wall = chain("edge", lab.wall(), hook=lab.hook())
    counting = chain("tc", lab.count(), hook=lab.hook("tc-ingress"))
    lab.applied(wall, counting)
    lab.config["trust"]["revoked"] = {"digests": [kit.firewall.digest]}
    kept = lab.apply().expect(2, "Revoked")
    assert [(item["kind"], item["critical"]) for item in kept.json["status"]["drift"]] == [("revoked", True)]
    assert not lab.reaches(DROP_PORT)
    # Repair counts as running; a new use does not.
    next((lab.pins / "links").glob("xdp_*")).unlink()
    lab.apply().expect(2, "Revoked")
    assert not lab.reaches(DROP_PORT)

    lab.config["trust"]["onRevoked"] = "detach"
    detached = lab.apply().expect(2, "Revoked")
    assert "detach" in detached.steps
    assert [each["hook"] for each in lab.attached()] == ["tc-ingress"]
    fixed = chain("edge", lab.wall(archive=kit.firewall_next), hook=lab.hook())
    lab.commit(fixed, counting)
    lab.apply().expect(0, "Applied")
    lab.commit(wall, counting)
    lab.apply().expect(3, "Revoked")
    assert not lab.reaches(DROP_PORT)
