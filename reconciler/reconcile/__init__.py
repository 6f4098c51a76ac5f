# SPDX-License-Identifier: Apache-2.0
"""One pass, the loop around it, and what operators may ask for.

The orchestration and nothing else: it decides what is wanted (the advertised commit, or what was applied last), lets
the core plan it, lets `apply` do it, and records the outcome. Retries are decided by an error's `disposition` alone.
"""

from reconciler.reconcile._candidate import context_digest, judge, last_good, package_refs
from reconciler.reconcile._loop import Agent, Schedule, answer_of, phase_of, teardown_answer
from reconciler.reconcile._operations import accept, resume, suspend, teardown
from reconciler.reconcile._parts import Answer, Clock, PackageSource, Parts, PassResult, Request, Wanted
from reconciler.reconcile._pass import Pass
from reconciler.reconcile._poller import InlinePoller, Poller, ThreadPoller, ask

__all__ = [
    "Agent",
    "Answer",
    "Clock",
    "InlinePoller",
    "PackageSource",
    "Parts",
    "Pass",
    "PassResult",
    "Poller",
    "Request",
    "Schedule",
    "ThreadPoller",
    "Wanted",
    "accept",
    "answer_of",
    "ask",
    "context_digest",
    "judge",
    "last_good",
    "package_refs",
    "phase_of",
    "resume",
    "suspend",
    "teardown",
    "teardown_answer",
]
