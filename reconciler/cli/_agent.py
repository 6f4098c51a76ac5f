# SPDX-License-Identifier: Apache-2.0
"""The verbs that act on this host: plan, apply, run, suspend, resume, accept, teardown."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler import reconcile
from reconciler._documents import parse_duration
from reconciler.cli import _compose as compose
from reconciler.cli._output import note, progress, say, say_json, say_plan
from reconciler.errors import ExitCode, ReconcilerError
from reconciler.kernel.about import is_passing
from reconciler.sensor import ServiceManager, ask, open_sensor
from reconciler.status import clean, metrics, render_metrics

if TYPE_CHECKING:
    from reconciler.cli._group import Context
    from reconciler.reconcile import Parts, PassResult

AGENT_SECONDS = 600.0
"""A pass may load, switch and check for minutes; the client waits as long."""

PASSING = (
    "warning: these pins, and the programs behind them, end with this mount namespace (`ip netns exec` makes one for "
    "each command); enter network namespaces with `nsenter --net=/run/netns/NAME`"
)


@click.command()
@click.option("--unsafe-trust-first-use", is_flag=True, help="Take the first head without source.minimumCommit.")
@click.option("--snapshot", type=click.Path(path_type=Path), help="Plan for a host recorded by `observe --record`.")
@click.option("--repository", type=click.Path(path_type=Path), default=Path(), help="With --snapshot: the clone.")
@click.option("--commit", default="HEAD", help="With --snapshot: the commit to plan.  [default: HEAD]")
@click.option(
    "--reviewed", type=click.Path(path_type=Path), help="JSON of a review: whether it is what apply would bring."
)
@click.pass_obj
def plan(
    context: Context,
    *,
    unsafe_trust_first_use: bool,
    snapshot: Path | None,
    repository: Path,
    commit: str,
    reviewed: Path | None,
) -> int:
    """Show what apply would do. Changes nothing. Exit 0: in sync, 2: changes, drift, or not as reviewed."""
    if snapshot is not None:
        if reviewed is not None:
            raise click.UsageError("expected either --snapshot or --reviewed, got both")
        from reconciler.cli._offline import plan_from  # noqa: PLC0415  # needs neither host nor kernel

        return plan_from(context, snapshot, repository, commit)
    answer = _ask(context, "plan", {})
    if answer is None:
        with _parts(context, unsafe_first_use=unsafe_trust_first_use) as parts, progress("planning"):
            answer = reconcile.answer_of(reconcile.Pass(parts, reconcile.Request(dry_run=True)).run())
    if reviewed is not None and answer.get("plan"):
        return _show_reviewed(context, answer, reviewed)
    return _show(context, answer, plan_only=True)


def _show_reviewed(context: Context, answer: dict[str, Any], path: Path) -> int:
    """The plan, and whether the state that it leads to is one that was reviewed."""
    from reconciler.cli._reviewed import compare  # noqa: PLC0415  # a plan alone needs nothing of it
    from reconciler.review import Running  # noqa: PLC0415

    report = answer["status"]
    wanted = answer.get("wanted") or {"commit": (report["applied"] or {}).get("id", "")}
    host = Running(
        name=report["host"],
        labels=context.config.labels,
        commit=wanted["commit"],
        state=answer["plan"]["state_digest"],
        policy=report["policy"],
        chains=report["chains"],
        verb="wants",
    )
    same, sentences = compare(path, host)
    told = {"reviewed": same, "differences": sentences[1:]}
    code = _show(context, {**answer, "plan": {**answer["plan"], **told}}, plan_only=True)
    if context.output != "json":
        for sentence in sentences:
            say(clean(sentence, 500))
    return code if same or code != ExitCode.OK else ExitCode.CHANGES


@click.command()
@click.option("--confirm", metavar="DIGEST", help="Let this one plan exceed the guardrail.")
@click.option("--unsafe-trust-first-use", is_flag=True, help="Take the first head without source.minimumCommit.")
@click.pass_obj
def apply(context: Context, *, confirm: str | None, unsafe_trust_first_use: bool) -> int:
    """One pass: make this host as the repository declares it. Goes through the agent where one runs."""
    with progress("applying"):
        answer = _ask(context, "confirm" if confirm else "apply", {"digest": confirm} if confirm else {})
        if answer is None:
            with _parts(context, unsafe_first_use=unsafe_trust_first_use) as parts:
                answer = reconcile.answer_of(reconcile.Pass(parts, reconcile.Request(confirm=confirm)).run())
                if answer["outcome"] and is_passing():
                    note(PASSING)
    return _show(context, answer)


@click.command()
@click.option("--unsafe-trust-first-use", is_flag=True, help="Take the first head without source.minimumCommit.")
@click.pass_obj
def run(context: Context, *, unsafe_trust_first_use: bool) -> int:
    """The agent: poll, verify, reconcile, repair, until SIGTERM. Programs stay when it ends."""
    from reconciler.kernel.watch import open_watches  # noqa: PLC0415  # only the agent watches

    config = context.config
    control = Path(config.control_path)
    with compose.open_parts(config, unsafe_first_use=unsafe_trust_first_use, emit=compose.emit_json) as parts:
        manager = ServiceManager(os.environ)
        sensor = open_sensor(control, mode=config.control.mode, group=config.control.group, watches=(), manager=manager)
        reporter = Reporter(parts, manager)
        try:
            agent = reconcile.Agent(
                parts,
                sensor,
                random=random.SystemRandom(),
                machine=compose.machine_id(),
                open_watches=open_watches,
                report=reporter.report,
                poller=reconcile.ThreadPoller(parts.source, sensor.nudge),
            )
            agent.run()
        finally:
            reporter.close()
            sensor.close()
    return ExitCode.OK


class Reporter:
    """After each pass: one event with the reason code, a line for systemd, the metrics file, the metrics port."""

    def __init__(self, parts: Parts, manager: ServiceManager) -> None:
        self.parts = parts
        self.manager = manager
        self.warned: frozenset[str] = frozenset()
        self.server = None
        listen = parts.config.metrics.listen
        if listen is not None:
            from reconciler.cli._metrics import MetricsServer  # noqa: PLC0415  # opt-in

            self.server = MetricsServer(listen)

    def report(self, result: PassResult) -> None:
        """One pass ended."""
        status = result.status
        for note_ in status.notes:
            if note_.startswith("unsafe:"):
                self.parts.emit({"time": status.at, "event": "warning", "message": note_})
        # Each of these once, not with every pass: they stay for weeks.
        for warning in status.warnings:
            if warning.message not in self.warned:
                self.parts.emit(
                    {"time": status.at, "event": "warning", "reason": warning.reason, "message": warning.message}
                )
        self.warned = frozenset(warning.message for warning in status.warnings)
        self.parts.emit(
            {
                "time": status.at,
                "event": "pass",
                "reason": status.reason,
                "exitCode": int(status.exit_code),
                "message": clean(status.message, 1000),
                "seconds": status.seconds,
                "steps": status.steps,
            }
        )
        self.manager.passed(clean(f"{status.reason}: {status.message}", 200))
        textfile = self.parts.config.metrics.textfile
        if textfile is None and self.server is None:
            return
        from reconciler.cli._metrics import write_textfile  # noqa: PLC0415  # opt-in

        text = render_metrics(metrics(status, self._counters(result))).encode()
        if self.server is not None:
            self.server.publish(text)
        if textfile is not None:
            try:
                write_textfile(Path(textfile), text)
            except OSError as error:
                self.parts.emit({"time": status.at, "event": "warning", "message": f"metrics: {error}"})

    def _counters(self, result: PassResult) -> list[tuple[str, str, dict[str, tuple[int, int]]]]:
        inventory = result.outcome.inventory if result.outcome else result.plan.inventory if result.plan else None
        if inventory is None:
            return []
        used = {owned.generation for owned in inventory.attachments}
        found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
        for generation in inventory.generations:
            if generation.name not in used:
                continue
            try:
                for stats in self.parts.kernel.stats(generation):
                    found[stats.chain, stats.member] = dict(stats.counters)
            except ReconcilerError as error:
                self.parts.emit({"event": "warning", "message": f"metrics: {error}"})
        return [(chain, member, counters) for (chain, member), counters in sorted(found.items())]

    def close(self) -> None:
        """End the metrics server."""
        if self.server is not None:
            self.server.close()


@click.command()
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--for", "duration", required=True, metavar="DURATION", help="For how long: 30m, 2h, 1d.")
@click.pass_obj
def suspend(context: Context, *, reason: str, duration: str) -> int:
    """Take no new commits for a while. Repair and secure mode go on."""
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise click.UsageError(f"--for: {error}") from error
    answer = _ask(context, "suspend", {"seconds": seconds, "reason": reason})
    if answer is None:
        with _parts(context) as parts:
            try:
                made = reconcile.suspend(parts, seconds=seconds, reason=reason, by=_who())
            except (ValueError, OverflowError) as error:
                raise click.UsageError(f"--for {duration}: {error}") from error
            note(f"suspended until {made.until}")
            answer = reconcile.answer_of(reconcile.Pass(parts, reconcile.Request(poll=False)).run())
    _show(context, answer)
    return int(answer["exitCode"]) if "error" in answer else ExitCode.OK


@click.command()
@click.pass_obj
def resume(context: Context) -> int:
    """Take new commits again; after a teardown, put the chains back."""
    answer = _ask(context, "resume", {})
    if answer is None:
        with _parts(context) as parts, progress("applying"):
            reconcile.resume(parts, by=_who())
            answer = reconcile.answer_of(reconcile.Pass(parts, reconcile.Request()).run())
    return _show(context, answer)


@click.command()
@click.argument("commit")
@click.option("--reason", required=True, help="Why, for the record.")
@click.pass_obj
def accept(context: Context, *, commit: str, reason: str) -> int:
    """Take the head that is advertised now against history, fully verified, once, on record."""
    answer = _ask(context, "accept", {"commit": commit, "reason": reason})
    if answer is None:
        with _parts(context) as parts, progress("applying"):
            answer = reconcile.answer_of(reconcile.accept(parts, commit, reason=reason, by=_who()))
    return _show(context, answer)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def teardown(context: Context, *, yes: bool) -> int:
    """Take everything of ours off this host, and keep it off until resume."""
    if not yes:
        click.confirm("Take every program of the reconciler off this host?", abort=True)
    answer = _ask(context, "teardown", {})
    if answer is None:
        with _parts(context) as parts, progress("detaching"):
            answer = reconcile.teardown_answer(*reconcile.teardown(parts, by=_who()))
    if context.output == "json":
        say_json(answer)
    elif "error" in answer:
        note(f"error: {clean(str(answer['error']), 2000)}")
    else:
        outcome = answer["outcome"]
        whole = "nothing of the reconciler is attached any more"
        said = whole if answer["exitCode"] == ExitCode.OK else "something may still be attached, run it again"
        say(f"{len(outcome['done'])} steps done; {said}")
        failed = [*outcome["skipped"], *([outcome["failed"]] if outcome["failed"] else [])]
        for text in (*(item["message"] for item in failed), *outcome["stale_hooks"]):
            note(f"failed: {clean(text, 2000)}")
        for item in outcome["survivors"]:
            note(f"left over: {clean(item['where'])}: {clean(item['message'])}")
    return int(answer["exitCode"])


# --- shared ------------------------------------------------------------------------------------------------


def _parts(context: Context, *, unsafe_first_use: bool = False) -> Any:  # noqa: ANN401  # a context manager of Parts
    return compose.open_parts(context.config, unsafe_first_use=unsafe_first_use, emit=compose.emit_nothing)


def _ask(context: Context, verb: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The running agent's answer, None when no agent runs."""
    return ask(Path(context.config.control_path), verb, arguments, timeout=AGENT_SECONDS)


def _who() -> str:
    name = os.environ.get("SUDO_USER", "")
    return f"uid {os.getuid()}" + (f" ({clean(name, 40)})" if name else "")


def _show(context: Context, answer: dict[str, Any], *, plan_only: bool = False) -> int:
    code = int(answer["exitCode"])
    if context.output == "json":
        say_json(answer["plan"] if plan_only and answer.get("plan") else answer)
        return code
    if "error" in answer:
        note(f"error: {answer.get('reason', '')}: {clean(str(answer['error']), 2000)}")
        return code
    report = answer["status"]
    if answer.get("wanted") and answer["wanted"]["commit"] != (report["applied"] or {}).get("id"):
        wanted = answer["wanted"]
        signer = clean(wanted["signer"], 60) or "nobody"
        say(f"Commit {wanted['commit'][:12]} {clean(wanted['subject'], 80)} (signed by {signer})")
    if answer["plan"] is not None and (plan_only or answer["plan"]["steps"] or answer["plan"]["pending"]):
        say_plan(answer["plan"])
        say(f"State {answer['plan']['state_digest'][:12]}")
    outcome = answer.get("outcome")
    if outcome and outcome["failed"]:
        note(f"failed: {outcome['failed']['step']['step']}: {clean(outcome['failed']['message'], 2000)}")
    problems = [finding for finding in report["findings"] if finding["exit_code"] != ExitCode.CHANGES]
    for finding in problems:
        note(f"{finding['reason']}: {clean(finding['message'], 2000)}")
    for warning in report["notes"]:
        if warning.startswith("unsafe:"):
            note(f"warning: {clean(warning)}")
    planned = plan_only and (code == ExitCode.CHANGES or (code == ExitCode.OK and report["chains"] > 0))
    say(_verdict(report, explained=bool(problems) or planned))
    return code


def _verdict(report: dict[str, Any], *, explained: bool) -> str:
    """The last line: the one reason code, the commit that counts, and the message unless it was said already."""
    applied = report["applied"]
    if applied is None:
        where = "; nothing is applied yet" if explained else ""
    else:
        where = (
            f"; last applied {applied['id'][:12]}" if report["exit_code"] not in (0, 2) else f" at {applied['id'][:12]}"
        )
    return f"{report['reason']}{where}" if explained else f"{report['reason']}{where}: {clean(report['message'], 200)}"


__all__ = ["accept", "apply", "plan", "resume", "run", "suspend", "teardown"]
