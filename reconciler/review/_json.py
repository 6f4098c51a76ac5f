# SPDX-License-Identifier: Apache-2.0
"""The review as JSON values: `schema/review-v1.schema.json` says what stands where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reconciler.model import to_builtins
from reconciler.review._rules import RULES, Family, Severity

if TYPE_CHECKING:
    from reconciler.review._values import Cohort, Finding, Review


def to_document(review: Review) -> dict[str, Any]:
    """JSON values; text in them is as it came, so printers must escape it for where it goes."""
    return {
        "version": review.version,
        "base": review.base,
        "head": review.head,
        "kind": review.kind,
        "now": review.now,
        "onPaper": review.on_paper,
        "verdict": verdict(review),
        "counts": {severity.value: sum(each.severity is severity for each in review.open) for severity in Severity},
        "findings": [finding_document(finding) for finding in review.findings],
        "chains": [to_builtins(chain) for chain in review.chains],
        "hosts": [_cohort(cohort) for cohort in review.cohorts],
    }


def to_json(review: Review) -> str:
    """The document as text."""
    return to_json_text(to_document(review))


def to_json_text(value: object) -> str:
    """JSON in ASCII: whatever a text holds, a terminal shows it as it is written here."""
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def verdict(review: Review) -> str:
    """One word: "blocked", "weaker", "changed" or "unchanged"."""
    families = {RULES[finding.id].family for finding in review.open}
    if Family.BLOCKED in families:
        return "blocked"
    if Family.WEAKER in families:
        return "weaker"
    return "unchanged" if review.empty else "changed"


def finding_document(finding: Finding) -> dict[str, Any]:
    """One finding with what its rule says."""
    rule = RULES[finding.id]
    return {
        "id": finding.id,
        "severity": rule.severity.value,
        "family": rule.family.value,
        "title": rule.title,
        "message": finding.message,
        "reason": rule.reason,
        "chain": finding.chain or None,
        "member": finding.member or None,
        "file": finding.file,
        "line": finding.line,
        "column": finding.column,
        "hosts": list(finding.hosts),
        "acknowledged": to_builtins(finding.acknowledged),
    }


def _cohort(cohort: Cohort) -> dict[str, Any]:
    plain: dict[str, Any] = to_builtins(cohort)
    mode = plain.pop("secure_mode")
    hooks = [_hook(hook) for hook in cohort.hooks]
    return {**plain, "secureMode": mode, "changed": cohort.changed, "hooks": hooks}


def _hook(hook: Any) -> dict[str, Any]:  # noqa: ANN401 - a HookChange
    plain: dict[str, Any] = to_builtins(hook)
    plain["changes"] = [{"kind": kind, "member": member} for kind, member in hook.changes]
    return plain
