# SPDX-License-Identifier: Apache-2.0
"""The opt-in metrics port: loopback only, one text, nothing of the request is interpreted."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from reconciler.errors import ConfigError


class MetricsServer:
    """Serves the newest text at /metrics from a thread of its own; `close` ends it."""

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        outer = self
        self._text = b""

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

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
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
        except OSError as error:
            raise ConfigError(f"metrics.listen: cannot listen on {listen}: {error.strerror}") from error
        self._server.daemon_threads = True
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
