"""Images over http(s), from addresses that a foreign catalogue wrote.

The catalogue must not reach hosts of a private network (server-side request forgery): each host is resolved once, each
of its addresses is checked, and the connection goes to a checked address. Redirects are followed by hand and checked
alike. No proxies of the environment: they would resolve names themselves, unchecked. No cookies, no kept connections: a
request costs little beside the images that are made from its answer.
"""

import base64
import contextlib
import functools
import socket
import ssl
import threading
import time
from urllib.parse import unquote_to_bytes

import urllib3
from urllib3 import HTTPHeaderDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError, NewConnectionError
from urllib3.util import Retry, Url

from refadgen.catalog.attempts import Attempts, ImageName, TryAgain
from refadgen.catalog.links import parsed_link, redirect_target
from refadgen.catalog.request_headers import Headers, load_headers
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
        """Raises: ValueError where `fetch.headers_file` cannot be used."""
        self._config = config
        self._attempts = Attempts(config)
        self._headers = load_headers(config.headers_file)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        """Loading the trusted certificates is slow: once, and only for a catalogue with https addresses."""
        return ssl.create_default_context()

    def read(self, address: str, *, field: str = "image") -> bytes:
        """Returns the body behind `address`, retried as FetchConfig says.

        field: the field that errors name.
        Raises: RowError. rejected: `bad_address`, `private_address`, `image_not_found`, `image_refused`,
        `image_too_large`, `too_many_redirects`, `bad_certificate`; failed: `image_timeout`, `image_unreachable`,
        `image_server_error`.
        """
        return self._attempts.run(lambda: self._attempt(address, field))

    def _attempt(self, address: str, field: str) -> bytes:
        """One attempt, through all redirects, within `total_timeout_s` without the waits for a turn."""
        left_s = self._config.total_timeout_s
        encrypted = False  # so far, by any address of the chain
        for _ in range(MAX_REDIRECTS + 1):
            name = ImageName(field=field, shown=redact_address(address))
            url, target = _parsed(address, name)
            tls = self._tls if url.scheme == "https" else None
            encrypted |= tls is not None
            # They may be secret: a redirect from https to http must not send them in the clear.
            headers = {} if encrypted and tls is None else self._headers.of(url.host or "")
            with self._attempts.turn(url.host or ""):
                started = time.monotonic()
                body, location = _Request(url, target, name, self._config, headers, tls, left_s).run()
                left_s -= time.monotonic() - started
            if body is not None:
                return body
            address = _joined(address, location, name)
        name = ImageName(field=field, shown=redact_address(address))
        raise name.error("too_many_redirects", f"over {MAX_REDIRECTS}")


class _Request:
    """One request to one host.

    target: what it asks for. headers: of the user's file. tls: None for http.
    left_s: seconds until it is cut off, whatever it is doing.
    """

    def __init__(
        self,
        url: Url,
        target: str,
        name: ImageName,
        config: FetchConfig,
        headers: Headers,
        tls: ssl.SSLContext | None,
        left_s: float,
    ) -> None:
        self._url = url
        self._target = target
        self._name = name
        self._config = config
        self._headers = headers
        self._tls = tls
        self._left_s = left_s
        self._connection: HTTPConnection | None = None
        self._response: urllib3.BaseHTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._cut_off = threading.Event()

    def run(self) -> tuple[bytes | None, str]:
        """The body and "", or None and the location of a redirect. Raises: RowError, TryAgain."""
        # Slow-loris: `timeout_s` starts again with each byte that arrives. Only a clock of our own ends a server that
        # sends one byte every few seconds.
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
            raise self._name.error("bad_certificate", error.verify_message or "the certificate does not fit") from None
        except Exception as error:  # of urllib3, http.client, ssl and socket; their texts may hold the signed query
            if self._cut_off.is_set() or _is_timeout(error):
                raise self._timeout() from None
            raise self._name.try_again("image_unreachable", f"the connection broke ({type(error).__name__})") from None
        finally:
            timer.cancel()
            for opened in (self._response, self._connection):
                if opened is not None:
                    opened.close()

    def _answer(self) -> tuple[bytes | None, str]:
        default_port = 443 if self._url.scheme == "https" else 80
        port = "" if self._url.port in (None, default_port) else f":{self._url.port}"
        # The connection goes to a number, so the host's name is sent here. Compression would not make an image smaller.
        headers = HTTPHeaderDict({"User-Agent": USER_AGENT, "Accept": "image/*,*/*;q=0.5"})
        if self._url.auth:
            headers["authorization"] = "Basic " + base64.b64encode(unquote_to_bytes(self._url.auth)).decode()
        for field, value in self._headers.items():
            headers[field] = value
        headers |= {"Host": f"{self._url.host}{port}", "Accept-Encoding": "identity"}
        connection = self._connect(self._url.port or default_port)
        connection.request("GET", self._target, headers=headers, preload_content=False)
        self._response = response = connection.getresponse()
        status = response.status
        if status in _REDIRECTS and response.headers.get("Location"):
            return None, response.headers["Location"]
        if status in _RETRIABLE or status >= 500:
            raise self._name.try_again("image_server_error", f"answered {status}", _retry_after(response))
        if status in (404, 410):
            raise self._name.error("image_not_found", f"answered {status}")
        if not 200 <= status < 300:
            remedy = "have it allowed, by a header of fetch.headers_file if need be, or the address signed afresh"
            raise self._name.error("image_refused", f"answered {status}; {remedy}")
        return self._body(response), ""

    def _body(self, response: urllib3.BaseHTTPResponse) -> bytes:
        limit = self._config.max_bytes
        body = bytearray()
        # Only a hint: a server may declare nothing, or less than it sends.
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise self._too_large(f"{declared} bytes is")
        # Counted after decoding: a server may compress unasked, and 1 MB of a decompression bomb holds 1 GB of zeros.
        while chunk := response.read(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > limit:
                raise self._too_large("its body is")
        # A socket that `_cut` shut down looks like the end of a body without a Content-Length.
        if self._cut_off.is_set():
            raise self._timeout()
        return bytes(body)

    def _connect(self, port: int) -> HTTPConnection:
        """A connection to the first of the host's checked addresses that accepts one."""
        problem: Exception | None = None
        for ip in self._checked_addresses(port):
            if self._cut_off.is_set():
                break
            if self._tls is not None:
                # The certificate must fit the host's name, though the connection goes to a number.
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
            # For `_cut`: the connection drops its own reference to the socket once the headers are read.
            self._socket = self._connection.sock
            if self._cut_off.is_set():
                raise self._timeout()
            return self._connection
        raise problem or self._timeout()

    def _checked_addresses(self, port: int) -> list[str]:
        """The host's IP addresses. Raises: RowError where one of them is not public and that is not allowed."""
        host = (self._url.host or "").strip("[]")
        # DNS rebinding: resolved once, and connected to by number. A name that is resolved again for the connection may
        # have a private address by then.
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self._name.try_again("image_unreachable", "the host's name has no address") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # All of them: the operating system may order them so that a private one comes first.
        if not self._config.allow_private_addresses and not all(map(is_public_address, addresses)):
            raise self._name.error(
                "private_address",
                "leads to an address that is not of the public internet; set fetch.allow_private_addresses=true",
            )
        return addresses

    def _cut(self) -> None:
        """Ends the request after `left_s`, from the timer's thread, by waking the call that it is blocked in."""
        self._cut_off.set()
        if self._socket is not None:
            # The plain socket's shutdown: an SSLSocket's own would first drop the TLS state that the reader is using.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _timeout(self) -> TryAgain:
        limits = f"fetch.timeout_s={self._config.timeout_s:g}, fetch.total_timeout_s={self._config.total_timeout_s:g}"
        return self._name.try_again("image_timeout", f"did not answer in time ({limits})")

    def _too_large(self, size: str) -> RowError:
        limit = self._config.max_bytes
        return self._name.error("image_too_large", f"{size} more than fetch.max_bytes={limit}; raise it")


def _parsed(address: str, name: ImageName) -> tuple[Url, str]:
    """See `parsed_link`. Raises: RowError `bad_address`, also for a redirect to another scheme."""
    problem = "not a complete http(s) address"
    try:
        url, target = parsed_link(address)
        if url.scheme in ("http", "https") and url.host:
            return url, target
    except (LocationParseError, ValueError):
        problem = "not a valid address"
    raise name.error("bad_address", problem)


def _joined(address: str, location: str, name: ImageName) -> str:
    """See `redirect_target`. Raises: RowError `bad_address`."""
    try:
        return redirect_target(address, location)
    except ValueError as error:
        raise name.error("bad_address", "redirects to no valid address") from error


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds that the server asks to wait; 0 where it gives none, or in no known form."""
    value = response.headers.get("Retry-After")
    if not value:
        return 0.0
    try:
        return max(Retry().parse_retry_after(value), 0.0)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _is_timeout(error: BaseException) -> bool:
    """Whether `error` is a timeout. urllib3's NewConnectionError is one by type, but means a refused connection."""
    return not isinstance(error, NewConnectionError) and isinstance(
        error, TimeoutError | urllib3.exceptions.TimeoutError
    )
