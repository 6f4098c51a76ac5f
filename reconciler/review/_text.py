# SPDX-License-Identifier: Apache-2.0
"""The review for a terminal: verdict, findings, then a tree of what changes and a table of hosts. Cleaned, bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.review._json import verdict
from reconciler.review._rules import RULES, Family, Severity
from reconciler.review._words import few
from reconciler.status import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.review._values import ChainChange, Cohort, Finding, HookChange, Line, Review

MAX_FINDINGS: Final = 200
MAX_CHAINS: Final = 100
MAX_LINES: Final = 60
"""Lines of one chain."""
MAX_COHORTS: Final = 100
SHOWN_DIGEST: Final = 12

VERDICTS: Final = {
    "blocked": "hosts would refuse this change",
    "weaker": "this change lets more through",
    "changed": "this change lets no more through, as far as packages say",
    "unchanged": "nothing changes on any host",
}
"""The verdict in words."""
NO_MERGE: Final = "this change does not merge, so what hosts would get is not known"
ACCEPTED: Final = "this change lets more through, and all of it is acknowledged"

SIGNS: Final = {"added": "+", "removed": "-", "moved": "»", "changed": "~"}
CHANGE_SIGNS: Final = {"add": "+", "remove": "-", "replace": "~", "keep": " "}


def render_text(review: Review) -> list[tuple[str, Severity | None]]:
    """Lines, each with the severity by which a terminal may colour it."""
    lines: list[tuple[str, Severity | None]] = [(headline(review), review.worst)]
    lines += [(note, None) for note in notes(review)]
    if review.findings:
        lines.append(("", None))
        lines += [(_finding(each), each.severity) for each in review.findings[:MAX_FINDINGS]]
        lines += _more(len(review.findings) - MAX_FINDINGS, "findings")
    if review.chains:
        lines.append(("", None))
        for chain in review.chains[:MAX_CHAINS]:
            lines += [(line, None) for line in _chain(chain)]
        lines += _more(len(review.chains) - MAX_CHAINS, "chains")
    if review.cohorts:
        lines += [("", None), *((line, None) for line in _cohorts(review))]
    return lines


def _more(count: int, what: str) -> list[tuple[str, Severity | None]]:
    return [(f"… and {count} more {what}; -o json has all of them", None)] if count > 0 else []


def headline(review: Review) -> str:
    """Verdict, and how many findings there are of each severity."""
    counts = [
        f"{count} {severity}"
        for severity in Severity
        if (count := sum(finding.severity is severity for finding in review.open))
    ]
    silent = len(review.findings) - len(review.open)
    counts += [f"{silent} acknowledged"] if silent else []
    told = f" ({', '.join(counts)})" if counts else ""
    return f"{verdict(review)}: {verdict_words(review)}{told}"


def verdict_words(review: Review) -> str:
    """The verdict in words: what hosts do with the change, and that it lets more through wherever it does."""
    word = verdict(review)
    rules = {RULES[finding.id] for finding in review.open}
    weaker = any(rule.family is Family.WEAKER for rule in rules)
    if word == "blocked":
        conflict = all(rule.id == "RV006" for rule in rules if rule.family is Family.BLOCKED)
        return f"{NO_MERGE if conflict else VERDICTS[word]}{', and it lets more through' if weaker else ''}"
    accepted = any(RULES[each.id].family is Family.WEAKER for each in review.findings if each.acknowledged is not None)
    return ACCEPTED if accepted and not weaker else VERDICTS[word]


def notes(review: Review) -> Iterator[str]:
    """What was compared with what."""
    base, head = clean(review.base)[:40], clean(review.head)[:40]
    yield {
        "commits": f"reviewed commit {head}, which contains BASE, against BASE {base}",
        "merge": f"reviewed what merging {head} into BASE would make, against BASE {base}",
        "branch": f"reviewed commit {head}, which does not merge, against {base}, where it left BASE",
        "worktree": f"reviewed the files of the work tree against BASE {base}",
    }[review.kind]
    if not review.on_paper:
        yield "no HostGroup describes the fleet, so selectors stand for hosts"


def _finding(finding: Finding) -> str:
    chain = f" {finding.chain}{f'/{finding.member}' if finding.member else ''}:" if finding.chain else ""
    place = f"  [{finding.file}{f':{finding.line}' if finding.line else ''}]" if finding.file else ""
    hosts = f"  ({few(finding.hosts, 4)})" if finding.hosts else ""
    known = f"  acknowledged until {finding.acknowledged.until}" if finding.acknowledged else ""
    title = RULES[finding.id].title
    return clean(f"{finding.id} {finding.severity:<6} {title}:{chain} {finding.message}{hosts}{place}{known}", 600)


def _chain(chain: ChainChange) -> Iterator[str]:
    yield clean(f"{SIGNS[chain.change]} {chain.name}  {chain.hook}  {chain.change}  [{chain.file}]", 300)
    for index, line in enumerate(chain.lines[:MAX_LINES]):
        last = index == min(len(chain.lines), MAX_LINES) - 1 and len(chain.lines) <= MAX_LINES
        yield clean(f"  {'└' if last else '├'} {line_words(line)}", 500)
    if len(chain.lines) > MAX_LINES:
        yield f"  └ … and {len(chain.lines) - MAX_LINES} more lines; -o json has all of them"


def line_words(line: Line) -> str:
    """A difference in words: "limit rate 10 → 20 (connections per second; default 100)"."""
    who = f"{line.member} " if line.member and line.what != "member" else ""
    detail = f"  ({line.detail})" if line.detail else ""
    if line.before is None:
        return f"+ {who}{line.what} {line.after}{detail}"
    if line.after is None:
        return f"- {who}{line.what} {line.before}{detail}"
    if line.before == line.after:
        return f"  {who}{line.what} {line.after}, as before{detail}"
    return f"~ {who}{line.what} {line.before} → {line.after}{detail}"


def _cohorts(review: Review) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("HOSTS", "COUNT", "SECURE MODE", "STATE AT HEAD", "CHANGES")]
    rows += [_row(cohort) for cohort in review.cohorts[:MAX_COHORTS]]
    if not any(cohort.secure_mode for cohort in review.cohorts):
        rows = [(*row[:2], *row[3:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if number:
            hooks = review.cohorts[number - 1].hooks
            yield from (clean(f"    {hook_words(hook)}", 500) for hook in hooks[:MAX_LINES])
            if len(hooks) > MAX_LINES:
                yield f"    … and {len(hooks) - MAX_LINES} more hooks; -o json has all of them"
    if len(review.cohorts) > MAX_COHORTS:
        yield f"… and {len(review.cohorts) - MAX_COHORTS} more groups; -o json has all of them"


def _row(cohort: Cohort) -> tuple[str, ...]:
    count = "?" if cohort.count is None else str(cohort.count)
    digest = cohort.digest[:SHOWN_DIGEST] if cohort.digest else "not known"
    changes = f"{len(cohort.hooks)} hook{'' if len(cohort.hooks) == 1 else 's'}" if cohort.changed else "none"
    return clean(cohort.name, 60), count, clean(cohort.secure_mode or "not said", 20), digest, changes


def hook_words(hook: HookChange) -> str:
    """A hook: "eth0 xdp: ~ edge/limit, + edge/deny"."""
    if hook.changes:
        shown = [f"{CHANGE_SIGNS.get(kind, kind)} {member}".strip() for kind, member in hook.changes]
        return f"{hook.hook}: {', '.join(shown)}"
    return f"{hook.hook}: {', '.join(hook.before) or 'empty'} → {', '.join(hook.after) or 'empty'}"
