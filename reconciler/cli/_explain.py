# SPDX-License-Identifier: Apache-2.0
"""The verb explain: what a field means, from the schemas, or a finding of a review."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from reconciler import manifest
from reconciler.cli._output import say, say_json
from reconciler.errors import ExitCode, InputError

if TYPE_CHECKING:
    from reconciler.cli._group import Context


@click.command()
@click.argument("field", required=False)
@click.pass_obj
def explain(context: Context, *, field: str | None) -> int:
    """What FIELD means: `chain`, `chain.spec.hook.mode`, just `hook.mode`, or RV019. Without FIELD: what there is."""
    if field is None:
        text = "\n".join(["Documents of which fields can be explained:", *(f"  {kind}" for kind in manifest.KINDS)])
    elif re.fullmatch(r"RV\d{3}", field, re.ASCII):
        text = _finding(field)
    else:
        text = manifest.explain(field).rstrip("\n")
    if context.output == "json":
        say_json({"field": field, "text": text})
    else:
        say(text)
    return ExitCode.OK


def _finding(number: str) -> str:
    """A finding of a review, as docs/findings.md has it."""
    from reconciler.review import RULES  # noqa: PLC0415  # fields need nothing of it

    rule = RULES.get(number)
    if rule is None:
        raise InputError(f"expected a finding of a review ({min(RULES)} to {max(RULES)}), got {number}")
    return (
        f"{rule.id} {rule.title}\n  severity {rule.severity}, {rule.family}\n\n"
        f"Raised when: {rule.condition}.\nWhy it matters: {rule.reason}."
    )
