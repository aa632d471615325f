"""Addresses of images: shown without secrets, compared without signatures; and IP addresses that are public."""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import unquote

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")
_AUTHORITY = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:)?([/\\]{2})([^/\\?#]*)")

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how IPv6-only clusters see the IPv4 internet
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Not public either, though `is_global` of Python 3.11 says so.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's platform service
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, among them Teredo, which embeds an IPv4 address
        "2002::/16",  # 6to4, likewise
        "3fff::/20",  # documentation
    )
)


def redact_address(address: str, max_chars: int = 200) -> str:
    """`address` for ledger, logs and messages: no user, password, query or fragment; one line; at most `max_chars`.

    The signature of a signed address is part of its query. A `data:` address is shown by type and length. A plain path
    stays as it is, unless it has a signing query. Never raises, however broken the address.
    """
    text = _without_signing_folders(address.strip())
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() == "data":
        kind = text[5 : 5 + 60].partition(",")[0]
        return _shown(f"data:{kind},… ({len(text)} characters)", max_chars)
    if scheme or text.startswith(("//", "\\\\")):
        text = re.split(r"[?#]", text, maxsplit=1)[0]
        authority = _AUTHORITY.match(text)
        if authority:
            host = authority[3].rpartition("@")[2]
            text = f"{authority[1] or ''}{authority[2]}{host}{text[authority.end() :]}"
        elif scheme and scheme[1].lower() != "file":
            text = f"{scheme[1]}:{text[scheme.end() :].rpartition('@')[2]}"
    elif unsigned_address(text) != text:  # an address without its scheme, such as cdn.shop/a.png?sig=…
        text = text.partition("?")[0]
    return _shown(text, max_chars)


def is_public_address(address: str) -> bool:
    """Whether `address` (an IP as text) belongs to the public internet.

    Not public: private, loopback, link-local, shared, reserved, multicast, unspecified and documentation addresses, the
    metadata services of clouds, and each IPv6 form of any of these.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv6 can carry an IPv4 address: ::ffff:169.254.169.254 reaches a cloud's metadata service.
        if ip.ipv4_mapped is not None:
            return is_public_address(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public_address(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST:
            return False
    if any(ip.version == network.version and ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _shown(text: str, max_chars: int) -> str:
    """`text` on one line, its middle left out where it is too long."""
    # Control characters in an address could forge lines of a log or move a terminal's cursor.
    text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    if len(text) <= max_chars:
        return text
    tail = max_chars // 3
    return f"{text[: max_chars - tail - 1]}…{text[len(text) - tail :]}"


_HASH = "(?:[0-9a-f]{64}|[0-9a-f]{32})"
_SECONDS = r"(?:\d{10}|[0-9a-fA-F]{8})"
"""A time, in seconds since 1970."""
_SIGNING: tuple[tuple[Mapping[str, str], str], ...] = (
    ({"x-amz-signature": ""}, "x-amz-.*"),
    ({"x-goog-signature": ""}, "x-goog-.*"),
    # CloudFront, and older signatures of S3, Google and Alibaba
    (
        {"signature": ""},
        "signature|expires|policy|key-pair-id|awsaccesskeyid|x-amz-security-token|googleaccessid|ossaccesskeyid"
        "|security-token",
    ),
    # Azure, of accounts, services and users; Cloudflare Images
    ({"sig": ""}, "sig|s[eptvr]|sip|spr|srt|ss|ske|sk[tsv]|skoid|sktid|saoid|suoid|scid|sdd|ses|exp"),
    # Alibaba, version 4. `x-oss-process` stays: it says what the picture shall look like.
    (
        {"x-oss-signature": ""},
        "x-oss-(?:signature(?:-version)?|credential|date|expires|additional-headers|security-token)",
    ),
    # CDN of Alibaba and Huawei: types A, C and F
    ({"auth_key": rf"\d{{10}}-[^-]*-[^-]*-{_HASH}$"}, "auth_key"),
    ({"auth_key": f"{_HASH}$", "timestamp": f"{_SECONDS}$"}, "auth_key|timestamp"),
    ({"key1": f"{_HASH}$", "key2": f"{_SECONDS}$"}, "key1|key2"),
    ({"sign": f"{_HASH}$", "time": f"{_SECONDS}$"}, "sign|time"),
    # Tencent: its store, also in one field, and two of its CDN
    ({"q-signature": ""}, "q-.*|x-cos-security-token"),
    ({"sign": ".*&q-signature="}, "sign|x-cos-security-token"),
    ({"sign": rf"\d{{10}}-[^-]*-[^-]*-{_HASH}$"}, "sign"),
    ({"sign": f"{_HASH}$", "t": f"{_SECONDS}$"}, "sign|t"),
    ({"s": "[0-9a-f]{32}$", "expires": r"\d+$"}, "s|expires"),  # imgix
    ({"token": "", "expires": r"\d+$"}, "token|expires|token_(?:path|ver|countries(?:_blocked)?)"),  # Bunny
    ({"token": r"eyJ[\w-]+\.[\w-]+\.[\w-]+$"}, "token"),  # Supabase: a JWT
    ({"verify": r"\d{10}-."}, "verify"),  # Cloudflare
    ({"token": r"\d{10}_[0-9a-f]{40,}$"}, "token"),  # Fastly
    ({"token": "", "expire": r"\d+$"}, "token|expire"),  # KeyCDN
)
"""What marks a query as signed, names with how their values begin; and the names of the fields to leave out.

Only together: `sp=1` alone may be a page number.
"""
_EDGE_TOKEN = r"(?:[a-z]+=[^~]*~)*exp=\d+~.*hmac=[0-9a-f]+"
"""Akamai's, as the value of a field of any name, or as a folder."""
_SIGNING_FOLDER = re.compile(
    r"/(?:bcdn_token=[^/?#]*|(?:\w+=)?(?:[a-z]+=[^~/?#]*~)*exp=\d+~(?:[a-z]+=[^~?#]*~)*hmac=[0-9a-f]+)(?=/)"
)
"""The value of `acl` may hold slashes: `acl=/*`."""
_SIGNING_FOLDERS = re.compile(
    r"((?:https?:)?//[^/?#]+)/(?:"
    rf"20\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?/{_HASH}"
    rf"|{_HASH}/[5-9][0-9a-fA-F]{{7}})(?=/)"
)
"""CDN of Alibaba, Tencent and Huawei, types B and C: minute and hash, or hash and seconds (of 2012 and later)."""


def _without_signing_folders(head: str) -> str:
    found = _SIGNING_FOLDERS.match(head)
    return f"{found[1]}{head[found.end() :]}" if found else _SIGNING_FOLDER.sub("", head) if "=" in head else head


def unsigned_address(address: str) -> str:
    """`address` without what signs it for a limited time, as stores and image hosts do that `_SIGNING` names."""
    if "?" not in address:
        return _without_signing_folders(address)
    head, _, query = address.partition("?")
    head = _without_signing_folders(head)
    query, hash_mark, fragment = query.partition("#")
    parts = query.split("&")
    values = {part.partition("=")[0].lower(): unquote(part.partition("=")[2]) for part in parts}
    signing = [
        re.compile(dropped)
        for marks, dropped in _SIGNING
        if all(name in values and re.match(start, values[name]) for name, start in marks.items())
    ]
    kept = [part for part in parts if not _signs(part, signing)]
    return head + ("?" + "&".join(kept) if kept else "") + hash_mark + fragment


def _signs(part: str, signing: list[re.Pattern[str]]) -> bool:
    """Whether a field of a query is a signature or belongs to one."""
    name, _, value = part.partition("=")
    return any(dropped.fullmatch(name.lower()) for dropped in signing) or bool(
        re.fullmatch(_EDGE_TOKEN, unquote(value))
    )


def image_identity(image: str | bytes) -> str:
    """An image's part in ids: its address without signatures, which change daily; for inline bytes, their hash."""
    return "sha256:" + hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else unsigned_address(image)
