# SPDX-License-Identifier: Apache-2.0
"""The verbs and the options that they share, as click sees them.

Every verb returns an exit code of `errors.ExitCode`; wrong usage is 64 (click's own 2 would mean "changes").
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import click

from reconciler.cli import DEFAULT_CONFIG
from reconciler.cli._output import fail
from reconciler.errors import ExitCode, ReconcilerError

if TYPE_CHECKING:
    from reconciler.config import Config

VERBS = {
    "accept": ("_agent", "Take the advertised head against history, once, on record."),
    "apply": ("_agent", "One pass: make this host as the repository declares it."),
    "check": ("_check", "Whether this host has what the reconciler needs."),
    "explain": ("_explain", "What a field of a manifest or of the configuration means."),
    "history": ("_report", "What happened on this host."),
    "init": ("_init", "Write a policy repository that works at once."),
    "observe": ("_observe", "What the kernel holds on network hooks: owned, tolerated, foreign."),
    "package": ("_package", "Build, sign and inspect packages."),
    "plan": ("_agent", "What apply would do; changes nothing."),
    "resume": ("_agent", "Take new commits again; after a teardown, put the chains back."),
    "review": ("_review", "What a change does, for which hosts, and what gets weaker."),
    "run": ("_agent", "The agent: poll, verify, reconcile, repair, until SIGTERM."),
    "status": ("_report", "What the last pass found, and the next step."),
    "suspend": ("_agent", "Take no new commits for a while; repair goes on."),
    "teardown": ("_agent", "Take everything of ours off this host."),
    "test": ("_test", "Give packets to the chains of a work tree; attaches nothing."),
    "validate": ("_validate", "Check manifests, packages and configurations offline."),
    "verify": ("_verify", "Check signatures of commits and packages under this host's policy."),
}
"""Verb to its module and a line of help; modules are imported when used, so that small verbs start fast."""

CONFIG_HELP: Final = f"The host's configuration.  [env: RECONCILER_CONFIG; default: {DEFAULT_CONFIG}]"


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in sorted(VERBS.items())])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"reconciler.cli.{VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        _share_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0][:100], VERBS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"expected a verb, got {args[0][:100]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def _share_options(command: click.Command) -> None:
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _share_options(each)
        return
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in _shared_options() if not taken.intersection(option.opts)]


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
        help=CONFIG_HELP,
    )
    return [output, config]


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "-c", "config_path", metavar="PATH", help=CONFIG_HELP)
@click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", help="How results are printed.")
@click.version_option(package_name="ebpf-reconciler")
@click.pass_context
def group(ctx: click.Context, *, config_path: str | None, output: Literal["table", "json"]) -> None:
    """GitOps for eBPF: signed commits decide which programs run on this host's hooks."""
    path = config_path or os.environ.get("RECONCILER_CONFIG") or DEFAULT_CONFIG
    ctx.obj = Context(config_path=path, output=output)


def run(arguments: list[str]) -> int:
    """See `cli.run_command`."""
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
