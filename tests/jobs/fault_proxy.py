"""An HTTP proxy before an S3 server that can be told to misbehave: 503 SlowDown, cut uploads, silence."""

import contextlib
import http.client
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Fault = Literal["slow_down", "cut", "silence"]
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_DROPPED = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


class FaultProxy:
    """A context manager. Each fault lasts for a time; `counts` tells how many requests it met."""

    def __init__(self, upstream_port: int) -> None:
        self.counts: Counter[str] = Counter()
        self._fault: Fault | None = None
        self._until = 0.0
        self._upstream = upstream_port
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Clients are killed in mid-request, and that is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def misbehave(self, fault: Fault, seconds: float) -> None:
        """From now on, for some seconds."""
        self._fault, self._until = fault, time.monotonic() + seconds

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answers one request, as the fault of the moment has it."""
        fault = self._fault if time.monotonic() < self._until else None
        size = int(request.headers.get("Content-Length") or 0)
        if fault is not None and (fault != "cut" or request.command == "PUT"):
            self.counts[fault] += 1
            if fault == "cut":  # half of it arrives, and nobody answers
                request.rfile.read(size // 2)
                request.close_connection = True
                return
            if fault == "slow_down":
                request.rfile.read(size)
                self._answer(request, 503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
                return
            time.sleep(max(0.0, self._until - time.monotonic()))
        body = request.rfile.read(size)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=120)) as upstream:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            upstream.request(request.command, request.path, body, headers)
            found = upstream.getresponse()
            self._answer(request, found.status, dict(found.getheaders()), found.read())

    def _answer(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        length = headers.get("Content-Length", str(len(body))) if request.command == "HEAD" else str(len(body))
        with contextlib.suppress(OSError):  # the client has gone
            request.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _DROPPED:
                    request.send_header(name, value)
            request.send_header("Content-Length", length)
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body)
