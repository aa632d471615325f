"""Loaded by schemathesis: pictures for file fields, and the rules that no JSON schema can express."""

import base64
import io
import json

import schemathesis
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from refadgen.errors import DOUBTS

BEYOND_A_SCHEMA = {
    "prompt_and_scene",  # at most one of the two
    "placed_and_as_photographed",  # likewise
    "channel_and_size",  # likewise
    "long_side_of_placed",  # only with as_photographed
    "missing_image",  # a form needs a file or an address
    "missing_mask",  # mask_decided is about a mask
    "two_images",
    "no_transparency",  # a transparent background, as JPEG
    "one_image_only",  # of a transparent background
    "unknown_scene",  # depends on the category
    "too_many_images",  # scenes × variants
    "prompt_too_long",  # counted in the model's tokens
    "bad_address",  # checked beyond the pattern
    "private_address",  # depends on the name server
    "image_unreachable",
    "job_not_found",
    "model_not_found",
    "jobs_off",
    "bad_setting",
}
"""Error codes that a request may get although it obeys the schema. Doubts about masks are others: pixels decide."""


def _products() -> list[bytes]:
    made = []
    for color, kind in (((30, 80, 160), "PNG"), ((160, 30, 40), "JPEG"), ((20, 120, 60), "WEBP")):
        image = Image.new("RGB", (96, 120), "white")
        ImageDraw.Draw(image).rounded_rectangle((25, 20, 70, 105), 8, fill=color)
        sink = io.BytesIO()
        image.save(sink, kind)
        made.append(sink.getvalue())
    return made


schemathesis.openapi.format("binary", st.sampled_from(_products()))
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(data).decode() for data in _products()]))


@schemathesis.hook
def filter_case(context, case):
    """A form has neither null nor objects: schemathesis would send their text, which is valid, and expect a refusal."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return True
    return not any(value is None or (isinstance(value, dict) and name != "layout") for name, value in case.body.items())


@schemathesis.check
def refusals_of_valid_requests_have_a_known_reason(ctx, response, case):
    """schemathesis's positive_data_acceptance lets any 422 pass. Here only the codes above may pass."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    if response.status_code == 405:  # the coverage phase also sends other methods
        return
    code = json.loads(response.content)["error"]["code"]
    assert code in BEYOND_A_SCHEMA | DOUBTS or code == "empty_mask", f"{code} for a valid request"
