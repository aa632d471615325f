"""Every kind of bad request gets an answer that names the field: never a 500, never a hang."""

import base64
import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
import urllib3
from PIL import Image

NO_FILE = object()
LONG = "x" * 1001
"""One character more than the longest allowed text."""

# Values of /v1/ads that are wrong both in JSON (typed) and in a form (as text).
OUT_OF_RANGE = [
    ("num_variants", 0),
    ("num_variants", -1),
    ("num_variants", 101),
    ("num_variants", 9),  # limits.max_images
    ("num_variants", 1.5),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 0.5),
    ("fusion_scale", -0.1),
    ("fusion_scale", 10.1),
    ("guidance_scale", 0.9),
    ("guidance_scale", 50.1),
    ("num_inference_steps", 0),
    ("num_inference_steps", 101),  # limits.max_steps
    ("num_inference_steps", 1001),
    ("quality", 0),
    ("quality", 101),
    ("preview_every", -1),
    ("preview_every", 1001),
    ("format", "gif"),
    ("format", "JPEG"),
    ("format", ""),
    ("size", "1x1"),
    ("size", "128×160"),
    ("size", "100000x100000"),
    ("size", ""),
    ("scene", "no-such-scene"),
    ("scene", "../scenes"),
    ("scene", ""),
    ("sku", ""),
    ("sku", " \t"),
    ("sku", "x" * 257),
    ("title", ""),
    ("title", "  "),
    ("title", LONG),
    ("category", "\n"),
    ("category", LONG),
    ("negative_prompt", " "),
    ("negative_prompt", LONG),
    ("prompt", ""),
    ("prompt", " "),
    ("prompt", "\u2003\n"),
    ("prompt", LONG),
    ("prompt", "far too long"),  # for the text encoder
    ("image_url", "ftp://host/a.png"),
    ("image_url", "/etc/passwd"),
    ("image_url", "http://host/a b"),
    ("image_url", "http://host/" + "x" * 2000),
]

# Values that only JSON can hold.
WRONG_TYPES = [
    ("num_variants", "2"),
    ("num_variants", None),
    ("num_variants", True),
    ("seed", 1e300),
    ("num_variants", [2]),
    ("num_variants", 10**30),
    ("seed", "7"),
    ("seed", True),
    ("fusion_scale", "1"),
    ("fusion_scale", True),
    ("guidance_scale", {}),
    ("guidance_scale", float("nan")),
    ("fusion_scale", float("inf")),
    ("fusion_scale", float("-inf")),
    ("num_inference_steps", 4.5),
    ("num_inference_steps", float("nan")),
    ("preview_every", None),
    ("format", 1),
    ("size", 128),
    ("size", [128, 160]),
    ("sku", 4006381),
    ("title", ["a"]),
    ("category", {"a": "b"}),
    ("prompt", 5),
    ("prompt", []),
    ("prompt", [""]),
    ("prompt", ["a cup", "  "]),
    ("prompt", ["a cup", None]),
    ("prompt", ["a cup"] * 101),
    ("prompt", {"scene": "a cup"}),
    ("layout", []),
    ("layout", "top"),
    ("layout", {"size": 0.01}),
    ("layout", {"size": 2}),
    ("layout", {"size": "0.5"}),
    ("layout", {"size": float("nan")}),
    ("layout", {"anchor": "middle"}),
    ("layout", {"margin": 0.5}),
    ("layout", {"margin": -0.1}),
    ("layout", {"colour": "red"}),
    ("image_url", 5),
    ("image_base64", 5),
    ("image_base64", ["aaaa"]),
]

# Values that only a form can hold.
WRONG_TEXTS = [
    ("num_variants", "two"),
    ("num_variants", ""),
    ("num_variants", "1e3"),
    ("seed", "0x10"),
    ("seed", "nan"),
    ("fusion_scale", "nan"),
    ("fusion_scale", "inf"),
    ("guidance_scale", "-Infinity"),
    ("guidance_scale", "1,5"),
    ("preview_every", "null"),
    ("layout", ""),
    ("layout", "top"),
    ("layout", "{"),
    ("layout", "[]"),
    ("layout", '{"size": NaN}'),
    ("layout", '{"size": 9}'),
    ("layout", '{"nope": 1}'),
    ("layout", '{"anchor": "\\ud800"}'),
    ("layout", '{"\\ud800": 1}'),
    ("layout", "[" * 100_000),
]


def field_of(client, answer: urllib3.BaseHTTPResponse, *statuses: int) -> str | None:
    return client.problem(answer, *statuses)["param"]


def named(pairs: list[tuple[str, Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r}"[:60]) for name, value in pairs]


# JSON


@pytest.mark.parametrize(("name", "value"), named(OUT_OF_RANGE + WRONG_TYPES))
def test_a_wrong_field_of_a_json_request_is_named(client, photo, name, value):
    fields = {"image_base64": base64.b64encode(photo).decode(), "prompt": "a cup"} | {name: value}
    if name == "scene":
        del fields["prompt"]
    if name == "image_url":
        del fields["image_base64"]
    body = json.dumps(fields)  # json.dumps writes NaN and Infinity, which JSON does not have
    answer = client.ask("POST", "/v1/ads", body=body, headers={"Content-Type": "application/json"})
    problem = client.problem(answer, 422)
    assert problem["param"] == name
    assert problem["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["colour", "image", "mask", "Prompt", "image_base64 ", "__class__", "x" * 5000])
def test_an_unknown_field_is_named(client, photo, name):
    fields = {"image_base64": base64.b64encode(photo).decode(), name: "x"}
    problem = client.problem(client.ask("POST", "/v1/ads", json=fields), 422)
    assert problem["param"] == name[:100]
    assert problem["message"] == f"{name[:100]}: unknown field"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "missing_image"),
        ({"image_base64": None}, "missing_image"),
        ({"image_base64": "", "image_url": None}, "invalid_field"),
        ({"image_base64": "aaaa", "image_url": "http://host/a.png"}, "two_images"),
        ({"mask_base64": "aaaa"}, "missing_image"),
    ],
)
def test_json_holds_one_image(client, fields, code):
    problem = client.problem(client.ads(prompt="a cup", **fields), 422)
    assert problem["code"] == code
    assert problem["param"] in ("image", "image_base64")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("?", "bad_base64"),
        ("aaa", "bad_base64"),
        ("aa a", "bad_base64"),
        ("aaaaa\n", "bad_base64"),
        ("äöüß", "bad_base64"),
        ("aa-_a", "bad_base64"),
        ("data:", "not_an_image"),
        ("data:image/png;base64", "not_an_image"),
        ("data:image/png;base64,", "not_an_image"),
        ("data:image/png,<svg/>", "bad_base64"),
        ("====", "bad_base64"),
    ],
)
@pytest.mark.parametrize("name", ["image_base64", "mask_base64"])
def test_broken_base64_is_named(client, photo, name, text, code):
    fields = {"image_base64": base64.b64encode(photo).decode(), name: text}
    problem = client.problem(client.ads(prompt="a cup", **fields), 422)
    assert (problem["param"], problem["code"]) == (name, code)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b"{'prompt': 'a cup'}", 400),
        (b'{"prompt": "a cup",}', 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "a\ncup"}', 400),
        (b"\xff\xfe{\x00}\x00", 422),  # UTF-16
        (b"\0", 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"prompt"', 422),
        (b"1", 422),
        (b"1" * 5000, 400),
        (b'{"seed": ' + b"1" * 5000 + b"}", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'{"layout": ' + b"[" * 500 + b"]" * 500 + b"}", 422),
        (b'{"prompt": "\\ud800"}', 422),
        (b'{"sku": "\\udfff\\ud800"}', 422),
        (b'{"\\ud800": 1}', 422),
    ],
    ids=lambda value: str(value[:20]) if isinstance(value, bytes) else str(value),
)
@pytest.mark.parametrize("path", ["/v1/ads", "/v1/masks", "/v1/jobs"])
def test_what_is_no_json_object_is_refused(client, path, body, status):
    answer = client.ask("POST", path, body=body, headers={"Content-Type": "application/json"})
    assert client.problem(answer, status)["type"] == "invalid_request_error"


def test_a_huge_text_is_refused_at_once(client, photo):
    assert field_of(client, client.ads(photo, prompt="x" * 5_000_000), 422) == "prompt"


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "image/png", "multipart"],
)
@pytest.mark.parametrize("path", ["/v1/ads", "/v1/masks", "/v1/images/edits", "/v1/jobs"])
def test_other_content_types_are_refused(client, path, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.ask("POST", path, body=b"prompt=a%20cup", headers=headers)
    assert client.problem(answer, 415)["code"] == "unsupported_media_type"


# Forms


@pytest.mark.parametrize(("name", "value"), named(OUT_OF_RANGE + WRONG_TEXTS))
def test_a_wrong_field_of_a_form_is_named(client, photo, name, value):
    fields = {"image": ("a.png", photo), "prompt": "a cup"} | {name: str(value)}
    if name == "scene":
        del fields["prompt"]
    if name == "image_url":
        del fields["image"]
    assert field_of(client, client.form("/v1/ads", *fields.items()), 422) == name


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([], "image", "missing_image"),
        ([("image", "aaaa")], "image", "wrong_type"),
        ([("image", ("a.png", b""))], "image", "not_an_image"),
        ([("image", ("", b""))], "image", "not_an_image"),
        ([("image", ("a.png", b"1")), ("image", ("b.png", b"2"))], "image", "two_images"),
        ([("image", ("a.png", b"1")), ("image", "text")], "image", "two_images"),
        ([("image", ("a.png", b"1")), ("image_url", "http://host/a.png")], "image", "two_images"),
        ([("image", ("a.png", b"1")), ("mask", ("a.png", b"1")), ("mask", ("b.png", b"2"))], "mask", "two_masks"),
        ([("image", ("a.png", b"1")), ("mask", "text")], "mask", "wrong_type"),
        ([("image", ("a.png", b"1")), ("mask", ("m.png", b""))], "mask", "not_an_image"),
        ([("image", ("a.png", b"1")), ("prompt", ("p.txt", b"a cup"))], "prompt", "wrong_type"),
        ([("image", ("a.png", b"1")), ("seed", "1"), ("seed", "2")], "seed", "given_twice"),
        ([("image", ("a.png", b"1")), ("layout", "{}"), ("layout", "{}")], "layout", "given_twice"),
        ([("image", ("a.png", b"1")), ("prompt", "a cup"), ("prompt", " ")], "prompt", "invalid_field"),
        ([("image", ("a.png", b"1")), ("image_base64", "aaaa")], "image_base64", "invalid_field"),
        ([("image", ("a.png", b"1")), ("colour", "red")], "colour", "invalid_field"),
        ([("image", ("a.png", b"1")), ("colour", ("a", b"1"))], "colour", "wrong_type"),
        (
            [("image", ("a.png", b"1")), ("prompt", "a cup"), ("scene", "wood")],
            "scene",
            "prompt_and_scene",
        ),
    ],
)
def test_wrong_parts_are_named(client, parts, param, code):
    problem = client.problem(client.form("/v1/ads", *parts), 422)
    assert (problem["param"], problem["code"]) == (param, code)


PART = b'--X\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cup\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", PART + b"--X--\r\n", 400),
        ("multipart/form-data; boundary=", PART + b"--X--\r\n", 400),
        ("multipart/form-data; boundary=Y", PART + b"--X--\r\n", 400),
        ("multipart/form-data; boundary=" + "X" * 300, b"--" + b"X" * 300 + b"--\r\n", 400),
        ("multipart/form-data; boundary=X", b"no form at all", 400),
        ("multipart/form-data; boundary=X", b"--X\r\nContent-Disposition: form-data\r\n\r\nx\r\n--X--\r\n", 400),
        ("multipart/form-data; boundary=X", b"--X\r\nContent-Type: text/plain\r\n\r\nx\r\n--X--\r\n", 400),
        ("multipart/form-data; boundary=X", b"--X\r\nno header\r\n\r\nx\r\n--X--\r\n", 400),
        ("multipart/form-data; boundary=X", PART * 151 + b"--X--\r\n", 400),
        ("multipart/form-data; boundary=X", PART.replace(b"a cup", b"x" * 1_000_001) + b"--X--\r\n", 400),
        ("multipart/form-data; boundary=X", PART.replace(b'"prompt"', b'"f"; filename="f"') * 21 + b"--X--\r\n", 400),
        ("multipart/form-data; boundary=X; charset=utf-7", PART + b"--X--\r\n", 415),
        ("multipart/form-data; boundary=X; charset=punycode", PART + b"--X--\r\n", 415),
        ("multipart/form-data; boundary=X; charset=utf-16", PART + b"--X--\r\n", 415),
    ],
)
@pytest.mark.parametrize("path", ["/v1/ads", "/v1/masks", "/v1/images/edits"])
def test_what_is_no_form_is_refused(client, path, kind, body, status):
    client.problem(client.ask("POST", path, body=body, headers={"Content-Type": kind}), status)


@pytest.mark.parametrize("body", [b"", b"\r\n", b"--X", b"--X\r\n", PART[:-8], PART])
@pytest.mark.parametrize("path", ["/v1/ads", "/v1/masks", "/v1/images/edits"])
def test_a_form_that_breaks_off_is_refused(client, path, body):
    answer = client.ask("POST", path, body=body, headers={"Content-Type": "multipart/form-data; boundary=X"})
    client.problem(answer, 400, 422)


def test_a_charset_that_takes_long_to_decode_is_not_tried(client):
    # Decoding 100,000 of these as punycode takes seconds, on the event loop of all requests.
    body = PART.replace(b"a cup", b"b" * 300_000) + b"--X--\r\n"
    kind = "multipart/form-data; boundary=X; charset=punycode"
    assert client.problem(client.ask("POST", "/v1/ads", body=body, headers={"Content-Type": kind}), 415)


def test_a_form_in_the_charset_that_it_says_is_read(client, photo):
    body, kind = urllib3.encode_multipart_formdata({"image": ("a.png", photo), "prompt": "eine Tüte"})
    answer = client.ask("POST", "/v1/ads", body=body, headers={"Content-Type": f"{kind}; charset=UTF-8"})
    assert json.loads(answer.data)["images"][0]["prompt"] == "eine Tüte"


def test_a_form_that_is_cut_off_is_not_taken_for_a_whole_one(client, photo):
    body, kind = urllib3.encode_multipart_formdata([("image", ("a.png", photo)), ("prompt", "a cup")])
    answer = client.ask("POST", "/v1/ads", body=body[:-20], headers={"Content-Type": kind})
    assert client.problem(answer, 400)["code"] == "bad_multipart"


# Images


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 1_000_000)
    return sink.getvalue()


BROKEN_IMAGES = [
    ("text", "not_an_image"),
    ("html", "not_an_image"),
    ("svg", "not_an_image"),
    ("zip", "not_an_image"),
    ("pdf", "not_an_image"),
    ("postscript", "not_an_image"),
    ("one byte", "not_an_image"),
    ("truncated jpeg", "truncated_image"),
    ("truncated png", "truncated_image"),
    ("truncated webp", "truncated_image"),
    ("damaged header", "unreadable_image"),
    ("damaged body", "unreadable_image"),
    ("bomb", "image_too_large"),
    ("large bomb", "image_too_large"),
    ("gif bomb", "image_too_large"),
    ("animated gif", "animated_image"),
    ("animated png", "animated_image"),
    ("animated webp", "animated_image"),
    ("pages", "animated_image"),
    ("transparent", "fully_transparent"),
    ("tiny", "image_too_small"),
    ("thin", "image_too_small"),
]
"""Files that are no usable image, with the reason that the catalogue job gives too."""


@pytest.fixture(scope="module")
def broken_images(encoded, photo, png_of_size) -> dict[str, bytes]:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]

    def animated(kind: str) -> bytes:
        return encoded(frames[0], kind, save_all=True, append_images=frames[1:])

    def half(kind: str) -> bytes:
        data = encoded(large, kind)
        return data[: len(data) // 2]

    damaged = bytearray(encoded(large, "PNG"))
    damaged[60:90] = b"\xff" * 30
    gif = bytearray(encoded(frames[0], "GIF"))
    gif[6:10] = struct.pack("<HH", 65_000, 65_000)
    return {
        "text": b"this is no image",
        "html": b"<!doctype html><html><body>404 Not Found</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "zip": zipped(),
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "one byte": b"\0",
        "truncated jpeg": half("JPEG"),
        "truncated png": half("PNG"),
        "truncated webp": half("WEBP"),
        "damaged header": photo[:12] + b"XXXX" + photo[16:],
        "damaged body": bytes(damaged),
        "bomb": png_of_size(8_000, 7_000),
        "large bomb": png_of_size(60_000, 60_000),
        "gif bomb": bytes(gif),
        "animated gif": animated("GIF"),
        "animated png": animated("PNG"),
        "animated webp": animated("WEBP"),
        "pages": animated("TIFF"),
        "transparent": encoded(Image.new("RGBA", (96, 128), (200, 30, 40, 0))),
        "tiny": encoded(Image.new("RGB", (1, 1))),
        "thin": encoded(Image.new("RGB", (500, 15))),
    }


@pytest.mark.parametrize(("name", "reason"), BROKEN_IMAGES)
def test_a_broken_image_is_refused_as_the_main_job_does(client, broken_images, name, reason):
    problem = client.problem(client.ads(broken_images[name], prompt="a cup"), 422)
    assert (problem["param"], problem["code"]) == ("image", reason)


@pytest.mark.parametrize("name", ["text", "truncated png", "bomb", "animated gif", "tiny"])
def test_a_broken_image_is_refused_however_it_is_sent(client, broken_images, name):
    reason = dict(BROKEN_IMAGES)[name]
    file = ("image", ("a.png", broken_images[name]))
    assert client.problem(client.form("/v1/ads", file, ("prompt", "a cup")), 422)["code"] == reason
    assert client.problem(client.form("/v1/images/edits", file, ("prompt", "a cup")), 422)["code"] == reason


@pytest.mark.parametrize("name", ["text", "truncated png", "bomb", "animated gif", "tiny"])
def test_a_broken_mask_is_refused(client, photo, broken_images, name):
    reason = dict(BROKEN_IMAGES)[name]
    files = (("image", ("a.png", photo)), ("mask", ("m.png", broken_images[name])))
    problem = client.problem(client.form("/v1/ads", *files), 422)
    assert (problem["param"], problem["code"]) == ("mask", reason)


@pytest.mark.parametrize(
    ("size", "value", "reason"),
    [((128, 96), 255, "mask_size_mismatch"), ((96, 100), 255, "mask_size_mismatch"), ((96, 128), 1, "empty_mask")],
)
def test_a_mask_that_does_not_fit_is_refused(client, photo, encoded, size, value, reason):
    mask = encoded(Image.new("L", size, value))
    problem = client.problem(client.ads(photo, mask_base64=base64.b64encode(mask).decode()), 422)
    assert (problem["param"], problem["code"]) == ("mask", reason)


def test_a_mask_that_is_too_weak_is_what_is_named(client, photo, encoded):
    mask = encoded(Image.new("L", (96, 128), 255))
    problem = client.problem(client.ads(photo, mask_base64=base64.b64encode(mask).decode()), 422)
    assert (problem["param"], problem["code"]) == ("mask", "mask_area_too_large")


def test_a_photograph_with_a_busy_background_is_refused_with_what_to_do(client, encoded):
    busy = np.random.default_rng(0).integers(0, 256, (128, 96, 3), np.uint8)
    problem = client.problem(client.ads(encoded(busy), prompt="a cup"), 422)
    assert (problem["param"], problem["code"]) == ("image", "no_plain_background")
    assert "mask" in problem["message"]


def test_an_image_without_a_product_is_refused(client, encoded):
    problem = client.problem(client.ads(encoded(Image.new("RGB", (96, 128), "white")), prompt="a cup"), 422)
    assert problem["param"] == "image"
    assert problem["code"].startswith(("mask_", "no_"))


# Rules between fields


def test_prompt_and_scene_exclude_each_other(client, photo):
    problem = client.problem(client.ads(photo, prompt="a cup", scene="wood-white-studio"), 422)
    assert (problem["param"], problem["code"]) == ("scene", "prompt_and_scene")


def test_an_unknown_scene_is_answered_with_those_that_there_are(client, photo):
    problem = client.problem(client.ads(photo, category="cup", scene="moon-crater"), 422)
    assert (problem["param"], problem["code"]) == ("scene", "unknown_scene")
    assert "wood-white-studio" in problem["message"]


def test_an_unknown_size_is_answered_with_those_that_there_are(client, photo):
    problem = client.problem(client.ads(photo, prompt="a cup", size="64x64"), 422)
    assert (problem["param"], problem["code"]) == ("size", "unknown_size")
    assert "128x160, 128x128, 160x128" in problem["message"]


def test_images_are_counted_over_scenes_and_variants(client, photo):
    problem = client.problem(client.ads(photo, prompt=["a", "b", "c"], num_variants=3), 422)
    assert problem["code"] == "too_many_images"
    assert "9 images" in problem["message"]


def test_one_image_as_a_file_is_one_image(client, photo):
    problem = client.problem(client.ads(photo, accept="image/*", prompt="a cup", num_variants=2), 422)
    assert problem["code"] == "one_image_only"


@pytest.mark.parametrize("accept", ["text/event-stream", "image/png"])
def test_a_bad_request_is_json_whatever_was_asked_for(client, photo, accept):
    assert field_of(client, client.ads(photo, accept=accept, prompt="a cup", num_variants=0), 422) == "num_variants"


def test_what_goes_wrong_in_an_event_stream_is_its_last_event(client, broken_images):
    (name, data), *more = client.events(broken_images["text"], prompt="a cup")
    assert more == []
    assert name == "error"
    assert data["status"] == 422
    assert data["error"]["code"] == "not_an_image"
    assert data["request_id"]


# Edits


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("prompt", "a cup")], "image"),
        ([("image", NO_FILE)], "prompt"),
        ([("image", NO_FILE), ("prompt", " ")], "prompt"),
        ([("image", NO_FILE), ("prompt", LONG)], "prompt"),
        ([("image", NO_FILE), ("prompt", "far too long")], "prompt"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("prompt", "a mug")], "prompt"),
        ([("image", "text"), ("prompt", "a cup")], "image"),
        ([("image", ("a.png", b"")), ("prompt", "a cup")], "image"),
        ([("image", NO_FILE), ("image[]", NO_FILE), ("prompt", "a cup")], "image"),
        ([("image[]", NO_FILE), ("image[]", NO_FILE), ("prompt", "a cup")], "image"),
        ([("image", NO_FILE), ("mask", "text"), ("prompt", "a cup")], "mask"),
        ([("image", NO_FILE), ("mask", ("m.png", b"no mask")), ("prompt", "a cup")], "mask"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("n", "0")], "n"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("n", "11")], "n"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("n", "one")], "n"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("size", "1000x1000")], "size"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("response_format", "url")], "response_format"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("output_format", "gif")], "output_format"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("output_compression", "101")], "output_compression"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("background", "clear")], "background"),
        (
            [("image", NO_FILE), ("prompt", "a cup"), ("background", "transparent"), ("output_format", "jpeg")],
            "background",
        ),
        ([("image", NO_FILE), ("prompt", "a cup"), ("background", "transparent"), ("n", "2")], "n"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("quality", "best")], "quality"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("seed", "-1")], "seed"),
        ([("image", NO_FILE), ("prompt", "a cup"), ("stream", "perhaps")], "stream"),
    ],
)
def test_a_wrong_field_of_an_edit_is_named(client, photo, parts, param):
    filled = [(name, ("a.png", photo) if value is NO_FILE else value) for name, value in parts]
    assert field_of(client, client.form("/v1/images/edits", *filled), 422) == param


def test_too_many_images_of_an_edit_are_named_as_its_own_field(client, photo):
    parts = (("image", ("a.png", photo)), ("prompt", "a cup"), ("n", "10"))
    assert field_of(client, client.form("/v1/images/edits", *parts), 422) == "n"


# Runs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output": "/out"}, "catalog"),
        ({"catalog": "/in"}, "output"),
        ({"catalog": "", "output": "/out"}, "catalog"),
        ({"catalog": 5, "output": "/out"}, "catalog"),
        ({"catalog": ["/in"], "output": "/out"}, "catalog"),
        ({"catalog": "/" + LONG, "output": "/out"}, "catalog"),
        ({"catalog": "/in", "output": None}, "output"),
        ({"catalog": "/in", "output": "/out", "limit": 0}, "limit"),
        ({"catalog": "/in", "output": "/out", "limit": "5"}, "limit"),
        ({"catalog": "/in", "output": "/out", "retry_failed": "yes"}, "retry_failed"),
        ({"catalog": "/in", "output": "/out", "settings": []}, "settings"),
        ({"catalog": "/in", "output": "/out", "settings": {"a.b": [1]}}, "settings"),
        ({"catalog": "/in", "output": "/out", "settings": {"a.b": {}}}, "settings"),
        ({"catalog": "/in", "output": "/out", "settings": {f"a.{n}": 1 for n in range(101)}}, "settings"),
        ({"catalog": "/in", "output": "/out", "entrypoint": "sh"}, "entrypoint"),
    ],
)
def test_a_wrong_field_of_a_run_is_named(client, fields, param):
    assert field_of(client, client.ask("POST", "/v1/jobs", json=fields), 422) == param


def test_without_prefixes_no_run_is_started(client):
    problem = client.problem(client.ask("POST", "/v1/jobs", json={"catalog": "/in", "output": "/out"}), 403)
    assert (problem["code"], problem["type"]) == ("jobs_off", "permission_error")
    assert "catalog_runs.catalog_prefixes" in problem["message"]


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v2/ads",
        "/v1/ads/1",
        "/v1/images",
        "/v1/images/generations",
        "/v1/jobs/a/b",
        "/docs",
        "/redoc",
        "/%2e%2e/etc/passwd",
        "/page/index.html",
        "/metrics",
        "/-/routes",
        "/v1/models/gpt-image-1",
        "/\u00fc",
    ],
)
def test_an_unknown_path_is_404(client, path):
    problem = client.problem(client.ask("GET", path), 404)
    assert problem["type"] == "not_found_error"


@pytest.mark.parametrize("path", ["/v1/ads/", "/v1/options/"])
def test_a_path_with_a_slash_too_many_is_404(client, path):
    client.problem(client.ask("GET", path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/ads", "POST"),
        ("PUT", "/v1/ads", "POST"),
        ("DELETE", "/v1/ads", "POST"),
        ("GET", "/v1/images/edits", "POST"),
        ("POST", "/v1/options", "GET"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/x", "GET"),
        ("POST", "/healthz", "GET"),
        ("POST", "/", "GET"),
        ("OPTIONS", "/v1/ads", "POST"),
        ("PUT", "/v1/jobs", "POST"),
        ("POST", "/v1/jobs/x", "GET"),
        ("PATCH", "/v1/jobs/x", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(client, method, path, allowed):
    answer = client.ask(method, path)
    assert client.problem(answer, 405)["code"] == "method_not_allowed"
    assert allowed in answer.headers["Allow"]


@pytest.mark.parametrize(("path", "allowed"), [("/v1/jobs", {"GET", "POST"}), ("/v1/jobs/x", {"GET", "DELETE"})])
def test_allow_names_all_methods_of_a_path(client, path, allowed):
    assert set(client.ask("PUT", path).headers["Allow"].split(", ")) == allowed


def test_after_all_of_this_good_requests_are_served(client, photo):
    assert client.made(photo, prompt="a cup")["images"][0]["status"] == "done"
