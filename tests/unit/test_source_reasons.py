# SPDX-License-Identifier: Apache-2.0
"""From git's and ssh's words to a reason; the lines were printed by git 2.39 or OpenSSH 9.2, or stand in newer ones."""

from __future__ import annotations

import pytest

from reconciler.errors import Disposition
from reconciler.source._git import Remote
from reconciler.source._remote import explain

REMOTE = Remote(
    transport="https", environment={}, config=b"", secrets=("s3cret", "czNjcmV0"), memory_bytes=1, file_bytes=1
)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Host key verification failed.", "HostKeyRefused"),
        ("@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @", "HostKeyRefused"),
        ("No ED25519 host key is known for [127.0.0.1]:22 and you have requested strict checking.", "HostKeyRefused"),
        ("@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @", "AuthenticationFailed"),
        ("root@127.0.0.1: Permission denied (publickey).", "AuthenticationFailed"),
        ("fatal: Authentication failed for 'https://x/p/'", "AuthenticationFailed"),
        ("fatal: could not read Username for 'https://x': terminal prompts disabled", "AuthenticationFailed"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 403", "AuthenticationFailed"),
        ("fatal: unable to access 'https://x/': CONNECT tunnel failed, response 407", "AuthenticationFailed"),
        (
            "fatal: unable to access 'https://x/': Received HTTP code 407 from proxy after CONNECT",
            "AuthenticationFailed",
        ),
        ("fatal: unable to access 'https://x/': server certificate verification failed. CAfile: none", "TlsRefused"),
        ("fatal: unable to access 'https://x/': SSL certificate problem: certificate has expired", "TlsRefused"),
        (
            "fatal: unable to access 'https://x/': SSL: certificate subject name (a) does not match 'b'",
            "TlsRefused",
        ),
        ("fatal: unable to access 'https://x/': gnutls_handshake() failed: Handshake failed", "TlsRefused"),
        (
            "fatal: unable to update url base from redirection:\n  asked for: https://x\n   redirect: https://y",
            "RedirectRefused",
        ),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 302", "RedirectRefused"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 429", "SourceThrottled"),
        ("fatal: repository 'https://x/p/' not found", "NotARepository"),
        ("fatal: '/p' does not appear to be a git repository", "NotARepository"),
        ("fatal: protocol error: bad line length character: <htm", "NotARepository"),
        ("fatal: detected dubious ownership in repository at '/p'", "OwnerRefused"),
        ("fatal: mismatched algorithms: client sha1; server sha256", "ObjectFormatChanged"),
        ("fatal: couldn't find remote ref refs/heads/main", "RefMissing"),
        ("fatal: write error: No space left on device", "DiskFull"),
        ("error: index-pack died of signal 9", "SourceTooLarge"),
        ("fatal: Out of memory, malloc failed (tried to allocate 4294967296 bytes)", "SourceTooLarge"),
        (f"error: object {'0' * 40}: hasDotgit: contains '.git'\nfatal: fsck error in packed object", "ObjectsRefused"),
        ("fatal: fsck error in packed object", "ObjectsRefused"),
        ("fatal: early EOF\nfatal: fetch-pack: invalid index-pack output", "SourceUnavailable"),
        (
            "error: RPC failed; curl 56 GnuTLS recv error (-110): The TLS connection was cut.",
            "SourceUnavailable",
        ),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", "SourceUnavailable"),
        (
            "fatal: unable to access 'https://x/': Failed to connect to x port 443: Connection refused",
            "SourceUnavailable",
        ),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 503", "SourceUnavailable"),
        ("ssh: connect to host 127.0.0.1 port 22: Connection refused", "SourceUnavailable"),
        ("", "SourceUnavailable"),
    ],
)
def test_words_become_reasons(line: str, reason: str) -> None:
    assert explain("poll", line.encode(), 128, REMOTE).reason == reason


def test_what_nobody_can_mend_by_waiting_is_stalled() -> None:
    assert explain("poll", b"fatal: fsck error in packed object", 128, None).disposition is Disposition.STALLED
    assert explain("poll", b"fatal: early EOF", 128, None).disposition is Disposition.BACKOFF


@pytest.mark.parametrize("code", [-9, -24, -25, 152, 153])
def test_a_command_that_a_limit_ended_says_so(code: int) -> None:
    assert explain("fetch", b"", code, None).reason == "SourceTooLarge"


def test_secrets_control_characters_and_the_servers_words_are_not_repeated() -> None:
    messages = (
        b"remote: \x1b]8;;http://evil\x07click\n"
        b"fatal: s3cret czNjcmV0 https://user:pw@x/ \x1b[31m\xff\xfe \xe2\x80\xae" + b"x" * 1000
    )
    text = str(explain("poll", messages, 128, REMOTE))
    assert text.isprintable()
    assert "evil" not in text
    assert not any(secret in text for secret in ("s3cret", "czNjcmV0", "user:pw"))
    assert len(text) < 500
