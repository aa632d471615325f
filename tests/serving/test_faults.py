"""Unexpected errors are logged once with their traceback, without request contents; answers to the errors of a row."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from local_service import make_service
from pydantic import ValidationError

from refadgen.errors import REASONS, RowError
from refadgen.generation import ladder
from refadgen.serving import deployments, fault_log
from refadgen.serving.errors import from_row_error
from refadgen.serving.fault_log import log_fault
from refadgen.serving.requests import ProductInput
from refadgen.serving.schema import AdFields, StepEvent

SECRET = "https://shop.example/a.png?signature=abc123"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    monkeypatch.setattr(fault_log, "_known", set())
    caplog.set_level(logging.INFO, "ray.serve")
    return caplog


def messages(logged: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in logged.records if " failed" in record.getMessage()]


def fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise RuntimeError(f"cannot read {SECRET}") from error


def fault_at_one_place(request_id: str) -> None:
    try:
        fail()
    except RuntimeError as error:
        log_fault("a test", error, request_id=request_id)


def test_a_traceback_is_written_once_with_its_causes_and_without_messages(logged: pytest.LogCaptureFixture) -> None:
    for request_id in ("one", "two", "three"):
        fault_at_one_place(request_id)
    first, *others = messages(logged)
    assert first.startswith("a test failed, id=one: RuntimeError\n")
    assert "caused by KeyError" in first
    assert f'File "{__file__}"' in first
    assert "in fail" in first
    assert len(others) == 2
    for other, request_id in zip(others, ("two", "three"), strict=True):
        assert other.startswith(f"a test failed, id={request_id}: RuntimeError at {__file__}:")
        assert "\n" not in other
    assert SECRET not in logged.text


def test_faults_of_other_types_and_places_have_tracebacks_of_their_own(logged: pytest.LogCaptureFixture) -> None:
    fault_at_one_place("one")
    log_fault("a test", ValueError(SECRET))
    log_fault("another test", ValueError(SECRET))
    assert len(messages(logged)) == 3
    assert all("\n" in message for message in messages(logged))
    assert SECRET not in logged.text


class Broken:
    """A denoiser with one method that fails."""

    batch_size = 4
    num_kinds = 1

    def __init__(self, method: str) -> None:
        self._method = method

    def _maybe(self, method: str) -> None:
        if method == self._method:
            raise RuntimeError(f"cannot {method} {SECRET}")

    def start(self, order: Any) -> object:
        self._maybe("start")
        return object()

    def kind(self, row: Any) -> int:
        return 0

    def num_steps(self, row: Any) -> int:
        return 1

    def step(self, rows: list[Any], batch_size: int) -> list[Any]:
        self._maybe("step")
        return rows

    def finish(self, order: Any, row: Any) -> Any:
        self._maybe("finish")
        return None  # no image: scoring fails

    def check_device(self) -> None:
        pass


async def last(events: AsyncGenerator[Any, None]) -> Any:
    found = [event async for event in events]
    return found[-1]


@pytest.mark.parametrize("method", ["start", "step", "finish"])
def test_an_image_that_cannot_be_denoised_is_an_answer_and_a_traceback(
    logged: pytest.LogCaptureFixture, photo: bytes, method: str
) -> None:
    service, backend = make_service(denoiser=Broken(method))
    given = ProductInput(image=photo)
    requested = service.requested_images(AdFields(prompt="a cup"), given)
    with pytest.raises(Exception, match="could not be made") as refused:
        asyncio.run(service.collect(requested, given))
    assert (refused.value.status, refused.value.code) == (503, "generation_error")
    assert refused.value.param is None  # no field of the request is wrong
    (message,) = messages(logged)
    assert message.startswith("denoising failed: RuntimeError\n")
    assert f"in {method}" in message
    assert SECRET not in logged.text
    backend.generation._engine.stop()


def test_an_error_that_leaves_a_replica_names_its_type_only(
    logged: pytest.LogCaptureFixture, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(ladder, "score_fidelity", broken)
    service, backend = make_service()
    given = ProductInput(image=photo)
    requested = service.requested_images(AdFields(prompt="a cup"), given)
    with pytest.raises(deployments.ReplicaFault, match=r"^RuntimeError$"):
        asyncio.run(service.collect(requested, given))
    assert messages(logged)[0].startswith("generation failed: RuntimeError\n")
    assert SECRET not in logged.text
    backend.generation._engine.stop()


@pytest.mark.parametrize(
    ("reason", "mask_given", "status", "param"),
    [
        ("prompt_too_long", False, 422, "prompt"),
        ("negative_prompt_too_long", False, 422, "negative_prompt"),
        ("not_an_image", False, 422, "image_url"),
        ("mask_size_mismatch", True, 422, "mask"),
        ("empty_mask", True, 422, "mask"),
        ("mask_touches_edge", False, 422, "image_url"),
        ("mask_touches_edge", True, 422, "mask"),
        ("no_plain_background", False, 422, "image_url"),
        ("out_of_memory", False, 503, "image_url"),
        ("internal_error", False, 503, None),
    ],
)
def test_a_rows_error_names_the_requests_field(reason: str, mask_given: bool, status: int, param: str | None) -> None:
    found = from_row_error(RowError(reason, "no"), image_field="image_url", mask_given=mask_given)
    assert (found.status, found.code, found.param) == (status, reason, param)
    assert (found.retry_after_s is None) == (status == 422)


def test_the_field_that_a_row_error_names_itself_comes_first() -> None:
    assert REASONS["not_an_image"].field == "image"
    assert from_row_error(RowError("not_an_image", "no", field="mask")).param == "mask"


def test_a_misspelt_field_of_an_answer_is_an_error() -> None:
    with pytest.raises(ValidationError, match="num_steps"):
        StepEvent(index=0, step=1, num_step=4, preview_base64=None)
