# SPDX-License-Identifier: Apache-2.0
"""Apache on loopback for tests: git's own http backend behind a real web server, and a real forward proxy.

    with apache(root / "repos", tmp_path / "www") as server:
        server.let_in("agent", "s3cret")
        server.url("policy.git"), server.ca_file

It is Debian's `apache2-bin`, which brings neither a service nor a configuration; a child of the test with a
configuration of its own. Apache does not work as root, so it runs as www-data, with the one capability to read what a
test made below its private directory. What a broken or hostile server would do is in `servers.py`, whose server can be
told to.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import pwd
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.servers import LOOPBACK, Authority, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARY = Path("/usr/sbin/apache2")
BACKEND = Path("/usr/lib/git-core/git-http-backend")
MODULES = (
    "mpm_prefork", "authn_core", "authz_core", "authn_file", "authz_user", "auth_basic", "alias", "cgi", "env",
    "setenvif", "headers", "ssl", "proxy", "proxy_connect", "status",
)  # fmt: skip
THROTTLED_SECONDS = 120

CONFIGURATION = """\
ServerRoot /usr/lib/apache2
{modules}
ServerName localhost
DefaultRuntimeDir {work}/run
PidFile {work}/run/pid
ErrorLog {work}/run/error.log
LogFormat "%r %>s" line
CustomLog {work}/run/access.log line env=!quiet
StartServers 2
MinSpareServers 1
MaxSpareServers 4
MaxRequestWorkers 16
TraceEnable off
Listen {loopback}:{port}
Listen {loopback}:{plain}
Listen {loopback}:{proxy}
SetEnv GIT_PROJECT_ROOT {folder}
SetEnv GIT_HTTP_EXPORT_ALL 1
SetEnv GIT_CONFIG_COUNT 1
SetEnv GIT_CONFIG_KEY_0 safe.directory
SetEnv GIT_CONFIG_VALUE_0 *
SetEnvIf Git-Protocol ".*" GIT_PROTOCOL=$0
<VirtualHost {loopback}:{port}>
  SSLEngine on
  SSLCertificateFile {certificate}
  SSLCertificateKeyFile {key}
  ScriptAlias /git/ {backend}/
  <Location /git/>
    AuthType Basic
    AuthName test
    AuthUserFile {work}/users
    Require valid-user
  </Location>
  <Location /forbidden/>
    Require all denied
  </Location>
  Redirect 307 /moved/ https://localhost:{port}/git/
  Redirect 302 /plain/ http://localhost:{plain}/git/
  Redirect 302 /loop/ https://localhost:{port}/loop/
  Redirect 429 /busy/
  Redirect 503 /down/
  Redirect 500 /broken/
  <LocationMatch ^/(busy|down)/>
    Header always set Retry-After {throttled}
  </LocationMatch>
</VirtualHost>
<VirtualHost {loopback}:{plain}>
  SetEnvIf Request_URI ^/workers$ quiet
  <Location /workers>
    SetHandler server-status
  </Location>
  RedirectMatch 301 ^/(?!workers$) https://localhost:{port}/
</VirtualHost>
<VirtualHost {loopback}:{proxy}>
  ProxyRequests On
  AllowCONNECT {port}
  <Proxy "*">
    AuthType Basic
    AuthName proxy
    AuthUserFile {work}/users
    Require valid-user
  </Proxy>
</VirtualHost>
"""


@dataclass(frozen=True)
class Apache:
    """A running Apache; paths: git (needs a user), forbidden, moved, plain, loop, busy, down, broken."""

    port: int
    plain_port: int
    proxy_port: int
    work: Path
    ca_file: Path

    def url(self, repository: str, *, place: str = "git") -> str:
        return f"https://localhost:{self.port}/{place}/{repository}"

    def let_in(self, user: str, password: str) -> None:
        """Only this user from now on; read anew by Apache for each request."""
        digest = base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()
        fresh = self.work / "users.new"
        fresh.write_text(f"{user}:{{SHA}}{digest}\n")
        fresh.replace(self.work / "users")

    def requests(self) -> list[str]:
        """Request lines and statuses, in order: of all that came, as Apache logs a request after it has answered."""
        deadline = time.monotonic() + 10
        while self._busy() > 1:  # the one that answers this question
            assert time.monotonic() < deadline, "Apache is still at work"
            time.sleep(0.01)
        return (self.work / "run" / "access.log").read_text().splitlines()

    def _busy(self) -> int:
        """Workers that answer, log, or keep a connection."""
        connection = http.client.HTTPConnection(LOOPBACK, self.plain_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/workers?auto", headers={"Connection": "close"})
            answer = connection.getresponse().read().decode()
        return int(next(line for line in answer.splitlines() if line.startswith("BusyWorkers:")).split()[1])


@contextlib.contextmanager
def apache(
    folder: Path, work: Path, *, authority: Authority | None = None, certificate: tuple[Path, Path] | None = None
) -> Iterator[Apache]:
    """The bare repositories below `folder`; user "agent" with password "s3cret" until told otherwise."""
    work.mkdir(parents=True, exist_ok=True)
    authority = authority or Authority.make(work)
    certificate_file, key_file = certificate or authority.issue(work, "server")
    owner = pwd.getpwnam("www-data")
    run = work / "run"  # what Apache writes
    run.mkdir()
    shutil.chown(run, owner.pw_uid, owner.pw_gid)
    ports = {name: free_port() for name in ("port", "plain", "proxy")}
    (work / "httpd.conf").write_text(
        CONFIGURATION.format(
            modules="\n".join(f"LoadModule {name}_module modules/mod_{name}.so" for name in MODULES),
            work=work,
            loopback=LOOPBACK,
            folder=folder,
            certificate=certificate_file,
            key=key_file,
            backend=BACKEND,
            throttled=THROTTLED_SECONDS,
            **ports,
        )
    )
    server = Apache(ports["port"], ports["plain"], ports["proxy"], work, authority.file)
    server.let_in("agent", "s3cret")
    # Without the bit access(2), which git asks first, would not count the capability of a user other than root.
    reading = "+dac_read_search"
    command = [
        "setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups",
        f"--inh-caps={reading}", f"--ambient-caps={reading}", "--bounding-set=-all,+dac_read_search",
        "--securebits=+no_setuid_fixup", "--",
        str(BINARY), "-f", str(work / "httpd.conf"), "-DFOREGROUND",
    ]  # fmt: skip
    output = work / "output.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    try:
        wait_for(server.port, process, output)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(3)
        except (
            subprocess.TimeoutExpired
        ):  # a child that had just started missed it; Apache itself waits for nine seconds
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
