# SPDX-License-Identifier: Apache-2.0
"""Desired state × packages × snapshot × inventory × policy → ordered steps, each with its reason.

Order: repair pins → load → switch or attach → drain → health → point of no return → detach → drain → unload → evict.
A hook that cannot be served now (absent, occupied, contested) is *pending*: it is drift, it fails nothing, and no step
touches it. Planning the state that an executed plan left gives no steps (tests/properties). `PlanError` and
`GuardrailError` are raised before anything ran.
"""

from __future__ import annotations

from reconciler.plan._alone import alone
from reconciler.plan._generations import Content, compile_chains, read_object, verdicts
from reconciler.plan._make import PlanInput, make, make_teardown, required_namespaces
from reconciler.plan._observed import Current, Observed, observe, our_filter
from reconciler.plan._record import RECORD_VERSION, HostRecord, decode_record, encode_record, occupants, plan_offline

__all__ = [
    "RECORD_VERSION",
    "Content",
    "Current",
    "HostRecord",
    "Observed",
    "PlanInput",
    "alone",
    "compile_chains",
    "decode_record",
    "encode_record",
    "make",
    "make_teardown",
    "observe",
    "occupants",
    "our_filter",
    "plan_offline",
    "read_object",
    "required_namespaces",
    "verdicts",
]
