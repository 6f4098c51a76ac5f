# SPDX-License-Identifier: Apache-2.0
"""The opt-in metrics port, loopback only and without a word of the request interpreted, and the metrics file.

Every local user can connect to it, so it takes a bounded share of the agent's threads and descriptors, whatever its
clients do or do not do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CLIENTS: Final = 8
"""Clients that are served at once; more are turned away."""

CLIENT_SECONDS: Final = 5.0
"""For a whole request and its answer."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's signature
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had: nobody else gives the place back
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above
        def end() -> None:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

        # A timeout of the socket alone would start anew with every byte.
        timer = threading.Timer(CLIENT_SECONDS, end)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # as above
            self.shutdown_request(request)
            self._places.release()
            return
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above
        """A client that goes away is no error of ours."""


class MetricsServer:
    """Serves the newest text at /metrics from a thread of its own; `close` ends it."""

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        outer = self
        self._text = b""

        class Handler(BaseHTTPRequestHandler):
            timeout = CLIENT_SECONDS

            def do_GET(self) -> None:
                found = self.path == "/metrics"
                body = outer._text if found else b"see /metrics\n"  # the server is its handler's owner
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Requests are not logged: they come every few seconds."""

        try:
            self._server = _Server((host.strip("[]"), int(port)), Handler)
        except OSError as error:
            raise ConfigError(f"metrics.listen: cannot listen on {listen}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def publish(self, text: bytes) -> None:
        """Serve `text` from now on."""
        self._text = text

    def close(self) -> None:
        """End the thread and the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def write_textfile(path: Path, text: bytes) -> None:
    """Replace `path` by `text`, readable for everybody.

    The folder may belong to another user: the temporary file has a name that nobody can foresee, and is never a link.

    Raises:
        OSError: the folder or the disk refuses.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(text)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
