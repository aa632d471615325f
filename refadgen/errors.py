"""RowError, the only exception that ends a row, and the table of its reasons.

A `RowError` becomes a ledger row and never leaves its stage. `REASONS` is the only list of reasons. It says whether the
same input may work another time, which setting lifts a rejection, and which field of the input is at fault.
"""

from dataclasses import dataclass
from typing import Literal

Status = Literal["failed", "rejected"]
RETRY_HINT = "then run again with --retry-failed"
"""The end of a ledger's detail, for a rejection that something outside of the catalogue lifts."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One reason, the same for every row.

    status: `failed` (the same input may work another time) or `rejected` (the input must change).
    field: the input's field at fault; None: none, or the error names it.
    lifted_by: the setting or permission that lifts the rejection of an unchanged input; None: there is none.
    lifted_by_new_file: whether another file at the same address lifts it.
    Either hangs on the world outside of the catalogue, so `--retry-failed` retries both.
    doubt: whether it doubts the product's mask, so that a person can decide instead (see generation/review.py).
    """

    status: Status
    field: str | None = None
    lifted_by: str | None = None
    lifted_by_new_file: bool = False
    doubt: bool = False


def _rejected(field: str | None = None, lifted_by: str | None = None, *, new_file: bool = False) -> Reason:
    return Reason(status="rejected", field=field, lifted_by=lifted_by, lifted_by_new_file=new_file)


def _doubted(field: str = "image") -> Reason:
    return Reason(status="rejected", field=field, doubt=True)


def _failed(field: str | None = None) -> Reason:
    return Reason(status="failed", field=field)


REASONS: dict[str, Reason] = {
    # Reading the row.
    "bad_text": _rejected(),
    "input_changed": _failed(),
    "duplicate_sku": _rejected("sku"),
    "empty_sku": _rejected("sku"),
    "sku_too_long": _rejected("sku"),
    "missing_image": _rejected("image"),
    "wrong_type": _rejected(),
    "bad_num_variants": _rejected("num_variants"),
    "bad_seed": _rejected("seed"),
    "bad_placement": _rejected("placement"),
    "empty_prompt": _rejected("prompt"),
    "too_many_prompts": _rejected("prompt"),
    # Fetching.
    "bad_address": _rejected("image"),
    "bad_certificate": _rejected("image"),
    "file_outside_roots": _rejected("image", "fetch.file_roots"),
    "image_not_found": _rejected("image", new_file=True),
    "image_refused": _rejected("image", "a permission or a fresh signature"),
    "image_server_error": _failed("image"),
    "image_timeout": _failed("image"),
    "image_unreachable": _failed("image"),
    "private_address": _rejected("image", "fetch.allow_private_addresses"),
    "too_many_redirects": _rejected("image"),
    "unknown_scheme": _rejected("image"),
    # Decoding.
    "animated_image": _rejected("image", new_file=True),
    "fully_transparent": _rejected("image", new_file=True),
    "image_too_large": _rejected("image", "fetch.max_bytes or fetch.max_pixels"),
    "image_too_small": _rejected("image", "fetch.min_side_px"),
    "not_an_image": _rejected("image", new_file=True),
    "out_of_memory": _failed("image"),
    "truncated_image": _rejected("image", new_file=True),
    "unreadable_image": _rejected("image", new_file=True),
    # The product's mask.
    "empty_mask": _rejected("mask", new_file=True),
    "mask_size_mismatch": _rejected("mask", new_file=True),
    "mask_empty": _doubted(),
    "mask_area_too_small": _doubted(),
    "mask_area_too_large": _doubted(),
    "mask_in_pieces": _doubted(),
    "mask_low_score": _doubted(),
    "alpha_not_cutout": _doubted(),
    "inverted_mask": _doubted(),
    "mask_touches_edge": _doubted(),
    "framed_photo": _doubted(),
    "marks_on_photo": _doubted(),
    "unclear_holes": _doubted(),
    "unclear_mask": _doubted(),
    "unclear_shadow": _doubted(),
    "white_on_white": _doubted(),
    "too_small_for_channel": _rejected("image", new_file=True),
    "network_failed": _failed("image"),
    "networks_disagree": _doubted(),
    "no_plain_background": _doubted(),
    "product_not_found": _doubted(),
    "decision_of_another_photo": _rejected("image"),
    "refused_by_review": _rejected("image"),
    "replaced_by_review": _rejected("image"),
    # Generating and publishing.
    "prompt_too_long": _rejected("prompt"),
    "negative_prompt_too_long": _rejected("negative_prompt"),
    "generation_error": _failed(),
    "internal_error": _failed(),
    "killed_worker": _failed(),
    "low_fidelity": _failed(),
    "not_finite": _failed(),
    "publish_failed": _failed(),
    "queue_full": _failed(),
    "unsafe": _rejected(),
    # Ads that are no training examples.
    "caption_empty": _rejected(),
    "caption_failed": _failed(),
    "caption_language": _rejected(),
    "caption_too_long": _rejected(),
    "caption_too_short": _rejected(),
    "embedded_text": _rejected("image"),
    "extreme_shape": _rejected("image", new_file=True),
    "low_resolution": _rejected("image", new_file=True),
    "near_duplicate": _rejected("image"),
    "occluded": _rejected("image"),
    "person_in_front": _rejected("image"),
    "replaced": _rejected(),
    "several_products": _rejected("image"),
    "unsafe_content": _rejected("image"),
    "watermark": _rejected("image"),
}
"""By code: short and stable, for filters and counts."""
DOUBTS = frozenset(code for code, reason in REASONS.items() if reason.doubt)
"""Refusals of a mask that a person may overrule."""


class RowError(Exception):
    """A catalogue row, or one of its images, that cannot be made.

    reason: a key of `REASONS`. problem: one sentence for a person: the fault, and what to change; without secrets (see
    `redact_address`). field: the input's field at fault, if it is another than the reason's.
    """

    def __init__(self, reason: str, problem: str, *, field: str | None = None) -> None:
        known = REASONS[reason]
        super().__init__(f"{known.status} {reason}: {problem}")
        self.status: Status = known.status
        self.reason = reason
        self.problem = problem
        self.field = known.field if field is None else field

    @property
    def detail(self) -> str:
        """The ledger's text: the problem and, if something outside of the catalogue lifts it, how to retry."""
        known = REASONS[self.reason]
        if known.lifted_by:
            return f"{self.problem}, {RETRY_HINT}"
        return f"{self.problem}; put another file there, {RETRY_HINT}" if known.lifted_by_new_file else self.problem

    # Pickle would call RowError with the message alone, as for any exception. Ray pickles errors between processes.
    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (self.reason, self.problem, self.field)


def _unpickle(reason: str, problem: str, field: str | None) -> RowError:
    return RowError(reason, problem, field=field)


def retried_reasons() -> tuple[str, ...]:
    """Rejections that `--retry-failed` retries: those that a setting, a permission or another file lifts."""
    return tuple(code for code, reason in REASONS.items() if reason.lifted_by or reason.lifted_by_new_file)
