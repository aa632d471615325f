"""Images over http(s), from addresses that a foreign catalogue wrote.

Each host is resolved once, every address it has is checked, and the connection goes to a checked address itself, so a
second answer of the name server cannot lead elsewhere. Redirects are followed by hand and checked alike. No cookies, no
proxies of the environment, no kept connections: a request is small beside the images that are made from it.
"""

import contextlib
import functools
import socket
import ssl
import threading
import time
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError, NewConnectionError
from urllib3.util import Retry, Url, make_headers, parse_url

from refadgen.catalog.attempts import Attempts, TryAgain
from refadgen.config import FetchConfig
from refadgen.errors import RowError
from refadgen.storage.addresses import is_public_address, redact_address

MAX_REDIRECTS = 5
USER_AGENT = "refadgen/0.1 (product images)"

_REDIRECTS = (301, 302, 303, 307, 308)
_RETRIABLE = (408, 425, 429)
_CHUNK_BYTES = 65536


class WebReader:
    """Reads the bytes behind http(s) addresses. Safe to share between threads."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._attempts = Attempts(config)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        """Loading the trusted certificates takes a while, so only where https is met."""
        return ssl.create_default_context()

    def read(self, address: str) -> bytes:
        """The body behind `address`, retried as FetchConfig says.

        Raises: RowError. rejected: `bad_address`, `private_address`, `image_not_found`, `image_refused`,
        `image_too_large`, `too_many_redirects`, `bad_certificate`; failed: `image_timeout`, `image_unreachable`,
        `image_server_error`.
        """
        return self._attempts.run(lambda: self._attempt(address))

    def _attempt(self, address: str) -> bytes:
        """One attempt, through all redirects, within `total_timeout_s` (waiting for a turn does not count)."""
        left_s = self._config.total_timeout_s
        for _ in range(MAX_REDIRECTS + 1):
            url = _parsed(address)
            with self._attempts.turn(url.host or ""):
                started = time.monotonic()
                body, location = _Request(url, self._config, self._tls if url.scheme == "https" else None, left_s).run()
                left_s -= time.monotonic() - started
            if body is not None:
                return body
            address = _joined(url.url, location)
        raise RowError("too_many_redirects", f"image: {redact_address(address)}: over {MAX_REDIRECTS}")


class _Request:
    """One request to one host. tls: for https. left_s: seconds until it is cut off, wherever it stands."""

    def __init__(self, url: Url, config: FetchConfig, tls: ssl.SSLContext | None, left_s: float) -> None:
        self._url = url
        self._shown = redact_address(url.url)
        self._config = config
        self._tls = tls
        self._left_s = left_s
        self._connection: HTTPConnection | None = None
        self._response: urllib3.BaseHTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._cut_off = threading.Event()

    def run(self) -> tuple[bytes | None, str]:
        """The body and "", or None and where the server redirects to. Raises: RowError, TryAgain."""
        timer = threading.Timer(max(self._left_s, 0.0), self._cut)
        timer.daemon = True
        timer.start()
        try:
            return self._answer()
        except (TryAgain, RowError):
            if self._cut_off.is_set():
                raise self._timeout() from None
            raise
        except ssl.SSLCertVerificationError as error:
            raise self._rejected("bad_certificate", error.verify_message or "the certificate does not fit") from None
        except Exception as error:  # urllib3, http.client, ssl and socket; their texts may hold the signed query
            if self._cut_off.is_set() or _is_timeout(error):
                raise self._timeout() from None
            raise self._again("image_unreachable", f"the connection broke ({type(error).__name__})") from None
        finally:
            timer.cancel()
            for opened in (self._response, self._connection):
                if opened is not None:
                    opened.close()

    def _answer(self) -> tuple[bytes | None, str]:
        headers = make_headers(user_agent=USER_AGENT, basic_auth=self._url.auth)
        default_port = 443 if self._url.scheme == "https" else 80
        port = "" if self._url.port in (None, default_port) else f":{self._url.port}"
        headers |= {"Host": f"{self._url.host}{port}", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        connection = self._connect(self._url.port or default_port)
        connection.request("GET", self._url.request_uri, headers=headers, preload_content=False)
        self._response = response = connection.getresponse()
        status = response.status
        if status in _REDIRECTS and response.headers.get("Location"):
            return None, response.headers["Location"]
        if status in _RETRIABLE or status >= 500:
            raise self._again("image_server_error", f"answered {status}", _retry_after(response))
        if status in (404, 410):
            raise self._rejected("image_not_found", f"answered {status}")
        if not 200 <= status < 300:
            remedy = "have it allowed or the address signed afresh"
            raise self._rejected("image_refused", f"answered {status}; {remedy}")
        return self._body(response), ""

    def _body(self, response: urllib3.BaseHTTPResponse) -> bytes:
        limit = self._config.max_bytes
        body = bytearray()
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise self._too_large(f"{declared} bytes is")
        while chunk := response.read(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > limit:
                raise self._too_large("its body is")
        if self._cut_off.is_set():
            raise self._timeout()
        return bytes(body)

    def _connect(self, port: int) -> HTTPConnection:
        """A connection to the first of the host's checked addresses that takes one."""
        problem: Exception | None = None
        for ip in self._checked_addresses(port):
            if self._cut_off.is_set():
                break
            if self._tls is not None:
                name = (self._url.host or "").strip("[]").rstrip(".")
                self._connection = HTTPSConnection(
                    ip, port, timeout=self._config.timeout_s, ssl_context=self._tls, server_hostname=name
                )
            else:
                self._connection = HTTPConnection(ip, port, timeout=self._config.timeout_s)
            try:
                self._connection.connect()
            except ssl.SSLError:
                raise
            except (HTTPError, OSError) as error:
                self._connection.close()
                problem = error
                continue
            # Kept here, since the connection lets go of its socket once the headers are read.
            self._socket = self._connection.sock
            if self._cut_off.is_set():
                raise self._timeout()
            return self._connection
        raise problem or self._timeout()

    def _checked_addresses(self, port: int) -> list[str]:
        """The host's addresses. Raises: RowError where one of them is not public (unless that is allowed)."""
        host = (self._url.host or "").strip("[]")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self._again("image_unreachable", "the host's name has no address") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._config.allow_private_addresses and not all(map(is_public_address, addresses)):
            raise self._rejected(
                "private_address",
                "leads to an address that is not of the public internet; set fetch.allow_private_addresses=true",
            )
        return addresses

    def _cut(self) -> None:
        """The end of `left_s`: wakes whatever the request is blocked in."""
        self._cut_off.set()
        if self._socket is not None:
            # socket's own shutdown: that of an SSLSocket would first drop the TLS state the reader is using.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _timeout(self) -> TryAgain:
        limits = f"fetch.timeout_s={self._config.timeout_s:g}, fetch.total_timeout_s={self._config.total_timeout_s:g}"
        return self._again("image_timeout", f"did not answer in time ({limits})")

    def _again(self, reason: str, what: str, retry_after_s: float = 0.0) -> TryAgain:
        return TryAgain(reason, f"image: {self._shown}: {what}", retry_after_s)

    def _too_large(self, size: str) -> RowError:
        limit = self._config.max_bytes
        return self._rejected("image_too_large", f"{size} more than fetch.max_bytes={limit}; raise it")

    def _rejected(self, reason: str, what: str) -> RowError:
        return RowError(reason, f"image: {self._shown}: {what}")


def _parsed(address: str) -> Url:
    """The parts of an http(s) address. Raises: RowError `bad_address`, also where a redirect leaves http(s)."""
    problem = "not a complete http(s) address"
    try:
        url = parse_url(address)
        if url.scheme in ("http", "https") and url.host:
            return url._replace(fragment=None)
    except (LocationParseError, ValueError):
        problem = "not a valid address"
    raise RowError("bad_address", f"image: {redact_address(address)}: {problem}")


def _joined(address: str, location: str) -> str:
    """Where a redirect from `address` leads. Raises: RowError `bad_address`."""
    try:
        return urljoin(address, location)
    except ValueError as error:
        raise RowError("bad_address", f"image: {redact_address(address)}: redirects nowhere") from error


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds the server asks to wait, 0 where it does not say or not in a form that can be read."""
    value = response.headers.get("Retry-After")
    if not value:
        return 0.0
    try:
        return max(Retry().parse_retry_after(value), 0.0)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _is_timeout(error: BaseException) -> bool:
    """Whether `error` is a timeout. urllib3 counts refused connections among them."""
    return not isinstance(error, NewConnectionError) and isinstance(
        error, TimeoutError | urllib3.exceptions.TimeoutError
    )
