# SPDX-License-Identifier: Apache-2.0
"""The host's configuration: values, refusals, and the digest of whom it trusts."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from reconciler import config
from reconciler.errors import ConfigError, Diagnostic, Disposition
from reconciler.model import AttachKind, HookKind

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://git.example/corp/edge.git"
FULL: dict[str, Any] = {
    "host": {"name": "edge-1.corp.example"},
    "labels": {"role": "edge", "site": "fra"},
    "source": {
        "url": "ssh://git@git.example:2222/corp/edge.git",
        "ref": "refs/heads/release/v1",
        "repository": "corp-edge",
        "auth": {
            "tokenFile": "/run/token",
            "caFile": "ca.pem",
            "proxy": "http://proxy.example:3128",
            "proxyAuthFile": "proxy",
            "clientCertFile": "client.pem",
            "clientKeyFile": "client.key",
            "sshKeyFile": "id_ed25519",
            "knownHostsFile": "known_hosts",
        },
        "minimumCommit": COMMIT,
        "interval": "10m",
        "driftInterval": "1500ms",
        "confirmTimeout": "20s",
        "staleAfter": "2d",
        "timeout": "1h",
    },
    "repositories": [
        {"name": "local", "folder": {"path": "/srv/packages"}},
        {"name": "mirror", "https": {"url": "https://p.example/x/", "caFile": "ca.pem", "tokenFile": "/run/t"}},
    ],
    "trust": {
        "commits": {"allowedSigners": "allowed_signers", "revoked": "/etc/revoked"},
        "signers": [
            {
                "name": "release",
                "packages": ["rate*", "firewall"],
                "key": {
                    "file": "release.pub",
                    "notBefore": "2025-01-01T00:00:00Z",
                    "notAfter": "2030-01-01T00:00:00.5+02:00",
                    "tlog": "required",
                    "root": "public",
                },
            },
            {
                "name": "ci",
                "packages": ["*"],
                "certificate": {"identity": "https://ci.example/*", "issuer": "https://oidc.example", "root": "public"},
            },
        ],
        "roots": [{"name": "public", "file": "trusted_root.json"}],
        "revoked": {
            "digests": ["sha256:" + "a" * 64],
            "keys": ["SHA256:" + "B" * 43],
            "identities": ["mallory@example.com"],
        },
        "onRevoked": "detach",
    },
    "secureMode": {
        "mode": "enforce",
        "tolerations": ["libxdp"],
        "tolerate": [
            {
                "name": "mine",
                "why": "w",
                "owner": "o",
                "hooks": ["xdp", "tc-egress"],
                "attach": ["clsact-filter"],
                "programName": "mine_*",
                "tag": "0123456789abcdef",
                "filterName": "f[0-9]",
            }
        ],
        "namespaces": ["host", "blue"],
        "interfaces": ["eth*"],
        "maxEvictions": 3,
    },
    "guardrail": {"count": 4, "share": "12.5%"},
    "expedite": "never",
    "control": {"path": "/run/r.sock", "mode": "0660", "group": "netops"},
    "metrics": {"textfile": "/var/lib/node/r.prom", "listen": "[::1]:9464"},
    "paths": {"state": "/s", "pins": "/sys/fs/bpf/r", "run": "/r"},
}


def parse(spec: dict[str, Any]) -> config.Config:
    """The configuration with `spec`; the content of a file is its path."""
    data = json.dumps({"apiVersion": "reconciler/v1alpha1", "kind": "Config", "spec": spec}).encode()
    return config.parse_config(data, file="config.yaml", folder="/etc/reconciler", read=lambda path: path.encode())


def source(**fields: object) -> dict[str, Any]:
    return {"source": {"url": URL, **fields}}


def test_a_configuration_with_everything() -> None:
    found = parse(FULL)
    assert found.host_name == "edge-1.corp.example"
    assert found.labels == {"role": "edge", "site": "fra"}
    assert found.source == config.SourceConfig(
        url="ssh://git@git.example:2222/corp/edge.git",
        ref="refs/heads/release/v1",
        repository="corp-edge",
        auth=config.Auth(
            token_file="/run/token",
            ca_file="/etc/reconciler/ca.pem",
            proxy="http://proxy.example:3128",
            proxy_auth_file="/etc/reconciler/proxy",
            client_cert_file="/etc/reconciler/client.pem",
            client_key_file="/etc/reconciler/client.key",
            ssh_key_file="/etc/reconciler/id_ed25519",
            known_hosts_file="/etc/reconciler/known_hosts",
        ),
        minimum_commit=COMMIT,
        interval=600.0,
        drift_interval=1.5,
        confirm_timeout=20.0,
        stale_after=172800.0,
        timeout=3600.0,
    )
    assert found.repositories == (
        config.FolderRepository(name="local", path="/srv/packages"),
        config.HttpsRepository(
            name="mirror", url="https://p.example/x", ca_file="/etc/reconciler/ca.pem", token_file="/run/t"
        ),
    )
    assert found.trust == config.Trust(
        commits=config.CommitTrust(allowed_signers=b"/etc/reconciler/allowed_signers", revoked=b"/etc/revoked"),
        signers=(
            config.KeyRule(
                name="release",
                packages=("rate*", "firewall"),
                key_pem=b"/etc/reconciler/release.pub",
                not_before=datetime(2025, 1, 1, tzinfo=UTC),
                not_after=datetime(2030, 1, 1, 0, 0, 0, 500000, tzinfo=timezone(timedelta(hours=2))),
                tlog="required",
                root="public",
            ),
            config.IdentityRule(
                name="ci",
                packages=("*",),
                identity="https://ci.example/*",
                issuer="https://oidc.example",
                root="public",
            ),
        ),
        roots={"public": b"/etc/reconciler/trusted_root.json"},
        revoked=config.Revoked(
            digests=frozenset({"sha256:" + "a" * 64}),
            keys=frozenset({"SHA256:" + "B" * 43}),
            identities=frozenset({"mallory@example.com"}),
        ),
        on_revoked="detach",
    )
    mine = config.Toleration(
        name="mine",
        why="w",
        owner="o",
        hooks=(HookKind.XDP, HookKind.TC_EGRESS),
        attach=(AttachKind.CLSACT_FILTER,),
        program_name="mine_*",
        tag="0123456789abcdef",
        filter_name="f[0-9]",
    )
    assert found.secure == config.SecureConfig(
        mode=config.SecureMode.ENFORCE,
        tolerations=(*config.shipped_tolerations("libxdp"), mine),
        namespaces=("host", "blue"),
        interfaces=("eth*",),
        max_evictions=3,
    )
    assert found.guardrail == config.Guardrail(count=4, share=0.125)
    assert found.expedite == "never"
    assert found.control == config.Control(path="/run/r.sock", mode=0o660, group="netops")
    assert found.control_path == "/run/r.sock"
    assert found.metrics == config.Metrics(textfile="/var/lib/node/r.prom", listen="[::1]:9464")
    assert found.paths == config.Paths(state="/s", pins="/sys/fs/bpf/r", run="/r")


def test_the_default_trusts_nobody_tolerates_nothing_and_evicts_nothing() -> None:
    found = parse(source())
    assert found == config.Config(source=config.SourceConfig(url=URL))
    assert found.trust == config.Trust()
    assert found.trust.commits.allowed_signers == b""
    assert found.trust.commits.unsafe_allow_unsigned is False
    assert found.trust.signers == ()
    assert found.secure.tolerations == ()
    assert found.secure.mode is config.SecureMode.AUDIT
    assert found.control_path == "/run/reconciler/control.sock"
    assert found.control.mode == 0o600


def test_file_urls_need_to_be_allowed_by_name() -> None:
    assert parse(source(url="file:///srv/git", allowFile=True)).source.allow_file is True
    with pytest.raises(ConfigError, match=r"expected https:// or ssh://, got file://; set allowFile if it is meant"):
        parse(source(url="file:///srv/git"))


KEY: dict[str, Any] = {"name": "k", "packages": ["*"], "key": {"file": "k.pub"}}
CERTIFICATE: dict[str, Any] = {
    "name": "c",
    "packages": ["*"],
    "certificate": {"identity": "a@b", "issuer": "https://i", "root": "r"},
}
ROOT = {"name": "r", "file": "r.json"}


def signers(*rules: dict[str, Any], **trust: object) -> dict[str, Any]:
    return {**source(), "trust": {"signers": list(rules), **trust}}


@pytest.mark.parametrize(
    ("spec", "pointer", "finding"),
    [
        ({}, "/spec", "expected the field 'source', got none; add it"),
        ({"source": {}}, "/spec/source", "expected the field 'url', got none; add it"),
        (
            source(url="--upload-pack=x"),
            "/spec/source/url",
            "expected a URL that starts with https://, ssh:// or file://",
        ),
        (source(url="http://x.example/y"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="git://x.example/y"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="ext::sh -c id"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="fd::17/x"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="git@x.example:corp/edge.git"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="https://x.example/a b"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="https://x.example/\n"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="https://bücher.example/x"), "/spec/source/url", "expected a URL that starts with https://"),
        (source(url="https://u:p@x.example/y"), "/spec/source/url", "expected a URL without credentials, got some"),
        (source(url="https://u@x.example/y"), "/spec/source/url", "expected a URL without credentials, got some"),
        (source(url="https:///y"), "/spec/source/url", "expected a URL with a host that does not start with '-', got"),
        (
            source(url="https://-x.example/y"),
            "/spec/source/url",
            "expected a URL with a host that does not start with '-'",
        ),
        (source(url="https://x.example/y?z"), "/spec/source/url", "expected a URL without '?' and '#', got one"),
        (
            source(url="https://x.example/%0a"),
            "/spec/source/url",
            "expected a URL without escapes and with a real port",
        ),
        (
            source(url="https://x.example:0/y"),
            "/spec/source/url",
            "expected a URL without escapes and with a real port",
        ),
        (source(url="https://x.example:99999/y"), "/spec/source/url", "expected a URL, got one that cannot be read"),
        (source(url="https://[::1/y"), "/spec/source/url", "expected a URL, got one that cannot be read"),
        (source(url="file://host/y", allowFile=True), "/spec/source/url", "expected file:// and an absolute path"),
        (source(ref="main"), "/spec/source/ref", "expected a full ref such as refs/heads/main, got 'main'"),
        (source(ref="refs/heads/a..b"), "/spec/source/ref", "expected a full ref such as refs/heads/main"),
        (source(ref="refs/heads/-x:y"), "/spec/source/ref", "expected a full ref such as refs/heads/main"),
        (source(ref="refs/heads/a@{1}"), "/spec/source/ref", "expected a full ref such as refs/heads/main"),
        (source(ref="refs/heads/a.lock"), "/spec/source/ref", "expected a full ref such as refs/heads/main"),
        (source(ref="refs/heads/a.lock/b"), "/spec/source/ref", "expected a full ref such as refs/heads/main"),
        (source(ref="refs/-x/main"), "/spec/source/ref", "expected a full ref such as refs/heads/main"),
        (
            source(minimumCommit=COMMIT[:12]),
            "/spec/source/minimumCommit",
            "expected a full commit id of 40 or 64 hex digits",
        ),
        (source(minimumCommit=17), "/spec/source/minimumCommit", "got the number 17; put it in quotes"),
        (source(interval="0s"), "/spec/source/interval", "expected a duration above zero, got '0s'"),
        (source(interval="5"), "/spec/source/interval", "expected a duration such as 500ms, 30s, 5m or 24h, got '5'"),
        (
            source(auth={"clientCertFile": "x"}),
            "/spec/source/auth",
            "expected clientCertFile and clientKeyFile together",
        ),
        (source(auth={"proxyAuthFile": "x"}), "/spec/source/auth/proxyAuthFile", "expected proxy beside proxyAuthFile"),
        (
            source(auth={"token": "x"}),
            "/spec/source/auth/token",
            "expected a known field, got 'token'; did you mean 'tokenF",
        ),
        (
            source(auth={"proxy": "socks5://x"}),
            "/spec/source/auth/proxy",
            "expected http://HOST:PORT, got 'socks5://x'",
        ),
        (
            {**source(), "repositories": [{"name": "x"}]},
            "/spec/repositories/0",
            "expected either folder or https, got both",
        ),
        (
            {**source(), "repositories": [{"name": "git", "folder": {"path": "/x"}}]},
            "/spec/repositories/0/name",
            "expected another name, got 'git', which is packages/ of the same commit",
        ),
        (
            {**source(), "repositories": [{"name": "a", "folder": {"path": "/x"}}] * 2},
            "/spec/repositories/1/name",
            "expected each name once, got 'a' again; rename it",
        ),
        (
            {**source(), "repositories": [{"name": "a", "folder": {"path": "x"}}]},
            "/spec/repositories/0/folder/path",
            "expected an absolute path, got 'x'",
        ),
        (
            {**source(), "repositories": [{"name": "a", "https": {"url": "http://x.example"}}]},
            "/spec/repositories/0/https/url",
            "expected a URL that starts with https://, got 'http://x.example'",
        ),
        (
            signers({"name": "k", "packages": ["*"]}),
            "/spec/trust/signers/0",
            "expected either key or certificate, got both",
        ),
        (
            signers(KEY | CERTIFICATE, roots=[ROOT]),
            "/spec/trust/signers/0",
            "expected either key or certificate, got both",
        ),
        (signers(KEY, KEY), "/spec/trust/signers/1/name", "expected each name once, got 'k' again"),
        (signers(KEY | {"packages": []}), "/spec/trust/signers/0/packages", "expected at least 1 item, got 0"),
        (signers(KEY | {"packages": ["["]}), "/spec/trust/signers/0/packages/0", "expected a ']' after the '[' in '['"),
        (
            signers(CERTIFICATE),
            "/spec/trust/signers/0/certificate/root",
            "expected the name of one of trust.roots, got 'r'",
        ),
        (
            signers({"name": "c", "packages": ["*"], "certificate": {"identity": "a@b", "root": "r"}}, roots=[ROOT]),
            "/spec/trust/signers/0/certificate",
            "expected the field 'issuer', got none; add it",
        ),
        (
            signers({"name": "c", "packages": ["*"], "certificate": {"issuer": "a", "root": "r"}}, roots=[ROOT]),
            "/spec/trust/signers/0/certificate",
            "expected the field 'identity', got none; add it",
        ),
        (
            signers(KEY | {"key": {"file": "k", "tlog": "required"}}),
            "/spec/trust/signers/0/key",
            "expected the field 'root' where tlog is required, got none; log entries are checked with it",
        ),
        (
            signers(KEY | {"key": {"file": "k", "notAfter": "2025-02-30T00:00:00Z"}}),
            "/spec/trust/signers/0/key/notAfter",
            "expected a time that exists, got '2025-02-30T00:00:00Z'",
        ),
        (
            signers(KEY | {"key": {"file": "k", "notAfter": "2025-02-01T00:00:00"}}),
            "/spec/trust/signers/0/key/notAfter",
            "expected a time such as 2026-01-31T00:00:00Z, got '2025-02-01T00:00:00'",
        ),
        (signers(roots=[ROOT, ROOT]), "/spec/trust/roots/1/name", "expected each name once, got 'r' again"),
        (
            signers(revoked={"keys": ["SHA256:short"]}),
            "/spec/trust/revoked/keys/0",
            "expected 'SHA256:' and 43 characters of base64, got 'SHA256:short'",
        ),
        (signers(onRevoked="ignore"), "/spec/trust/onRevoked", "expected 'keep' or 'detach', got 'ignore'"),
        (
            {**source(), "secureMode": {"mode": "on"}},
            "/spec/secureMode/mode",
            "expected 'off', 'audit' or 'enforce', got 'on'",
        ),
        (
            {**source(), "secureMode": {"tolerations": ["celium"]}},
            "/spec/secureMode/tolerations/0",
            "expected a set that ships (bpfman, calico, cilium, libxdp, systemd), got 'celium'",
        ),
        (
            {**source(), "secureMode": {"tolerate": [{"name": "a", "why": "w", "owner": "o", "hooks": ["xdp"]}]}},
            "/spec/secureMode/tolerate/0",
            "expected programName, tag or filterName, got none; a rule that names no program would tolerate all",
        ),
        (
            {**source(), "secureMode": {"tolerate": [{"name": "a", "owner": "o", "programName": "x"}]}},
            "/spec/secureMode/tolerate/0",
            "expected the field 'why', got none; add it",
        ),
        (
            {**source(), "secureMode": {"tolerate": [{"name": "a", "why": "w", "owner": "o", "programName": "[x"}]}},
            "/spec/secureMode/tolerate/0/programName",
            "expected a ']' after the '[' in '[x', got none",
        ),
        (
            {**source(), "secureMode": {"interfaces": ["[x"]}},
            "/spec/secureMode/interfaces/0",
            "expected a ']' after the '[' in '[x', got none",
        ),
        ({**source(), "guardrail": {"share": "200%"}}, "/spec/guardrail/share", "expected a share from 0% to 100%"),
        ({**source(), "guardrail": {"count": 1.0}}, "/spec/guardrail/count", "expected an integer, got the number 1.0"),
        (
            {**source(), "control": {"mode": 660}},
            "/spec/control/mode",
            "expected an octal mode such as 0660, got the number",
        ),
        (
            {**source(), "control": {"mode": "0999"}},
            "/spec/control/mode",
            "expected an octal mode such as 0660, got '0999'",
        ),
        (
            {**source(), "metrics": {"listen": "0.0.0.0:9464"}},
            "/spec/metrics/listen",
            "expected a loopback address such as 127.0.0.1:9464, got '0.0.0.0:9464'",
        ),
        (
            {**source(), "metrics": {"listen": "localhost:9464"}},
            "/spec/metrics/listen",
            "expected an IP address and a port",
        ),
        (
            {**source(), "paths": {"pins": "/sys/fs/bpf/a.b"}},
            "/spec/paths/pins",
            "expected an absolute path without dots (bpffs refuses them), got '/sys/fs/bpf/a.b'",
        ),
        ({**source(), "labels": {"role": True}}, "/spec/labels/role", "got true; put it in quotes"),
        ({**source(), "unsafe": True}, "/spec/unsafe", "expected a known field, got 'unsafe'"),
    ],
)
def test_what_is_wrong_is_said_in_place(spec: dict[str, Any], pointer: str, finding: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(spec)
    assert caught.value.disposition is Disposition.STALLED
    assert [each.pointer for each in caught.value.findings] == [pointer]
    assert finding in str(caught.value)
    assert str(caught.value).startswith("config.yaml:1:")


@pytest.mark.parametrize("url", ["http://robot:s3cret@h:1", "https://robot:s3c/r@et@h/x y", f"x://{'s3cret' * 90}@h"])
def test_no_finding_about_a_url_shows_its_password(url: str) -> None:
    web = {"name": "web", "https": {"url": url}}
    with pytest.raises(ConfigError) as caught:
        parse({**source(url=url, auth={"proxy": url}), "repositories": [web]})
    assert len(caught.value.diagnostics()) == 3
    assert "s3c" not in str(caught.value)
    assert not any("s3c" in finding.message for finding in caught.value.diagnostics())


def test_an_ssh_source_needs_its_key_and_the_keys_of_the_server() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(source(url="ssh://git@x.example/y"))
    assert [finding.message.split(",")[0] for finding in caught.value.findings] == [
        "expected the field 'sshKeyFile' for an ssh:// source",
        "expected the field 'knownHostsFile' for an ssh:// source",
    ]
    with pytest.raises(ConfigError, match="does not start with '-'"):
        parse(source(url="ssh://-oProxyCommand=x@y/z", auth={"sshKeyFile": "a", "knownHostsFile": "b"}))


def test_all_findings_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            {
                **source(ref="refs/a.lock", interval="0s"),
                "metrics": {"listen": "x"},
                "secureMode": {"tolerations": ["x"]},
            }
        )
    assert [finding.pointer for finding in caught.value.findings] == [
        "/spec/source/ref",
        "/spec/source/interval",
        "/spec/metrics/listen",
        "/spec/secureMode/tolerations/0",
    ]


def test_a_file_that_cannot_be_read_is_a_finding_at_the_field_that_names_it() -> None:
    def read(path: str) -> bytes:
        raise ConfigError((Diagnostic(message=f"expected a readable file, got none ({path})", file=path),))

    spec = signers(KEY, commits={"allowedSigners": "a"}, roots=[ROOT])
    data = json.dumps({"apiVersion": "reconciler/v1alpha1", "kind": "Config", "spec": spec}).encode()
    with pytest.raises(ConfigError) as caught:
        config.parse_config(data, file="c.yaml", folder="/etc", read=read)
    assert [(finding.file, finding.pointer) for finding in caught.value.findings] == [
        ("c.yaml", "/spec/trust/signers/0/key/file"),
        ("c.yaml", "/spec/trust/commits/allowedSigners"),
        ("c.yaml", "/spec/trust/roots/0/file"),
    ]
    assert "got none (/etc/k.pub)" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b"", "c.yaml:1:1: expected at least one document, got an empty file"),
        (b"a: 1\n---\nb: 1\n", "c.yaml:3:1: expected one document, got several; keep one"),
        (b"- a", "c.yaml:1:1: expected a mapping, got a list"),
        (
            b"kind: Chain\napiVersion: reconciler/v1alpha1\nspec: {source: {url: 'https://x/y'}}",
            "expected 'Config', got 'Chain'",
        ),
        (b"a: &x 1", "c.yaml:1:4: expected no anchors, got &x"),
    ],
)
def test_what_is_no_configuration_is_refused(data: bytes, finding: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_config(data, file="c.yaml", folder="/etc", read=lambda _: b"")
    assert finding in str(caught.value)


# --- tolerations -------------------------------------------------------------------------------------------


def test_the_sets_that_ship_say_why_and_who() -> None:
    assert config.shipped_names() == ("bpfman", "calico", "cilium", "libxdp", "systemd")
    seen: set[str] = set()
    for name in config.shipped_names():
        for rule in config.shipped_tolerations(name):
            assert rule.why
            assert rule.owner
            assert rule.program_name or rule.tag or rule.filter_name
            assert rule.program_name is None or len(rule.program_name.rstrip("*")) <= 15
            assert rule.name not in seen
            seen.add(rule.name)


def tolerations(rules: list[dict[str, Any]], **more: object) -> bytes:
    head = {"apiVersion": "reconciler/v1alpha1", "kind": "Tolerations", "metadata": {"name": "x"}}
    return json.dumps({**head, "spec": {"tolerate": rules}, **more}).encode()


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b"", "expected at least one document"),
        (tolerations([]), "expected at least 1 item, got 0"),
        (tolerations([{"name": "a", "why": "w", "owner": "o"}]), "expected programName, tag or filterName, got none"),
        (
            tolerations([{"name": "a", "why": "w", "owner": "o", "tag": "xyz"}]),
            "expected 16 lower-case hex digits, got 'xyz'",
        ),
        (tolerations([{"name": "a", "why": "w", "owner": "o", "filterName": "[!"}]), "expected a ']' after the '['"),
        (
            tolerations([{"name": "a", "why": "w", "owner": "o", "tag": "0" * 16}]) + b"\n---\na: 1",
            "expected one document",
        ),
    ],
)
def test_a_wrong_set_of_tolerations_is_refused(data: bytes, finding: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_tolerations(data, file="t.yaml")
    assert finding in str(caught.value)
    assert str(caught.value).startswith("t.yaml:")


# --- the digest of whom the host trusts ---------------------------------------------------------------------


def test_the_trust_digest_changes_with_trust_and_tolerations_and_nothing_else() -> None:
    base = parse(FULL)
    digest = config.trust_digest(base)
    assert len(digest) == 64
    assert config.trust_digest(parse(json.loads(json.dumps(FULL, sort_keys=True)))) == digest
    for other in (
        dataclasses.replace(base, labels={}),
        dataclasses.replace(base, guardrail=config.Guardrail()),
        dataclasses.replace(base, paths=config.Paths()),
        dataclasses.replace(base, source=config.SourceConfig(url=URL)),
    ):
        assert config.trust_digest(other) == digest
    trust, secure = base.trust, base.secure
    others = [
        dataclasses.replace(base, trust=changed)
        for changed in (
            dataclasses.replace(trust, signers=trust.signers[:1]),
            dataclasses.replace(trust, signers=trust.signers[::-1]),
            dataclasses.replace(trust, roots={"public": b"other"}),
            dataclasses.replace(trust, on_revoked="keep"),
            dataclasses.replace(trust, revoked=config.Revoked()),
            dataclasses.replace(trust, commits=config.CommitTrust(allowed_signers=b"x")),
            dataclasses.replace(
                trust, commits=dataclasses.replace(trust.commits, revoked=None, allowed_signers=b"/etc/revoked")
            ),
        )
    ] + [
        dataclasses.replace(base, secure=changed)
        for changed in (
            dataclasses.replace(secure, mode=config.SecureMode.AUDIT),
            dataclasses.replace(secure, tolerations=secure.tolerations[:1]),
            dataclasses.replace(secure, interfaces=("*",)),
        )
    ]
    digests = {config.trust_digest(other) for other in others}
    assert len(digests) == len(others)
    assert digest not in digests


def test_the_order_of_revocations_does_not_matter() -> None:
    identities = [f"user-{n}@example.com" for n in range(20)]
    one = parse({**source(), "trust": {"revoked": {"identities": identities}}})
    other = parse({**source(), "trust": {"revoked": {"identities": identities[::-1]}}})
    assert config.trust_digest(one) == config.trust_digest(other)
