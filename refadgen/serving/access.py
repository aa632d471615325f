"""Who may send requests: holders of a bearer token; this machine only where no tokens are configured."""

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from refadgen.config.serve import AccessConfig
from refadgen.serving.errors import ApiError

LOCAL = "local"
"""The owner of all runs where no tokens are configured."""
# Behind a proxy on this machine every client seems to come from loopback.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class Access:
    """Admits or refuses a request by its headers and its connection. Tokens are known by their hashes only."""

    def __init__(self, config: AccessConfig) -> None:
        pairs = [token.partition(":") for token in config.tokens]
        self._hashes = {name: digest for name, _, digest in pairs}
        self._origins = set(config.allowed_origins)

    def owner(self, scope: Scope) -> str:
        """The name of the request's token. Raises: ApiError 401 or 403."""
        headers = Headers(scope=scope)
        if not self._hashes:
            self._require_local(scope, headers)
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise ApiError(401, "missing_token", "Authorization: Bearer TOKEN is missing")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()
        # All hashes are compared, each in constant time: the time taken does not tell how near a guess is.
        found = [name for name, known in self._hashes.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise ApiError(401, "wrong_token", "the bearer token is not one of access.tokens")
        return found[0]

    def _require_local(self, scope: Scope, headers: Headers) -> None:
        """Without tokens: only from loopback to loopback, without a proxy, and not for a page of another site.

        Raises: ApiError 403.
        """
        ends = [scope.get(end) for end in ("client", "server")]
        if not all(end and _is_loopback(end[0]) for end in ends) or any(name in headers for name in _FORWARDED):
            raise ApiError(403, "tokens_required", "only this machine may send requests until access.tokens is set")
        # DNS rebinding: a page whose foreign name now resolves to 127.0.0.1.
        if not _is_loopback(_hostname(headers.get("host", ""))):
            raise ApiError(403, "foreign_host", "Host must be localhost, 127.0.0.1 or [::1] until access.tokens is set")
        origin = headers.get("origin")
        # A browser sends a foreign page's form and only hides the answer from it: the work would still be done.
        if origin and origin not in self._origins and origin.partition("://")[2] != headers.get("host"):
            message = "pages of other sites may not send requests; see access.allowed_origins"
            raise ApiError(403, "foreign_origin", message)


def _hostname(host: str) -> str:
    """The name or address in a Host header; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket that does not close
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
