# SPDX-License-Identifier: Apache-2.0
"""From git's and ssh's words to a reason; the lines were printed by git 2.39 or OpenSSH 9.2, or stand in newer ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.errors import Disposition
from reconciler.source._git import Completed, Remote
from reconciler.source._remote import MAX_RETRY_AFTER, explain, retry_after

REMOTE = Remote(
    transport="https", environment={}, config=b"", secrets=("s3cret", "czNjcmV0"), memory_bytes=1, file_bytes=1
)


def failed(messages: bytes, headers: bytes = b"") -> Completed:
    return Completed(code=128, output=b"", messages=messages, headers=headers)


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
        (f"fatal: SHA1 COLLISION FOUND WITH {'0' * 40} !", "ObjectsRefused"),
        (f"fatal: SHA-1 appears to be part of a collision attack: {'0' * 40}", "ObjectsRefused"),
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
    assert explain("poll", failed(line.encode()), REMOTE).reason == reason


def test_what_nobody_can_mend_by_waiting_is_stalled() -> None:
    assert explain("poll", failed(b"fatal: fsck error in packed object")).disposition is Disposition.STALLED
    assert explain("poll", failed(b"fatal: early EOF")).disposition is Disposition.BACKOFF


@pytest.mark.parametrize("code", [-9, -24, -25, 152, 153])
def test_a_command_that_a_limit_ended_says_so(code: int) -> None:
    assert explain("fetch", Completed(code=code, output=b"", messages=b"")).reason == "SourceTooLarge"


def test_secrets_control_characters_and_the_servers_words_are_not_repeated() -> None:
    messages = (
        b"remote: \x1b]8;;http://evil\x07click\n"
        b"fatal: s3cret czNjcmV0 https://user:pw@x/ \x1b[31m\xff\xfe \xe2\x80\xae" + b"x" * 1000
    )
    text = str(explain("poll", failed(messages), REMOTE))
    assert text.isprintable()
    assert "evil" not in text
    assert not any(secret in text for secret in ("s3cret", "czNjcmV0", "user:pw"))
    assert len(text) < 500


@pytest.mark.parametrize("begin", ["remote: ", "  remote: ", "progress\rremote: ", "fatal: remote error: "])
@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_a_server_does_not_choose_its_reason(begin: str, newline: str) -> None:
    for said in (
        "Host key verification failed.",
        "server certificate verification failed. CAfile: none",
        "error: 429",
        "mismatched algorithms: client sha1; server sha256",
        "fsck error\x0bfsck error\x0c\u2028fsck error",
        "No space left on device",
    ):
        error = explain("poll main", failed(f"{begin}{said}{newline}fatal: early EOF{newline}".encode()), REMOTE)
        assert (error.reason, error.disposition) == ("SourceUnavailable", Disposition.BACKOFF)
        if "fatal" not in begin:
            assert "(fatal: early EOF)" in str(error)
    # What git itself says of the same counts, before it and after it.
    own = "fatal: unable to access 'https://x/': The requested URL returned error: 429"
    for line in (f"{begin}fsck error{newline}{own}", f"{own}{newline}{begin}fsck error"):
        assert explain("poll main", failed(line.encode()), REMOTE).reason == "SourceThrottled"


DATE = "Date: Sun, 29 Nov 2026 09:06:17 GMT"


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["HTTP/1.1 429 Too Many Requests", "Retry-After: 17"], 17.0),
        (["retry-after:0"], 0.0),
        (["Retry-After: 5", "Retry-After: 7"], 7.0),
        ([DATE, "Retry-After: Sun, 29 Nov 2026 09:08:17 GMT"], 120.0),
        ([DATE, "Retry-After: Sun, 29 Nov 2026 09:00:00 GMT"], 0.0),
        ([DATE, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"], MAX_RETRY_AFTER),
        (["Retry-After: 999999999999999999"], MAX_RETRY_AFTER),
        (["Retry-After: Sun, 29 Nov 2026 09:08:17 GMT"], None),
        (["Retry-After: soon", DATE], None),
        (["Retry-After: -1"], None),
        (["Retry-After: 1" + "0" * 64], None),
        (["X-Retry-After: 17", "Content-Length: 0"], None),
        ([], None),
    ],
)
def test_how_long_the_server_asks_to_wait(lines: list[str], seconds: float | None) -> None:
    trace = "".join(f"09:06:17.586605 http.c:684              <= Recv header: {line}\n" for line in lines).encode()
    assert retry_after(trace) == seconds
    assert explain("poll", failed(b"error: 429", trace), REMOTE).retry_after == seconds


def test_what_we_sent_is_no_answer() -> None:
    assert retry_after(b"x => Send header: Retry-After: 17\n == Info: <= Recv header: retry-after: 3\n") is None


@pytest.mark.parametrize("word", ["No ", "repository ", "Repository '", "://", "error: object a", "certificate "])
def test_what_a_server_makes_git_say_is_read_in_bounded_time(word: str) -> None:
    # A pattern that looks to the end of the line from each of these places takes hours for that, not a moment.
    error = explain("poll main", failed(b"fatal: the pack says " + word.encode() * ((1 << 20) // len(word))))
    assert error.reason == "SourceUnavailable"
    assert len(str(error)) < 500


def test_an_empty_password_is_no_secret() -> None:
    remote = replace(REMOTE, secrets=("", "s3cret"))
    error = explain("poll main", failed(b"fatal: Authentication failed for 's3cret'"), remote)
    assert error.reason == "AuthenticationFailed"
    assert "'***'" in str(error)
