"""Images for channels, stage by stage: a canvas a ratio, a file a channel, and the ledger that names them."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_encoding import RECORD

from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.channels.lint import lint_file, read_mark
from refadgen.channels.pictures import srgb_profile
from refadgen.channels.rules import ChannelRule, load_rules
from refadgen.config import GenerateConfig, ImageFormat, LayoutConfig, OutputConfig, load_config
from refadgen.config.provenance import ProvenanceConfig
from refadgen.generation.channel_files import encode_for_channel
from refadgen.generation.encoding import GenerationRecord
from refadgen.generation.generator import AdGenerator
from refadgen.generation.ledger import AdLedgerRow
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.publisher import AdPublisher
from refadgen.generation.rows import FetchedProduct, GeneratedProduct, PlacedProduct
from refadgen.generation.stages import ProductSegmenter
from refadgen.generation.wanted import WantedImage
from refadgen.provenance.marks import AdMarks
from refadgen.provenance.record import read_record

RULES = load_rules()
NOISE = np.random.default_rng(0).integers(0, 255, (144, 144, 3), dtype=np.uint8)
WORDS = ["sampling.num_inference_steps=1", "sampling.batch_size=2", "sampling.width_px=128", "sampling.height_px=160"]
WORDS += ["sampling.guidance_scale=2", "sampling.reference_in_uncond=false"]
WORDS += ["channels=[merchant, meta-square, pmax-landscape]"]


@pytest.fixture(scope="module")
def config(random_model: Path) -> GenerateConfig:
    return load_config(GenerateConfig, None, [*WORDS, f"model.path={random_model}"])


def fetched(number: int, product: tuple[int, int, int, int] = (20, 20, 45, 70)) -> FetchedProduct:
    """A red block on white; two ratios wanted. product: its box in the photograph."""
    photo = Image.new("RGB", (60, 80), "white")
    photo.paste((200, 30, 30), product)
    mask = Image.new("L", photo.size)
    mask.paste(255, product)
    wanted = tuple(
        WantedImage(
            image_id=f"{number:016x}{place:016x}", scene="s", variant=0, prompt="a cup", seed=number, ratio=ratio
        )
        for place, ratio in enumerate(("1:1", "1.91:1"))
    )
    return FetchedProduct(
        row=number,
        sku=f"sku-{number}",
        category=None,
        image="",
        negative_prompt=None,
        wanted=wanted,
        layout=LayoutConfig(),
        photo=encode_png(photo),
        own_mask=encode_png(mask),
        input_sha256="0" * 64,
        fetch_s=0.0,
        error=None,
    )


def placed(config: GenerateConfig, *rows: FetchedProduct) -> list[PlacedProduct]:
    return from_table(ProductSegmenter(config, "run-1")(to_table(rows, FetchedProduct)), PlacedProduct)


def test_a_product_is_placed_on_each_canvas(config: GenerateConfig) -> None:
    rows = placed(config, fetched(1))
    assert [(row.width_px, row.height_px, [each.ratio for each in row.wanted]) for row in rows] == [
        (144, 144, ["1:1"]),
        (200, 104, ["1.91:1"]),
    ]
    assert all(Image.open(io.BytesIO(row.canvas)).size == (row.width_px, row.height_px) for row in rows)


def test_a_product_of_a_few_pixels_fits_no_channel(config: GenerateConfig) -> None:
    refused, good = placed(config, fetched(1, (30, 40, 36, 46))), placed(config, fetched(2, (30, 40, 55, 46)))
    assert [row.error and row.error.reason for row in refused] == 2 * ["too_small_for_channel"]
    assert refused[0].error is not None
    assert refused[0].error.detail.startswith(
        "image: its product has 6 px on the longer side, and 86 on the canvas for merchant, meta-square: at most 8"
    )
    assert [row.error for row in good] == [None, None]


def test_each_channel_gets_its_file(config: GenerateConfig, tmp_path: Path) -> None:
    table = to_table(placed(config, fetched(1)), PlacedProduct)
    made = [row for table in AdGenerator(config, "run-1")(table) for row in from_table(table, GeneratedProduct)]
    model = ModelIdentity(fingerprint="f" * 16, label="m@" + "f" * 16)
    rows = from_table(AdPublisher(config, "run-1", str(tmp_path), model)(to_table(made, GeneratedProduct)), AdLedgerRow)
    assert [(row.status, row.ratio, row.lint, row.width_px) for row in rows] == [
        ("done", "1:1", "clean", 144),
        ("done", "1.91:1", "clean", 200),
    ]
    files = [file for row in rows for file in row.channel_files or ()]
    assert [(file.channel, file.width_px, file.height_px) for file in files] == [
        ("merchant", 1500, 1500),
        ("meta-square", 1080, 1080),
        ("pmax-landscape", 1200, 628),
    ]
    for file in files:
        data = (tmp_path / file.uri).read_bytes()
        assert len(data) == file.num_bytes
        assert lint_file(data, RULES[file.channel], "trainedAlgorithmicMedia") == []
        assert file.uri == f"channels/{file.channel}/00/{read_record(data)['image_id']}.jpg"


def test_images_of_several_sizes_share_an_engine_and_no_pixel(config: GenerateConfig) -> None:
    def ads(*rows: PlacedProduct) -> dict[str, bytes]:
        tables = AdGenerator(config, "run-1")(to_table(rows, PlacedProduct))
        made = [row for table in tables for row in from_table(table, GeneratedProduct)]
        return {image.wanted.image_id: image.ad for row in made for image in row.images}

    rows = placed(config, fetched(1), fetched(2))
    together = ads(*rows)
    assert len(together) == 4
    assert ads(rows[3]).items() <= together.items()


def file_of(record: GenerationRecord, rule: ChannelRule, output: OutputConfig) -> tuple[bytes, str]:
    file, used = encode_for_channel(NOISE, record, rule, output, AdMarks(ProvenanceConfig()))
    return file.data, used


def test_a_composite_is_marked_as_each_channel_takes_it() -> None:
    pasted = dataclasses.replace(RECORD, rung="product_pixels")
    marks = {}
    for name in ("merchant", "meta-square"):
        data, _ = file_of(pasted, RULES[name], OutputConfig())
        marks[name] = read_mark(Image.open(io.BytesIO(data)))
    assert marks == {"merchant": "trainedAlgorithmicMedia", "meta-square": "compositeWithTrainedAlgorithmicMedia"}


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_files_of_each_format_are_clean_and_the_same_each_time(format: ImageFormat) -> None:
    rule = dataclasses.replace(RULES["meta-square"], formats=("webp", "png", "jpeg"))
    data, used = file_of(RECORD, rule, OutputConfig(format=format))
    assert used == format
    assert lint_file(data, rule, "trainedAlgorithmicMedia") == []
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == srgb_profile()
    assert file_of(RECORD, rule, OutputConfig(format=format)) == (data, used)


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_file_gets_below_the_bytes_that_its_channel_takes(format: str) -> None:
    rule = dataclasses.replace(RULES["meta-square"], max_bytes=420_000)
    large, _ = file_of(RECORD, RULES["meta-square"], OutputConfig(format=format))
    small, used = file_of(RECORD, rule, OutputConfig(format=format))
    assert (len(large) > 420_000, len(small) <= 420_000, used) == (True, True, "jpeg")
