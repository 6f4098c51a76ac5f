# SPDX-License-Identifier: Apache-2.0
"""Durations, shares and addresses."""

from __future__ import annotations

import pytest

from reconciler._documents import parse_address, parse_duration, parse_share


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30.0), ("5m", 300.0), ("24h", 86400.0), ("2d", 172800.0), ("0s", 0.0)]
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "1.5s", "1h30m", "5S", "5s\n", "\u0665s", "9" * 10 + "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 30s, 5m or 24h, got"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "share"), [("0%", 0.0), ("50%", 0.5), ("12.5%", 0.125), ("100%", 1.0)])
def test_shares_are_fractions(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize(
    ("text", "address", "port"), [("10.0.0.1:443", "10.0.0.1", 443), ("[2001:db8::1]:1", "2001:db8::1", 1)]
)
def test_addresses_have_a_port(text: str, address: str, port: int) -> None:
    found = parse_address(text)
    assert (str(found[0]), found[1]) == (address, port)
