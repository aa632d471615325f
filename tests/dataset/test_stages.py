"""A fault in a stage: one traceback in the log with run, row and ad, a failed row; the other rows go on."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import DatasetConfig, load_config
from refadgen.dataset import captions, content, stages, variants
from refadgen.dataset.ledgers import AdLedgerRow, ScreeningRow
from refadgen.dataset.rows import DescribedAd, ExtractedAd, FetchedAd, PlannedAd
from refadgen.dataset.stages import AdDescriber, AdFetcher, AdScreener, ProductExtractor, TripletBuilder

CONFIG = load_config(DatasetConfig, None, ["filter.min_side_px=64", "triplet.variants=[original, degraded]"])
BOOM = ["", "internal_error", "internal_error"]


def planned(number: int, side_px: int = 80) -> PlannedAd:
    """An ad whose product is a block that differs by `number`."""
    picture = np.full((side_px, side_px, 3), 200, np.uint8)
    mask = np.zeros((side_px, side_px), np.uint8)
    mask[20:60, 20 : 50 + number] = 255
    picture[mask > 0] = (180, 40, 40)
    return PlannedAd(
        row_id=f"{number:032x}",
        row=number,
        ad_id=f"ad-{number}",
        group="one-product",
        category="Mug",
        image="",
        image_bytes=encode_png(picture),
        mask_bytes=encode_png(mask),
        error=None,
    )


ADS = [planned(number) for number in range(3)]


def screened(ads: list[PlannedAd] = ADS) -> list[ScreeningRow]:
    return from_table(AdScreener(CONFIG, "run-1", "ads.parquet")(to_table(ads, PlannedAd)), ScreeningRow)


def fetched(ads: list[PlannedAd] = ADS) -> list[FetchedAd]:
    return from_table(AdFetcher(CONFIG, "run-1", "ads.parquet")(to_table(ads, PlannedAd)), FetchedAd)


def extracted(ads: list[PlannedAd] = ADS) -> list[ExtractedAd]:
    return from_table(ProductExtractor(CONFIG, "run-1")(to_table(fetched(ads), FetchedAd)), ExtractedAd)


def described(ads: list[PlannedAd] = ADS) -> list[DescribedAd]:
    return from_table(AdDescriber(CONFIG, "run-1")(to_table(extracted(ads), ExtractedAd)), DescribedAd)


def built(output: Path, ads: list[PlannedAd] = ADS) -> list[AdLedgerRow]:
    stage = TripletBuilder(CONFIG, "run-1", str(output))
    return from_table(stage(to_table(described(ads), DescribedAd)), AdLedgerRow)


def reasons(rows: list[FetchedAd] | list[ExtractedAd] | list[DescribedAd]) -> list[str]:
    return [row.error.reason if row.error else "" for row in rows]


def fails_after(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """`function` for its first `number` calls; later ones raise."""
    calls: Iterator[int] = iter(range(1000))

    def called(*arguments: object, **settings: object) -> object:
        if next(calls) >= number:
            raise RuntimeError("boom")
        return function(*arguments, **settings)

    return called


def assert_one_traceback(caplog: pytest.LogCaptureFixture, stage: str, row: int = 1) -> None:
    (record,) = [record for record in caplog.records if record.name == "refadgen.batch"]
    assert record.getMessage().startswith(f"{stage} failed: run run-1, row {row}, ad 'ad-{row}': ")
    assert "Traceback" in caplog.text
    assert "RuntimeError: boom" in caplog.text


def test_screener(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(AdScreener, "num_threads", 1)  # a fixed order of the rows
    monkeypatch.setattr(stages, "thumbnail", fails_after(1, stages.thumbnail))
    rows = screened()
    assert [row.reason for row in rows] == BOOM
    assert [row.status for row in rows] == ["done", "failed", "failed"]
    assert re.fullmatch("row 2, ad 'ad-2': RuntimeError: boom", rows[2].detail)
    assert_one_traceback(caplog, "AdScreener")


def test_a_rejected_ad_keeps_its_measurements() -> None:
    (row,) = screened([planned(0, side_px=63)])
    assert (row.status, row.reason, row.width_px, row.height_px) == ("rejected", "low_resolution", 63, 63)
    assert row.perceptual_hash is not None
    assert row.thumbnail is not None


def test_fetcher(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(AdFetcher, "num_threads", 1)
    monkeypatch.setattr(stages, "decode_image", fails_after(1, stages.decode_image))
    rows = fetched()
    assert reasons(rows) == BOOM
    assert [bool(row.ad) for row in rows] == [True, False, False]
    assert_one_traceback(caplog, "AdFetcher")


def test_extractor(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(content.ContentFilter, "check", fails_after(1, content.ContentFilter.check))
    rows = extracted()
    assert reasons(rows) == BOOM
    assert [row.mask_source for row in rows] == ["own_mask", "", ""]
    assert_one_traceback(caplog, "ProductExtractor")


def test_captioner_that_fails_for_a_batch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(captions.TemplateCaptioner, "describe", fails_after(0, captions.TemplateCaptioner.describe))
    rows = described()
    assert reasons(rows) == 3 * ["caption_failed"]
    assert [row.captions for row in rows] == 3 * [None]
    assert_one_traceback(caplog, "AdDescriber", row=0)


def test_captions_of_one_ad(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(captions, "check_captions", fails_after(1, captions.check_captions))
    rows = described()
    assert reasons(rows) == BOOM
    assert [bool(row.captions) for row in rows] == [True, False, False]
    assert_one_traceback(caplog, "AdDescriber")


def test_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(variants.VariantMaker, "make", fails_after(1, variants.VariantMaker.make))
    rows = built(tmp_path)
    assert [row.reason for row in rows] == BOOM
    assert [bool(row.file) for row in rows] == [True, False, False]
    assert [bool(row.split) for row in rows] == [True, False, False]
    assert (tmp_path / rows[0].file).is_file()
    assert_one_traceback(caplog, "TripletBuilder")


def test_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stages, "write_rows", fails_after(0, stages.write_rows))
    rows = built(tmp_path)
    assert [(row.status, row.reason, row.file, row.split) for row in rows] == 3 * [("failed", "publish_failed", "", "")]
    assert [row.detail for row in rows] == [f"row {n}, ad 'ad-{n}': RuntimeError: boom" for n in range(3)]
    assert_one_traceback(caplog, "TripletBuilder", row=0)


def test_an_earlier_error_reaches_the_ledger(tmp_path: Path) -> None:
    unreadable = dataclasses.replace(ADS[1], image_bytes=b"no image")
    planned_wrong = dataclasses.replace(ADS[2], error=RowFailure("rejected", "empty_sku", "row 2: sku is empty"))
    rows = built(tmp_path, [ADS[0], unreadable, planned_wrong])
    assert [row.status for row in rows] == ["done", "rejected", "rejected"]
    assert [row.reason for row in rows] == ["", "not_an_image", "empty_sku"]
    assert [row.captions is None for row in rows] == [False, True, True]
    assert [(row.views, row.variants) for row in rows] == [("[]", "original, degraded"), (None, None), (None, None)]
