# SPDX-License-Identifier: Apache-2.0
"""The review as a comment: verdict and what gets weaker first, details folded, a picture of each changed chain.

Forges cut or refuse what is longer than 65,536 characters, so this is built from whole blocks up to a budget; what did
not fit is counted and said where to find. Text from the repository only ever stands as `code` in which nothing is
left that ends it, or in Mermaid labels of letters, digits and few signs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from reconciler.review._json import verdict
from reconciler.review._rules import RULES, Family, Severity
from reconciler.review._text import MAX_LINES, headline, hook_words, line_words, notes, verdict_words
from reconciler.review._words import few
from reconciler.status import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reconciler.review._values import ChainChange, Cohort, Finding, Line, Review

MAX_MARKDOWN: Final = 60_000
"""Characters of a comment, also counted as UTF-16 units; GitHub takes 65,536."""
WHERE: Final = "review.json among the artifacts of this run, or ask `reconciler review -o json`"
"""Where everything is, in the words of deploy/ci."""
MAX_HOOKS: Final = 20
"""Hooks of a group that are shown."""
_RESERVE: Final = 2_000
"""Kept for what is said about the rest."""
MAX_TEXT: Final = 500
"""Characters of one text from outside."""
MAX_NODES: Final = 40
"""Members in one picture."""

MAX_SETTINGS: Final = 3
"""Settings that differ, of one member in a picture."""
_IN_LABEL: Final = frozenset({"member", "name", "package", "signer"})
"""What is said of a member by its name and version, or not by a picture."""

_FIRST: Final = (Family.WEAKER, Family.BLOCKED)
"""Told before everything else, and not folded."""
ICONS: Final = {Severity.HIGH: "🔴", Severity.MEDIUM: "🟠", Severity.LOW: "🟡", Severity.INFO: "⚪"}
MARKER: Final = "<!-- reconciler-review -->"
"""By which a workflow finds its own comment again."""


def render_markdown(review: Review, *, where: str = WHERE) -> str:
    """At most `MAX_MARKDOWN` characters.

    Args:
        review: what is told.
        where: where to find what does not fit; our own words.
    """
    writer = _Writer()
    writer.put(
        f"{MARKER}\n## Review: {verdict(review)}\n\n**{verdict_words(review).capitalize()}.** {_tail(review)}\n\n"
    )
    writer.put("".join(f"{code_words(note)}  \n" for note in notes(review)) + "\n")
    weaker = [each for each in review.open if RULES[each.id].family in _FIRST]
    others = [each for each in review.open if RULES[each.id].family not in _FIRST]
    silent = [each for each in review.findings if each.acknowledged is not None]
    writer.items("findings", (_finding(finding) for finding in weaker))
    writer.put("\n")
    if others:
        writer.fold(f"{len(others)} other findings", "findings", (_finding(finding) for finding in others))
    if silent:
        writer.fold(f"{len(silent)} acknowledged findings", "findings", (_finding(finding) for finding in silent))
    writer.items("chains", (_chain(chain) for chain in review.chains))
    changed = [cohort for cohort in review.cohorts if cohort.changed or cohort.hooks]
    if changed:
        writer.fold(f"Hosts: {len(changed)} of {len(review.cohorts)} groups change", "groups", _cohorts(changed))
    return writer.end(where)


def _tail(review: Review) -> str:
    found = re.search(r"\((.*)\)$", headline(review))
    return f"{found[1]}." if found else ""


class _Writer:
    """Whole blocks up to the budget; counts what is left out, by kind."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = MAX_MARKDOWN - _RESERVE
        self._missing: dict[str, int] = {}

    def put(self, block: str) -> bool:
        """Add a block if it fits."""
        size = len(block.encode("utf-16-le")) // 2
        if size > self._left:
            return False
        self._left -= size
        self._parts.append(block)
        return True

    def items(self, what: str, blocks: Iterable[str]) -> None:
        """Blocks in order until one does not fit; the others are counted."""
        full = False
        for block in blocks:
            full = full or not self.put(block)
            if full:
                self._missing[what] = self._missing.get(what, 0) + 1

    def fold(self, title: str, what: str, blocks: Iterable[str]) -> None:
        """Blocks inside of a fold, which is always closed."""
        head, foot = f"<details><summary>{title}</summary>\n\n", "\n</details>\n\n"
        self._left -= len(foot)
        if self.put(head):
            self.items(what, blocks)
            self._parts.append(foot)
        else:
            self._left += len(foot)
            for _ in blocks:
                self._missing[what] = self._missing.get(what, 0) + 1

    def end(self, where: str) -> str:
        """The comment."""
        if self._missing:
            counts = ", ".join(f"{count} {what}" for what, count in self._missing.items())
            self._parts.append(f"\n**Left out, because a comment has a limit:** {counts}. All of it is in {where}.\n")
        return "".join(self._parts)


def code(text: str) -> str:
    """Text from outside as inline code: one line, no backticks, so nothing in it is Markdown, HTML or a mention."""
    safe = clean(text, MAX_TEXT).replace("`", "ˋ").strip() or " "
    return f"`{safe}`"


def code_words(text: str) -> str:
    """A sentence of ours in which text from outside may stand: all of it as code."""
    return code(text)


def _finding(finding: Finding) -> str:
    who = f" {code(f'{finding.chain}/{finding.member}' if finding.member else finding.chain)}" if finding.chain else ""
    place = f" — {code(f'{finding.file}:{finding.line}' if finding.line else finding.file)}" if finding.file else ""
    hosts = f" for {code(few(finding.hosts, 4))}" if finding.hosts else ""
    known = (
        f" (until {code(finding.acknowledged.until)}: {code(finding.acknowledged.why)})" if finding.acknowledged else ""
    )
    title = RULES[finding.id].title
    return f"- {ICONS[finding.severity]} **{finding.id} {title}**{who}{hosts}: {code(finding.message)}{place}{known}\n"


def _chain(chain: ChainChange) -> str:
    lines = "".join(f"- {code(line_words(line))}\n" for line in chain.lines[:MAX_LINES])
    if len(chain.lines) > MAX_LINES:
        lines += f"- and {len(chain.lines) - MAX_LINES} more lines, in review.json\n"
    picture = _picture(chain)
    title = f"{chain.change} {code_html(chain.name)}"
    return (
        f"<details><summary>Chain {title}</summary>\n\n{code(chain.hook)} in {code(chain.file)}\n\n{lines}\n"
        f"{picture}\n</details>\n\n"
    )


def code_html(text: str) -> str:
    """Text from outside inside of HTML: letters, digits and few signs only."""
    return f"<code>{_plain(text)}</code>"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ._/:,()+-]|(?<=:)/", "_", clean(text, 120))


def _node_text(text: str) -> str:
    """Text from outside inside of a quoted label: no more than in HTML, and globs; brackets as Mermaid spells them."""
    safe = re.sub(r"[^A-Za-z0-9 ._/:,()+*?\[\]-]|(?<=:)/", "_", clean(text, 200))
    return safe.replace("[", "#91;").replace("]", "#93;")


def _picture(chain: ChainChange) -> str:
    """The chain before and after: its hook, then its members with the settings that differ; "" if all is alike."""
    moved = next((line for line in chain.lines if line.what == "hook"), None)
    old_hook, new_hook = (chain.hook, chain.hook) if moved is None else (moved.before or "", moved.after or "")
    before = _nodes(old_hook, chain.before, {line: line.before for line in chain.lines})
    after = _nodes(new_hook, chain.after, {line: line.after for line in chain.lines})
    if before == after:
        return ""
    lines = ["```mermaid", "flowchart LR"]
    for side, nodes in (("before", before), ("after", after)):
        named = [f'{side[0]}{index}["{_node_text(node)}"]' for index, node in enumerate(nodes)]
        lines += [f"  subgraph {side}", "    direction LR", f"    {' --> '.join(named)}", "  end"]
    return "\n".join([*lines, "```", ""])


def _nodes(hook: str, members: tuple[str, ...], values: dict[Line, str | None]) -> list[str]:
    if not members:
        return ["nothing"]
    settings: dict[str, list[str]] = {}
    for line, value in values.items():
        if line.member and line.what not in _IN_LABEL:
            settings.setdefault(line.member, []).append(f"{line.what} {'not set' if value is None else value[:40]}")
    shown = [_label(member, settings) for member in members[:MAX_NODES]]
    return [hook, *shown, *([f"and {len(members) - MAX_NODES} more"] if len(members) > MAX_NODES else [])]


def _label(member: str, settings: dict[str, list[str]]) -> str:
    differs = settings.get(member.split(" ", 1)[0], [])
    return f"{member}{': ' if differs else ''}{few(differs, MAX_SETTINGS)}"


def _cohorts(cohorts: list[Cohort]) -> Iterator[str]:
    for cohort in cohorts:
        count = "" if cohort.count is None else f", {cohort.count} host{'' if cohort.count == 1 else 's'}"
        mode = "" if cohort.secure_mode is None else f", secure mode {code(cohort.secure_mode)}"
        digest = f"state {code(cohort.digest[:12])}" if cohort.digest else "state not known"
        hooks = "".join(f"  - {code(hook_words(hook))}\n" for hook in cohort.hooks[:MAX_HOOKS])
        left = len(cohort.hooks) - MAX_HOOKS
        more = f"  - and {left} more hooks, in review.json\n" if left > 0 else ""
        yield f"- {code(cohort.name)}{count}{mode}: {digest}\n{hooks}{more}"
