"""The outermost layer around the application: request ids, access, bounds on bodies, errors as JSON, the log."""

import asyncio
import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refadgen.config.serve import LimitsConfig
from refadgen.serving import metrics
from refadgen.serving.access import Access
from refadgen.serving.errors import ApiError, server_fault
from refadgen.serving.fault_log import log_fault

_log = logging.getLogger("ray.serve")
# A client's own id goes into headers and log lines: no line breaks, no lengths of its choice.
_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
OPEN_PATHS = ("/", "/page.css", "/page.js", "/mask.js", "/healthz", "/readyz", "/openapi.json", "/docs")
"""Paths that need no token: they hold no user's data."""
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware. Sets `scope["state"]`: `request_id`, `owner`."""

    def __init__(self, app: ASGIApp, access: Access, limits: LimitsConfig, *, tag_answers: bool) -> None:
        """tag_answers: whether to set X-Request-ID."""
        self._app = app
        self._tag_answers = tag_answers
        self._access = access
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, owner=None)
        status = 0  # of the answer; 0: none has started

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if self._tag_answers:
                    headers["X-Request-ID"] = request_id
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check_headers(scope)
            await self._app(scope, self._bounded(receive), tagged)
        except ApiError as error:
            if not status:
                await send_error(error, request_id, tagged)
        except ClientDisconnect:  # in the middle of its body; the framework has answered, and nobody reads it
            status = 0
        except Exception as error:
            log_fault("a request", error, request_id=request_id)
            if not status:
                await send_error(server_fault(), request_id, tagged)
        finally:
            # Neither query nor headers nor body: they may hold secrets and personal data. 499: the client hung up.
            took_s, route = time.monotonic() - started, getattr(scope.get("route"), "path", "other")
            metrics.count_request(route, status or 499, took_s)
            _log.info("%s %s %s %.0f ms id=%s", scope["method"], route, status or 499, took_s * 1e3, request_id)

    def _check_headers(self, scope: Scope) -> None:
        """Raises: ApiError, before any of the body is read."""
        if scope["path"] not in OPEN_PATHS:
            scope["state"]["owner"] = self._access.owner(scope)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._limits.max_body_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """A `receive` that raises ApiError when the body is too large, or too slow (slow-loris)."""
        num_bytes, complete = 0, False
        deadline = time.monotonic() + self._limits.body_timeout_s

        async def bounded() -> Message:
            nonlocal num_bytes, complete
            if complete:
                return await receive()  # waits for the client to hang up, for as long as the answer takes
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                seconds = f"{self._limits.body_timeout_s:g} s"
                raise ApiError(408, "body_timeout", f"the request's body did not arrive within {seconds}") from None
            # Counted, because a chunked body declares no length.
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"the request is larger than {self._limits.max_body_bytes} bytes")


async def send_error(error: ApiError, request_id: str, send: Send) -> None:
    """Sends `error` as a complete response."""
    body = json.dumps(error.body(request_id)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
