# SPDX-License-Identifier: Apache-2.0
"""What a source's URL and ref may look like (T-URL and T-REF of the bad inputs)."""

from __future__ import annotations

import pytest

from reconciler.errors import ConfigError
from reconciler.source import check_ref, check_url


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "user", "path"),
    [
        ("https://git.example.com/team/policy.git", "https", "git.example.com", None, None, "/team/policy.git"),
        ("https://git.example.com:8443/p", "https", "git.example.com", 8443, None, "/p"),
        ("https://192.0.2.1/p", "https", "192.0.2.1", None, None, "/p"),
        ("https://[2001:db8::1]:443/p", "https", "[2001:db8::1]", 443, None, "/p"),
        ("https://[2001:db8::1]/p", "https", "[2001:db8::1]", None, None, "/p"),
        ("https://xn--bcher-kva.example/p%20q", "https", "xn--bcher-kva.example", None, None, "/p%20q"),
        ("ssh://git@git.example.com:2222/srv/p.git", "ssh", "git.example.com", 2222, "git", "/srv/p.git"),
        ("ssh://git.example.com/~bot/p", "ssh", "git.example.com", None, None, "/~bot/p"),
        ("file:///srv/git/p.git", "file", "", None, None, "/srv/git/p.git"),
    ],
)
def test_urls_that_are_accepted(
    url: str, scheme: str, host: str, port: int | None, user: str | None, path: str
) -> None:
    parts = check_url(url, allow_file=True)
    assert (parts.text, parts.scheme, parts.host, parts.port, parts.user, parts.path) == (
        url,
        scheme,
        host,
        port,
        user,
        path,
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-x",
        "--upload-pack=touch /tmp/x",
        "ext::sh -c id",
        "fd::3",
        "git://example.com/p",
        "http://example.com/p",
        "ftp://example.com/p",
        "HTTPS://example.com/p",
        "git@example.com:p.git",
        "example.com:p.git",
        "/srv/git/p.git",
        "file:///srv/p",
        "https:///p",
        "https://example.com",
        "https://example.com/",
        "https://example.com/p\n",
        "https://example.com/p\r",
        "https://example.com/p\0",
        "https://example.com/p%0a",
        "https://example.com/p%0D%0Aq",
        "https://example.com/p%00",
        "https://example.com/p%7f",
        "https://example.com/p%2",
        "https://example.com/p%zz",
        "https://example.com/../p",
        "https://example.com/a/%2e%2e/p",
        "https://example.com/./p",
        "https://example.com/-p",
        "https://example.com/p?token=x",
        "https://example.com/p#x",
        "https://example.com/p q",
        "https://example.com/p\\q",
        "https://example.com/$(id)",
        "https://example.com/`id`",
        "https://example.com/'p'",
        "https://bücher.example/p",
        "https://example.com/p\u202egnp",
        "https://user:secret@example.com/p",
        "https://secret@example.com/p",
        "https://example.com:0/p",
        "https://example.com:65536/p",
        "https://example.com:+1/p",
        "https://example.com:/p",
        "https://exa_mple.com/p",
        "https://-example.com/p",
        "https://[fe80::1%25eth0]/p",
        "https://[fe80::1%eth0]/p",
        "https://2001:db8::1/p",
        "ssh://-oProxyCommand=id/p",
        "ssh://-oProxyCommand=id@example.com/p",
        "ssh://git:secret@example.com/p",
        "ssh://g it@example.com/p",
        "ssh://git@-example.com/p",
        "ssh://@@example.com/p",
        "https://example.com/" + "p" * 3000,
    ],
)
def test_urls_that_are_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)
    assert all(character.isprintable() for character in str(caught.value))


def test_file_is_allowed_by_name_only() -> None:
    assert check_url("file:///srv/p", allow_file=True).scheme == "file"
    with pytest.raises(ConfigError, match="allowFile"):
        check_url("file:///srv/p")
    with pytest.raises(ConfigError, match="without a host"):
        check_url("file://host/srv/p", allow_file=True)


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/heads/release/1.2", "refs/tags/v1", "refs/heads/a@b+c=d,e"])
def test_refs_that_are_accepted(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "main",
        "HEAD",
        "heads/main",
        "refs/heads",
        "refs/heads/",
        "refs//heads/main",
        "/refs/heads/main",
        "-h",
        "--upload-pack=x",
        "refs/heads/..",
        "refs/heads/a..b",
        "refs/heads/.a",
        "refs/heads/a.",
        "refs/heads/a.lock",
        "refs/heads/a.lock/b",
        "refs/heads/-a",
        "refs/heads/@",
        "refs/heads/main@{upstream}",
        "refs/heads/main:refs/heads/x",
        "+refs/heads/main",
        "^refs/heads/main",
        "refs/heads/*",
        "refs/heads/a?b",
        "refs/heads/[a]",
        "refs/heads/a b",
        "refs/heads/a~1",
        "refs/heads/a\\b",
        "refs/heads/a\nb",
        "refs/heads/a\0b",
        "refs/heads/a\x7f",
        "refs/heads/\u202emain",
        "refs/heads/müller",
        "refs/replace/0123456789012345678901234567890123456789",
        "refs/heads/" + "a" * 300,
    ],
)
def test_refs_that_are_refused(ref: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ref(ref)
    assert all(character.isprintable() for character in str(caught.value))
