"""Addresses of images: shown without secrets, compared without signatures; and IP addresses that are public."""

import hashlib
import ipaddress
import re

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
    text = address.strip()
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


_SIGNING = (
    ("x-amz-signature", re.compile(r"x-amz-.*")),
    ("x-goog-signature", re.compile(r"x-goog-.*")),
    # CloudFront, and S3's and Google's older signatures
    (
        "signature",
        re.compile(r"signature|expires|policy|key-pair-id|awsaccesskeyid|x-amz-security-token|googleaccessid"),
    ),
    # Azure, of accounts, services and users
    ("sig", re.compile(r"sig|s[eptvr]|sip|spr|srt|ss|ske|sk[tsv]|skoid|sktid|saoid|suoid|scid|sdd|ses")),
)
"""A query's signing field, and the fields that belong to it. Only together: `sp=1` alone may be a page number."""


def unsigned_address(address: str) -> str:
    """`address` without the query fields that sign it for a limited time (S3, CloudFront, Google, Azure)."""
    head, mark, query = address.partition("?")
    if not mark:
        return address
    query, hash_mark, fragment = query.partition("#")
    fields = [(part, part.partition("=")[0].lower()) for part in query.split("&")]
    names = {name for _, name in fields}
    signing = [companions for signature, companions in _SIGNING if signature in names]
    kept = [part for part, name in fields if not any(companions.fullmatch(name) for companions in signing)]
    return head + ("?" + "&".join(kept) if kept else "") + hash_mark + fragment


def image_identity(image: str | bytes) -> str:
    """An image's part in ids: its address without signatures, which change daily; for inline bytes, their hash."""
    return "sha256:" + hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else unsigned_address(image)
