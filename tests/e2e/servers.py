# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback for tests: git over https with a CA of its own, a static folder over https, and an sshd.

All of them live below one temporary directory, listen on a port of their own, and end with their `with`
block. What a hostile or broken server would do is a `Fault`, switched at any time:

    with git_https(root / "repos", tmp_path) as server:
        server.token = "secret"
        server.url("policy.git"), server.ca_file
        server.fault = stall()
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import pwd
import random
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPBACK = "127.0.0.1"


# --- certificates ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A private certificate authority; `file` is its certificate in PEM."""

    file: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @staticmethod
    def make(folder: Path, name: str = "ca") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test authority {name}")])
        certificate = (
            _certificate(subject, subject, key, days=(-1, 30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = folder / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return Authority(path, certificate, key)

    def issue(
        self, folder: Path, name: str, *, host: str = "localhost", days: tuple[int, int] = (-1, 30)
    ) -> tuple[Path, Path]:
        """Certificate and key files for `host` (and 127.0.0.1 if that is localhost)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        if host == "localhost":
            names.append(x509.IPAddress(ipaddress.ip_address(LOOPBACK)))
        certificate = (
            _certificate(subject, self.certificate.subject, key, days=days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.touch(0o600)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: tuple[int, int]
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )


# --- https -------------------------------------------------------------------------------------------------

Fault: TypeAlias = "Callable[[Handler], bool]"
"""Called before a request is answered; True if it answered (or broke) the request itself."""


@dataclass
class Request:
    """One request that a server saw."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class HttpsServer:
    """A running server; `token` and `fault` may change at any time, `sent` counts bytes of bodies."""

    port: int
    folder: Path
    authority: Authority
    token: str | None = None
    fault: Fault | None = None
    requests: list[Request] = field(default_factory=list)
    sent: int = 0

    @property
    def ca_file(self) -> Path:
        return self.authority.file

    def url(self, path: str, *, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}/{path}"


class Handler(BaseHTTPRequestHandler):
    """Answers requests, after the server's fault had its turn."""

    disable_nagle_algorithm = True  # as real servers do; head and body would lie 40 ms apart
    protocol_version = "HTTP/1.1"
    server: _Server
    body: bytes = b""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.state.sent += len(body)

    def wait_for_end(self) -> None:
        """Say nothing until the client or the test goes away."""
        while not self.server.ending.wait(0.02):
            with contextlib.suppress(OSError, ValueError):
                ready = self.connection.pending() if isinstance(self.connection, ssl.SSLSocket) else 0
                if ready == 0 and self.connection.recv(1, socket.MSG_PEEK) == b"":
                    return

    def _answer(self) -> None:
        state = self.server.state
        state.requests.append(Request(self.command, self.path, dict(self.headers.items())))
        self.body = _body(self)
        if state.fault is not None and state.fault(self):
            self.close_connection = True
            return
        if state.token is not None and not self._knows(state.token):
            self.reply(401, b"who are you?", WWW_Authenticate='Basic realm="test"')
            return
        self.server.serve(self)

    def _knows(self, token: str) -> bool:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer":
            return value == token
        with contextlib.suppress(ValueError):
            return kind == "Basic" and base64.b64decode(value).decode().partition(":")[2] == token
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, context: ssl.SSLContext | None, serve: Callable[[Handler], None]) -> None:
        super().__init__((LOOPBACK, 0), Handler)
        self.context = context
        self.serve = serve
        self.ending = threading.Event()
        self.state: HttpsServer

    def finish_request(self, request: object, client_address: object) -> None:
        # The handshake belongs into the request's thread: a client that stalls must not stop the others.
        connection = request
        assert isinstance(connection, socket.socket)
        connection.settimeout(60)
        if self.context is not None:
            try:
                connection = self.context.wrap_socket(connection, server_side=True)
            except (OSError, ssl.SSLError):
                return
        try:
            with contextlib.suppress(OSError, ssl.SSLError):
                Handler(connection, client_address, self)
        finally:
            connection.close()


@contextlib.contextmanager
def serve_https(
    folder: Path,
    work: Path,
    serve: Callable[[Handler], None],
    *,
    certificate: tuple[Path, Path] | None = None,
    clients: Authority | None = None,
) -> Iterator[HttpsServer]:
    """Any handler over https, its authority is made in `work`; `clients` issues those that clients must present."""
    work.mkdir(parents=True, exist_ok=True)
    authority = Authority.make(work)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*(certificate or authority.issue(work, "server")))
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.file)
    server = _Server(context, serve)
    server.state = HttpsServer(server.server_address[1], folder, authority)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="https")
    thread.start()
    try:
        yield server.state
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def git_https(
    folder: Path,
    work: Path,
    *,
    certificate: tuple[Path, Path] | None = None,
    clients: Authority | None = None,
) -> Iterator[HttpsServer]:
    """The bare repositories below `folder` over https, through git's own `git http-backend`."""

    def serve(handler: Handler) -> None:
        _git_backend(handler, folder)

    with serve_https(folder, work, serve, certificate=certificate, clients=clients) as server:
        yield server


@contextlib.contextmanager
def files_https(folder: Path, work: Path) -> Iterator[HttpsServer]:
    """The files below `folder` over https, as they are (for package repositories, and for git's dumb protocol)."""
    with serve_https(folder, work, lambda handler: _static(handler, folder)) as server:
        yield server


def _static(handler: Handler, folder: Path) -> None:
    path = (folder / handler.path.partition("?")[0].lstrip("/")).resolve()
    if handler.command == "GET" and path.is_relative_to(folder.resolve()) and path.is_file():
        handler.reply(200, path.read_bytes(), Content_Type="application/octet-stream")
    else:
        handler.reply(404)


def _git_backend(handler: Handler, folder: Path) -> None:
    status, headers, content = _backend_answer(handler, folder)
    handler.reply(status, content, **headers)


def _backend_answer(handler: Handler, folder: Path) -> tuple[int, dict[str, str], bytes]:
    path, _, query = handler.path.partition("?")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_PROJECT_ROOT": str(folder),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": handler.command,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": LOOPBACK,
        "CONTENT_TYPE": handler.headers.get("Content-Type", ""),
        "HTTP_CONTENT_ENCODING": handler.headers.get("Content-Encoding", ""),
        "GIT_PROTOCOL": handler.headers.get("Git-Protocol", ""),
    }
    done = subprocess.run(
        ["git", "http-backend"], input=handler.body, capture_output=True, env=environment, check=False
    )
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    status, headers = 200, {}
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(": ")
        if name == "Status":
            status = int(value.split()[0])
        elif name:
            headers[name.replace("-", "_")] = value
    return status, headers, content


def _body(handler: Handler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


# --- faults ------------------------------------------------------------------------------------------------


def only(pattern: str, fault: Fault) -> Fault:
    """`fault` for requests whose path matches `pattern`, nothing for the others."""
    return lambda handler: re.search(pattern, handler.path) is not None and fault(handler)


def fetching(fault: Fault) -> Fault:
    """`fault` when a pack is asked for; listing refs goes on (protocol v2 has one path for both)."""
    return lambda handler: b"command=fetch" in handler.body and fault(handler)


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.reply(code, body, **headers)
        return True

    return fault


def redirect(target: Callable[[str], str], code: int = 302) -> Fault:
    """Send the client to `target(path)`."""
    return lambda handler: status(code, Location=target(handler.path))(handler)


def stall() -> Fault:
    """Take the request and never answer."""

    def fault(handler: Handler) -> bool:
        handler.wait_for_end()
        return True

    return fault


def cut(body: bytes, content_type: str, length: int = 1 << 20) -> Fault:
    """Promise `length` bytes, send `body`, and close."""

    def fault(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return fault


def drip(content_type: str, pause: float = 1.0) -> Fault:
    """One byte of an answer that looks right so far, then the next after `pause` seconds, without an end."""

    def fault(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(1 << 20))
        handler.end_headers()
        for byte in b"001e# service=git-upload-pack\n0000" * 1000:
            with contextlib.suppress(BlockingIOError, TimeoutError):
                handler.wfile.write(bytes([byte]))
            if handler.server.ending.wait(pause):
                break
        return True

    return fault


def flood(content_type: str) -> Fault:
    """An answer without an end, as fast as it is taken."""

    def fault(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        line = b"%04x" % 1004 + b"x" * 999 + b"\n"
        chunk = line * 256
        while not handler.server.ending.is_set():
            handler.wfile.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        return True

    return fault


def cut_short(folder: Path, share: float) -> Fault:
    """The backend's own answer with its right length, of which only this share is sent."""

    def fault(handler: Handler) -> bool:
        status, headers, content = _backend_answer(handler, folder)
        kept = content[: int(len(content) * share)]
        return cut(kept, headers["Content_Type"], len(content))(handler) if status == 200 else False

    return fault


def advertising(*refs: tuple[str, str]) -> Fault:
    """These (id, name) instead of the refs that there are, in protocol v2."""
    lines = [f"{oid} {name}\n".encode() for oid, name in refs]
    body = b"".join(b"%04x" % (len(line) + 4) + line for line in lines) + b"0000"
    answer = status(200, body, Content_Type="application/x-git-upload-pack-result")
    return lambda handler: b"command=ls-refs" in handler.body and answer(handler)


# --- a proxy -----------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A running CONNECT proxy; `heads` lists what clients asked for, `password` is demanded if it is set."""

    port: int
    password: str | None = None
    heads: list[str] = field(default_factory=list)


@contextlib.contextmanager
def connect_proxy(password: str | None = None) -> Iterator[Proxy]:
    """An http proxy that tunnels to loopback for user "agent"."""
    listener = socket.create_server((LOOPBACK, 0))
    proxy = Proxy(listener.getsockname()[1], password)
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=_tunnel, args=(connection, proxy)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join()


def _tunnel(client: socket.socket, proxy: Proxy) -> None:
    with client, contextlib.suppress(OSError):
        client.settimeout(10)
        head = b""
        while b"\r\n\r\n" not in head:
            if not (chunk := client.recv(4096)):
                return
            head += chunk
        proxy.heads.append(head.decode("latin-1"))
        wanted = base64.b64encode(f"agent:{proxy.password}".encode())
        if proxy.password is not None and wanted not in head:
            demand = b"Proxy-Authenticate: Basic realm=x\r\nConnection: close\r\nContent-Length: 0"
            client.sendall(b"HTTP/1.1 407 no\r\n" + demand + b"\r\n\r\n")
            return
        port = int(head.split()[1].rpartition(b":")[2])
        with socket.create_connection((LOOPBACK, port)) as server:
            client.sendall(b"HTTP/1.1 200 ok\r\n\r\n")
            back = threading.Thread(target=_pump, args=(server, client))
            back.start()
            _pump(client, server)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


# --- ssh ---------------------------------------------------------------------------------------------------


@dataclass
class SshServer:
    """A running sshd that lets `key_file` in; `known_hosts` holds its host key."""

    port: int
    folder: Path
    work: Path
    user: str
    key_file: Path
    known_hosts: Path
    host_key: str

    @property
    def revoked_keys(self) -> Path:
        """Public keys that are not let in; read for each login."""
        return self.work / "revoked_keys"

    def url(self, path: str) -> str:
        return f"ssh://{self.user}@{LOOPBACK}:{self.port}{self.folder}/{path}"

    def authorize(self, key: Path) -> None:
        """Let in this key and no other; read for each login."""
        (self.work / "authorized_keys").write_text("restrict " + Path(f"{key}.pub").read_text())

    def new_host_key(self) -> None:
        """Another host key from the next connection on."""
        for name in ("host_key", "host_key.pub"):
            (self.work / name).unlink()
        self.host_key = _public(ssh_key(self.work / "host_key"))

    def known_hosts_line(self) -> str:
        return f"[{LOOPBACK}]:{self.port} {self.host_key}\n"


def _public(key: Path) -> str:
    return " ".join(Path(f"{key}.pub").read_text().split()[:2])


def ssh_key(path: Path, kind: str = "ed25519", comment: str = "test") -> Path:
    """A private key without a passphrase at `path`, its public half at `path`.pub."""
    options = ["-t", kind, *(["-b", "2048"] if kind == "rsa" else [])]
    subprocess.run(
        ["ssh-keygen", "-q", "-N", "", "-C", comment, *options, "-f", str(path)], check=True, capture_output=True
    )
    return path


@contextlib.contextmanager
def ssh_server(folder: Path, work: Path, *, command: str | None = None) -> Iterator[SshServer]:
    """An sshd of its own (configuration, host key, authorized keys, port), for the user who runs the test.

    Args:
        folder: holds the repositories; part of the URL.
        work: where its files go.
        command: forced instead of what the client asks for.
    """
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o700)
    host_key, key = ssh_key(work / "host_key"), ssh_key(work / "client_key")
    authorized = work / "authorized_keys"
    forced = f'command="{command}",restrict ' if command else "restrict "
    authorized.write_text(forced + Path(f"{key}.pub").read_text())
    port = free_port()
    (work / "revoked_keys").touch()
    config = work / "sshd_config"
    config.write_text(
        f"ListenAddress {LOOPBACK}:{port}\nHostKey {host_key}\nPidFile none\nAuthorizedKeysFile {authorized}\n"
        f"RevokedKeys {work}/revoked_keys\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nAcceptEnv GIT_PROTOCOL\nPrintMotd no\nUseDNS no\nMaxStartups 100\n"
    )
    with _sshd(config, work / "sshd.log", port):
        user = pwd.getpwuid(os.getuid()).pw_name
        server = SshServer(port, folder, work, user, key, work / "known_hosts", _public(host_key))
        server.known_hosts.write_text(server.known_hosts_line())
        yield server


@contextlib.contextmanager
def _sshd(config: Path, log: Path, port: int) -> Iterator[None]:
    # sshd wants this directory when root starts it; it is what its own unit file makes.
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for(port, process, log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until something listens on `port`; fails with what `process` said when it ends instead."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text()}")


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody listens on now, below those that the kernel gives to clients and to port 0 (32768 on).

    One of those could be taken by any connection of a test beside this one before its server listens.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server((host, port), family=family):
            return port


# --- repositories ------------------------------------------------------------------------------------------


class GitRepository:
    """A bare repository that a test writes to, commit by commit, with git's plumbing and without a work tree.

    Signed by `key` (an SSH private key) if one is given to `commit`.
    """

    def __init__(self, path: Path, *, object_format: str = "sha1") -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._run_plain("init", "--quiet", "--bare", f"--object-format={object_format}", "-b", "main", str(path))

    def git(self, *arguments: str, stdin: bytes = b"", **environment: str) -> str:
        """What `git ARGUMENTS` prints, without the last newline."""
        return self._run_plain(f"--git-dir={self.path}", *arguments, stdin=stdin, **environment).decode().rstrip("\n")

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)

    def tree(self, files: dict[str, bytes | tuple[str, str]]) -> str:
        """A tree of files; a tuple gives mode and object id instead of content. Paths may have folders."""
        lines, folders = [], dict[str, dict[str, bytes | tuple[str, str]]]()
        for path, content in files.items():
            folder, slash, rest = path.partition("/")
            if slash:
                folders.setdefault(folder, {})[rest] = content
            elif isinstance(content, tuple):
                mode, oid = content
                lines.append(f"{mode} {self._kind(mode)} {oid}\t{path}")
            else:
                lines.append(f"100644 blob {self.blob(content)}\t{path}")
        lines += [f"040000 tree {self.tree(inner)}\t{folder}" for folder, inner in folders.items()]
        return self.git("mktree", "-z", "--missing", stdin="".join(f"{line}\0" for line in lines).encode())

    def commit(
        self,
        files: dict[str, bytes | tuple[str, str]] | None = None,
        *,
        tree: str | None = None,
        parents: tuple[str, ...] | None = None,
        key: Path | None = None,
        message: str = "change",
        ref: str | None = "refs/heads/main",
        date: str = "1700000000 +0000",
    ) -> str:
        """A new commit on `ref` (on its present head, unless `parents` are given); returns its id."""
        if parents is None:
            parents = tuple(filter(None, [self.head(ref)])) if ref else ()
        tree = tree or self.tree(files or {})
        options = [part for parent in parents for part in ("-p", parent)]
        config: list[str] = []
        if key is not None:
            config = ["-c", "gpg.format=ssh", "-c", f"user.signingkey={key}"]
            options.append("-S")
        who = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        commit = self.git(*config, "commit-tree", tree, *options, stdin=message.encode(), **who)
        if ref is not None:
            self.git("update-ref", ref, commit)
        return commit

    def head(self, ref: str = "refs/heads/main") -> str | None:
        return self.git("for-each-ref", "--format=%(objectname)", ref) or None

    def raw(self, commit: str) -> bytes:
        return self._run_plain(f"--git-dir={self.path}", "cat-file", "commit", commit)

    def write_commit(self, raw: bytes, ref: str | None = "refs/heads/main") -> str:
        """A commit with exactly these bytes, however odd."""
        commit = self.git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=raw)
        if ref is not None:
            self.git("update-ref", ref, commit)
        return commit

    def write_tree(self, raw: bytes) -> str:
        """A tree with exactly these bytes, however odd."""
        return self.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=raw)

    @staticmethod
    def _kind(mode: str) -> str:
        return {"160000": "commit", "040000": "tree", "40000": "tree"}.get(mode, "blob")

    @staticmethod
    def _run_plain(*arguments: str, stdin: bytes = b"", **environment: str) -> bytes:
        plain = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
            "GIT_AUTHOR_NAME": "Alice",
            "GIT_AUTHOR_EMAIL": "alice@example.com",
            "GIT_COMMITTER_NAME": "Alice",
            "GIT_COMMITTER_EMAIL": "alice@example.com",
        }
        done = subprocess.run(
            ["git", *arguments], input=stdin, capture_output=True, env=plain | environment, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def descendants(root: int) -> set[int]:
    """A process and everything that it started, directly or not."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = set()
    grown = {root}
    while grown:
        grown = {pid for pid, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


def everything_visible(pid: int) -> bytes:
    """What others see of a process: arguments and environment."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def secret(path: Path, text: str) -> Path:
    """A file that only its owner can read, replaced at once as those do who rotate credentials."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(0o600)
    fresh.write_text(text)
    fresh.replace(path)
    return path


def allowed_signers(**keys: Path) -> bytes:
    """An allowed signers file that gives each key (path of the private half) the principal NAME@example.com."""
    lines = [f'{name}@example.com namespaces="git" {Path(f"{key}.pub").read_text()}' for name, key in keys.items()]
    return "".join(lines).encode()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether `condition` held within `seconds`: a bound for slow machines, nothing is measured with it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
