"""Images behind addresses from clients: off by default; never from addresses that only this server can reach."""

import contextlib
import gzip
import hashlib
import http.server
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from local_service import serving


class Web(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """A web server on loopback. pages: status, headers and body by path; `/endless` and `/drip` never end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.host, self.port = self.server_address[:2]
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        status, headers, body = self.server.pages.get(self.path, (404, {}, b"nothing here"))
        with contextlib.suppress(OSError):  # the fetcher hung up
            self.send_response(200 if self.path in ("/endless", "/drip") else status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            while self.path == "/endless" and not self.server.stopping.is_set():
                self.wfile.write(b"\0" * 65536)
            while self.path == "/drip" and not self.server.stopping.wait(0.05):
                self.wfile.write(b"x")
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running(host: str = "127.0.0.1") -> Iterator[Web]:
    with Web(host) as web:
        threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield web
        web.stopping.set()
        web.shutdown()


@pytest.fixture
def web(photo) -> Iterator[Web]:
    with running() as server:
        server.pages["/a.png"] = (200, {}, photo)
        yield server


ONCE = ("access.allow_image_urls=true", "fetch.num_retries=0", "fetch.timeout_s=2", "fetch.total_timeout_s=2")


@pytest.fixture(scope="module")
def public(connect):
    """A client of a server that fetches from the public internet."""
    with serving(*ONCE) as server:
        yield connect(server.url)


@pytest.fixture(scope="module")
def private(connect):
    """A client of a server that fetches from anywhere, at most 200,000 bytes."""
    with serving(*ONCE, "fetch.allow_private_addresses=true", "fetch.max_bytes=200000") as server:
        yield connect(server.url)


class Names:
    """A fake name server: the successive answers for each host; other names are unknown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, list[list[str]]] = {}
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: str, port: int, *args: object, **kwargs: object) -> list[tuple[object, ...]]:
        if host in self.answers:
            self.asked.append(host)
            ips = self.answers[host].pop(0) if len(self.answers[host]) > 1 else self.answers[host][0]
            return [entry for ip in ips for entry in self._real(ip, port, type=socket.SOCK_STREAM)]
        if host.lower() == "localhost":
            return self._real(host, port, *args, **kwargs)
        return self._real(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


@pytest.fixture
def names(monkeypatch) -> Names:
    found = Names(monkeypatch)
    found.answers = {
        "metadata.google.internal": [["169.254.169.254"]],
        "db.shop.example": [["10.0.0.7"]],
        "six.shop.example": [["fd00::7"]],
        "127.0.0.1.nip.example": [["127.0.0.1"]],
        "half.example": [["8.8.8.8", "127.0.0.1"]],
        "127.0.0.1.": [["127.0.0.1"]],
        "localhost.": [["127.0.0.1"]],
    }
    return found


# Off


def test_addresses_are_not_fetched_by_default(client, web):
    address = f"http://127.0.0.1:{web.port}/a.png"
    for answer in (client.ads(image_url=address), client.form("/v1/ads", ("image_url", address))):
        problem = client.problem(answer, 422)
        assert (problem["param"], problem["code"]) == ("image_url", "urls_off")
        assert "access.allow_image_urls" in problem["message"]
    assert web.requests == []


# Never reached

HOSTS = """
    127.0.0.1 127.127.127.127 127.1 127.0.1 0 0.0.0.0 2130706433 0x7f000001 0x7f.1 0x7F.0x0.0x0.0x1 0177.0.0.1
    017700000001 0177.1 00000127.0.0.1 localhost LOCALHOST localhost. 127.0.0.1.
    [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::a9fe:a9fe]
    [2002:7f00:1::] [2001::1] [fe80::1] [fe80::1%25lo] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [2001:db8::1]
    169.254.169.254 169.254.170.2 2852039166 0xa9fea9fe 100.100.100.200 168.63.129.16 192.0.0.192
    10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 198.18.0.1 192.0.2.1
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    metadata.google.internal db.shop.example six.shop.example 127.0.0.1.nip.example half.example
    example.com@127.0.0.1 example.com:80@127.0.0.1 user:secret@localhost 8.8.8.8@localhost a@b@127.0.0.1
    １２７.0.0.1 127。0。0。1 127．0．0．1 ①②⑦.⓪.⓪.① ⓛocalhost localhoſt
    %31%32%37.0.0.1 127.0.0.1%00 localhost%2eexample.com
"""
ADDRESSES = [
    *(f"http://{host}:PORT/a.png" for host in HOSTS.split()),
    "https://127.0.0.1:PORT/a.png",
    "HTTP://127.0.0.1:PORT/a.png",
    "hTTp://localhost:PORT/a.png",
    "http://127.0.0.1:PORT",
    "http://127.0.0.1:PORT?a.png",
    "http://127.0.0.1:PORT#@example.com/a.png",
    "http://127.0.0.1:PORT?@example.com/a.png",
    "http://127.0.0.1:PORT\\@example.com/a.png",
    "http://example.com\\@127.0.0.1:PORT/a.png",
    "http://example.com#@127.0.0.1:PORT/a.png",
    "http:\\\\127.0.0.1:PORT\\a.png",
    "http:/\\127.0.0.1:PORT/a.png",
    "http:///127.0.0.1:PORT/a.png",
    "http:/127.0.0.1:PORT/a.png",
    "http:127.0.0.1:PORT/a.png",
    "http:@127.0.0.1:PORT/a.png",
    "//127.0.0.1:PORT/a.png",
    "127.0.0.1:PORT/a.png",
    "/etc/passwd",
    "a.png",
    "http://",
    "http:///a.png",
    "http://:PORT/a.png",
    "http://?",
    "http://127.0.0.1:0/a.png",
    "http://127.0.0.1:99999/a.png",
    "http://127.0.0.1:-1/a.png",
    "http://127.0.0.1:PORT:80/a.png",
    "http://127.0.0.1:port/a.png",
    "http://[127.0.0.1]:PORT/a.png",
    "http://[::1/a.png",
    "http://[]:PORT/a.png",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "ftp://127.0.0.1:PORT/a.png",
    "gopher://127.0.0.1:PORT/_GET%20/a.png",
    "dict://127.0.0.1:PORT/info",
    "ldap://127.0.0.1:PORT/",
    "ws://127.0.0.1:PORT/",
    "s3://shop/a.png",
    "data:image/png;base64,iVBORw0KGgo=",
    "url:http://127.0.0.1:PORT/a.png",
    "javascript:alert(1)",
    "http://127.0.0.1:PORT/\r\nX-Evil: 1",
    "http://127.0.0.1:PORT/a.png HTTP/1.1\r\nHost: a\r\n\r\n",
    "http://example.com\r\n@127.0.0.1:PORT/",
    "http://127.0.0.1\n:PORT/a.png",
    "\thttp://127.0.0.1:PORT/a.png",
    " http://127.0.0.1:PORT/a.png",
    "ht\ntp://127.0.0.1:PORT/a.png",
    "http://127.0.0.1:PORT/\0",
    "http://127.0.0.1\0.example.com:PORT/",
    "",
    "http://" + "a." * 500 + "example/",
    "http://" + "a" * 70 + ".example/",
]


class Door:
    """Listens on one port of IPv4 and IPv6 loopback, accepts nothing, and records connection attempts."""

    def __init__(self) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0), backlog=200)]
        self.port = self._sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):  # a machine without IPv6
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6, backlog=200))

    def knocks(self) -> int:
        found = 0
        for one in self._sockets:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    one.accept()[0].close()
                    found += 1
        return found

    def close(self) -> None:
        for one in self._sockets:
            one.close()


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    found = Door()
    yield found
    found.close()


def test_there_are_many_forms():
    assert len(set(ADDRESSES)) == len(ADDRESSES) > 100


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: repr(address)[:60])
def test_what_only_this_server_can_reach_is_refused_and_not_fetched(public, names, door, address):
    started = time.monotonic()
    problem = public.problem(public.ads(image_url=address.replace("PORT", str(door.port)), prompt="a cup"), 422)
    assert problem["param"] == "image_url"
    assert problem["code"] in ("invalid_field", "bad_address", "private_address", "image_unreachable")
    assert time.monotonic() - started < 5
    assert door.knocks() == 0


def test_forms_and_masks_are_no_way_around(public, names, door):
    address = f"http://127.0.0.1:{door.port}/a.png"
    for answer in (
        public.form("/v1/ads", ("image_url", address), ("prompt", "a cup")),
        public.form("/v1/masks", ("image_url", address)),
        public.ask("POST", "/v1/masks", json={"image_url": address}),
    ):
        assert public.problem(answer, 422)["code"] == "private_address"
    assert door.knocks() == 0


def test_an_address_that_is_allowed_knocks(private, door):
    """Shows that the listener works: the same request reaches it where private addresses are allowed."""
    answer = private.ads(image_url=f"http://127.0.0.1:{door.port}/a.png", prompt="a cup")
    assert private.problem(answer, 422)["code"] == "image_timeout"
    assert door.knocks() == 1


def test_the_answer_repeats_no_secret_of_the_address(public, names):
    for address in ("http://user:SECRET@127.0.0.1/a?sig=SECRET", "http://user:SECRET@nowhere.example/a?sig=SECRET"):
        answer = public.ads(image_url=address, prompt="a cup")
        assert public.problem(answer, 422)
        assert b"SECRET" not in answer.data


# Redirects and name servers. These tests treat 127.0.0.2 as a public address.


@pytest.fixture
def outside(photo, monkeypatch) -> Iterator[Web]:
    monkeypatch.setattr("refadgen.catalog.web.is_public_address", lambda ip: ip == "127.0.0.2")
    with running("127.0.0.2") as web:
        web.pages["/a.png"] = (200, {}, photo)
        yield web


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:PORT/a.png", "//localhost:PORT/a.png", "http://[::1]:PORT/", "http://0x7f.1:PORT/"]
)
def test_a_redirect_to_loopback_is_not_followed(public, names, door, outside, status, target):
    names.answers["cdn.example"] = [["127.0.0.2"]]
    outside.pages["/away"] = (status, {"Location": target.replace("PORT", str(door.port))}, b"")
    answer = public.ads(image_url=f"http://cdn.example:{outside.port}/away", prompt="a cup")
    assert public.problem(answer, 422)["code"] == "private_address"
    assert [path for path, _ in outside.requests] == ["/away"]
    assert door.knocks() == 0


@pytest.mark.parametrize("target", ["file:///etc/passwd", "gopher://127.0.0.1:PORT/", "data:image/png;base64,aaaa"])
def test_a_redirect_out_of_the_web_is_not_followed(public, names, door, outside, target):
    names.answers["cdn.example"] = [["127.0.0.2"]]
    outside.pages["/away"] = (302, {"Location": target.replace("PORT", str(door.port))}, b"")
    answer = public.ads(image_url=f"http://cdn.example:{outside.port}/away", prompt="a cup")
    assert public.problem(answer, 422)["code"] == "bad_address"
    assert door.knocks() == 0


def test_redirects_end(public, names, outside):
    names.answers["cdn.example"] = [["127.0.0.2"]]
    outside.pages["/loop"] = (302, {"Location": "/loop"}, b"")
    answer = public.ads(image_url=f"http://cdn.example:{outside.port}/loop", prompt="a cup")
    assert public.problem(answer, 422)["code"] == "too_many_redirects"
    assert len(outside.requests) == 6


def test_a_name_that_answers_otherwise_the_second_time_is_not_asked_twice(public, names, door, outside, photo):
    names.answers["cdn.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    made = public.made(image_url=f"http://cdn.example:{outside.port}/a.png", prompt="a cup")
    assert made["images"][0]["input_sha256"] == hashlib.sha256(photo).hexdigest()
    assert names.asked == ["cdn.example"]


def test_a_name_is_checked_anew_after_a_redirect(public, names, outside):
    names.answers["cdn.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    outside.pages["/away"] = (302, {"Location": "/a.png"}, b"")
    answer = public.ads(image_url=f"http://cdn.example:{outside.port}/away", prompt="a cup")
    assert public.problem(answer, 422)["code"] == "private_address"
    assert [path for path, _ in outside.requests] == ["/away"]


# Where it is allowed


def test_an_image_behind_an_address_is_used(private, web, photo):
    made = private.made(image_url=f"http://127.0.0.1:{web.port}/a.png", prompt="a cup")
    (image,) = made["images"]
    assert image["status"] == "done"
    found = private.ask("POST", "/v1/masks", json={"image_url": f"http://127.0.0.1:{web.port}/a.png"})
    assert image["input_sha256"] == json.loads(found.data)["input_sha256"] == hashlib.sha256(photo).hexdigest()


def test_what_the_client_sent_stays_here(private, web):
    headers = {"Authorization": "Bearer SECRET", "Cookie": "SECRET", "X-Request-ID": "SECRET"}
    body = {"image_url": f"http://127.0.0.1:{web.port}/a.png", "prompt": "SECRET"}
    assert private.ask("POST", "/v1/ads", json=body, headers=headers).status == 200
    ((_, sent),) = web.requests
    assert "SECRET" not in str(sent)


def test_an_image_that_has_changed_behind_its_address_is_seen(private, web, pixels, encoded, photo):
    other = encoded(np.where(pixels == 200, 90, pixels).astype(np.uint8))
    address = f"http://127.0.0.1:{web.port}/a.png"
    for data in (photo, other, photo):
        web.pages["/a.png"] = (200, {}, data)
        (image,) = private.made(image_url=address, prompt="a cup", seed=1)["images"]
        assert image["input_sha256"] == hashlib.sha256(data).hexdigest()
        assert not image["cached"]


@pytest.fixture(scope="module")
def gzip_bomb() -> bytes:
    return gzip.compress(b"\0" * 50_000_000)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/endless", "image_too_large"),
        ("/says-it-is-large", "image_too_large"),
        ("/gzip-bomb", "image_too_large"),
        ("/bomb", "image_too_large"),
        ("/drip", "image_timeout"),
        ("/page", "not_an_image"),
        ("/empty", "not_an_image"),
        ("/missing", "image_not_found"),
        ("/forbidden", "image_refused"),
        ("/broken", "image_server_error"),
    ],
)
def test_what_comes_is_bounded_and_checked(private, web, gzip_bomb, png_of_size, path, reason):
    web.pages |= {
        "/says-it-is-large": (200, {"Content-Length": "200001"}, b""),
        "/gzip-bomb": (200, {"Content-Encoding": "gzip"}, gzip_bomb),
        "/bomb": (200, {}, png_of_size(60_000, 60_000)),
        "/page": (200, {"Content-Type": "image/png"}, b"<html></html>"),
        "/empty": (200, {}, b""),
        "/forbidden": (403, {}, b""),
        "/broken": (500, {}, b""),
    }
    started = time.monotonic()
    answer = private.ads(image_url=f"http://127.0.0.1:{web.port}{path}", prompt="a cup")
    problem = private.problem(answer, 422)
    assert (problem["param"], problem["code"]) == ("image_url", reason)
    assert time.monotonic() - started < 6
