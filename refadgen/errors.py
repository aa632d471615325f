"""The one exception that a row may end in: it becomes a ledger row and never leaves its stage."""

from typing import Literal

Status = Literal["failed", "rejected"]


class RowError(Exception):
    """A catalogue row, or one of its images, that cannot be made.

    status: `failed` (the same input may work another time) or `rejected` (the input must change).
    reason: a short stable code such as `image_not_found`, for filters and counts.
    detail: one sentence for a person: what is wrong and what to do. Holds no secrets: see `redact_address`.
    """

    def __init__(self, status: Status, reason: str, detail: str) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status: Status = status
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RowError"], tuple[Status, str, str]]:
        return RowError, (self.status, self.reason, self.detail)
