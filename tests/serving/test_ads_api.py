"""Good requests: images in every form of answer, caches, cancelled work, the gate."""

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
import urllib3
from local_service import LocalServer, QuickDenoiser, serving
from PIL import Image

from refadgen.catalog.rows import CatalogRow
from refadgen.channels.lint import lint_file
from refadgen.channels.rules import load_rules
from refadgen.config import GenerateConfig
from refadgen.engine.step_engine import StepEngine
from refadgen.generation.wanted import WantedImage, pixel_settings, wanted_images
from refadgen.provenance.record import read_record
from refadgen.serving.canvases import canvas_for

FACTS = {
    *("image_id", "sku", "category", "scene", "variant", "status", "reason", "detail", "attempts", "seed", "prompt"),
    *("rung", "digital_source_type", "as_photographed", "ratio"),
    *("negative_prompt", "input_sha256", "width_px", "height_px", "mask_source", "mask_score", "mask_area"),
    *("color_similarity", "structure_similarity", "local_similarity", "hue_similarity"),
    *("fetch_s", "segment_s", "waited_s", "generate_s"),
    "batch_size",
    *("model", "cached", "format", "image_base64"),
}


def picture(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def files_of(answer: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(image["image_base64"]) for image in answer["images"]]


def catalogue_images(server: LocalServer, *, scenes: int | None = None, **row: Any) -> tuple[WantedImage, ...]:
    """The wanted images of the catalogue job for this row, with the server's settings."""
    config: GenerateConfig = server.service.config.generation()
    if scenes is not None:
        catalog = dataclasses.replace(config.catalog, scenes_per_product=scenes)
        config = dataclasses.replace(config, catalog=catalog)
    settings = pixel_settings(config, server.service.model.fingerprint)
    return wanted_images(CatalogRow(row=0, **row), server.service.scenes, config, settings)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


# One request, every form of answer


def test_json_in_and_out(client, photo):
    answer = client.made(photo, prompt="a cup on a table", sku="CUP-1", category="cup")
    (image,) = answer["images"]
    assert set(answer) == {"request_id", "images", "product_base64"}
    assert set(image) == FACTS
    assert (image["status"], image["reason"], image["detail"], image["attempts"]) == ("done", "", "", 1)
    assert (image["sku"], image["category"], image["prompt"]) == ("CUP-1", "cup", "a cup on a table")
    assert (image["scene"], image["variant"], image["cached"]) == ("prompt-0", 0, False)
    assert image["input_sha256"] == hashlib.sha256(photo).hexdigest()
    assert image["mask_source"] == "plain_background"
    assert image["mask_area"] == pytest.approx(0.25, abs=0.02)
    assert picture(files_of(answer)[0]).shape == (160, 128, 3)
    assert picture(base64.b64decode(answer["product_base64"])).shape == (160, 128, 4)


def test_the_file_says_how_it_was_made(client, photo):
    answer = client.made(photo, prompt="a cup, <&>", sku="CUP-1", seed=5, negative_prompt="blur")
    (image,) = answer["images"]
    record = read_record(files_of(answer)[0])
    for name in ("image_id", "sku", "scene", "variant", "prompt", "negative_prompt", "seed", "input_sha256"):
        assert record[name] == image[name], name
    assert record["num_inference_steps"] == 4


def test_as_photographed_the_product_stays_where_it_is(client, encoded):
    wide = np.full((96, 192, 3), 255, np.uint8)
    wide[20:70, 110:170] = (200, 30, 40)
    photo = encoded(wide)
    answer = client.made(photo, prompt="a cup", layout={"as_photographed": True, "long_side_px": 256}, format="png")
    (image,) = answer["images"]
    assert (image["width_px"], image["height_px"], image["as_photographed"]) == (256, 128, True)
    assert picture(files_of(answer)[0]).shape == (128, 256, 3)
    assert read_record(files_of(answer)[0])["as_photographed"] is True
    mask = picture(base64.b64decode(answer["product_base64"]))[..., 3] >= 128
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0] / 256, (columns[-1] + 1) / 256, rows[0] / 128, (rows[-1] + 1) / 128]
    assert box == pytest.approx([110 / 192, 170 / 192, 20 / 96, 70 / 96], abs=0.01)
    placed = client.made(photo, prompt="a cup", layout={"as_photographed": False})["images"][0]
    assert (placed["width_px"], placed["height_px"], placed["as_photographed"]) == (128, 160, False)
    assert placed["image_id"] != image["image_id"]


@pytest.mark.parametrize(
    ("layout", "code"),
    [
        ({"as_photographed": True, "anchor": "top"}, "placed_and_as_photographed"),
        ({"long_side_px": 300}, "long_side_of_placed"),
        ({"as_photographed": True, "long_side_px": 10}, "invalid_field"),
    ],
)
def test_a_layout_that_contradicts_itself(client, photo, layout, code):
    problem = client.problem(client.ads(photo, prompt="a cup", layout=layout), 422)
    assert (problem["code"], problem["param"]) == (code, "layout")


def test_previews_and_edits_of_a_server_whose_products_stay_where_they_are(connect, photo):
    with serving("layout.as_photographed=true") as server:
        client = connect(server.url)
        parts = [("image", ("a.png", photo)), ("prompt", "a cup"), ("stream", "true"), ("partial_images", "1")]
        text = client.form("/v1/images/edits", *parts).data.decode()
        events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
        assert {event["type"] for event in events} == {"image_edit.partial_image", "image_edit.completed"}
        assert {event["size"] for event in events} == {"124x165"}  # three to four, and 128 × 160 pixels
        assert {picture(base64.b64decode(event["b64_json"])).shape for event in events} == {(165, 124, 3)}
        # Who says where the product stands wants it placed.
        answer = client.made(photo, prompt="a cup", layout={"anchor": "top"})
        assert (answer["images"][0]["width_px"], answer["images"][0]["as_photographed"]) == (128, False)


def test_a_form_and_a_data_address_give_what_json_gives(client, photo):
    said = {"prompt": "a cup", "seed": 7, "layout": {"size": 0.5, "anchor": "top"}, "quality": 80, "fusion_scale": 0.5}
    plain = client.made(photo, **said)
    text = "data:image/png;base64," + base64.b64encode(photo).decode()
    as_data = client.made(image_base64=text, **said)
    parts = [
        ("image", ("a.png", photo)),
        *((name, value if isinstance(value, str) else json.dumps(value)) for name, value in said.items()),
    ]
    form = json.loads(client.form("/v1/ads", *parts).data)
    assert as_data["images"][0]["image_id"] == form["images"][0]["image_id"] == plain["images"][0]["image_id"]
    assert files_of(as_data) == files_of(form) == files_of(plain)


@pytest.mark.parametrize(("format", "signature"), [("jpeg", b"\xff\xd8\xff"), ("png", b"\x89PNG"), ("webp", b"RIFF")])
def test_the_image_itself_where_accept_asks_for_it(client, photo, format, signature):
    answer = client.ads(photo, accept="image/*", prompt="a cup", format=format)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == f"image/{format}"
    assert answer.data.startswith(signature)
    assert files_of(client.made(photo, prompt="a cup", format=format)) == [answer.data]


def test_the_facts_of_an_image_are_in_a_header(client, photo):
    answer = client.ads(photo, accept="image/png", prompt="eine Tüte 🧴", format="png", sku="Tüte")
    facts = json.loads(answer.headers["X-RefAdGen-Facts"])
    assert set(facts) == FACTS - {"image_base64", "prompt", "negative_prompt", "category"}
    assert (facts["status"], facts["sku"], facts["format"]) == ("done", "Tüte", "png")


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_formats(client, photo, format):
    answer = client.made(photo, prompt="a cup", format=format)
    assert answer["images"][0]["format"] == format
    with Image.open(io.BytesIO(files_of(answer)[0])) as image:
        assert image.format == format.upper()


def test_quality_is_that_of_the_file(client, encoded):
    noisy = np.full((128, 96, 3), 255, np.uint8)
    noisy[32:96, 24:72] = np.random.default_rng(0).integers(0, 200, (64, 48, 3))
    low, high = (files_of(client.made(encoded(noisy), prompt="a cup", quality=quality))[0] for quality in (5, 95))
    assert len(low) < len(high) / 2


# Events


def test_events_come_in_order(client, photo):
    events = client.events(photo, prompt="events in order")
    names = [name for name, _ in events]
    assert names == ["product", "step", "step", "step", "image", "done"]
    product, *steps, image, done = (data for _, data in events)
    assert product["num_images"] == 1
    assert picture(base64.b64decode(product["product_base64"])).shape == (160, 128, 4)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step | {"step": 0} == {"index": 0, "step": 0, "num_steps": 4, "preview_base64": None} for step in steps)
    assert set(image) == FACTS | {"index"}
    assert image["status"] == "done"
    assert set(done) == {"request_id"}


def test_events_of_several_images_are_told_apart_by_their_index(client, photo):
    events = client.events(photo, prompt=["several: a", "several: b"], num_variants=2)
    assert events[0][0] == "product"
    assert events[-1][0] == "done"
    assert events[0][1]["num_images"] == 4
    for index in range(4):
        own = [(name, data) for name, data in events if data.get("index") == index]
        assert [name for name, _ in own] == ["step", "step", "step", "image"]
        assert [data["step"] for _, data in own[:3]] == [1, 2, 3]
        assert own[3][1]["scene"] == f"prompt-{index // 2}"
        assert own[3][1]["variant"] == index % 2


def test_previews_come_as_often_as_was_asked(client, photo):
    events = client.events(photo, prompt="previews", num_inference_steps=7, preview_every=3)
    previews = {data["step"]: data["preview_base64"] for name, data in events if name == "step"}
    assert [step for step, preview in previews.items() if preview] == [3, 6]
    assert list(previews) == [1, 2, 3, 4, 5, 6]
    assert picture(base64.b64decode(previews[3])).shape == (160, 128, 3)


def test_events_and_json_give_the_same_image(client, photo):
    events = dict(client.events(photo, prompt="either way"))
    (image,) = client.made(photo, prompt="either way")["images"]
    assert image["image_base64"] == events["image"]["image_base64"]


# Which images


def test_several_prompts_and_variants_come_in_order(client, photo):
    images = client.made(photo, prompt=["a cup", "a mug"], num_variants=2)["images"]
    assert [(image["prompt"], image["scene"], image["variant"]) for image in images] == [
        ("a cup", "prompt-0", 0),
        ("a cup", "prompt-0", 1),
        ("a mug", "prompt-1", 0),
        ("a mug", "prompt-1", 1),
    ]
    assert len({image["image_id"] for image in images}) == len({image["image_base64"] for image in images}) == 4


def test_a_form_repeats_prompt(client, photo):
    answer = client.form("/v1/ads", ("image", ("a.png", photo)), ("prompt", "a cup"), ("prompt", "a mug"))
    assert [image["prompt"] for image in json.loads(answer.data)["images"]] == ["a cup", "a mug"]


def test_without_a_prompt_the_categorys_first_scenes_are_made(server, client, photo):
    images = client.made(photo, sku="CUP-1", category="cup", title="Blue cup")["images"]
    wanted = catalogue_images(server, sku="CUP-1", image=photo, category="cup", title="Blue cup", num_variants=1)
    assert len(wanted) == 2
    named = [dataclasses.asdict(one) for one in wanted]
    assert [{name: image[name] for name in named[0]} for image in images] == named


def test_a_scene_by_name_is_the_catalogues_image(server, client, photo):
    scenes = server.service.scenes.fewest
    row = {"sku": "CUP-1", "image": photo, "category": "cup", "num_variants": 2}
    wanted = catalogue_images(server, scenes=scenes, **row)[2 * scenes - 2 :]
    images = client.made(photo, sku="CUP-1", category="cup", scene=wanted[0].scene, num_variants=2)["images"]
    assert [image["image_id"] for image in images] == [one.image_id for one in wanted]
    assert [image["seed"] for image in images] == [one.seed for one in wanted]


def test_every_scene_that_is_offered_can_be_had(server, client):
    from refadgen.serving.errors import ApiError
    from refadgen.serving.requests import ProductInput
    from refadgen.serving.schema import AdFields

    refused = []
    for category, scenes in json.loads(client.ask("GET", "/v1/options").data)["categories"].items():
        for scene in scenes:
            try:
                fields = AdFields(category=category, scene=scene["name"])
                server.service.requested_images(fields, ProductInput(image=b"x"))
            except ApiError as error:
                refused.append((category, scene["name"], error.code))
    assert refused == []


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"prompt": "a cup"}, {"prompts": ("a cup",)}),
        ({"prompt": ["a cup", "a mug"]}, {"prompts": ("a cup", "a mug")}),
        ({"prompt": "a cup", "negative_prompt": "blur"}, {"prompts": ("a cup",), "negative_prompt": "blur"}),
        ({"prompt": "a cup", "seed": 3, "num_variants": 2}, {"prompts": ("a cup",), "seed": 3, "num_variants": 2}),
        ({"prompt": "a cup", "category": "cup"}, {"prompts": ("a cup",), "category": "cup"}),
    ],
)
def test_a_request_with_the_catalogues_words_has_the_catalogues_ids(server, client, photo, fields, row):
    images = client.made(photo, sku="CUP-1", **fields)["images"]
    wanted = catalogue_images(server, sku="CUP-1", image=photo, **{"num_variants": 1} | row)
    assert [image["image_id"] for image in images] == [one.image_id for one in wanted]
    assert [image["seed"] for image in images] == [one.seed for one in wanted]


def test_without_a_sku_the_image_is_its_own(client, photo):
    (image,) = client.made(photo, prompt="a cup")["images"]
    assert image["sku"] == hashlib.sha256(photo).hexdigest()[:16]


def test_the_seed_is_that_of_the_first_variant(client, photo):
    images = client.made(photo, prompt="a cup", seed=2**63 - 1, num_variants=2)["images"]
    assert [image["seed"] for image in images] == [2**63 - 1, 0]


def test_without_a_seed_it_follows_from_sku_and_scene(client, photo):
    def seed(**fields: Any) -> int:
        return client.made(photo, prompt="a cup", **fields)["images"][0]["seed"]

    assert seed(sku="A") == seed(sku="A", num_inference_steps=2) == seed(sku="A", quality=50)
    assert seed(sku="A") != seed(sku="B")


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"fusion_scale": 0.5},
        {"guidance_scale": 3},
        {"num_inference_steps": 3},
        {"size": "128x128"},
        {"format": "png"},
        {"quality": 50},
        {"layout": {"margin": 0.05}},
        {"category": "cup"},
        {"negative_prompt": "blur"},
        {"sku": "CUP-1"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_changes_the_image_changes_its_id(client, photo, fields):
    plain, other = (client.made(photo, prompt="ids", **said)["images"][0] for said in ({}, fields))
    assert plain["image_id"] != other["image_id"]
    assert not other["cached"]


def test_how_an_answer_is_sent_does_not_change_its_id(client, photo):
    plain = client.made(photo, prompt="ids, sent")["images"][0]
    assert client.made(photo, prompt="ids, sent", preview_every=2)["images"][0]["image_id"] == plain["image_id"]


# Where the product stands


def box_of(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the placed product."""
    alpha = picture(base64.b64decode(answer["product_base64"]))[..., 3] > 127
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize(
    ("anchor", "side", "at"), [("top", 1, 16), ("bottom", 3, 144), ("left", 0, 13), ("right", 2, 115)]
)
def test_an_anchor_is_the_side_that_the_product_stands_at(client, photo, anchor, side, at):
    answer = client.made(photo, prompt="a cup", layout={"anchor": anchor, "margin": 0.1})
    assert box_of(answer)[side] == pytest.approx(at, abs=1)


def test_a_layout_field_that_is_left_out_is_the_servers(client, photo):
    default = client.made(photo, prompt="a cup")
    assert box_of(client.made(photo, prompt="a cup", layout={})) == box_of(default)
    small = box_of(client.made(photo, prompt="a cup", layout={"size": 0.3}))
    assert small[3] - small[1] == pytest.approx(0.3 * 160, abs=2)
    assert small[3] == box_of(default)[3]  # at the same side of the canvas


@pytest.mark.parametrize(("size", "shape"), [(None, (160, 128)), ("128x128", (128, 128)), ("160x128", (128, 160))])
def test_sizes(client, photo, size, shape):
    answer = client.made(photo, prompt="a cup", size=size)
    (image,) = answer["images"]
    assert (image["height_px"], image["width_px"]) == shape
    assert picture(files_of(answer)[0]).shape == (*shape, 3)
    assert picture(base64.b64decode(answer["product_base64"])).shape == (*shape, 4)


def test_a_channel_decides_ratio_size_and_format(client, server, photo):
    answer = client.made(photo, prompt="a cup", sku="CUP-1", channel="pmax-landscape", format="webp")
    (image,) = answer["images"]
    assert (image["ratio"], image["width_px"], image["height_px"], image["format"]) == ("1.91:1", 1200, 628, "jpeg")
    (data,) = files_of(answer)
    assert lint_file(data, load_rules()["pmax-landscape"], "trainedAlgorithmicMedia") == []
    assert picture(base64.b64decode(answer["product_base64"])).shape == (104, 200, 4)
    config = dataclasses.replace(server.service.config.generation(), channels=("pmax-landscape",))
    config = dataclasses.replace(config, output=dataclasses.replace(config.output, format="webp"))
    settings = pixel_settings(config, server.service.model.fingerprint)
    row = CatalogRow(row=0, sku="CUP-1", image=photo, prompts=("a cup",))
    assert [each.image_id for each in wanted_images(row, server.service.scenes, config, settings)] == [
        image["image_id"]
    ]
    _, top, _, bottom = box_of(client.made(photo, prompt="a cup", channel="stories"))
    assert (top >= 0.14 * 184 - 1, bottom <= 0.8 * 184 + 1) == (True, True)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"channel": "tiktok"}, "unknown_channel", "channel: 'tiktok' is not one of amazon-secondary, merchant"),
        ({"channel": "merchant", "size": "128x128"}, "channel_and_size", "of its own; leave out size"),
        (
            {"channel": "merchant", "layout": {"as_photographed": True}},
            "channel_and_size",
            "leave out layout.as_photographed",
        ),
    ],
)
def test_a_channel_that_cannot_be(client, photo, fields, code, said):
    answer = client.ads(photo, prompt="a cup", **fields)
    error = json.loads(answer.data)["error"]
    assert (answer.status, error["code"], error["param"]) == (422, code, "channel")
    assert said in error["message"]


def test_the_options_say_what_may_be_asked_for(client):
    options = json.loads(client.ask("GET", "/v1/options").data)
    assert options["sizes"] == ["128x160", "128x128", "160x128"]
    assert {"name": "stories", "ratio": "9:16", "width_px": 1080, "height_px": 1920} in options["channels"]
    assert (options["default_size"], options["max_images"], options["max_steps"]) == ("128x160", 8, 100)
    assert (options["num_inference_steps"], options["image_urls"]) == (4, False)
    assert options["formats"] == ["jpeg", "png", "webp"]
    assert {scene["name"] for scene in options["categories"]["cup"]} >= {"wood-white-studio"}


def test_a_mask_says_what_is_the_product(client, photo, encoded):
    mask = Image.new("L", (96, 128))
    mask.paste(255, (24, 32, 48, 96))  # the left half of the box
    whole = client.made(photo, prompt="a cup")
    half = client.made(photo, prompt="a cup", mask_base64=base64.b64encode(encoded(mask)).decode())
    form = client.form("/v1/ads", ("image", ("a.png", photo)), ("mask", ("m.png", encoded(mask))), ("prompt", "a cup"))
    assert half["images"][0]["mask_source"] == "own_mask"
    assert half["images"][0]["mask_area"] == pytest.approx(0.125, abs=0.01)
    assert half["images"][0]["image_id"] != whole["images"][0]["image_id"]
    assert json.loads(form.data)["images"][0]["image_id"] == half["images"][0]["image_id"]


# Caches


@pytest.fixture
def placed(server, monkeypatch) -> list[bytes]:
    """Collects the product images that segmentation gets from now on."""
    given: list[bytes] = []
    place = server.backend.place

    async def counted(product: Any, *arguments: Any) -> Any:
        given.append(product.image)
        return await place(product, *arguments)

    monkeypatch.setattr(server.backend, "place", counted)
    return given


def test_an_exact_repeat_is_answered_from_memory(server, client, photo):
    first = client.made(photo, prompt="repeated", seed=11)
    steps = server.backend.denoiser.steps_made
    again = client.made(photo, prompt="repeated", seed=11)
    assert [image["cached"] for image in first["images"] + again["images"]] == [False, True]
    assert server.backend.denoiser.steps_made == steps
    assert files_of(again) == files_of(first)
    assert again["product_base64"] == first["product_base64"]
    assert again["images"][0] | {"cached": False} == first["images"][0]


def test_of_a_repeat_only_what_is_new_is_made(client, photo):
    client.made(photo, prompt=["old"], seed=1)
    images = client.made(photo, prompt=["old", "new"], seed=1)["images"]
    assert [(image["prompt"], image["cached"]) for image in images] == [("old", True), ("new", False)]


def test_a_repeat_as_events_has_no_steps(client, photo):
    first = dict(client.events(photo, prompt="repeated events"))
    again = client.events(photo, prompt="repeated events")
    assert [name for name, _ in again] == ["product", "image", "done"]
    assert again[0][1] == first["product"]
    assert again[1][1]["cached"]


def test_a_product_is_segmented_once(client, pixels, encoded, placed):
    photo = encoded(np.where(pixels == 200, 190, pixels).astype(np.uint8))
    for prompt in ("a cup", "a mug"):
        client.made(photo, prompt=prompt)
    assert placed == [photo]


@pytest.mark.parametrize(
    ("shade", "fields"), [(180, {"layout": {"anchor": "top"}}), (170, {"size": "160x128"}), (160, {"category": "cup"})]
)
def test_a_product_placed_otherwise_is_placed_anew(client, pixels, encoded, placed, shade, fields):
    photo = encoded(np.where(pixels == 200, shade, pixels).astype(np.uint8))
    client.made(photo, prompt="a cup")
    assert placed == [photo]
    client.made(photo, prompt="a cup, otherwise", **fields)
    client.made(photo, prompt="a cup, otherwise again", **fields)
    assert placed == [photo, photo]


def test_another_product_is_another_image_whatever_its_sku(client, photo, pixels, encoded):
    other = encoded(np.where(pixels == 200, 120, pixels).astype(np.uint8))
    one, two = (client.made(data, prompt="same words", sku="SAME", seed=1) for data in (photo, other))
    assert not two["images"][0]["cached"]
    assert files_of(one) != files_of(two)


def test_without_room_nothing_is_remembered(connect, photo):
    with serving("limits.result_cache_bytes=0", "limits.product_cache_bytes=0") as server:
        client = connect(server.url)
        assert [client.made(photo, prompt="a cup")["images"][0]["cached"] for _ in range(2)] == [False, False]


# OpenAI's client


@pytest.fixture(scope="module")
def openai_client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def test_an_edit_is_an_ad(openai_client, client, photo):
    edit = openai_client.images.edit(image=("a.png", photo), prompt="an edit", model="whatever", n=2, size="auto")
    (file, other) = (base64.b64decode(image.b64_json) for image in edit.data)
    assert files_of(client.made(photo, prompt="an edit", num_variants=2, format="png")) == [file, other]
    assert edit.output_format == "png"
    assert edit.size == "128x160"
    assert abs(edit.created - time.time()) < 60


def test_what_is_opaque_in_an_edits_mask_is_the_product(openai_client, client, photo, encoded):
    mask = Image.new("RGBA", (96, 128), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 255), (24, 32, 48, 96))  # the left half of the box
    edit = openai_client.images.edit(image=("a.png", photo), mask=("m.png", encoded(mask)), prompt="half", n=1)
    image = picture(base64.b64decode(edit.data[0].b64_json))
    own = Image.new("L", (96, 128))
    own.paste(255, (24, 32, 48, 96))
    answer = client.made(photo, mask_base64=base64.b64encode(encoded(own)).decode(), prompt="half", format="png")
    left, top, right, bottom = box_of(answer)
    product = (image[..., 0].astype(int) - image[..., 1]) > 80  # red
    assert (right - left) / (bottom - top) == pytest.approx(24 / 64, abs=0.03)
    assert product[top + 2 : bottom - 2, left + 2 : right - 2].all()
    assert not product[:, right + 2 :].any()
    assert not product[:, : left - 2].any()


def test_an_edit_takes_a_list_of_one_image_and_what_steers_openais_own_models(openai_client, photo):
    edit = openai_client.images.edit(
        image=[("a.png", photo)],
        prompt="with all options",
        size="160x128",
        output_format="webp",
        output_compression=0,
        background="opaque",
        input_fidelity="high",
        quality="high",
        response_format="b64_json",
        user="someone",
    )
    with Image.open(io.BytesIO(base64.b64decode(edit.data[0].b64_json))) as image:
        assert (image.format, image.size) == ("WEBP", (160, 128))


@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "256x256"])
def test_an_edit_has_the_size_that_openais_clients_ask_for(openai_client, photo, size):
    edit = openai_client.images.edit(image=("a.png", photo), prompt="a size", size=size, stream=False)
    with Image.open(io.BytesIO(base64.b64decode(edit.data[0].b64_json))) as image:
        assert f"{image.width}x{image.height}" == size == edit.size
    again = openai_client.images.edit(image=("a.png", photo), prompt="a size", extra_body={"partial_images": 0})
    assert again.size == "128x160"


def test_a_canvas_has_the_asked_ratio_and_the_models_area():
    for size in ((1024, 1024), (1536, 1024), (1024, 1792)):
        width, height = canvas_for(size, (512, 640))
        assert width % 8 == height % 8 == 0
        assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
        assert width * height == pytest.approx(512 * 640, rel=0.03)


def test_an_edit_comes_as_openais_events(openai_client, photo):
    stream = openai_client.images.edit(
        image=("a.png", photo), prompt="a stream", stream=True, partial_images=2, size="1024x1024", output_format="jpeg"
    )
    *partial, completed = list(stream)
    assert [event.type for event in partial] == 2 * ["image_edit.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert completed.type == "image_edit.completed"
    assert completed.usage.total_tokens == 0
    for event in (*partial, completed):
        assert (event.size, event.output_format, event.background) == ("1024x1024", "jpeg", "opaque")
        with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as image:
            assert (image.format, image.size) == ("JPEG", (1024, 1024))


def test_progress_counts_the_steps_that_the_solver_takes(connect, photo):
    """Solvers of second order take 39 steps for 20: progress says so; partial images are spread over all of them."""
    with serving(denoiser=QuickDenoiser(extra_steps=19)) as running:
        client = connect(running.url)
        steps = [data for name, data in client.events(photo, num_inference_steps=20, prompt="a") if name == "step"]
        assert [step["step"] for step in steps] == list(range(1, 39))
        assert {step["num_steps"] for step in steps} == {39}
        shown = []
        preview = running.backend.denoiser.preview
        running.backend.denoiser.preview = lambda row: shown.append(row["num_steps"] - row["left"]) or preview(row)
        answer = client.form(
            "/v1/images/edits",
            ("image", ("a.png", photo)),
            ("prompt", "b"),
            ("stream", "true"),
            ("partial_images", "2"),
        )
        assert answer.data.count(b"event: image_edit.partial_image") == 2
        assert shown == [7, 14]  # of 4 + 19


def test_steps_that_the_models_scheduler_does_not_make_are_refused(connect, photo):
    with serving() as running:
        running.service.model = dataclasses.replace(running.service.model, fewest_steps=4, most_steps=8)
        client = connect(running.url)
        for steps, code in ((3, "too_few_steps"), (9, "too_many_steps")):
            problem = client.problem(client.ads(photo, prompt="a cup", num_inference_steps=steps), 422)
            assert (problem["code"], problem["param"]) == (code, "num_inference_steps")
            assert "the model's scheduler makes 4 to 8" in problem["message"]
        client.made(photo, prompt="a cup", num_inference_steps=4)


@pytest.mark.parametrize(("size", "output_format"), [("auto", "png"), ("1024x1024", "webp")])
def test_an_edit_with_a_transparent_background_is_the_placed_product(openai_client, client, photo, size, output_format):
    options = {"prompt": "not used", "background": "transparent", "size": size, "output_format": output_format}
    edit = openai_client.images.edit(image=("a.png", photo), **options)
    assert (edit.background, edit.output_format) == ("transparent", output_format)
    with Image.open(io.BytesIO(base64.b64decode(edit.data[0].b64_json))) as image:
        assert (image.mode, image.format) == ("RGBA", output_format.upper())
        assert f"{image.width}x{image.height}" == edit.size
        alpha = np.asarray(image.getchannel("A")) > 127
    if size == "auto":
        answer = client.made(photo, prompt="a cup")
        product = Image.open(io.BytesIO(base64.b64decode(answer["product_base64"])))
        np.testing.assert_array_equal(alpha, np.asarray(product.getchannel("A")) > 127)
    else:
        assert 0.05 < alpha.mean() < 0.9
    (event,) = openai_client.images.edit(image=("a.png", photo), stream=True, partial_images=2, **options)
    assert (event.type, event.b64_json) == ("image_edit.completed", edit.data[0].b64_json)
    assert event.background == "transparent"


def test_an_edit_takes_a_seed(openai_client, client, photo):
    edit = openai_client.images.edit(image=("a.png", photo), prompt="a seed", extra_body={"seed": 7})
    file = base64.b64decode(edit.data[0].b64_json)
    assert files_of(client.made(photo, prompt="a seed", seed=7, format="png")) == [file]
    assert files_of(client.made(photo, prompt="a seed", seed=8, format="png")) != [file]


@pytest.mark.parametrize("number", [2, 16])
def test_several_images_of_an_edit_are_refused_in_words(openai_client, photo, number):
    images = [(f"{index}.png", photo) for index in range(number)]
    with pytest.raises(openai.UnprocessableEntityError, match="sees one photograph of the product") as caught:
        openai_client.images.edit(image=images, mask=("mask.png", photo), prompt="several views")
    assert (caught.value.code, caught.value.param) == ("two_images", "image")


def test_what_of_openais_is_not_served_says_what_is(openai_client, photo):
    with pytest.raises(openai.NotFoundError, match="send its photograph to /v1/images/edits"):
        openai_client.images.generate(prompt="a cup")
    with pytest.raises(openai.UnprocessableEntityError, match=r"one of 128x160, .*, nor of OpenAI's: 1024x1024"):
        openai_client.images.edit(image=("a.png", photo), prompt="a cup", size="1000x1000")


def test_an_edits_stream_ends_in_an_error_that_openais_client_raises(openai_client, photo):
    with pytest.raises(openai.APIError, match="too long"):
        list(openai_client.images.edit(image=("a.png", photo), prompt="far too long", stream=True))


def test_base64_with_line_breaks_and_of_the_url_safe_alphabet(client, photo):
    plain = client.made(photo, prompt="base64")
    texts = (base64.encodebytes(photo), base64.urlsafe_b64encode(photo).rstrip(b"="))
    for text in texts:
        assert files_of(client.made(None, image_base64=text.decode(), prompt="base64")) == files_of(plain)


def test_openais_client_understands_an_error(openai_client, photo):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        openai_client.images.edit(image=("a.png", photo), prompt="far too long")
    assert (caught.value.code, caught.value.param) == ("prompt_too_long", "prompt")
    assert caught.value.request_id == caught.value.response.headers["X-Request-ID"]


def test_openais_client_lists_and_reads_the_model(openai_client, server):
    (model,) = openai_client.models.list().data
    assert model.id == f"refadgen-{server.service.model.fingerprint[:12]}"
    assert openai_client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("gpt-image-1")


def test_openais_client_brings_its_key_as_the_token(photo):
    digest = hashlib.sha256(b"the-key").hexdigest()
    with serving(f"access.tokens=[shop:{digest}]") as server:
        for key, allowed in (("the-key", True), ("another", False)):
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=10) as client:
                refused = contextlib.nullcontext() if allowed else pytest.raises(openai.AuthenticationError)
                with refused:
                    assert len(client.models.list().data) == 1


# Work stops when its client is gone


@pytest.fixture
def slow() -> Iterator[Callable[..., LocalServer]]:
    """Makes servers with steps of 0.1 s."""
    with contextlib.ExitStack() as stack:
        yield lambda *words: stack.enter_context(serving(*words, denoiser=QuickDenoiser(0.1)))


def engine_of(server: LocalServer) -> StepEngine:
    return server.backend.generation._engine


def is_idle(server: LocalServer) -> bool:
    return engine_of(server).num_running == engine_of(server).num_waiting == 0


def asking(server: LocalServer, photo: bytes, *, accept: str, **fields: Any) -> socket.socket:
    """An open connection that has sent the request."""
    body = json.dumps({"image_base64": base64.b64encode(photo).decode(), "prompt": "a cup"} | fields).encode()
    lines = ("POST /v1/ads HTTP/1.1", "Host: 127.0.0.1", f"Accept: {accept}", "Content-Type: application/json")
    line = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)
    line.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    return line


@pytest.mark.parametrize("num_variants", [1, 8])
def test_a_client_that_hangs_up_stops_its_work(slow, photo, num_variants):
    server = slow()
    said = b""
    fields = {"num_inference_steps": 100, "num_variants": num_variants, "preview_every": 1}
    with asking(server, photo, accept="text/event-stream", **fields) as line:
        while b"event: step" not in said:
            said += line.recv(65536)
        wait_until(lambda: engine_of(server).num_running == min(num_variants, 4))
    wait_until(lambda: is_idle(server), timeout_s=5)  # a hundred steps take 10 s
    assert server.backend.denoiser.steps_made < 60


def test_who_hangs_up_does_not_stop_the_others(slow, connect, photo):
    server = slow()
    client = connect(server.url)
    with asking(server, photo, accept="text/event-stream", num_inference_steps=100, preview_every=1):
        wait_until(lambda: engine_of(server).num_running == 1)
    assert client.made(photo, prompt="a mug")["images"][0]["status"] == "done"


def test_a_faulty_image_ends_the_others_of_its_request(slow, connect, photo):
    server = slow()
    client = connect(server.url)
    answer = client.ads(photo, prompt=["a cup", "far too long"], num_inference_steps=100)
    assert client.problem(answer, 422)["code"] == "prompt_too_long"
    wait_until(lambda: is_idle(server), timeout_s=5)


def test_an_answer_that_takes_too_long_is_504_and_its_work_stops(slow, connect, photo):
    server = slow("limits.timeout_s=0.5")
    client = connect(server.url)
    client.ads(photo, prompt="warm", num_inference_steps=1)
    started = time.monotonic()
    answer = client.ads(photo, prompt="a cup", num_inference_steps=80)
    problem = client.problem(answer, 504)
    assert (problem["code"], problem["type"]) == ("timeout", "server_error")
    assert "limits.timeout_s" in problem["message"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert 0.5 <= time.monotonic() - started < 4
    wait_until(lambda: is_idle(server), timeout_s=3)


def test_events_that_take_too_long_end_in_an_error(slow, connect, photo):
    server = slow("limits.timeout_s=0.5")
    client = connect(server.url)
    client.ads(photo, prompt="warm", num_inference_steps=1)  # caches the product, so that its event comes at once
    started = time.monotonic()
    name, data = client.events(photo, prompt="a cup", num_inference_steps=25, preview_every=1)[-1]
    assert name == "error"
    assert data["error"]["code"] == "timeout"
    assert time.monotonic() - started < 2


def test_a_request_of_more_images_than_there_are_places_is_let_in_whole(slow, connect, photo):
    server = slow("limits.max_queued_images=1")
    images = connect(server.url).made(photo, prompt="a cup", num_variants=8, num_inference_steps=1)["images"]
    assert [(image["variant"], image["status"]) for image in images] == [(n, "done") for n in range(8)]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_when_all_places_are_taken_the_next_request_is_told_to_wait(slow, connect, photo, accept):
    server = slow("limits.max_queued_images=1")
    client = connect(server.url)
    engine = engine_of(server)
    with asking(server, photo, accept="text/event-stream", num_variants=5, num_inference_steps=100, preview_every=1):
        wait_until(lambda: (engine.num_running, engine.num_waiting) == (4, 1))
        if accept == "text/event-stream":
            events = client.events(photo, prompt="a mug")
            assert [name for name, _ in events] == ["product", "error"]
            assert events[-1][1]["status"] == 429
            problem = events[-1][1]["error"]
        else:
            answer = client.ads(photo, prompt="a mug", accept=accept)
            assert int(answer.headers["Retry-After"]) >= 1
            problem = client.problem(answer, 429)
        assert (problem["code"], problem["type"]) == ("busy", "rate_limit_error")
    wait_until(lambda: is_idle(server), timeout_s=5)
    assert client.made(photo, prompt="a mug")["images"][0]["status"] == "done"


# The gate


@pytest.fixture(scope="module")
def strict(connect):
    """A client of a server whose gate no tinted image passes."""
    with serving("quality.min_color_similarity=1.0", "quality.max_attempts=3") as server:
        yield connect(server.url)


def test_an_image_below_the_gate_has_failed_and_says_why(strict, photo):
    for _ in range(2):  # not cached: another attempt may pass
        (image,) = strict.made(photo, prompt="a cup", seed=1)["images"]
        assert (image["status"], image["reason"], image["attempts"]) == ("failed", "low_fidelity", 3)
        assert "quality.min_color_similarity" in image["detail"]
        assert 0.5 < image["color_similarity"] < 1
        assert image["image_base64"] is None
        assert not image["cached"]


def test_the_seed_of_a_failed_image_is_that_of_its_last_attempt(strict, photo):
    (image,) = strict.made(photo, prompt="a cup", seed=1)["images"]
    assert image["seed"] != 1


def test_where_the_image_itself_is_asked_for_a_failed_one_is_an_error(strict, photo):
    problem = strict.problem(strict.ads(photo, accept="image/*", prompt="a cup", seed=1), 422)
    assert (problem["code"], problem["param"]) == ("low_fidelity", "image")
    parts = (("image", ("a.png", photo)), ("prompt", "a cup"))
    assert strict.problem(strict.form("/v1/images/edits", *parts), 422)["code"] == "low_fidelity"


def test_an_unsafe_ad_is_rejected_and_its_picture_kept_back(connect, classifier, photo):
    with serving(f"quality.unsafe_model={classifier}", "quality.max_unsafe_score=0", "model.device=cpu") as server:
        client = connect(server.url)
        (image,) = client.made(photo, prompt="a cup")["images"]
        assert (image["status"], image["reason"], image["image_base64"]) == ("rejected", "unsafe", None)
        problem = client.problem(client.ads(photo, accept="image/*", prompt="a cup"), 422)
        assert problem["code"] == "unsafe"


def test_a_failed_image_is_an_event_like_others(strict, photo):
    events = strict.events(photo, prompt="a cup", seed=1)
    assert [name for name, _ in events][-2:] == ["image", "done"]
    assert events[-2][1]["reason"] == "low_fidelity"


def test_a_later_attempt_may_pass(connect, photo, monkeypatch):
    with serving("quality.min_color_similarity=0.999", "quality.max_attempts=3", "output.format=png") as server:
        finished: list[int] = []

        def finish(order: Any, row: Any) -> np.ndarray:
            finished.append(order.seed)
            return order.canvas if len(finished) == 2 else 255 - order.canvas

        monkeypatch.setattr(server.backend.denoiser, "finish", finish)
        (image,) = connect(server.url).made(photo, prompt="a cup", seed=1)["images"]
    assert (image["status"], image["attempts"]) == ("done", 2)
    assert finished[0] == 1
    assert image["seed"] == finished[1] != 1
    assert (image["rung"], image["digital_source_type"]) == ("seed", "trainedAlgorithmicMedia")


def test_where_no_attempt_passes_the_products_own_pixels_may(connect, photo):
    words = ["quality.min_structure_similarity=0.9", "quality.fusion_attempts=1", "quality.product_pixels=true"]
    with serving(*words, "output.format=png") as server:
        server.backend.denoiser.finish = lambda order, row: 255 - order.canvas
        answer = connect(server.url).made(photo, prompt="a cup", seed=1)
    (image,) = answer["images"]
    assert (image["status"], image["attempts"], image["rung"]) == ("done", 2, "product_pixels")
    assert image["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
    data = base64.b64decode(image["image_base64"])
    record = read_record(data)
    assert (record["rung"], record["fusion_scale"]) == ("product_pixels", 1.0)
    pixels, product = picture(data), picture(base64.b64decode(answer["product_base64"]))
    middle = (slice(75, 85), slice(60, 68))
    assert np.abs(pixels[middle].astype(int) - product[middle][..., :3]).max() <= 12  # the product travels as WebP
    assert not pixels[0].any()  # the scene that was drawn: the white canvas inverted


# Health


def test_health_and_readiness(server, client, monkeypatch):
    assert json.loads(client.ask("GET", "/healthz").data) == {"status": "ok"}
    assert json.loads(client.ask("GET", "/readyz").data) == {"status": "ready"}

    async def loading() -> bool:
        return False

    monkeypatch.setattr(server.backend, "ready", loading)
    answer: urllib3.BaseHTTPResponse = client.ask("GET", "/readyz")
    assert client.problem(answer, 503)["code"] == "not_ready"
    assert client.ask("GET", "/healthz").status == 200
