"""Fixtures: servers on loopback, an HTTP client without the interface's own code, and pictures."""

import base64
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # local_service.py

from local_service import LocalServer, serving


class Client:
    """Requests to one server. No answer within 10 s is an error: nothing here may hang."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(retries=False, timeout=10, maxsize=16)

    def ask(self, method: str, path: str, **sent: Any) -> urllib3.BaseHTTPResponse:
        return self._http.request(method, f"{self.url}{path}", redirect=False, **sent)

    def ads(self, image: bytes | None = None, *, accept: str = "", **fields: Any) -> urllib3.BaseHTTPResponse:
        """`POST /v1/ads` as JSON."""
        if image is not None:
            fields["image_base64"] = base64.b64encode(image).decode()
        return self.ask("POST", "/v1/ads", json=fields, headers={"Accept": accept} if accept else None)

    def form(self, path: str, *parts: tuple[str, Any], **headers: str) -> urllib3.BaseHTTPResponse:
        """A multipart form. parts: name and text, or name and (filename, bytes)."""
        body, kind = urllib3.encode_multipart_formdata(list(parts))
        return self.ask("POST", path, body=body, headers={"Content-Type": kind, **headers})

    def made(self, image: bytes | None = None, **fields: Any) -> dict[str, Any]:
        """The answer to `ads`, which must be 200."""
        answer = self.ads(image, **fields)
        assert answer.status == 200, answer.data
        return json.loads(answer.data)

    def events(self, image: bytes, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
        """The answer to `ads` as an event stream: name and data of each."""
        answer = self.ads(image, accept="text/event-stream", **fields)
        assert answer.status == 200, answer.data
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        blocks = [block for block in answer.data.decode().split("\n\n") if block and not block.startswith(":")]
        pairs = [block.split("\n") for block in blocks]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]

    @staticmethod
    def problem(answer: urllib3.BaseHTTPResponse, *statuses: int) -> dict[str, Any]:
        """The `error` of an answer, after the checks that every error must pass. statuses: the allowed ones."""
        assert answer.status in statuses, answer.data[:500]
        assert answer.headers["Content-Type"] == "application/json"
        body = json.loads(answer.data)
        assert set(body) == {"error", "request_id"}
        assert body["request_id"] == answer.headers["X-Request-ID"]
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["message"]
        assert b"Traceback" not in answer.data
        assert b'.py"' not in answer.data
        return body["error"]


@pytest.fixture(scope="session")
def connect() -> type[Client]:
    return Client


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server with the default settings and four steps."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Client:
    return Client(server.url)


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Encodes a Pillow image or an array: encoded(image, "PNG", **options)."""

    def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
        sink = io.BytesIO()
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(sink, kind, **options)
        return sink.getvalue()

    return encode


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """A red box on white, 96 × 128 px. Segmentation finds it by the plain background."""
    image = np.full((128, 96, 3), 255, np.uint8)
    image[32:96, 24:72] = (200, 30, 40)
    return image


@pytest.fixture(scope="session")
def photo(pixels: np.ndarray, encoded: Callable[..., bytes]) -> bytes:
    """`pixels` as PNG."""
    return encoded(pixels)


@pytest.fixture(scope="session")
def png_of_size() -> Callable[[int, int], bytes]:
    """PNGs whose header claims a size, with a few bytes of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def png(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + data

    return png
