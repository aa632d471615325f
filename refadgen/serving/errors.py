"""Errors as clients see them: a status, a code, the field; never a traceback."""

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
"""Fields that a request has under the same name; the image has several."""


class ApiError(Exception):
    """One answer that is an error.

    status: of HTTP. code: short and stable. param: the field that is wrong. retry_after_s: where the same request may
    work later.
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
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        problem = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": problem, "request_id": request_id}

    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


def from_row_error(error: RowError, *, image_field: str = "image", mask_given: bool = False) -> ApiError:
    """422 for what the client must change; 503 for what may work another time. image_field: what held the image."""
    param = error.field if error.field in _FIELDS else image_field
    if mask_given and error.reason.startswith("mask_"):
        param = "mask"
    if error.reason in ("out_of_memory", "internal_error", "generation_error"):
        return ApiError(503, error.reason, error.problem, param=param, retry_after_s=1)
    return ApiError(422, error.reason, error.problem, param=param)
