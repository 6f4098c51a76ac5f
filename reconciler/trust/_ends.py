# SPDX-License-Identifier: Apache-2.0
"""When what is trusted or shown to others ends: windows of allowed signers, certificates. Nothing is verified here."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from reconciler.errors import ConfigError

_VALID_BEFORE: Final = re.compile(r'(?:^|[\s,])valid-before="?(\d{8}(?:\d{4}(?:\d{2})?)?)Z?"?', re.IGNORECASE)
"""ssh-keygen(1), ALLOWED SIGNERS: YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS. Commits are verified with TZ=UTC."""

_FORMS: Final = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def allowed_signers_ends(allowed_signers: bytes) -> tuple[tuple[datetime, str], ...]:
    """When windows of keys end, each with its principals; lines without `valid-before` never do."""
    found = []
    for line in allowed_signers.decode("utf-8", "replace").splitlines():
        principals, _, rest = line.strip().partition(" ")
        # Options stand before the key, whose type begins with ssh-, sk- or ecdsa-.
        options = re.split(r"\s(?:ssh-|sk-|ecdsa-)", f" {rest}", maxsplit=1)[0]
        match = _VALID_BEFORE.search(options)
        if match is None or principals.startswith("#"):
            continue
        with suppress(ValueError):  # no day of the calendar; ssh-keygen refuses the line
            end = datetime.strptime(match[1], _FORMS[len(match[1])]).replace(tzinfo=UTC)
            found.append((end, principals.strip('"')))
    return tuple(found)


def certificate_ends(pem: bytes) -> tuple[datetime, ...]:
    """When the certificates of a PEM file end, each time once, the first one first.

    Raises:
        ConfigError: it holds none that can be read.
    """
    from cryptography import x509  # noqa: PLC0415  # hosts without certificate files need not load it

    try:
        with warnings.catch_warnings():  # a system's bundle holds authorities older than the rules
            warnings.simplefilter("ignore")
            return tuple(sorted({each.not_valid_after_utc for each in x509.load_pem_x509_certificates(pem)}))
    except ValueError as error:
        raise ConfigError(f"expected certificates in PEM, got something else: {error}") from error
