# SPDX-License-Identifier: Apache-2.0
"""A review from its JSON document, which somebody else may have made up.

A job that may write comments renders what a job without privileges has found. It takes values and never text that is
ready to be shown: every field has its type, every id is that of a rule, and the renderers escape the rest as always.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from reconciler.errors import Diagnostic, InputError
from reconciler.review._rules import RULES
from reconciler.review._values import FORMAT_VERSION, ChainChange, Cohort, Finding, Kind, Review

MAX_DOCUMENT_BYTES: Final = 64 << 20
"""A review of ten thousand chains takes some MiB."""


def from_json(data: bytes, *, file: str) -> Review:
    """The review that `to_json` wrote.

    Args:
        data: the document.
        file: its name, for errors.

    Raises:
        InputError: it is not such a document, or of a newer format.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _refused(file, f"expected at most {MAX_DOCUMENT_BYTES} bytes, got more")
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        if raw.get("version") != FORMAT_VERSION:
            version = str(raw.get("version"))[:20]
            raise _refused(file, f"expected a review in format {FORMAT_VERSION}, got {version}; use the same version")
        review = Review(
            base=msgspec.convert(raw["base"], str),
            head=msgspec.convert(raw["head"], str),
            kind=msgspec.convert(raw["kind"], Kind),
            now=msgspec.convert(raw["now"], str),
            findings=tuple(_finding(each) for each in msgspec.convert(raw["findings"], list[dict[str, Any]])),
            chains=msgspec.convert(raw["chains"], tuple[ChainChange, ...]),
            cohorts=tuple(_cohort(each) for each in msgspec.convert(raw["hosts"], list[dict[str, Any]])),
            on_paper=msgspec.convert(raw["onPaper"], bool),
        )
    except (KeyError, TypeError, RecursionError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _refused(file, f"expected a review as `reconciler review -o json` writes it: {error}") from error
    unknown = sorted({finding.id for finding in review.findings} - RULES.keys())
    if unknown:
        raise _refused(file, f"expected ids of findings, got {unknown[0][:20]!a}")
    return review


def _finding(raw: dict[str, Any]) -> Finding:
    place = {name: "" if raw.get(name) is None else raw[name] for name in ("chain", "member")}
    return msgspec.convert({**raw, **place}, Finding)


def _cohort(raw: dict[str, Any]) -> Cohort:
    hooks = [
        {**hook, "changes": [[change["kind"], change["member"]] for change in hook["changes"]]} for hook in raw["hooks"]
    ]
    return msgspec.convert({**raw, "hooks": hooks, "secure_mode": raw["secureMode"]}, Cohort)


def _refused(file: str, message: str) -> InputError:
    return InputError((Diagnostic(message=message, file=file),))
