# SPDX-License-Identifier: Apache-2.0
"""The verb explain: what a field means, from the schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reconciler import manifest
from reconciler.cli._output import say, say_json
from reconciler.errors import ExitCode

if TYPE_CHECKING:
    from reconciler.cli._group import Context


@click.command()
@click.argument("field", required=False)
@click.pass_obj
def explain(context: Context, *, field: str | None) -> int:
    """What FIELD means: `chain`, `chain.spec.hook.mode`, or just `hook.mode`. Without FIELD: what there is."""
    if field is None:
        text = "\n".join(["Documents of which fields can be explained:", *(f"  {kind}" for kind in manifest.KINDS)])
    else:
        text = manifest.explain(field).rstrip("\n")
    if context.output == "json":
        say_json({"field": field, "text": text})
    else:
        say(text)
    return ExitCode.OK
