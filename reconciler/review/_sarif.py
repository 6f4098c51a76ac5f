# SPDX-License-Identifier: Apache-2.0
"""The review as SARIF 2.1.0, for code scanning: one result for each finding, at its line in the manifest."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from reconciler.review._rules import RULES, Severity
from reconciler.status import clean

if TYPE_CHECKING:
    from reconciler.review._values import Finding, Review

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: Final = {Severity.HIGH: "error", Severity.MEDIUM: "warning", Severity.LOW: "note", Severity.INFO: "note"}
MAX_RESULTS: Final = 5000
"""What GitHub shows of one run; the JSON document has all."""
MAX_MESSAGE: Final = 1000

_PATH: Final = re.compile(r"(reconciler\.yaml|(chains|hosts|packages)/[^\0]{1,1024})")


def render_sarif(review: Review, *, version: str) -> dict[str, Any]:
    """JSON values that the standard's schema accepts.

    Args:
        review: what is told.
        version: of the reconciler.
    """
    used = sorted({finding.id for finding in review.findings})
    index = {name: number for number, name in enumerate(used)}
    results = [_result(finding, index[finding.id]) for finding in review.findings[:MAX_RESULTS]]
    run: dict[str, Any] = {
        "tool": {"driver": {"name": "reconciler", "version": version, "rules": [_rule(name) for name in used]}},
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    if len(review.findings) > MAX_RESULTS:
        run["properties"] = {"leftOut": len(review.findings) - MAX_RESULTS}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(name: str) -> dict[str, Any]:
    rule = RULES[name]
    return {
        "id": rule.id,
        "name": "".join(re.sub(r"[^A-Za-z0-9]", "", word).capitalize() for word in rule.title.split()),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.condition}: {rule.reason}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    message = clean(f"{finding.chain + ': ' if finding.chain else ''}{finding.message}", MAX_MESSAGE)
    identity = "\0".join((finding.id, finding.chain, finding.member, finding.message))
    result: dict[str, Any] = {
        "ruleId": finding.id,
        "ruleIndex": rule,
        "level": LEVELS[finding.severity],
        "message": {"text": message},
        "locations": [{"physicalLocation": _location(finding)}],
        "partialFingerprints": {"finding/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()},
    }
    if finding.acknowledged is not None:
        why = clean(finding.acknowledged.why, MAX_MESSAGE)
        result["suppressions"] = [{"kind": "external", "justification": why}]
    return result


def _location(finding: Finding) -> dict[str, Any]:
    """A place inside of the repository, whatever a file is called: code scanning demands one for each result."""
    path = finding.file if finding.file and _inside(finding.file) else "reconciler.yaml"
    location: dict[str, Any] = {
        "artifactLocation": {"uri": quote(path, safe="/", errors="replace"), "uriBaseId": "%SRCROOT%"}
    }
    line = finding.line if path == finding.file and finding.line else 1
    location["region"] = {"startLine": max(1, line)}
    return location


def _inside(path: str) -> bool:
    return bool(_PATH.fullmatch(path)) and not any(part in ("", ".", "..") for part in path.split("/"))
