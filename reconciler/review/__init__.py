# SPDX-License-Identifier: Apache-2.0
"""Two trees × the fleet on paper → what changes, for whom, and what gets weaker (docs/review.md, ADR 6).

Pure: trees, packages and signers are arguments; nothing here reads Git, verifies a signature, knows a clock or calls
libbpf. Everything that comes from HEAD may be hostile: renderers bound and escape every text.
"""

from reconciler.review._fleet import group_of
from reconciler.review._host import Running, differences
from reconciler.review._json import to_document, to_json, to_json_text
from reconciler.review._load import MAX_DOCUMENT_BYTES, from_json
from reconciler.review._make import make
from reconciler.review._markdown import MAX_MARKDOWN, render_markdown
from reconciler.review._reading import Reading, read
from reconciler.review._rules import RULES, Family, Rule, Severity
from reconciler.review._sarif import render_sarif
from reconciler.review._text import render_text
from reconciler.review._values import Cohort, Finding, HookChange, Kind, Line, Packages, Review, ReviewPackage, Tree

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_MARKDOWN",
    "RULES",
    "Cohort",
    "Family",
    "Finding",
    "HookChange",
    "Kind",
    "Line",
    "Packages",
    "Reading",
    "Review",
    "ReviewPackage",
    "Rule",
    "Running",
    "Severity",
    "Tree",
    "differences",
    "from_json",
    "group_of",
    "make",
    "read",
    "render_markdown",
    "render_sarif",
    "render_text",
    "to_document",
    "to_json",
    "to_json_text",
]
