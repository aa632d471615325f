"""The outermost layer: request ids, access, bounds on bodies, and errors as JSON, around the whole application."""

import asyncio
import json
import logging
import re
import time
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refadgen.config.serve import LimitsConfig
from refadgen.serving import metrics
from refadgen.serving.access import Access
from refadgen.serving.errors import ApiError

_log = logging.getLogger("ray.serve")
_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
OPEN_PATHS = ("/", "/page.css", "/page.js", "/healthz", "/readyz", "/openapi.json", "/docs")
"""What needs no token: nothing of a user's is there."""
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI around ASGI. Sets `scope["state"]`: `request_id`, `owner`."""

    def __init__(self, app: ASGIApp, access: Access, limits: LimitsConfig, *, tag_answers: bool) -> None:
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
        status = 0

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
        except ClientDisconnect:  # in the middle of its body; the framework's answer reaches nobody
            status = 0
        except Exception as error:
            # Without its message, which may repeat what the request said.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("a request failed, id=%s: %s\n%s", request_id, type(error).__name__, where)
            if not status:
                fault = ApiError(500, "internal_error", "a fault of this server; its log says more")
                await send_error(fault, request_id, tagged)
        finally:
            # Neither query nor headers nor body: they may hold what nobody else should read. 499: the client hung up.
            took_s, route = time.monotonic() - started, getattr(scope.get("route"), "path", "other")
            metrics.count_request(route, status or 499, took_s)
            _log.info("%s %s %s %.0f ms id=%s", scope["method"], route, status or 499, took_s * 1e3, request_id)

    def _check_headers(self, scope: Scope) -> None:
        """Raises: ApiError before anything of the body is read."""
        if scope["path"] not in OPEN_PATHS:
            scope["state"]["owner"] = self._access.owner(scope)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._limits.max_body_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that ends with an ApiError when the body is too long or takes too long."""
        num_bytes, complete = 0, False
        deadline = time.monotonic() + self._limits.body_timeout_s

        async def bounded() -> Message:
            nonlocal num_bytes, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                seconds = f"{self._limits.body_timeout_s:g} s"
                raise ApiError(408, "body_timeout", f"the request's body did not arrive within {seconds}") from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"the request is larger than {self._limits.max_body_bytes} bytes")


async def send_error(error: ApiError, request_id: str, send: Send) -> None:
    """`error` as a whole response."""
    body = json.dumps(error.body(request_id)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
