"""A fault in a stage: one traceback in the log with run, row and sku, a failed row; the other rows go on."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import GenerateConfig, LayoutConfig, load_config
from refadgen.config.generate import CostConfig
from refadgen.config.provenance import ProvenanceConfig
from refadgen.generation.generator import AdGenerator
from refadgen.generation.ledger import AdLedgerRow
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.publisher import AdPublisher
from refadgen.generation.rows import (
    FetchedProduct,
    GeneratedImage,
    GeneratedProduct,
    PlacedProduct,
    PlannedProduct,
)
from refadgen.generation.stages import ProductFetcher, ProductSegmenter
from refadgen.generation.wanted import WantedImage
from refadgen.provenance.content_credentials import AdFacts
from refadgen.provenance.record import read_record

WIDTH, HEIGHT = 128, 160
MODEL = ModelIdentity(fingerprint="f" * 16, label="m@" + "f" * 16)
WORDS = ["sampling.num_inference_steps=1", "sampling.batch_size=2", f"sampling.width_px={WIDTH}"]
WORDS += [f"sampling.height_px={HEIGHT}", "sampling.guidance_scale=2", "sampling.reference_in_uncond=false"]


@pytest.fixture(scope="module")
def config(random_model: Path) -> GenerateConfig:
    return load_config(GenerateConfig, None, [*WORDS, f"model.path={random_model}"])


def wanted(number: int, num_images: int = 1) -> tuple[WantedImage, ...]:
    ids = [f"{number:016x}{variant:016x}" for variant in range(num_images)]
    return tuple(
        WantedImage(image_id=image_id, scene="s", variant=variant, prompt="a cup on a table", seed=variant)
        for variant, image_id in enumerate(ids)
    )


def photograph() -> bytes:
    image = Image.new("RGB", (60, 80), "white")
    image.paste((200, 30, 30), (20, 20, 45, 70))
    return encode_png(image)


def planned(number: int, num_images: int = 1) -> PlannedProduct:
    return PlannedProduct(
        row=number,
        sku=f"sku-{number}",
        category=None,
        image="",
        image_bytes=photograph(),
        negative_prompt=None,
        wanted=wanted(number, num_images),
        layout=LayoutConfig(),
        error=None,
    )


def fetched(config: GenerateConfig, *rows: PlannedProduct) -> list[FetchedProduct]:
    return from_table(ProductFetcher(config, "run-1", "c.parquet")(to_table(rows, PlannedProduct)), FetchedProduct)


def placed(config: GenerateConfig, *rows: PlannedProduct) -> list[PlacedProduct]:
    table = to_table(fetched(config, *rows), FetchedProduct)
    return from_table(ProductSegmenter(config, "run-1")(table), PlacedProduct)


def generated(config: GenerateConfig, *rows: PlannedProduct) -> list[GeneratedProduct]:
    tables = AdGenerator(config, "run-1")(to_table(placed(config, *rows), PlacedProduct))
    return [row for table in tables for row in from_table(table, GeneratedProduct)]


def fails_at(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """`function`, but for its call with this number, from 0, and those after it."""
    calls: Iterator[int] = iter(range(1000))

    def called(*arguments: object, **settings: object) -> object:
        if next(calls) >= number:
            raise RuntimeError("boom")
        return function(*arguments, **settings)

    return called


def assert_one_traceback(caplog: pytest.LogCaptureFixture, stage: str, row: int) -> None:
    (record,) = [record for record in caplog.records if record.name == "refadgen.batch"]
    assert record.getMessage().startswith(f"{stage} failed: run run-1, row {row}, sku 'sku-{row}': ")
    assert "Traceback" in caplog.text
    assert "RuntimeError: boom" in caplog.text


def test_fetcher(config: GenerateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ProductFetcher, "num_threads", 1)  # a fixed order of the rows
    from refadgen.generation import stages

    monkeypatch.setattr(stages, "decode_image", fails_at(1, stages.decode_image))
    rows = fetched(config, planned(0), planned(1), planned(2))
    assert [row.error and row.error.reason for row in rows] == [None, "internal_error", "internal_error"]
    assert rows[0].photo
    assert_one_traceback(caplog, "ProductFetcher", 1)


def test_segmenter(config: GenerateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from refadgen.generation import stages

    monkeypatch.setattr(stages, "place", fails_at(1, stages.place))
    rows = placed(config, planned(0), planned(1), planned(2))
    assert [row.error and row.error.reason for row in rows] == [None, "internal_error", "internal_error"]
    assert (rows[0].width_px, rows[1].width_px) == (WIDTH, None)
    assert_one_traceback(caplog, "ProductSegmenter", 1)


def test_generator(config: GenerateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from refadgen.model import RefAdGenPipeline

    monkeypatch.setattr(RefAdGenPipeline, "decode", fails_at(2, RefAdGenPipeline.decode))
    rows = generated(config, planned(0, 2), planned(1, 2), planned(2, 2))
    outcomes = {row.sku: [image.error and image.error.reason for image in row.images] for row in rows}
    assert outcomes == {"sku-0": [None, None], "sku-1": 2 * ["generation_error"], "sku-2": 2 * ["generation_error"]}
    assert_one_traceback(caplog, "AdGenerator", 1)


def test_publisher(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from refadgen.generation import publisher

    rows = generated(config, planned(0), planned(1), planned(2))
    monkeypatch.setattr(publisher, "encode_ad", fails_at(1, publisher.encode_ad))
    table = AdPublisher(config, "run-1", str(tmp_path), MODEL)(to_table(rows, GeneratedProduct))
    entries = from_table(table, AdLedgerRow)
    assert [entry.status for entry in entries] == ["done", "failed", "failed"]
    assert [bool(entry.uri) for entry in entries] == [True, False, False]
    assert "RuntimeError: boom" in entries[1].detail
    assert_one_traceback(caplog, "AdPublisher", 1)


def test_marks_are_columns_and_unsigned_bytes_are_the_same_in_each_run(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refadgen.provenance import marks

    class Signer:
        signed_by = "CN=Test"

        def __init__(self, config: object) -> None: ...

        def sign(self, data: bytes, format: str, facts: AdFacts) -> bytes:
            return data + facts.image_id.encode() + os.urandom(8)

    monkeypatch.setattr(marks, "Signer", Signer)
    rows = to_table(generated(config, planned(0)), GeneratedProduct)
    own = ProvenanceConfig(certificate="c", key="k", watermark="spread-spectrum")
    both = []
    for name, provenance in (("a", own), ("b", own), ("plain", ProvenanceConfig())):
        stage = AdPublisher(dataclasses.replace(config, provenance=provenance), "run-1", str(tmp_path / name), MODEL)
        (entry,) = from_table(stage(rows), AdLedgerRow)
        both.append((entry, (tmp_path / name / entry.uri).read_bytes()))
    (first, data), (second, again), (plain, bare) = both
    assert data != again
    assert first.unsigned_sha256 == second.unsigned_sha256 == hashlib.sha256(data[:-40]).hexdigest()
    assert (first.signed_by, first.watermark) == ("CN=Test", "spread-spectrum")
    assert (plain.signed_by, plain.watermark) == ("", "")
    assert plain.unsigned_sha256 == hashlib.sha256(bare).hexdigest() != first.unsigned_sha256


def test_a_product_travels_and_is_published_once_for_all_its_images(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = generated(config, planned(0, 5))
    assert len(row.images) == 5
    keys: list[str] = []
    stage = AdPublisher(config, "run-1", str(tmp_path), MODEL)
    write = stage._storage.write
    monkeypatch.setattr(stage._storage, "write", lambda key, data: (keys.append(key), write(key, data)))
    entries = from_table(stage(to_table([row], GeneratedProduct)), AdLedgerRow)
    assert {entry.product_uri for entry in entries} == {row.product_uri}
    assert keys.count(row.product_uri) == 1
    with Image.open(io.BytesIO((tmp_path / row.product_uri).read_bytes())) as product:
        mask = np.asarray(Image.open(io.BytesIO(row.product_mask)))
        assert np.array_equal(np.asarray(product)[..., 3], mask)


def test_a_picture_of_the_product_that_could_not_be_written_is_tried_again_with_the_next_image(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = generated(config, planned(0, 3))
    stage = AdPublisher(config, "run-1", str(tmp_path), MODEL)
    write, calls = stage._storage.write, iter(range(100))

    def flaky(key: str, data: bytes) -> None:
        if next(calls) == 0:
            raise OSError("SlowDown")
        write(key, data)

    monkeypatch.setattr(stage._storage, "write", flaky)
    entries = from_table(stage(to_table([row], GeneratedProduct)), AdLedgerRow)
    assert [entry.status for entry in entries] == ["failed", "done", "done"]
    assert [entry.product_uri for entry in entries] == ["", row.product_uri, row.product_uri]


def test_many_images_of_a_product_come_in_rows_that_stay_small(config: GenerateConfig) -> None:
    rows = generated(config, planned(0, 11))
    assert [len(row.images) for row in rows] == [8, 3]
    assert [image.wanted.variant for row in rows for image in row.images] == list(range(11))


def test_an_error_of_an_earlier_stage_reaches_every_image(config: GenerateConfig, tmp_path: Path) -> None:
    broken = dataclasses.replace(planned(3, 2), image_bytes=b"no image")
    (row,) = generated(config, broken)
    table: pa.Table = AdPublisher(config, "run-1", str(tmp_path), MODEL)(to_table([row], GeneratedProduct))
    entries = from_table(table, AdLedgerRow)
    assert [(entry.status, entry.reason) for entry in entries] == 2 * [("rejected", "not_an_image")]
    assert [(entry.attempts, entry.seed, entry.product_uri) for entry in entries] == [(0, 0, ""), (0, 1, "")]


def test_images_are_the_same_whatever_the_company(config: GenerateConfig) -> None:
    def ads(*rows: PlannedProduct) -> dict[str, bytes]:
        images: list[GeneratedImage] = [image for row in generated(config, *rows) for image in row.images]
        return {image.wanted.image_id: image.ad for image in images}

    together = ads(planned(0), planned(1, 2))
    assert together == ads(planned(1, 2)) | ads(planned(0))


def test_an_image_costs_its_share_of_the_device(config: GenerateConfig, tmp_path: Path) -> None:
    (row,) = generated(config, planned(0))
    row = dataclasses.replace(row, images=(dataclasses.replace(row.images[0], generate_s=36.0),))
    stages = dataclasses.replace(config.stages, generate=dataclasses.replace(config.stages.generate, num_gpus=2))

    def cost(per_gpu_hour: float) -> float | None:
        priced = dataclasses.replace(config, stages=stages, cost=CostConfig(per_gpu_hour=per_gpu_hour))
        table = AdPublisher(priced, "run-1", str(tmp_path), MODEL)(to_table([row], GeneratedProduct))
        return from_table(table, AdLedgerRow)[0].cost

    assert cost(3.0) == pytest.approx(36 / 3600 * 2 * 3.0)
    assert cost(0.0) is None  # not nothing: it is not known


def test_as_photographed_the_ad_has_the_photographs_ratio(config: GenerateConfig, tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(planned(0), layout=LayoutConfig(as_photographed=True, long_side_px=320)),
        planned(1),
    ]
    made = generated(config, *rows)
    assert [np.asarray(Image.open(io.BytesIO(row.images[0].ad))).shape for row in made] == [(HEIGHT, WIDTH, 3)] * 2
    table = AdPublisher(config, "run-1", str(tmp_path), MODEL)(to_table(made, GeneratedProduct))
    entries = from_table(table, AdLedgerRow)
    assert [(entry.status, entry.width_px, entry.height_px, entry.as_photographed) for entry in entries] == [
        ("done", 240, 320, True),
        ("done", WIDTH, HEIGHT, False),
    ]
    data = (tmp_path / entries[0].uri).read_bytes()
    assert Image.open(io.BytesIO(data)).size == (240, 320)
    assert read_record(data)["as_photographed"] is True
    assert "as_photographed" not in read_record((tmp_path / entries[1].uri).read_bytes())
    # The photograph's box is 20 to 45 of 60, and 20 to 70 of 80.
    mask = np.asarray(Image.open(tmp_path / entries[0].product_uri))[..., 3] >= 128
    rows_in, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0] / 240, (columns[-1] + 1) / 240, rows_in[0] / 320, (rows_in[-1] + 1) / 320]
    assert box == pytest.approx([20 / 60, 45 / 60, 20 / 80, 70 / 80], abs=0.01)
