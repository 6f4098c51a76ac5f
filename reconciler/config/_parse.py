# SPDX-License-Identifier: Apache-2.0
"""Bytes of a configuration file → `Config`, or every finding at once. Files that it names are read by a callable."""

from __future__ import annotations

import posixpath
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from reconciler import _documents
from reconciler._documents import GlobError, parse_address, parse_duration, parse_glob, parse_share
from reconciler.config import _values as values
from reconciler.config._tolerations import check_toleration, shipped_names, shipped_tolerations, toleration
from reconciler.config.signers import IdentityRule, KeyRule, Revoked, SignerRule
from reconciler.errors import ConfigError, Diagnostic

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler._documents import Document

Fields: TypeAlias = dict[str, Any]


def parse_config(data: bytes, *, file: str, folder: str, read: Callable[[str], bytes]) -> values.Config:
    """The configuration in `data`.

    Args:
        data: one YAML document of kind Config.
        file: how findings call the file.
        folder: absolute path at which relative paths start.
        read: gives the content of a file by absolute path; a ConfigError of it becomes a finding.

    Raises:
        ConfigError: with every finding.
    """
    documents, findings = _documents.read_documents(data, file=file)
    if len(documents) > 1:
        findings += (documents[1].finding("expected one document, got several; keep one"),)
    if not documents:
        raise ConfigError(findings)
    document = documents[0]
    findings += _documents.validate(document, "Config")
    if findings:
        # Values of the wrong type cannot be read further; the rules below come once the form is right.
        raise ConfigError(findings)
    parser = _Parser(document, folder, read)
    config = parser.config()
    if parser.findings:
        raise ConfigError(tuple(sorted(parser.findings, key=lambda finding: (finding.line, finding.column))))
    return config


class _Parser:
    """One document whose form is right; collects what the schema cannot say."""

    def __init__(self, document: Document, folder: str, read: Callable[[str], bytes]) -> None:
        self.findings: list[Diagnostic] = []
        self._document = document
        self._folder = folder
        self._read = read
        value: Any = document.value
        self._spec: Fields = value["spec"]

    def config(self) -> values.Config:
        spec = self._spec
        return values.Config(
            host_name=spec.get("host", {}).get("name"),
            labels=spec.get("labels", {}),
            source=self._source(spec["source"]),
            repositories=self._repositories(spec.get("repositories", [])),
            trust=self._trust(spec.get("trust", {})),
            secure=self._secure(spec.get("secureMode", {})),
            guardrail=_guardrail(spec.get("guardrail", {})),
            expedite=spec.get("expedite", "auto"),
            control=_control(spec.get("control", {})),
            metrics=self._metrics(spec.get("metrics", {})),
            warn=_warn(spec.get("warn", {})),
            paths=values.Paths(**spec.get("paths", {})),
        )

    # --- small things ---

    def _report(self, message: str, pointer: str) -> None:
        self.findings.append(self._document.finding(message, pointer))

    def _path(self, path: str | None) -> str | None:
        return None if path is None else posixpath.join(self._folder, path)

    def _content(self, path: str, pointer: str) -> bytes:
        try:
            return self._read(posixpath.join(self._folder, path))
        except ConfigError as error:
            for finding in error.findings:
                self._report(finding.message, pointer)
            return b""

    def _unique(self, items: list[Fields], pointer: str) -> None:
        seen: set[str] = set()
        for index, item in enumerate(items):
            if item["name"] in seen:
                self._report(
                    f"expected each name once, got {item['name']!r} again; rename it", f"{pointer}/{index}/name"
                )
            seen.add(item["name"])

    def _globs(self, items: list[str], pointer: str) -> None:
        for index, text in enumerate(items):
            try:
                parse_glob(text)
            except GlobError as error:
                self._report(str(error), f"{pointer}/{index}")

    # --- source and repositories ---

    def _url(self, url: str, pointer: str) -> None:
        try:
            parts = urlsplit(url)
            host, port, user, password = parts.hostname, parts.port, parts.username, parts.password
        except ValueError as error:
            self._report(f"expected a URL, got one that cannot be read: {error}", pointer)
            return
        if password is not None or (user is not None and parts.scheme != "ssh"):
            self._report("expected a URL without credentials, got some; name a file with the token instead", pointer)
        if parts.scheme != "file" and (not host or host.startswith("-") or (user or "").startswith("-")):
            self._report("expected a URL with a host that does not start with '-', got none", pointer)
        if parts.query or parts.fragment:
            self._report("expected a URL without '?' and '#', got one; remove what follows", pointer)
        if "%" in url or port == 0:
            self._report("expected a URL without escapes and with a real port, got something else", pointer)
        if parts.scheme == "file" and (host or not parts.path.startswith("/")):
            self._report("expected file:// and an absolute path, got a host", pointer)

    def _source(self, fields: Fields) -> values.SourceConfig:
        self._url(fields["url"], "/spec/source/url")
        if fields["url"].startswith("file://") and not fields.get("allowFile", False):
            self._report("expected https:// or ssh://, got file://; set allowFile if it is meant", "/spec/source/url")
        ref: str = fields.get("ref", "refs/heads/main")
        if ".." in ref or "@{" in ref or ref.endswith((".", ".lock")) or ".lock/" in ref:
            self._report(f"expected a full ref such as refs/heads/main, got {ref!r}", "/spec/source/ref")
        auth = fields.get("auth", {})
        if fields["url"].startswith("ssh://"):
            for name in ("sshKeyFile", "knownHostsFile"):
                if name not in auth:
                    self._report(
                        f"expected the field {name!r} for an ssh:// source, got none; add it", "/spec/source/auth"
                    )
        seconds = self._seconds(fields, "/spec/source")
        return values.SourceConfig(
            url=fields["url"],
            ref=ref,
            repository=fields.get("repository"),
            auth=self._auth(auth),
            allow_file=fields.get("allowFile", False),
            minimum_commit=fields.get("minimumCommit"),
            interval=seconds("interval", 300.0),
            drift_interval=seconds("driftInterval", 30.0),
            confirm_timeout=seconds("confirmTimeout", 30.0),
            stale_after=seconds("staleAfter", 86400.0),
            timeout=seconds("timeout", 60.0),
        )

    def _seconds(self, fields: Fields, pointer: str) -> Callable[[str, float], float]:
        def get(name: str, default: float) -> float:
            seconds = parse_duration(fields[name]) if name in fields else default
            if seconds <= 0:
                self._report(f"expected a duration above zero, got {fields[name]!r}", f"{pointer}/{name}")
            return seconds

        return get

    def _auth(self, fields: Fields) -> values.Auth:
        if ("clientCertFile" in fields) != ("clientKeyFile" in fields):
            self._report("expected clientCertFile and clientKeyFile together, got one of them", "/spec/source/auth")
        if "proxyAuthFile" in fields and "proxy" not in fields:
            self._report("expected proxy beside proxyAuthFile, got none", "/spec/source/auth/proxyAuthFile")
        return values.Auth(
            token_file=self._path(fields.get("tokenFile")),
            ca_file=self._path(fields.get("caFile")),
            proxy=fields.get("proxy"),
            proxy_auth_file=self._path(fields.get("proxyAuthFile")),
            client_cert_file=self._path(fields.get("clientCertFile")),
            client_key_file=self._path(fields.get("clientKeyFile")),
            ssh_key_file=self._path(fields.get("sshKeyFile")),
            known_hosts_file=self._path(fields.get("knownHostsFile")),
        )

    def _repositories(self, items: list[Fields]) -> tuple[values.Repository, ...]:
        self._unique(items, "/spec/repositories")
        found: list[values.Repository] = []
        for index, item in enumerate(items):
            pointer = f"/spec/repositories/{index}"
            if item["name"] == "git":
                self._report(
                    "expected another name, got 'git', which is packages/ of the same commit", f"{pointer}/name"
                )
            if ("folder" in item) == ("https" in item):
                self._report("expected either folder or https, got both or none", pointer)
            elif "folder" in item:
                found.append(values.FolderRepository(name=item["name"], path=item["folder"]["path"]))
            else:
                web = item["https"]
                self._url(web["url"], f"{pointer}/https/url")
                found.append(
                    values.HttpsRepository(
                        name=item["name"],
                        url=web["url"].rstrip("/"),
                        ca_file=self._path(web.get("caFile")),
                        token_file=self._path(web.get("tokenFile")),
                    )
                )
        return tuple(found)

    # --- trust ---

    def _trust(self, fields: Fields) -> values.Trust:
        self._unique(fields.get("roots", []), "/spec/trust/roots")
        self._unique(fields.get("signers", []), "/spec/trust/signers")
        roots = {
            item["name"]: self._content(item["file"], f"/spec/trust/roots/{index}/file")
            for index, item in enumerate(fields.get("roots", []))
        }
        signers = [
            self._signer(item, f"/spec/trust/signers/{index}", frozenset(roots))
            for index, item in enumerate(fields.get("signers", []))
        ]
        revoked = fields.get("revoked", {})
        return values.Trust(
            commits=self._commits(fields.get("commits", {})),
            signers=tuple(signer for signer in signers if signer is not None),
            roots=roots,
            revoked=Revoked(
                digests=frozenset(revoked.get("digests", [])),
                keys=frozenset(revoked.get("keys", [])),
                identities=frozenset(revoked.get("identities", [])),
            ),
            on_revoked=fields.get("onRevoked", "keep"),
        )

    def _commits(self, fields: Fields) -> values.CommitTrust:
        pointer = "/spec/trust/commits"
        signers = fields.get("allowedSigners")
        revoked = fields.get("revoked")
        return values.CommitTrust(
            allowed_signers=b"" if signers is None else self._content(signers, f"{pointer}/allowedSigners"),
            revoked=None if revoked is None else self._content(revoked, f"{pointer}/revoked"),
            unsafe_allow_unsigned=fields.get("unsafeAllowUnsigned", False),
        )

    def _signer(self, item: Fields, pointer: str, roots: frozenset[str]) -> SignerRule | None:
        self._globs(item["packages"], f"{pointer}/packages")
        packages = tuple(item["packages"])
        if ("key" in item) == ("certificate" in item):
            self._report("expected either key or certificate, got both or none", pointer)
            return None
        way = "key" if "key" in item else "certificate"
        fields: Fields = item[way]
        root = fields.get("root")
        if root is not None and root not in roots:
            self._report(
                f"expected the name of one of trust.roots, got {root!r}; add the root", f"{pointer}/{way}/root"
            )
        if way == "certificate":
            return IdentityRule(
                name=item["name"],
                packages=packages,
                identity=fields["identity"],
                issuer=fields["issuer"],
                root=fields["root"],
            )
        tlog = fields.get("tlog", "optional")
        if tlog == "required" and root is None:
            message = "expected the field 'root' where tlog is required, got none; log entries are checked with it"
            self._report(message, f"{pointer}/key")
        return KeyRule(
            name=item["name"],
            packages=packages,
            key_pem=self._content(fields["file"], f"{pointer}/key/file"),
            not_before=self._time(fields.get("notBefore"), f"{pointer}/key/notBefore"),
            not_after=self._time(fields.get("notAfter"), f"{pointer}/key/notAfter"),
            tlog=tlog,
            root=root,
        )

    def _time(self, text: str | None, pointer: str) -> datetime | None:
        if text is None:
            return None
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            self._report(f"expected a time that exists, got {text!r}", pointer)
            return None

    # --- secure mode and the rest ---

    def _secure(self, fields: Fields) -> values.SecureConfig:
        rules: list[values.Toleration] = []
        for index, name in enumerate(fields.get("tolerations", [])):
            known = shipped_names()
            if name in known:
                rules += shipped_tolerations(name)
            else:
                message = f"expected a set that ships ({', '.join(known)}), got {name!r}"
                self._report(message, f"/spec/secureMode/tolerations/{index}")
        for index, item in enumerate(fields.get("tolerate", [])):
            pointer = f"/spec/secureMode/tolerate/{index}"
            self.findings += check_toleration(self._document, item, pointer)
            rules.append(toleration(item))
        interfaces = fields.get("interfaces", ["*"])
        self._globs(interfaces, "/spec/secureMode/interfaces")
        return values.SecureConfig(
            mode=values.SecureMode(fields.get("mode", "audit")),
            tolerations=tuple(rules),
            namespaces=tuple(fields.get("namespaces", ["host"])),
            interfaces=tuple(interfaces),
            max_evictions=fields.get("maxEvictions", 10),
        )

    def _metrics(self, fields: Fields) -> values.Metrics:
        listen = fields.get("listen")
        if listen is not None:
            self._loopback(listen)
        return values.Metrics(textfile=fields.get("textfile"), listen=listen)

    def _loopback(self, listen: str) -> None:
        try:
            address = parse_address(listen)[0]
        except ValueError as error:
            self._report(str(error), "/spec/metrics/listen")
            return
        if not address.is_loopback:
            self._report(f"expected a loopback address such as 127.0.0.1:9464, got {listen!r}", "/spec/metrics/listen")


def _warn(fields: Fields) -> values.Warn:
    return values.Warn(
        expires_within=parse_duration(fields.get("expiresWithin", "30d")),
        disk_free=parse_share(fields.get("diskFree", "5%")),
    )


def _guardrail(fields: Fields) -> values.Guardrail:
    return values.Guardrail(count=fields.get("count"), share=parse_share(fields.get("share", "50%")))


def _control(fields: Fields) -> values.Control:
    return values.Control(path=fields.get("path"), mode=int(fields.get("mode", "0600"), 8), group=fields.get("group"))
