# SPDX-License-Identifier: Apache-2.0
"""Small phrases that several parts of a review share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.model import Chain, Hook, HostSelector, Member


def few(items: Sequence[str], shown: int) -> str:
    """The first of `items`, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def selector_words(selector: HostSelector) -> str:
    """Such as "role=edge, named edge-1"; "every host"."""
    parts = [f"{label}={value}" for label, value in sorted(selector.match_labels.items())]
    parts += [f"named {' or '.join(selector.names)}"] if selector.names else []
    return ", ".join(parts) or "every host"


def hook_words(hook: Hook) -> str:
    """Such as "xdp on eth*, eth9" or "tc-ingress on eth0 in netns blue"."""
    where = "" if hook.netns == "host" else f" in netns {hook.netns}"
    return f"{hook.kind} on {', '.join(hook.interfaces)}{where}"


def member_text(member: Member) -> str:
    """Such as "limit (ratelimit-1.0.0)"."""
    return f"{member.name} ({member.package.name}-{member.package.version})"


def member_words(chain: Chain | None) -> tuple[str, ...]:
    """The members of a chain in order."""
    return tuple(member_text(member) for member in chain.members) if chain is not None else ()


def yes(value: bool) -> str:  # noqa: FBT001 - a word for it
    """`value` as YAML writes it."""
    return "true" if value else "false"
