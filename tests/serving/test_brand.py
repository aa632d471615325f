"""A brand file on the endpoint: the same image ids, prompts and layout as in the catalogue job."""

from pathlib import Path
from typing import Any, cast

from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import load_scenes
from refadgen.config import ServeConfig, load_config
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.wanted import WantedImages, pixel_settings
from refadgen.serving.ads import AdService
from refadgen.serving.requests import ProductInput
from refadgen.serving.schema import AdFields

MODEL = ModelIdentity(fingerprint="f" * 16, label="m@f")
SIZE = ["sampling.width_px=128", "sampling.height_px=160", "sampling.guidance_scale=2"]


def test_a_request_asks_for_the_jobs_image(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("{light: candle light, negative_prompt: text, keep_free: [0, 0, 0.4, 0.2]}")
    config = load_config(ServeConfig, None, [*SIZE, f"brand.file={tmp_path / 'b.yaml'}"])
    service = AdService(config, MODEL, load_scenes(), backend=cast(Any, None))
    fields = AdFields(prompt="a cup on a table", sku="A-1", category="cup", negative_prompt="blur", seed=3)
    requested = service.requested_images(fields, ProductInput(image=b"photo"))
    own = config.generation()
    settings = pixel_settings(own, MODEL.fingerprint)
    row = CatalogRow(
        row=0,
        sku="A-1",
        image=b"photo",
        category="cup",
        prompts=("a cup on a table",),
        negative_prompt="blur",
        seed=3,
    )
    asked = WantedImages(load_scenes(), own, settings).of(settings.branded(row))
    (image,) = requested.images
    assert (image.image_id, image.prompt) == (asked.images[0][0], "a cup on a table, candle light")
    assert requested.row.negative_prompt == "blur, text"
    assert requested.config.layout == asked.layout
    assert asked.layout.keep_free == (0.0, 0.0, 0.4, 0.2)
