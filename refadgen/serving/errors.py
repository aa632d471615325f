"""Errors as clients see them: an HTTP status, a code and the field; never a traceback."""

import math
from typing import Any

from refadgen.errors import RowError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_FIELDS = ("mask", "prompt", "negative_prompt")
"""Fields of a RowError that a request has under the same name. The image is not here: its field depends on how it was
sent."""
_RETRIED = ("out_of_memory", "internal_error", "generation_error")
"""Reasons that are the server's fault, so that the same request may succeed later."""


class ApiError(Exception):
    """One answer that is an error.

    status: HTTP status. code: short and stable. param: the wrong field; None: no single field is wrong.
    retry_after_s: seconds until the same request may succeed; None: it will not.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON body, in the form of OpenAI's errors."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        problem = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": problem, "request_id": request_id}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the error."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            # Whole seconds, by RFC 9110; 0 would invite an immediate retry.
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


def server_fault() -> ApiError:
    """A 500 for an unexpected error. Its details are in the log only: they may hold another client's data."""
    return ApiError(500, "internal_error", "the server failed on this request; the server's log has the details")


def from_row_error(error: RowError, *, image_field: str = "image", mask_given: bool = False) -> ApiError:
    """422 where the client must change the request, 503 where the same request may succeed later.

    image_field: the request's field that held the image. mask_given: whether the request brought its own mask.
    """
    param = error.field if error.field is None or error.field in _FIELDS else image_field
    # Triage reasons (`mask_empty`, `mask_in_pieces`, …) name the image, since the mask is usually computed from it.
    if mask_given and error.reason.startswith("mask_"):
        param = "mask"
    if error.reason in _RETRIED:
        return ApiError(503, error.reason, error.problem, param=param, retry_after_s=1)
    return ApiError(422, error.reason, error.problem, param=param)
