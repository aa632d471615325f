"""Addresses of images as shops write them, and as they go over the wire."""

import contextlib
import re
from urllib.parse import quote, urljoin, urlsplit

from urllib3.util import Url, parse_url

_LINK = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_PLAIN_LINK = re.compile(r"https?://[^\s,;|\"'<>&\\]+")
_QUOTED = re.compile(r"[\"'<](?=(?:https?:)?//)", re.IGNORECASE)
_AMPERSAND = re.compile(r"&(?:amp|#0*38|#x0*26);", re.IGNORECASE)
_NO_SCHEME = re.compile(r"(?:www\.[^/\s.]+\.[^/\s]+|(?:[\w-]+\.)+[\w-]+:\d+|localhost:\d+)/", re.IGNORECASE)
# Commas may be part of an address; only before another address does one separate.
_BETWEEN = re.compile(
    r"[\"'>]?\s*[,;|\s]\s*[\"'<]?(?=(?:https?:)?//|www\.[^/\s.]+\.[^/\s]+/)",
    re.IGNORECASE,
)
_DESCRIPTOR = re.compile(r"\s+(\d+(?:\.\d+)?)[wx],?$")
"""What follows an address in HTML's `srcset`: the picture's width in px, or pixels a CSS pixel."""
_LIST = re.compile(r"[\[{]\s*[\"']")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_IN_PATH = "".join(set(_PRINTABLE) - set('"<>^`{}'))
_IN_QUERY = "".join(set(_PRINTABLE) - set("\"<>'"))


def written_link(text: str) -> str:
    """The one address that a cell of a catalogue means; a path is returned as it stands.

    Of several addresses it is the first: shops put the main picture there. Of a `srcset`, one picture in several sizes,
    it is the largest. `//cdn…` gets https, `&amp;` and WooCommerce's `\\,` are decoded.
    Raises: ValueError with the problem and the remedy.
    """
    text = text.strip()
    if _PLAIN_LINK.fullmatch(text):  # the most of a catalogue; nothing below would change it
        return text
    if _QUOTED.match(text):
        text = text.strip("\"'<>")
    if _LIST.match(text):
        raise ValueError("holds a list or an object: give one address")
    if _NO_SCHEME.match(text):
        raise ValueError("is an address without its scheme: add https:// (or ./ where it is a folder)")
    if not _LINK.match(text):
        return text
    links = [link for link in _BETWEEN.split(text) if _LINK.match(link)]
    text = _DESCRIPTOR.sub("", max(links, key=_size))
    text = _AMPERSAND.sub("&", text).replace("\\,", ",")
    return f"https:{text}" if text.startswith("//") else text


def _size(link: str) -> float:
    """The size that a `srcset` gives a picture; 0 where it gives none."""
    descriptor = _DESCRIPTOR.search(link)
    return float(descriptor[1]) if descriptor else 0.0


def parsed_link(address: str) -> tuple[Url, str]:
    """The parts of an http(s) address, and what a request asks its host for: path and query as written.

    A signature may cover the very bytes, so only what cannot be sent is escaped, as browsers do.
    Raises: ValueError or urllib3's LocationParseError.
    """
    url = parse_url(address)
    rest = re.sub(r"^[^:]+:[/\\]{2}[^/?#\\]*", "", address).partition("#")[0]
    path, mark, query = rest.partition("?")
    path = path or "/"
    if re.search(r"/\.{1,2}(?:/|$)", path):
        path = urlsplit(urljoin("http://host/", "/" + path.lstrip("/"))).path
    return url._replace(fragment=None), _escaped(path, _IN_PATH) + mark + _escaped(query, _IN_QUERY)


def redirect_target(address: str, location: str) -> str:
    """The address that a redirect from `address` leads to. Raises: ValueError.

    location: the header as http.client reads it, byte for byte as Latin-1; servers write UTF-8.
    """
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    return urljoin(address, location)


def _escaped(text: str, kept: str) -> str:
    return quote(_STRAY_PERCENT.sub("%25", text), safe=kept)
