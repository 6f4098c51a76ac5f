# SPDX-License-Identifier: Apache-2.0
"""Durations, shares and addresses. The schemas have checked the form; here it becomes numbers."""

from __future__ import annotations

import ipaddress
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)", re.ASCII)
_ADDRESS = re.compile(r"(?:\[([^\[\]%]+)\]|([^\[\]:%]+)):([0-9]{1,5})", re.ASCII)
_MAX_PORT = 65535


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "30s".

    Raises:
        ValueError: `text` is no duration.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        message = f"expected a duration such as 30s, 5m or 24h, got {text!r}"
        raise ValueError(message)
    return int(match[1]) * _UNITS[match[2]]


def parse_share(text: str) -> float:
    """A share 0..1 of text such as "50%".

    Raises:
        ValueError: `text` is no number and a percent sign.
    """
    return float(text.removesuffix("%")) / 100


def parse_address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Address and port of "ADDRESS:PORT", IPv6 addresses in brackets. Names are not resolved.

    Raises:
        ValueError: `text` is something else.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[3]) <= _MAX_PORT:
        message = f"expected ADDRESS:PORT, such as 10.0.0.1:443 or [2001:db8::1]:443, got {text!r}"
        raise ValueError(message)
    try:
        return (ipaddress.IPv6Address(match[1]) if match[1] else ipaddress.IPv4Address(match[2])), int(match[3])
    except ValueError as error:
        message = f"expected an IP address and a port, such as 10.0.0.1:443 or [2001:db8::1]:443, got {text!r}"
        raise ValueError(message) from error
