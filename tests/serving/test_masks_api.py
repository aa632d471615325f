"""`POST /v1/masks`, and ads with a mask that a person decided on."""

import base64
import dataclasses
import io
import json
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from refadgen.catalog.layout import place
from refadgen.generation.wanted import pixel_settings, wanted_images
from refadgen.segmentation.decided import decided
from refadgen.serving.canvases import canvas_size
from refadgen.serving.products import FoundMask, PlacedAd, ProductPlacer
from refadgen.serving.requests import ProductInput
from refadgen.serving.schema import AdFields
from refadgen.storage.addresses import image_identity

FACTS = {"request_id", "status", "reason", "detail", "input_sha256", "width_px", "height_px"}
MASK = {"mask_source", "mask_score", "mask_area", "mask_base64"}


@pytest.fixture(scope="session")
def pieces(encoded: Any) -> bytes:
    """Nine red boxes on white, 96 × 128 px: one more than a mask may have."""
    image = np.full((128, 96, 3), 255, np.uint8)
    for row in range(3):
        for column in range(3):
            image[10 + 40 * row : 30 + 40 * row, 8 + 30 * column : 24 + 30 * column] = (200, 30, 40)
    return encoded(image)


def ask(client: Any, image: bytes, mask: bytes | None = None, **fields: Any) -> Any:
    files = {"image": image} if mask is None else {"image": image, "mask": mask}
    sent = {f"{name}_base64": base64.b64encode(data).decode() for name, data in files.items()}
    return client.ask("POST", "/v1/masks", json=sent | fields)


def found(answer: Any) -> tuple[dict[str, Any], np.ndarray | None]:
    """The answer and its mask: uint8 H×W."""
    assert answer.status == 200, answer.data
    facts = json.loads(answer.data)
    assert set(facts) == FACTS | MASK
    if facts["mask_base64"] is None:
        return facts, None
    image = Image.open(io.BytesIO(base64.b64decode(facts["mask_base64"])))
    assert (image.format, image.mode) == ("PNG", "L")
    return facts, np.asarray(image)


def test_the_mask_is_that_of_an_ad(client, photo, pixels):
    facts, mask = found(ask(client, photo, category="Boxes"))
    product = (pixels != 255).any(axis=2)
    assert np.mean((mask > 127) != product) < 0.01
    assert (facts["status"], facts["reason"], facts["detail"]) == ("done", "", "")
    assert (facts["width_px"], facts["height_px"]) == (96, 128)
    made = client.made(photo, num_inference_steps=1)["images"][0]
    for name in ("mask_source", "mask_score", "mask_area", "input_sha256"):
        assert facts[name] == pytest.approx(made[name])


def test_a_form_does_the_same(client, photo):
    answer = client.form("/v1/masks", ("image", ("a.png", photo)), ("category", "Boxes"))
    assert {**found(answer)[0], "request_id": ""} == {**found(ask(client, photo))[0], "request_id": ""}


def test_a_doubtful_mask_comes_with_its_reason_and_can_be_decided_on(client, pieces):
    facts, mask = found(ask(client, pieces))
    assert (facts["status"], facts["reason"]) == ("rejected", "mask_in_pieces")
    assert "segmentation.max_pieces" in facts["detail"]
    assert mask is not None
    assert (facts["mask_source"], mask.shape) == ("plain_background", (128, 96))
    sent = base64.b64decode(facts["mask_base64"])
    again, _ = found(ask(client, pieces, sent))
    assert (again["reason"], again["mask_source"]) == ("mask_in_pieces", "own_mask")

    fields = {"num_inference_steps": 1, "mask_base64": facts["mask_base64"]}
    assert client.problem(client.ads(pieces, **fields), 422)["code"] == "mask_in_pieces"
    made = client.made(pieces, mask_decided=True, **fields)["images"][0]
    assert (made["mask_source"], made["mask_score"]) == ("review", 1)
    assert client.problem(client.ads(pieces, mask_decided=True), 422)["param"] == "mask_decided"


def test_a_decided_mask_has_ids_of_its_own(client, photo):
    _, mask = found(ask(client, photo))
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, "PNG")
    fields = {"num_inference_steps": 1, "mask_base64": base64.b64encode(sink.getvalue()).decode()}
    own, decided = (client.made(photo, mask_decided=each, **fields)["images"][0] for each in (False, True))
    assert own["image_id"] != decided["image_id"]
    assert (own["mask_source"], decided["mask_source"]) == ("own_mask", "review")


def test_a_decided_mask_is_the_batch_jobs(server, photo, encoded):
    """Its soft edge is kept, and its images have the ids that a decisions file gives them."""
    soft = np.zeros((128, 96), np.uint8)
    soft[30:100, 20:76] = 255
    soft = cv2.GaussianBlur(soft, (0, 0), 3)
    given = ProductInput(image=photo, mask=encoded(soft), decided=True)
    requested = server.service.requested_images(AdFields(sku="a", prompt="a cup", mask_decided=True), given)
    settings = pixel_settings(requested.config, server.service.model.fingerprint)
    row = requested.row._replace(mask=None)  # a catalogue without masks
    assert requested.images == wanted_images(
        row, server.service.scenes, requested.config, settings, image_identity(given.mask)
    )

    size = canvas_size(requested.config)
    made = ProductPlacer(server.service.config).place(given, None, requested.config.layout, size)
    assert isinstance(made, PlacedAd)
    upright = Image.open(io.BytesIO(photo))
    expected = place(upright, decided(soft, upright.size, 0.01).alpha, requested.config.layout, *size)
    np.testing.assert_array_equal(made.canvas, expected.canvas)
    hard = np.where(soft > 127, 255, 0).astype(np.uint8)
    assert (made.canvas != place(upright, hard, requested.config.layout, *size).canvas).any()


def test_where_nothing_is_proposed_there_is_no_mask(server, encoded):
    config = server.service.config
    colours_alone = dataclasses.replace(config.segmentation, second_opinion=False)
    noise = encoded(np.random.default_rng(0).integers(0, 256, (128, 96, 3), np.uint8))
    placer = ProductPlacer(dataclasses.replace(config, segmentation=colours_alone))
    answer = placer.find_mask(ProductInput(image=noise, mask=None), None)
    assert isinstance(answer, FoundMask)
    assert (answer.reason, answer.mask) == ("no_plain_background", None)
    assert (answer.mask_source, answer.mask_score, answer.mask_area) == ("", None, None)


def test_a_large_mask_is_made_smaller_and_can_be_sent(client, encoded):
    image = np.full((600, 3000, 3), 255, np.uint8)
    image[150:450, 600:2400] = (20, 90, 160)
    data = encoded(image)
    facts, mask = found(ask(client, data))
    assert (facts["width_px"], facts["height_px"]) == (3000, 600)
    assert mask.shape == (410, 2048)
    made = client.made(data, num_inference_steps=1, mask_base64=facts["mask_base64"], mask_decided=True)["images"][0]
    assert made["mask_area"] == pytest.approx(facts["mask_area"], abs=0.01)


def test_what_is_wrong_is_named(client, photo, encoded, png_of_size):
    for image, mask, param in (
        (b"no image", None, "image"),
        (photo, b"no image", "mask"),
        (png_of_size(9, 9), None, "image"),
    ):
        assert client.problem(ask(client, image, mask), 422)["param"] == param
    assert client.problem(ask(client, photo, prompt="x"), 422)["param"] == "prompt"
    assert client.problem(client.ask("POST", "/v1/masks", json={}), 422)["code"] == "missing_image"
    address = {"image_url": "http://127.0.0.1/a.png"}
    assert client.problem(client.ask("POST", "/v1/masks", json=address), 422)["code"] == "urls_off"
    assert client.problem(client.ask("POST", "/v1/masks", body=b"x"), 415)
    assert client.problem(client.ask("GET", "/v1/masks"), 405)
    for mask, code in ((encoded(np.zeros((128, 96), np.uint8)), "empty_mask"), (photo[:99], "truncated_image")):
        fields = {"mask_base64": base64.b64encode(mask).decode(), "mask_decided": True}
        problem = client.problem(client.ads(photo, **fields), 422)
        assert (problem["code"], problem["param"]) == (code, "mask")
