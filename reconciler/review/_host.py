# SPDX-License-Identifier: Apache-2.0
"""Whether a host runs what was reviewed, and what differs if it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.review._values import Cohort, Review

SHOWN = 12
"""Hex digits of a digest or commit that are shown."""
APPLIED = {"runs": "applied", "wants": "planned", "applied": "applied"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a host says of itself.

    Attributes:
        commit: that was applied last, "" when none was.
        state: digest of its state.
        policy: id of its policy.
        chains: how many it has.
        verb: what it does with the state: it "runs" it, a plan "wants" it, or it "applied" it once.
    """

    name: str
    labels: Mapping[str, str]
    commit: str
    state: str
    policy: str
    chains: int
    verb: Literal["runs", "wants", "applied"] = "runs"


def differences(review: Review, host: Running) -> tuple[bool, tuple[str, ...]]:
    """Whether the host's state is one that was reviewed, and sentences about it."""
    same = [cohort for cohort in review.cohorts if cohort.digest is not None and cohort.digest == host.state]
    mine = [cohort for cohort in review.cohorts if _describes(cohort, host)]
    if same:
        return True, (
            f"{host.verb} state {host.state[:SHOWN]}, as reviewed for {same[0].name}",
            *_policies(same or mine, host),
        )
    return False, (f"{host.verb} state {host.state[:SHOWN]}, which was not reviewed", *_why(review, mine, host))


def _describes(cohort: Cohort, host: Running) -> bool:
    if cohort.names and len(cohort.names) == cohort.count:
        return host.name in cohort.names
    return cohort.labels.items() <= host.labels.items()


def _why(review: Review, mine: list[Cohort], host: Running) -> Iterator[str]:
    if review.kind == "commits" and review.head != host.commit:
        here = f"{host.commit[:SHOWN] or 'none'} is {APPLIED[host.verb]}"
        yield f"the review is of commit {review.head[:SHOWN]}, here {here}"
    if not mine:
        labels = ", ".join(f"{name}={value}" for name, value in sorted(host.labels.items())) or "none"
        yield f"no group of the review describes {host.name} with the labels {labels}"
    for cohort in mine:
        if cohort.digest is None:
            yield f"the review could not tell the state of {cohort.name}"
            continue
        state = cohort.digest[:SHOWN]
        yield f"for {cohort.name} state {state} was reviewed, with {cohort.chains} chains; here are {host.chains}"
        extra = sorted(host.labels.items() - cohort.labels.items())
        if extra:
            words = ", ".join(f"{name}={value}" for name, value in extra)
            yield f"this host has labels that {cohort.name} does not have, and chains may select by them: {words}"
    yield from _policies(mine, host)


def _policies(cohorts: list[Cohort], host: Running) -> Iterator[str]:
    for cohort in cohorts:
        if cohort.policy is not None and not host.policy.startswith(cohort.policy):
            yield f"{cohort.name} was reviewed for policy {cohort.policy[:SHOWN]}, here is {host.policy[:SHOWN]}"
