"""The generating stage on a denoiser that only counts: who shares a step, what is tried again, what an end costs."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import GenerateConfig, load_config
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import EngineLostError, OutOfDeviceMemoryError
from refadgen.generation import generator as module
from refadgen.generation.generator import AdGenerator
from refadgen.generation.rows import GeneratedImage, GeneratedProduct, PlacedProduct
from refadgen.generation.wanted import WantedImage, attempt_seed
from refadgen.storage.pictures import from_png

BATCH, STEPS = 4, 3


@dataclasses.dataclass(eq=False)
class Row:
    order: AdOrder
    left: int = STEPS


class CountingDenoiser:
    """Paints each image in the canvas's colours; seeds in `bad_seeds` come out black. `gate` holds the first step."""

    batch_size = BATCH
    num_kinds = 1

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.bad_seeds: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.lost: Exception | None = None
        self.fits = BATCH
        """Rows for which there is memory."""
        self.step_s = 0.0

    def start(self, order: AdOrder) -> Row:
        if order.prompt == "too long":
            raise module.RowError("prompt_too_long", "prompt: too long: the model takes 77 tokens")
        return Row(order)

    def kind(self, row: Row) -> int:
        return 0

    def num_steps(self, row: Row) -> int:
        return STEPS

    def step(self, rows: list[Row], batch_size: int) -> list[Row]:
        self.gate.wait(20)
        time.sleep(self.step_s)
        if self.error is not None:
            raise self.error
        if batch_size > self.fits:
            raise OutOfDeviceMemoryError(f"no memory for {batch_size}")
        self.sizes.append(len(rows))
        for row in rows:
            row.left -= 1
        return [row for row in rows if not row.left]

    def finish(self, order: AdOrder, row: Row) -> np.ndarray:
        return np.zeros_like(order.canvas) if order.seed in self.bad_seeds else order.canvas

    def preview(self, row: Row) -> bytes:
        return b""

    def check_device(self) -> None:
        if self.lost is not None:
            raise self.lost


@pytest.fixture
def denoiser(monkeypatch: pytest.MonkeyPatch) -> CountingDenoiser:
    made = CountingDenoiser()
    monkeypatch.setattr(AdGenerator, "_make_denoiser", lambda self: made)
    return made


@pytest.fixture
def generator(denoiser: CountingDenoiser, tmp_path: Path) -> Iterator[AdGenerator]:
    words = ["sampling.guidance_scale=2", f"sampling.batch_size={BATCH}", f"model.path={tmp_path}"]
    words += ["quality.max_attempts=2", "quality.min_color_similarity=0.5"]
    made = AdGenerator(load_config(GenerateConfig, None, words), "run-1")
    yield made
    denoiser.gate.set()
    made._engine.stop()


def placed(number: int, num_images: int = 1, prompt: str = "a cup") -> PlacedProduct:
    canvas = np.random.default_rng(number).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    mask = np.zeros((64, 48), np.uint8)
    mask[10:50, 10:40] = 255
    wanted = tuple(
        WantedImage(image_id=f"{number:016x}{v:016x}", scene="s", variant=v, prompt=prompt, seed=100 * number + v)
        for v in range(num_images)
    )
    return PlacedProduct(
        row=number, sku=f"sku-{number}", category=None, image="", negative_prompt=None, wanted=wanted, decision="",
        input_sha256="", fetch_s=0, segment_s=0, canvas=encode_png(canvas), product_mask=encode_png(mask),
        product_uri=f"product-{number}", error=None,
    )  # fmt: skip


def block(*rows: PlacedProduct) -> pa.Table:
    return to_table(rows, PlacedProduct)


def made_of(generator: AdGenerator, *rows: PlacedProduct) -> list[GeneratedProduct]:
    return [row for table in generator(block(*rows)) for row in from_table(table, GeneratedProduct)]


def images_of(rows: list[GeneratedProduct]) -> dict[str, GeneratedImage]:
    return {image.wanted.image_id: image for row in rows for image in row.images}


def test_blocks_that_are_in_hand_together_share_their_batches(
    generator: AdGenerator, denoiser: CountingDenoiser
) -> None:
    """Four blocks of three images make three full batches of four."""
    denoiser.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(made_of, generator, placed(number, 3)) for number in range(4)]
        until = time.monotonic() + 10
        while generator._engine.num_waiting + generator._engine.num_running < 12 and time.monotonic() < until:
            time.sleep(0.01)
        denoiser.gate.set()
        rows = [row for call in calls for row in call.result(timeout=20)]
    assert len(images_of(rows)) == 12
    assert not any(image.error for image in images_of(rows).values())
    assert sum(denoiser.sizes) == 12 * STEPS
    assert len(denoiser.sizes) <= 3 * STEPS + STEPS  # the first step may begin with what there is
    assert denoiser.sizes.count(BATCH) >= 2 * STEPS


def test_each_call_gets_the_images_of_its_own_block(generator: AdGenerator) -> None:
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(made_of, generator, placed(2 * n, 2), placed(2 * n + 1)) for n in range(3)]
        for n, call in enumerate(calls):
            rows = call.result(timeout=20)
            assert sorted(row.sku for row in rows) == [f"sku-{2 * n}", f"sku-{2 * n + 1}"]
            assert len(images_of(rows)) == 3


def test_a_product_of_many_images_travels_in_rows_of_eight(generator: AdGenerator) -> None:
    rows = made_of(generator, placed(1, 19))
    assert [len(row.images) for row in rows] == [8, 8, 3]
    assert len(images_of(rows)) == 19


def test_the_gate_sends_an_image_back_for_another_seed(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    seed = placed(1).wanted[0].seed
    denoiser.bad_seeds = {seed}
    (image,) = images_of(made_of(generator, placed(1))).values()
    assert image.error is None
    assert (image.attempts, image.seed, image.batch_size) == (2, attempt_seed(seed, 1), BATCH)
    assert image.generate_s is not None
    assert image.generate_s > 0


def test_an_image_that_never_passes_is_named_with_its_scores(
    generator: AdGenerator, denoiser: CountingDenoiser
) -> None:
    seed = placed(1).wanted[0].seed
    denoiser.bad_seeds = {seed, attempt_seed(seed, 1)}
    (image,) = images_of(made_of(generator, placed(1))).values()
    assert image.error is not None
    assert image.error.reason == "low_fidelity"
    assert image.ad == b""
    assert image.scores is not None


def test_an_unsafe_ad_is_rejected_and_not_published(classifier: Path, denoiser: CountingDenoiser) -> None:
    def made(most: float) -> GeneratedImage:
        words = ["sampling.guidance_scale=2", "model.device=cpu", f"quality.unsafe_model={classifier}"]
        moderated = AdGenerator(
            load_config(GenerateConfig, None, [*words, f"quality.max_unsafe_score={most}"]), "run-1"
        )
        (image,) = images_of(made_of(moderated, placed(1))).values()
        moderated._engine.stop()
        return image

    fine, unsafe = made(1.0), made(0.0)
    assert fine.error is None
    assert unsafe.error is not None
    assert (unsafe.error.status, unsafe.error.reason, unsafe.ad) == ("rejected", "unsafe", b"")
    assert "quality.max_unsafe_score" in unsafe.error.detail
    assert unsafe.scores == fine.scores


def test_a_prompt_that_is_too_long_costs_its_image(generator: AdGenerator) -> None:
    rows = made_of(generator, placed(1, prompt="too long"), placed(2))
    outcomes = {row.sku: row.images[0].error and row.images[0].error.reason for row in rows}
    assert outcomes == {"sku-1": "prompt_too_long", "sku-2": None}
    (never,) = [row.images[0] for row in rows if row.sku == "sku-1"]
    assert (never.attempts, never.generate_s, never.seed) == (0, None, never.wanted.seed)


def test_a_product_that_was_refused_before_passes_through(generator: AdGenerator) -> None:
    error = module.RowFailure.of(module.RowError("mask_empty", "the mask is empty"))
    rows = made_of(generator, dataclasses.replace(placed(1, 2), canvas=b"", error=error), placed(2))
    outcomes = {row.sku: [image.error and image.error.reason for image in row.images] for row in rows}
    assert outcomes == {"sku-1": 2 * ["mask_empty"], "sku-2": [None]}


def test_a_step_that_fails_fails_its_images_alone(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    denoiser.error = RuntimeError("no such kernel")
    (image,) = images_of(made_of(generator, placed(1))).values()
    assert image.error is not None
    assert image.error.reason == "generation_error"
    assert image.attempts == 1
    denoiser.error = None
    (image,) = images_of(made_of(generator, placed(2))).values()
    assert image.error is None


@pytest.mark.parametrize("fault", ["the device", "the thread", "the scorers"])
def test_a_lost_engine_ends_the_actors_process(
    generator: AdGenerator, denoiser: CountingDenoiser, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Nothing hangs and no image fails: another process retries the calls in hand. Outside Ray it is an error."""
    if fault == "the device":
        denoiser.error = denoiser.lost = RuntimeError("CUDA error: unspecified launch failure")
    elif fault == "the thread":
        denoiser.error = SystemExit("launch failure")
    else:
        monkeypatch.setattr(generator._scorers, "submit", lambda *_: refuse("launch failure of a thread"))
    with pytest.raises(EngineLostError, match="launch failure"):
        made_of(generator, placed(1, 3), placed(2))
    if fault != "the scorers":
        with pytest.raises(EngineLostError):  # each of the calls in hand, and later ones
            made_of(generator, placed(3))


def refuse(problem: str) -> None:
    raise RuntimeError(problem)


def test_too_little_memory_costs_no_image_and_the_ledger_can_name_the_batch_size(
    generator: AdGenerator, denoiser: CountingDenoiser
) -> None:
    denoiser.fits = 1
    rows = made_of(generator, placed(1, 3), placed(2, 3))
    assert len(images_of(rows)) == 6
    assert [(image.error, image.batch_size, image.attempts) for image in images_of(rows).values()] == 6 * [(None, 1, 1)]
    assert denoiser.sizes == 6 * STEPS * [1]


def test_a_single_image_without_memory_fails_by_name(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    denoiser.fits = 0
    (image,) = images_of(made_of(generator, placed(1))).values()
    assert image.error is not None
    assert image.error.reason == "generation_error"
    assert "sampling.width_px" in image.error.detail


def test_rows_leave_in_the_blocks_order(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    """A retried call gives its rows in the order of the call that was lost, whatever was finished first."""
    first = placed(1).wanted[0].seed
    denoiser.bad_seeds = {first}  # the first image is made twice, and finished after the others
    rows = made_of(generator, placed(1, 2), placed(2), placed(3))
    assert [row.sku for row in rows] == ["sku-1", "sku-2", "sku-3"]
    assert [image.wanted.variant for image in rows[0].images] == [0, 1]
    assert rows[0].images[0].attempts == 2


def test_a_call_that_pauses_has_two_batches_in_hand(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    call = generator(block(placed(1, 400)))
    next(call)
    before = sum(denoiser.sizes)
    until = time.monotonic() + 10
    while generator._engine.num_waiting + generator._engine.num_running and time.monotonic() < until:
        time.sleep(0.01)
    assert sum(denoiser.sizes) <= before + 2 * BATCH * STEPS  # the device pauses with its consumer


def test_a_call_that_is_left_cancels_its_images(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    denoiser.step_s = 0.05
    call = generator(block(placed(1, 400)))
    next(call)
    call.close()
    before = sum(denoiser.sizes)
    time.sleep(0.5)
    assert sum(denoiser.sizes) <= before + BATCH  # the step that was under way


def test_features_are_shared_by_equal_canvases_only(generator: AdGenerator, denoiser: CountingDenoiser) -> None:
    """Two products that differ in one value have the same compressed picture, but not the same features."""
    first = placed(1)
    canvas = from_png(first.canvas).copy()
    canvas[0, 0, 0] ^= 1
    other = dataclasses.replace(placed(2), canvas=encode_png(canvas), product_uri=first.product_uri)
    keys: list[str] = []
    start = denoiser.start
    denoiser.start = lambda order: (keys.append(order.product_key), start(order))[1]  # type: ignore[method-assign]
    made_of(generator, first, other, dataclasses.replace(first, row=3))
    assert len(keys) == 3
    assert len({*keys}) == 2


def test_the_ladder_ends_with_the_products_own_pixels(denoiser: CountingDenoiser, tmp_path: Path) -> None:
    words = ["sampling.guidance_scale=2", f"sampling.batch_size={BATCH}", f"model.path={tmp_path}"]
    words += ["quality.min_color_similarity=0.9", "quality.fusion_attempts=1", "quality.product_pixels=true"]
    generator = AdGenerator(load_config(GenerateConfig, None, words), "run-1")
    seed = placed(1).wanted[0].seed
    denoiser.bad_seeds = {seed, attempt_seed(seed, 1)}
    try:
        made = images_of(made_of(generator, placed(1, 2)))
    finally:
        generator._engine.stop()
    rescued, good = made[placed(1).wanted[0].image_id], made[placed(1, 2).wanted[1].image_id]
    assert (good.rung, good.attempts, good.fusion_scale, good.error) == ("first", 1, 1.0, None)
    assert (rescued.rung, rescued.attempts, rescued.error) == ("product_pixels", 2, None)
    assert from_png(rescued.ad)[30, 25].tolist() == from_png(placed(1).canvas)[30, 25].tolist()
    assert not from_png(rescued.ad)[0].any()  # around the product, the scene that was drawn: black
