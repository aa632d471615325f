"""Images over http(s): what is tried again, what is given up, and which addresses are never reached."""

import base64
import dataclasses
import datetime
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from refadgen.catalog.request_headers import load_headers
from refadgen.catalog.web import WebReader
from refadgen.config import FetchConfig
from refadgen.errors import RETRY_HINT, RowError, retried_reasons

FAST = FetchConfig(
    timeout_s=1.0, total_timeout_s=2.0, num_retries=2, backoff_s=0.05, max_bytes=100_000, allow_private_addresses=True
)
ONCE = FetchConfig(timeout_s=0.4, total_timeout_s=0.8, num_retries=0, backoff_s=0, allow_private_addresses=True)


def _error(reader: WebReader, address: str) -> RowError:
    with pytest.raises(RowError) as error:
        reader.read(address)
    assert error.value.detail.startswith("image: ")
    assert (RETRY_HINT in error.value.detail) == (error.value.reason in retried_reasons())
    return error.value


def _reason(reader: WebReader, address: str) -> str:
    error = _error(reader, address)
    return f"{error.status} {error.reason}"


def test_http_image_and_what_is_asked(web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    reader = WebReader(FAST)
    assert reader.read(f"{web.url}/ok/a%20b?sig=x#top") == web.image
    assert reader.read(f"{web.url.replace('//', '//user:pass@')}/ok/ü.png") == web.image
    (_, path, headers), (_, other_path, other) = web.requests
    assert path == "/ok/a%20b?sig=x"
    assert headers["Host"] == web.url.removeprefix("http://")
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in other
    assert other_path == "/ok/%C3%BC.png"
    assert other["authorization"] == "Basic " + base64.b64encode(b"user:pass").decode()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "rejected image_not_found"),
        (410, "rejected image_not_found"),
        (401, "rejected image_refused"),
        (403, "rejected image_refused"),
        (418, "rejected image_refused"),
        (304, "rejected image_refused"),
        (408, "failed image_server_error"),
        (429, "failed image_server_error"),
        (500, "failed image_server_error"),
        (503, "failed image_server_error"),
    ],
)
def test_statuses(web, status, reason):
    assert _reason(WebReader(FAST), f"{web.url}/status/{status}?sig=SECRET") == reason
    assert len(web.requests) == (3 if reason.startswith("failed") else 1)


def test_secrets_of_addresses_are_in_no_message(web, caplog):
    caplog.set_level("DEBUG")
    user = web.url.replace("//", "//user:SECRET@")
    web.redirects["away"] = f"{web.url}/status/404?sig=SECRET"
    for path in ("status/404", "status/503", "short/9", "broken", "redirect/away"):
        error = _error(WebReader(FAST), f"{user}/{path}?sig=SECRET#SECRET")
        assert "SECRET" not in str(error)
        assert web.url in error.detail
        assert "SECRET" not in repr(error.__cause__)
    assert "SECRET" not in caplog.text


def test_backoff_doubles_and_retry_after_is_honoured_within_bounds(web):
    _reason(WebReader(FAST), f"{web.url}/status/500")
    first, second, third = web.tries("/status/500")
    assert 0.05 <= second - first < 0.3
    assert 0.1 <= third - second < 0.4
    assert WebReader(FetchConfig(timeout_s=0.4, backoff_s=0, allow_private_addresses=True)).read(f"{web.url}/busy/3600")
    first, second, third = web.tries("/busy/3600")
    assert 0.4 <= second - first < 0.8
    assert WebReader(FAST).read(f"{web.url}/busy/soon") == web.image  # not a time: as if it had said nothing


def test_timeouts(web):
    for path in ("silent", "drip/body", "drip/head"):
        started = time.monotonic()
        error = _error(WebReader(ONCE), f"{web.url}/{path}")
        assert (error.status, error.reason) == ("failed", "image_timeout"), path
        assert "fetch.timeout_s=0.4" in error.detail
        assert time.monotonic() - started < 1.5, path


def test_a_body_that_ends_early_is_tried_again(web):
    assert WebReader(FAST).read(f"{web.url}/short/2") == web.image
    assert _reason(WebReader(FAST), f"{web.url}/short/3?x") == "failed image_unreachable"


def test_unreachable(web):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert _reason(WebReader(ONCE), f"http://127.0.0.1:{port}/a.png") == "failed image_unreachable"
    assert _reason(WebReader(ONCE), f"{web.url}/broken") == "failed image_unreachable"
    assert _reason(WebReader(ONCE), "http://no-such-host.invalid/a.png") == "failed image_unreachable"
    https = web.url.replace("http:", "https:")
    assert _reason(WebReader(ONCE), f"{https}/ok") == "failed image_unreachable"


def test_too_many_bytes(web):
    started = time.monotonic()
    assert _reason(WebReader(FAST), f"{web.url}/huge") == "rejected image_too_large"
    assert time.monotonic() - started < 1
    assert _reason(WebReader(FetchConfig(max_bytes=10, allow_private_addresses=True)), f"{web.url}/ok") == (
        "rejected image_too_large"
    )


def test_redirects(web):
    web.redirects.update(near="/ok/relative", far=f"{web.url}/ok/absolute?sig=1", loop="/redirect/loop")
    web.redirects.update(file="file:///etc/passwd", nowhere="http://[::1")
    reader = WebReader(FAST)
    assert reader.read(f"{web.url}/redirect/near") == reader.read(f"{web.url}/redirect/far") == web.image
    assert web.requests[-1][1] == "/ok/absolute?sig=1"
    assert _reason(reader, f"{web.url}/redirect/loop") == "rejected too_many_redirects"
    assert len(web.tries("/redirect/loop")) == 6
    assert _reason(reader, f"{web.url}/redirect/file") == "rejected bad_address"
    assert _reason(reader, f"{web.url}/redirect/nowhere") == "rejected bad_address"


def test_requests_to_one_host_are_bounded(web):
    reader = WebReader(FetchConfig(max_per_host=2, allow_private_addresses=True))
    threads = [threading.Thread(target=reader.read, args=(f"{web.url}/slow/{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(web.requests) == 8
    assert web.most_active == 2


# Addresses that must not be reached

FOREIGN = FetchConfig(num_retries=0, timeout_s=0.5)
_FOREIGN_HOSTS = """
    127.0.0.1 localhost LOCALHOST 127.1 2130706433 0x7f000001 0177.0.0.1 0 0.0.0.0 [::1] [::] [::ffff:127.0.0.1]
    [::ffff:7f00:1] 169.254.169.254 [fe80::1] 10.0.0.1 192.168.0.1 172.20.0.1 100.64.0.1 user:pass@127.0.0.1
"""


@pytest.mark.parametrize(
    "host",
    _FOREIGN_HOSTS.split(),
)
def test_addresses_that_are_not_public(web, host):
    port = web.server_address[1]
    assert _reason(WebReader(FOREIGN), f"http://{host}:{port}/ok") == "rejected private_address"
    assert not web.requests


@pytest.mark.parametrize(
    "address", ["http://", "http:///a.png", "http://a b/c", "https://[::1/a", "http://host:99999/a", "http:a"]
)
def test_broken_addresses(address):
    assert _reason(WebReader(FOREIGN), address) == "rejected bad_address"


class _Names:
    """A name server: the answers for each host, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[list[str]]) -> None:
        self.asked: list[str] = []
        self._answers = {name.replace("_", "."): list(lists) for name, lists in answers.items()}
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: str, port: int, *args: object, **kwargs: object) -> list[tuple[object, ...]]:
        if host not in self._answers:
            return self._real(host, port, *args, **kwargs)
        self.asked.append(host)
        ips = self._answers[host].pop(0) if len(self._answers[host]) > 1 else self._answers[host][0]
        return [entry for ip in ips for entry in self._real(ip, port, type=socket.SOCK_STREAM)]


def test_a_name_with_one_private_address_is_refused(web, monkeypatch):
    _Names(monkeypatch, cdn_example=[["8.8.8.8", "10.0.0.1"]])
    assert _reason(WebReader(FOREIGN), "http://cdn.example/a.png") == "rejected private_address"


def test_redirect_to_a_private_address_is_refused(web, monkeypatch):
    # The test's own server passes for a public one.
    port = web.server_address[1]
    web.redirects["inside"] = f"http://localhost:{port}/ok"
    monkeypatch.setattr("refadgen.catalog.web.is_public_address", lambda ip: ip == "127.0.0.2")
    _Names(monkeypatch, cdn_example=[["127.0.0.2"]])
    forward = socket.create_server(("127.0.0.2", 0))
    threading.Thread(target=_answer_with_redirect, args=(forward, web.redirects["inside"]), daemon=True).start()
    address = f"http://cdn.example:{forward.getsockname()[1]}/a.png"
    assert _reason(WebReader(FOREIGN), address) == "rejected private_address"
    assert not web.requests
    forward.close()


def _answer_with_redirect(listening: socket.socket, location: str) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())


def test_the_checked_address_is_the_one_connected_to(web, monkeypatch):
    # A second answer of the name server (rebinding) must never be asked for.
    names = _Names(monkeypatch, cdn_example=[["127.0.0.1"], ["10.255.255.1"]])
    monkeypatch.setattr("refadgen.catalog.web.is_public_address", lambda ip: ip == "127.0.0.1")
    address = f"http://cdn.example:{web.server_address[1]}/ok/a"
    assert WebReader(FOREIGN).read(address) == web.image
    assert names.asked == ["cdn.example"]
    assert web.requests[0][2]["Host"] == f"cdn.example:{web.server_address[1]}"


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for cdn.example with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cdn.example")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("cdn.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(key.private_bytes(*private) + built.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def tls_web(web, certificate: Path, monkeypatch) -> tuple[Any, list[str | None]]:
    """The web server behind TLS as cdn.example and as other.example, and the names it was asked for."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _, name, __: asked.append(name)
    web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
    _Names(monkeypatch, cdn_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    return web, asked


def test_https_checks_the_name_though_it_connects_to_the_number(tls_web, certificate, monkeypatch):
    web, asked = tls_web
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    port = web.server_address[1]
    patient = dataclasses.replace(ONCE, timeout_s=10, total_timeout_s=20)  # a hand-shake on a busy machine
    assert WebReader(patient).read(f"https://cdn.example:{port}/ok") == web.image
    assert asked == ["cdn.example"]
    assert _reason(WebReader(FAST), f"https://other.example:{port}/ok") == "rejected bad_certificate"
    assert _reason(WebReader(FAST), f"https://127.0.0.1:{port}/ok") == "rejected bad_certificate"
    for path in ("drip/body", "drip/head", "silent"):
        assert _reason(WebReader(ONCE), f"https://cdn.example:{port}/{path}") == "failed image_timeout"


def test_https_with_an_unknown_certificate(tls_web):
    address = f"https://cdn.example:{tls_web[0].server_address[1]}/ok"
    assert _reason(WebReader(ONCE), address) == "rejected bad_certificate"


def test_redirects_in_raw_utf8_and_exact_bytes(web):
    web.redirects["u"] = "/ok/größe.jpg?s=%2b&t[]=a|b".encode().decode("latin-1")
    assert WebReader(FAST).read(f"{web.url}/redirect/u") == web.image
    assert [path for _, path, _ in web.requests] == ["/redirect/u", "/ok/gr%C3%B6%C3%9Fe.jpg?s=%2b&t[]=a|b"]


def test_user_and_password_are_decoded(web):
    assert WebReader(FAST).read(f"{web.url.replace('//', '//user:p%40ss%C3%A9@')}/ok/a") == web.image
    assert web.requests[0][2]["authorization"] == "Basic " + base64.b64encode("user:p@ssé".encode()).decode()


def test_headers_of_a_host_go_there_and_nowhere_else(web, tmp_path):
    file = tmp_path / "headers.yaml"
    file.write_text(
        "'*': {User-Agent: Mozilla/5.0, accept: image/png}\n"
        "127.0.0.1: {Authorization: Bearer SECRET}\nother.example: {X-Key: SECRET}\n"
    )
    assert WebReader(dataclasses.replace(FAST, headers_file=str(file))).read(f"{web.url}/ok/a") == web.image
    sent = {name.lower(): value for name, value in web.requests[0][2].items()}
    assert (sent["user-agent"], sent["accept"]) == ("Mozilla/5.0", "image/png")
    assert sent["authorization"] == "Bearer SECRET"
    assert "x-key" not in sent
    assert sent["accept-encoding"] == "identity"


def test_headers_do_not_follow_a_redirect_out_of_encryption(tls_web, plain_web, certificate, monkeypatch, tmp_path):
    """The same host sends to http: whoever listens there must not read its key. Back in https it is sent."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    file = tmp_path / "headers.yaml"
    file.write_text("cdn.example: {X-Key: SECRET}\n")
    reader = WebReader(dataclasses.replace(FAST, headers_file=str(file)))
    (web, _), host = tls_web, "cdn.example"
    encrypted, plain = f"https://{host}:{web.server_address[1]}", f"http://{host}:{plain_web.server_address[1]}"
    web.redirects["down"] = f"{plain}/redirect/up"
    plain_web.redirects["up"] = f"{encrypted}/ok/a"
    assert reader.read(f"{encrypted}/redirect/down") == web.image
    assert [headers.get("X-Key") for _, _, headers in web.requests] == ["SECRET", "SECRET"]
    assert [headers.get("X-Key") for _, _, headers in plain_web.requests] == [None]
    assert reader.read(f"{plain}/ok/a") == web.image  # an address that the catalogue itself has without https
    assert plain_web.requests[-1][2]["X-Key"] == "SECRET"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "not YAML"),
        ("User-Agent", "headers by host"),
        ("h: SECRET", "h: must hold headers"),
        ("https://h: {X-Key: SECRET}", "https://h: must be the name of a host"),
        ("h:8443: {X-Key: SECRET}", "h:8443: must be the name of a host"),
        ("h: {Host: SECRET}", "'Host' is no header that can be set"),
        ("h: {'a b': SECRET}", "'a b' is no header"),
        ('h: {X-Key: "SECRET\\nX-Other: 1"}', "the value of X-Key must be a line"),
        ("h: {X-Key: 17}", "the value of X-Key must be a line"),
    ],
)
def test_a_headers_file_that_cannot_be_used_is_named_without_its_secrets(text, words, tmp_path):
    file = tmp_path / "headers.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"fetch.headers_file=.*{words}") as error:
        load_headers(str(file))
    assert "SECRET" not in str(error.value)
