"""Real servers on loopback for the fetcher: a web server that misbehaves on demand, and S3."""

import contextlib
import http.server
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path; see each branch of `do_GET`."""

    protocol_version = "HTTP/1.1"
    server: "WebServer"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append((time.monotonic(), self.path, dict(self.headers)))
            tries = sum(path == self.path for _, path, _ in self.server.requests)
            self.server.active += 1
            self._counted = True
            self.server.most_active = max(self.server.most_active, self.server.active)
        try:
            self._answer(tries)
        finally:
            self._count_out()

    def _count_out(self) -> None:
        """Once a request, before its answer ends: its client may have begun the next one before we go on."""
        with self.server.lock:
            self.server.active -= self._counted
            self._counted = False

    do_HEAD = do_GET  # of S3

    def _answer(self, tries: int) -> None:
        kind, _, rest = self.path.partition("?")[0].lstrip("/").partition("/")
        if kind == "ok":
            self._send(200, self.server.image)
        elif kind == "status":
            self._send(int(rest), b"no")
        elif kind == "busy":  # twice, then well; `rest`: the Retry-After
            self._send(429, b"", {"Retry-After": rest}) if tries < 3 else self._send(200, self.server.image)
        elif kind == "redirect":
            self._send(302, b"", {"Location": self.server.redirects[rest]})
        elif kind == "short":  # the body ends before its length; `rest`: how many times
            self._send(200, self.server.image, {"Content-Length": "100000"} if tries <= int(rest) else {})
            self.close_connection = True
        elif kind == "huge":
            self.send_response(200)
            self.end_headers()
            for _ in range(2000):
                self.wfile.write(b"\0" * 65536)
        elif kind == "drip":  # endless, one byte at a time; `rest`: head or body
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if rest == "body" else b"X-Slow: "))
            while not self.server.stopping.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()
        elif kind == "silent":
            self.server.stopping.wait(20)
            self.close_connection = True
        elif kind == "slow":
            time.sleep(0.1)
            self._send(200, self.server.image)
        elif kind == "broken":
            self.wfile.write(b"this is not http\r\n\r\n")
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Set-Cookie": "a=b", **(headers or {})}.items():
            self.send_header(name, value)
        self._count_out()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client hung up
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


class WebServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """image: what it serves; requests: (time, path, headers) of each; most_active: most of them at once; redirects:
    targets by name."""

    image = b"a picture from the web"
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        self.redirects: dict[str, str] = {}
        self.active = self.most_active = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def tries(self, path: str) -> list[float]:
        """The times of the requests for `path`."""
        return [when for when, requested, _ in self.requests if requested == path]


@contextlib.contextmanager
def _running() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with _running() as server:
        yield server


@pytest.fixture
def plain_web() -> Iterator[WebServer]:
    """Another one, for what is not encrypted where `web` is."""
    with _running() as server:
        yield server


@pytest.fixture
def sick_s3(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """The web server as S3: the bucket is the first part of the path, and so says how it answers."""
    from s3fs import S3FileSystem

    for name, value in {
        "AWS_ENDPOINT_URL": web.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # the clients there lead to another server
    yield web
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The name of a bucket on an S3 server of this session; the environment leads s3fs to it."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        files = fsspec.filesystem("s3", use_listings_cache=False)
        files.call_s3("create_bucket", Bucket="shop")
        yield "shop"
        files.clear_instance_cache()
    server.stop()
