# SPDX-License-Identifier: Apache-2.0
"""The command `reconciler`: builds the real objects, maps errors to exit codes; the one place that prints.

Every verb returns an exit code of `errors.ExitCode`; wrong usage is 64 (click's own 2 would mean "changes").
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from reconciler.cli._output import fail
from reconciler.errors import ExitCode, ReconcilerError

if TYPE_CHECKING:
    from reconciler.config import Config

VERBS = {
    "accept": "_agent",
    "apply": "_agent",
    "check": "_check",
    "explain": "_explain",
    "history": "_agent",
    "init": "_init",
    "observe": "_observe",
    "package": "_package",
    "plan": "_agent",
    "resume": "_agent",
    "run": "_agent",
    "status": "_agent",
    "suspend": "_agent",
    "teardown": "_agent",
    "validate": "_validate",
    "verify": "_verify",
}
"""Verb to the module that holds it; modules are imported when their verb is used, so that small verbs start fast."""


@dataclass(slots=True)
class Context:
    """What every verb may use.

    Attributes:
        config_path: from --config, RECONCILER_CONFIG or the default.
        output: "table" or "json".
    """

    config_path: str
    output: Literal["table", "json"] = "table"
    _config: Config | None = None

    @property
    def config(self) -> Config:
        """The host's configuration, read once. Raises ConfigError."""
        if self._config is None:
            from reconciler.config import load_config  # noqa: PLC0415  # verbs without configuration start faster

            self._config = load_config(self.config_path)
        return self._config


class _Verbs(click.Group):
    """Verbs by name, imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"reconciler.cli.{VERBS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        taken = {name for parameter in command.params for name in parameter.opts}
        command.params += [option for option in _shared_options() if not taken.intersection(option.opts)]
        return command


def _shared_options() -> list[click.Option]:
    """`-o` and `-c` may stand before or after the verb."""

    def set_output(ctx: click.Context, _: click.Parameter, value: Literal["table", "json"] | None) -> None:
        if value is not None:
            ctx.obj.output = value

    def set_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.obj.config_path = value

    output = click.Option(
        ["-o", "--output"],
        type=click.Choice(["table", "json"]),
        expose_value=False,
        is_eager=True,
        callback=set_output,
        help="How results are printed.",
    )
    config = click.Option(
        ["-c", "--config"],
        metavar="PATH",
        expose_value=False,
        is_eager=True,
        callback=set_config,
        help="The host's configuration.",
    )
    return [output, config]


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "-c", "config_path", metavar="PATH", help="The host's configuration.")
@click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", help="How results are printed.")
@click.version_option(package_name="ebpf-reconciler")
@click.pass_context
def group(ctx: click.Context, *, config_path: str | None, output: Literal["table", "json"]) -> None:
    """GitOps for eBPF: signed commits decide which programs run on this host's hooks."""
    path = config_path or os.environ.get("RECONCILER_CONFIG") or "/etc/reconciler/config.yaml"
    ctx.obj = Context(config_path=path, output=output)


def run_command(arguments: list[str]) -> int:
    """Run one verb; returns its exit code and never raises for what users or the world do wrong."""
    try:
        result = group.main(arguments, prog_name="reconciler", standalone_mode=False)
    except ReconcilerError as error:
        return fail(error)
    except click.UsageError as error:
        error.show()
        return ExitCode.USAGE
    except click.Abort:
        click.echo("aborted; nothing was changed", err=True)
        return ExitCode.ERROR
    except click.ClickException as error:
        error.show()
        return ExitCode.ERROR
    except BrokenPipeError:
        sys.stderr.close()
        return ExitCode.ERROR
    return int(result) if isinstance(result, int) else ExitCode.OK


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(sys.argv[1:]))
