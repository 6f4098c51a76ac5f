# SPDX-License-Identifier: Apache-2.0
"""Commits that were made to mislead: what they say about themselves, what they bring along, what they leave out."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import status
from reconciler.model import encode_json
from tests.e2e.servers import allowed_signers
from tests.sim.host import START, Host, chain, keys, member, ref, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

LINK = "\x1b]8;;http://evil\x07click\x1b]8;;\x07"
HOSTILE = f"\x1b[2J{LINK}\u202egnp\x9b31m\u2066x\x00"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1000\n"


def faster(rate: int = 7) -> Any:
    return chain("edge", member(params={"rate": rate}))


def texts(value: object) -> Iterator[str]:
    """Every text of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from texts(key)
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)


def plain(text: str) -> bool:
    """Whether nothing in it moves a cursor, colours, links or turns the direction."""
    return not any(unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs") for character in text)


def everything_said(host: Host) -> list[str]:
    """What a person or a program is shown: status, metrics, events, and the files of the state directory."""
    said: list[str] = []
    shown = host.apply().status
    said += status.render(shown, START).splitlines()
    said += status.render_metrics(status.metrics(shown, ())).splitlines()
    said += texts(json.loads(encode_json(shown)))
    for event in host.events:
        said += texts(json.loads(json.dumps(event)))
    for path in host.directory.glob("*.json*"):
        for line in path.read_text().splitlines():
            said += texts(json.loads(line))
    return said


@pytest.mark.parametrize("signed", [True, False], ids=["applied", "refused"])
def test_what_a_commit_says_of_itself_reaches_nobody_raw(edge: Host, signed: bool) -> None:
    raw_message = HOSTILE.replace("\x00", "")
    commit = edge.origin.commit(faster(), key="alice" if signed else None, message=raw_message)
    said = everything_said(edge)
    assert (edge.applied == commit) is signed
    assert any("click" in line for line in said) or not signed
    assert all(plain(line) for line in said)


def test_names_of_files_reach_nobody_raw(edge: Host) -> None:
    files = tree(faster(), signed=None) | {"chains/\x1b[31m\u202e.yaml": b"x"}
    edge.origin.commit(files=files)
    said = everything_said(edge)
    assert edge.apply().status.reason == "InvalidManifest"
    assert all(plain(line) for line in said)


def test_a_commit_is_no_label_of_a_metric(edge: Host) -> None:
    head = edge.origin.commit(faster(), key=None)
    shown = status.render_metrics(status.metrics(edge.apply().status, ()))
    assert head[:12] not in shown
    assert str(edge.applied)[:12] not in shown


def test_a_commit_cannot_authorise_itself(edge: Host) -> None:
    """It brings signers, a policy and a configuration that would allow it; the host's own decide."""
    before = edge.applied
    signers = allowed_signers(mallory=keys()["mallory"])
    policy = b"apiVersion: reconciler/v1alpha1\nkind: Config\nspec: {trust: {commits: {unsafeAllowUnsigned: true}}}\n"
    files = tree(faster()) | {
        "allowed_signers": signers,
        ".git_allowed_signers": signers,
        "policies/signers.yaml": policy,
        "config.yaml": policy,
    }
    head = edge.origin.commit(files=files, key="mallory")
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("SignerNotAllowed", 3)
    assert edge.applied == before
    # Below chains/ it is not even read as one: a kind that a repository may not hold.
    edge.origin.push(str(before))
    edge.origin.commit(files=tree(faster()) | {"chains/config.yaml": policy})
    assert edge.apply().status.reason == "InvalidManifest"
    assert edge.applied == before
    assert head != before


def test_an_octopus_is_judged_by_its_first_parents(edge: Host) -> None:
    base = edge.applied
    assert base is not None
    sides = tuple(edge.origin.commit(faster(n), key=None, parents=(base,), ref=None) for n in (2, 3, 4))
    merge = edge.origin.commit(faster(5), parents=(base, *sides))
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == merge


def test_a_merge_that_holds_what_no_parent_had_is_what_its_signer_signed(edge: Host) -> None:
    base = edge.applied
    assert base is not None
    side = edge.origin.commit(faster(2), parents=(base,), ref=None)
    evil = edge.origin.commit(faster(99), key="mallory", parents=(base, side))
    result = edge.apply()
    assert result.status.exit_code == 3
    assert evil in result.status.message
    edge.origin.push(base)
    meant = edge.origin.commit(faster(99), parents=(base, side))
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == meant


@pytest.mark.parametrize("name", ["chain", "Chains", "chains.d"])
def test_a_folder_that_was_renamed_is_no_order_to_detach(edge: Host, name: str) -> None:
    before = edge.fingerprint()
    files = {path.replace("chains/", f"{name}/"): content for path, content in tree(chain()).items()}
    edge.origin.commit(files=files)
    result = edge.apply()
    assert result.status.exit_code in (1, 4)
    assert edge.fingerprint() == before


@pytest.mark.parametrize("where", ["chains/", "packages/"])
def test_a_pointer_of_git_lfs_is_no_manifest_and_no_package(edge: Host, where: str) -> None:
    before = edge.fingerprint()
    files = tree(faster())
    path = next(each for each in files if each.startswith(where) and not each.endswith(".json"))
    edge.origin.commit(files=files | {path: LFS})
    edge.directory.joinpath("packages").rename(edge.directory / "elsewhere")  # nothing comes from the store
    result = edge.apply()
    assert result.status.reason in ("InvalidManifest", "DigestMismatch")
    assert edge.fingerprint() == before


def test_a_package_under_another_packages_name_is_refused(edge: Host) -> None:
    before = edge.fingerprint()
    wrong = ref("ratelimit") | {"digest": ref("firewall")["digest"]}
    files = tree(chain("edge", member() | {"package": wrong}))
    edge.origin.commit(files=files)
    assert edge.apply().status.reason == "DigestMismatch"
    assert edge.fingerprint() == before
