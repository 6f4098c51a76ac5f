# SPDX-License-Identifier: Apache-2.0
"""What a host refuses: packages and commits that nobody may have made, history that goes back, too much at once.

In each of them what runs stays, program for program.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.lab import Lab, chain
from tests.support_probe import DROP_PORT


def first(lab: Lab) -> str:
    return lab.applied(chain("edge", lab.wall(), hook=lab.hook()))


def untrusted(lab: Lab) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is wrong with a commit → the reason that is expected, and what `Lab.commit` is told."""
    kit, release = lab.kit, lab.kit.release
    good = kit.ratelimit
    altered = replace(good, data=good.data[:-1] + bytes([good.data[-1] ^ 1]))
    other = replace(good, data=kit.firewall_next.data)  # signed as what it is, with another name
    pinned = lab.limit(5) | {"package": other.ref}
    with_firewall = (kit.firewall,)
    return {
        "a package without a signature": ("Unsigned", {"bundles": {"ratelimit": None}}),
        "a package signed by a key that is valid for others": (
            "BadSignature",
            {"bundles": {"ratelimit": kit.other.sign(good.data)}},
        ),
        "a package with another's signature": (
            "BadSignature",
            {"bundles": {"ratelimit": release.sign(kit.firewall.data)}},
        ),
        "an archive that is not what the manifest pins": (
            "DigestMismatch",
            {"archives": (altered, *with_firewall), "bundles": {"ratelimit": release.sign(good.data)}},
        ),
        "an altered archive that the manifest pins": (
            "BadSignature",
            {
                "chain": chain("edge", pinned, hook=lab.hook()),
                "archives": (other, *with_firewall),
                "bundles": {"ratelimit": release.sign(good.data)},
            },
        ),
        "a commit without a signature": ("Unsigned", {"signed": False}),
        "a commit signed by a stranger": ("SignerNotAllowed", {"key": kit.mallory}),
    }


def test_what_is_not_trusted_is_refused_and_what_runs_stays(lab: Lab) -> None:
    good = first(lab)
    program, pins = lab.xdp_id(), lab.pinned()
    wanted = chain("edge", lab.limit(5), hook=lab.hook())
    for what, (reason, how) in untrusted(lab).items():
        asked = how.pop("chain", wanted)
        head = lab.commit(asked, parents=(good,), message=what, **how)
        refused = lab.apply().expect(3, reason)
        status = refused.json["status"]
        assert (what, refused.steps, status["applied"]["id"], status["refusal"]["commit"]) == (what, [], good, head)
        assert (what, lab.xdp_id(), lab.pinned()) == (what, program, pins)
    # A signed commit does not vouch for the one below it.
    bad = lab.commit(wanted, parents=(good,), signed=False)
    lab.commit(wanted, message="on top of it")
    refused = lab.apply().expect(3, "Unsigned")
    assert bad in refused.json["status"]["message"]
    assert (lab.xdp_id(), lab.pinned()) == (program, pins)
    assert not lab.reaches(DROP_PORT)


def test_a_refusal_lasts_and_a_good_commit_ends_it(lab: Lab) -> None:
    first(lab)
    lab.commit(chain("edge", lab.limit(5), hook=lab.hook()), bundles={"ratelimit": None})
    lab.apply().expect(3, "Unsigned")
    # Nobody judges it again, and nothing is said twice.
    lab.apply().expect(3, "Unsigned")
    assert lab.reconciler("status").code == 3
    assert [record["event"] for record in lab.reconciler("history").json] == ["applied", "refused"]
    good = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    assert lab.apply().expect(0, "Applied").json["status"]["applied"]["id"] == good


def test_the_first_start_needs_to_know_where_history_begins(lab: Lab) -> None:
    head = lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    del lab.config["source"]["minimumCommit"]
    assert lab.apply().expect(4, "NoMinimumCommit").steps == []
    assert lab.xdp_id() is None
    taken = lab.apply("--unsafe-trust-first-use").expect(0, "Applied")
    assert taken.json["status"]["applied"]["id"] == head


@pytest.mark.parametrize("how", ["rewound", "rewritten"])
def test_history_never_goes_back_unless_root_says_so(how: str, lab: Lab) -> None:
    old = first(lab)
    newer = lab.applied(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    program = lab.xdp_id()
    if how == "rewound":
        lab.repository.git("update-ref", "refs/heads/main", old)
        wanted = old
    else:
        wanted = lab.commit(chain("edge", lab.wall(name="fork"), hook=lab.hook()), parents=(old,), message="fork")

    refused = lab.apply().expect(4, "HistoryRewritten")
    assert refused.steps == []
    assert f"reconciler accept {wanted}" in refused.json["status"]["message"]
    assert lab.xdp_id() == program
    assert lab.reconciler("accept", newer, "--reason", "no").code == 4
    assert lab.xdp_id() == program

    accepted = lab.reconciler("accept", wanted, "--reason", "the branch was wrong").expect(0, "Applied")
    assert accepted.json["status"]["applied"]["id"] == wanted
    assert lab.xdp_id() != program
    events = lab.reconciler("history").json
    (record,) = [each for each in events if each["event"] == "accepted"]
    assert (record["commit"], record["reason"], record["by"]) == (wanted, "the branch was wrong", "uid 0")
    # Once: the same again is no longer on record.
    lab.repository.git("update-ref", "refs/heads/main", newer)
    lab.apply().expect(0 if how == "rewound" else 4)


def test_more_than_the_guardrail_needs_a_confirmation(lab: Lab) -> None:
    lab.config["guardrail"] = {"share": "50%"}
    kinds = ("xdp", "tc-ingress", "tc-egress")
    chains = [chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in kinds]
    old = lab.applied(*chains)
    new = lab.commit(chains[0])
    plan = lab.reconciler("plan").expect(4)
    assert plan.json["guard"]["exceeded"]
    assert (plan.json["guard"]["removed"], plan.json["guard"]["owned"]) == (2, 3)
    refused = lab.apply().expect(4, "GuardrailRefused")
    assert refused.steps == []
    assert plan.json["digest"] in refused.json["status"]["message"]
    assert lab.apply("--confirm", "0" * 64).expect(4, "GuardrailRefused").steps == []
    assert len(lab.attached()) == 3
    assert lab.reconciler("status").expect(4).json["applied"]["id"] == old

    done = lab.apply("--confirm", plan.json["digest"]).expect(0, "Applied")
    assert done.json["status"]["applied"]["id"] == new
    assert [each["hook"] for each in lab.attached()] == ["xdp"]
