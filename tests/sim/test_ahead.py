# SPDX-License-Identifier: Apache-2.0
"""Warnings before it hurts: what ends soon and a disk that is nearly full, and that they change no verdict."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from reconciler.cli._agent import Reporter
from reconciler.config import Auth, CommitTrust, FolderRepository, HttpsRepository, KeyRule, Trust, Warn
from reconciler.reconcile._ahead import look_ahead
from reconciler.sensor import ServiceManager
from reconciler.status import metrics, render, render_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sim.host import Host

DAY = 86400


def rule(name: str, end: datetime | None) -> KeyRule:
    return KeyRule(name=name, packages=("*",), key_pem=b"", not_after=end)


@pytest.fixture
def now(edge: Host) -> datetime:
    return edge.clock.now()


def certificate(path: Path, end: datetime) -> str:
    """A self-signed certificate that ends then."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge-1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(path)


def test_what_ends_within_the_span_is_told_and_what_ended_long_ago_is_not(edge: Host, now: datetime) -> None:
    ends = {"long-ago": -31, "yesterday": -1, "soon": 29, "later": 31}
    rules = [rule(name, now + timedelta(days=days)) for name, days in ends.items()]
    edge.configure(trust=replace(edge.config.trust, signers=(*edge.config.trust.signers, *rules, rule("never", None))))
    ahead = look_ahead(edge.parts())
    told = [(each.reason, each.message.split(" end")[0], each.exit_code) for each in ahead.warnings]
    assert told == [("Expired", "key of signer yesterday", 0), ("ExpiresSoon", "key of signer soon", 0)]
    assert ahead.expiry is not None
    assert ahead.expiry.what == "key of signer yesterday"


def test_the_span_is_configured(edge: Host, now: datetime) -> None:
    edge.configure(trust=Trust(signers=(rule("soon", now + timedelta(days=29)),)), warn=Warn(expires_within=28 * DAY))
    ahead = look_ahead(edge.parts())
    assert ahead.warnings == ()
    assert ahead.expiry is not None
    edge.clock.seconds += DAY + 1  # the same process: only time goes on
    assert [each.reason for each in look_ahead(edge.parts()).warnings] == ["ExpiresSoon"]


def test_windows_of_allowed_signers(edge: Host, now: datetime) -> None:
    day = (now + timedelta(days=10)).strftime("%Y%m%d")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"
    lines = [
        "# valid-before=20200101 ssh-ed25519 a comment",
        f'alice@example.com namespaces="git",valid-before="{day}" {key} alice',
        f"bob@example.com valid-after=20200101,VALID-BEFORE={day}1200Z {key}",
        f"carol@example.com {key} valid-before={day} is only a comment here",
        f"dave@example.com valid-before=99999999 {key}",
    ]
    commits = CommitTrust(allowed_signers="\n".join(lines).encode())
    edge.configure(trust=Trust(commits=commits))
    assert [each.message.split(";")[0] for each in look_ahead(edge.parts()).warnings] == [
        f"allowed signer alice@example.com ends at {day[:4]}-{day[4:6]}-{day[6:]}T00:00:00+00:00",
        f"allowed signer bob@example.com ends at {day[:4]}-{day[4:6]}-{day[6:]}T12:00:00+00:00",
    ]


def test_certificates_are_read_again_in_each_pass(edge: Host, now: datetime, tmp_path: Path) -> None:
    auth = Auth(
        client_cert_file=certificate(tmp_path / "client.pem", now + timedelta(days=3)),
        ca_file=certificate(tmp_path / "ca.pem", now + timedelta(days=300)),
    )
    edge.set_source(auth=auth)
    (warning,) = look_ahead(edge.parts()).warnings
    assert warning.message.startswith(f"client certificate {tmp_path / 'client.pem'} ends at ")
    certificate(tmp_path / "client.pem", now + timedelta(days=365))
    assert look_ahead(edge.parts()).warnings == ()
    for content in (b"no certificate", None):  # who connects will say so
        if content is None:
            (tmp_path / "client.pem").unlink()
        else:
            (tmp_path / "client.pem").write_bytes(content)
        ahead = look_ahead(edge.parts())
        assert (ahead.warnings, ahead.expiry is not None) == ((), True)


def test_the_authority_of_a_package_repository_is_told_once(edge: Host, now: datetime, tmp_path: Path) -> None:
    shared = certificate(tmp_path / "shared.pem", now + timedelta(days=5))
    other = certificate(tmp_path / "other.pem", now + timedelta(days=4))
    names = {"a": shared, "b": other, "c": None}
    edge.set_source(auth=Auth(ca_file=shared))
    edge.configure(
        repositories=(
            *(HttpsRepository(name=name, url="https://x", ca_file=path) for name, path in names.items()),
            FolderRepository(name="d", path="/srv"),
        )
    )
    assert [each.message.split(" ends")[0] for each in look_ahead(edge.parts()).warnings] == [
        f"CA certificate {other}",
        f"CA certificate {shared}",
    ]


def test_an_authority_that_ended_hides_no_other_of_its_file(edge: Host, now: datetime, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    certificate(file, now - timedelta(days=900))
    old = file.read_bytes()
    certificate(file, now + timedelta(days=7))
    file.write_bytes(old + file.read_bytes())
    edge.set_source(auth=Auth(ca_file=str(file)))
    ahead = look_ahead(edge.parts())
    assert [(each.reason, each.message.split(" ends at ")[0]) for each in ahead.warnings] == [
        ("ExpiresSoon", f"CA certificate {file}")
    ]
    assert ahead.expiry is not None
    assert ahead.expiry.at == (now + timedelta(days=7)).isoformat(timespec="seconds")


def test_a_trust_root_that_ends_is_told(edge: Host, now: datetime) -> None:
    def root(days: int) -> bytes:
        end = (now + timedelta(days=days)).isoformat()
        return json.dumps({"tlogs": [{"publicKey": {"validFor": {"end": end}}}]}).encode()

    roots = {"corp": root(29), "next": root(300), "old": root(-3), "endless": b"{}", "junk": b"["}
    edge.configure(trust=Trust(roots=roots))
    assert [(each.reason, each.message.split(" end")[0]) for each in look_ahead(edge.parts()).warnings] == [
        ("Expired", "trust root old"),
        ("ExpiresSoon", "trust root corp"),
    ]


@pytest.mark.parametrize(("free", "reasons"), [(49, ["DiskNearlyFull"]), (50, [])])
def test_a_disk_that_is_nearly_full(edge: Host, monkeypatch: pytest.MonkeyPatch, free: int, reasons: list[str]) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_blocks=1000))
    ahead = look_ahead(edge.parts())
    assert [each.reason for each in ahead.warnings] == reasons
    assert ahead.disk_free == free / 1000


def test_a_disk_that_cannot_be_asked_is_no_warning(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", refuse)
    assert look_ahead(edge.parts()) == replace(look_ahead(edge.parts()), warnings=(), disk_free=None)


def test_warnings_are_shown_counted_and_said_once_and_the_pass_is_as_it_would_be(
    edge: Host, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.apply()
    soon = rule("next", now + timedelta(days=3))
    edge.trust(signers=(*edge.config.trust.signers, soon))
    edge.apply()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_blocks=1000))
    parts = edge.parts()
    reporter = Reporter(parts, ServiceManager({}))
    edge.events.clear()
    results = [edge.apply() for _ in range(2)]
    for result in results:
        reporter.report(result)
    status = results[-1].status
    assert (status.reason, status.exit_code) == ("InSync", 0)
    said = [event["reason"] for event in edge.events if event["event"] == "warning"]
    assert said == ["ExpiresSoon", "DiskNearlyFull"]
    shown = render(status, now)
    assert "warning    2: ExpiresSoon: key of signer next ends at " in shown
    assert shown.startswith("IN SYNC")
    text = render_metrics(metrics(status, ()))
    end = int((now + timedelta(days=3)).replace(microsecond=0, tzinfo=UTC).timestamp())
    for line in (
        'reconciler_warnings{reason="ExpiresSoon"} 1',
        'reconciler_warnings{reason="Expired"} 0',
        'reconciler_warnings{reason="DiskNearlyFull"} 1',
        f"reconciler_expiry_timestamp_seconds {end}",
        "reconciler_disk_free_ratio 0.001",
    ):
        assert line in text.splitlines()


def test_a_source_that_is_silent_for_long_is_exit_7(edge: Host) -> None:
    edge.apply()
    edge.origin.vanish()
    edge.clock.seconds += edge.config.source.stale_after + 1
    stale = edge.apply().status
    assert (stale.reason, stale.exit_code) == ("SourceStale", 7)
    assert 'reconciler_pass_reason{reason="SourceStale"} 1' in render_metrics(metrics(stale, ()))
