"""Measures while training, without Ray: what is written, which checkpoint stays, and a run that is killed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import TINY, Training, config_of

from refadgen.config.train import TrainConfig
from refadgen.evaluation.sample_measures import IdentityMeasures
from refadgen.training.checkpoints import Checkpoint, CheckpointStore
from refadgen.training.finished import draw_samples
from refadgen.training.loop import run_steps
from refadgen.training.measuring import Measuring, Sample, read_measures, rows_to_measure
from refadgen.training.rows import Arrays
from refadgen.triplets.schema import SCHEMA

FACTS = {"architecture": {}}
WORDS = (
    "run.num_steps=6",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=1",
    "measure.every=2",
    "measure.images=2",
    "measure.num_inference_steps=2",
    "measure.best_by=color_similarity",
)


class Killed(Exception):
    """Ends a run in the middle."""


class Planted:
    """Says of each call what was planted; `color_similarity` is None where it is."""

    def __init__(self, *values: float | None) -> None:
        self._values = iter(values)

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float | None]]:
        value = next(self._values)
        return {"color_similarity": [value] * len(samples), "shift": [None, 0.25]}


def run_to_the_end(
    config: TrainConfig,
    folder: Path,
    measures: Callable[..., Mapping[str, Sequence[float | None]]] | None,
    *,
    killed_before_measuring: int | None = None,
) -> Training:
    """As a worker runs, from the newest checkpoint."""
    training, store = Training(config), CheckpointStore(str(folder))
    measuring = None
    if measures is not None:
        measuring = Measuring(config, str(folder), rows_to_measure(config), measures, torch.device("cpu"))

    def after(checkpoint: Checkpoint) -> None:
        if checkpoint.step == killed_before_measuring:
            raise Killed
        if measuring is not None and measuring.is_due(checkpoint, 6):
            measuring.measure(checkpoint)

    resumed = store.latest()
    if resumed is not None:
        training.run.load(resumed)
        if measuring is not None and measuring.is_due(resumed, 6) and not measuring.is_measured(resumed):
            measuring.measure(resumed)

    def feed() -> Iterator[Arrays]:
        return training.feed()

    run_steps(
        training.run,
        feed(),
        training.make_batch,
        store,
        FACTS,
        on_step=lambda _: None,
        before_checkpoint=lambda _: None,
        after_checkpoint=after,
        best=(lambda _: None) if measuring is None else measuring.best,
    )
    return training


@pytest.fixture(scope="module")
def config(refadgen_base: Path) -> TrainConfig:
    return config_of(refadgen_base, *WORDS)


def test_the_measures_are_those_of_what_the_checkpoint_draws(config: TrainConfig, tmp_path: Path) -> None:
    measured = run_to_the_end(config, tmp_path, IdentityMeasures())
    found = read_measures(str(tmp_path))
    assert [each["step"] for each in found] == [2, 4, 6]
    assert {(each["images"], each["num_inference_steps"]) for each in found} == {(2, 2)}
    names = {"color_similarity", "structure_similarity", "local_similarity", "hue_similarity"}
    names |= {"nearest_product", "mask_iou", "object_expansion", "shift", "scale_error", "color_drift"}
    assert set(found[0]["means"]) == names

    last = CheckpointStore(str(tmp_path)).load(6)
    rows = rows_to_measure(config)
    drawn = draw_samples(config, last, [each.row for each in rows], torch.device("cpu"), 2)
    samples = [
        Sample(ad, each.row.product_image, each.row.mask, each.row.prompt, each.product_id)
        for each, ad in zip(rows, drawn, strict=True)
    ]
    again = IdentityMeasures()(samples)["color_similarity"]
    assert found[-1]["means"]["color_similarity"] == pytest.approx(float(np.mean(again)))
    assert found[-1]["counts"]["color_similarity"] == 2
    perfect = [Sample(s.canvas_u8, s.canvas_u8, s.mask_u8, s.prompt, s.product_id) for s in samples]
    assert IdentityMeasures()(perfect)["color_similarity"] == [1.0, 1.0]
    assert found[-1]["means"]["color_similarity"] < 1

    plain = run_to_the_end(config, tmp_path / "plain", None)  # measuring changes no step
    assert all(torch.equal(tensor, plain.weights()[name]) for name, tensor in measured.weights().items())


def test_the_best_checkpoint_stays_beside_the_last(config: TrainConfig, tmp_path: Path) -> None:
    run_to_the_end(config, tmp_path, Planted(0.9, 0.7, 0.8))
    assert CheckpointStore(str(tmp_path)).steps() == [2, 6]
    assert read_measures(str(tmp_path))[0]["means"] == {"color_similarity": 0.9, "shift": 0.25}
    assert read_measures(str(tmp_path))[0]["counts"] == {"color_similarity": 2, "shift": 1}


@pytest.mark.parametrize(
    ("values", "best"), [((0.5, 0.5, 0.4), [4, 6]), ((0.1, 0.2, 0.3), [4, 6]), ((None, None, None), [6])]
)
def test_of_equal_ones_the_later_stays(values: tuple, best: list[int], config: TrainConfig, tmp_path: Path) -> None:
    # What was the best until the last one was measured is there too: it goes with the next checkpoint.
    run_to_the_end(config, tmp_path, Planted(*values))
    assert CheckpointStore(str(tmp_path)).steps() == best


def test_a_run_killed_before_it_measured_makes_up_for_it(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_to_the_end(config, tmp_path, Planted(0.9), killed_before_measuring=4)
    assert [each["step"] for each in read_measures(str(tmp_path))] == [2]
    run_to_the_end(config, tmp_path, Planted(0.95, 0.8))
    found = read_measures(str(tmp_path))
    assert [(each["step"], each["means"]["color_similarity"]) for each in found] == [(2, 0.9), (4, 0.95), (6, 0.8)]
    assert CheckpointStore(str(tmp_path)).steps() == [4, 6]


def test_measures_under_other_conditions_do_not_compare(
    config: TrainConfig, refadgen_base: Path, tmp_path: Path
) -> None:
    run_to_the_end(config, tmp_path, Planted(0.9, 0.7, 0.8))
    other = config_of(refadgen_base, *WORDS, "measure.images=1")
    measuring = Measuring(other, str(tmp_path), rows_to_measure(other), Planted(), torch.device("cpu"))
    assert measuring.best(6) is None
    stored = CheckpointStore(str(tmp_path))
    assert not measuring.is_measured(stored.load(6))
    same = Measuring(config, str(tmp_path), rows_to_measure(config), Planted(), torch.device("cpu"))
    assert (same.best(6), same.best(5), same.best(1)) == (2, 2, None)


def data_set(folder: Path, splits: list[tuple[str, str]]) -> str:
    """Rows of the data set that ships, with other splits and products."""
    rows = pq.read_table(TINY).slice(0, len(splits)).to_pylist()
    for row, (split, product) in zip(rows, splits, strict=True):
        row |= {"split": split, "product_id": product}
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "rows.parquet", row_group_size=2)
    return f"data.path={folder}"


def test_rows_are_of_as_many_products_as_possible(refadgen_base: Path, tmp_path: Path) -> None:
    splits = [("test", "a"), ("test", "a"), ("train", "t"), ("test", "b"), ("test", "b"), ("test", "c")]
    words = data_set(tmp_path / "data", splits)
    for count, products in ((2, ["a", "b"]), (4, ["a", "b", "c", "a"]), (9, ["a", "b", "c", "a", "b"])):
        config = config_of(refadgen_base, *WORDS, words, f"measure.images={count}")
        assert [each.product_id for each in rows_to_measure(config)] == products


def test_what_cannot_be_measured_is_refused(refadgen_base: Path, tmp_path: Path) -> None:
    words = data_set(tmp_path / "none", [("train", "a"), ("train", "b")])
    with pytest.raises(ValueError, match=r"measure.every=2: .* has no rows of the split test"):
        rows_to_measure(config_of(refadgen_base, *WORDS, words))
    words = data_set(tmp_path / "one", [("test", "a"), ("test", "a")])
    with pytest.raises(ValueError, match=r"measure.best_by=nearest_product: tells products from each other"):
        rows_to_measure(config_of(refadgen_base, *WORDS, words, "measure.best_by=nearest_product"))
    with pytest.raises(ValueError, match=r"measure.every=3: must be a multiple of run.checkpoint_every=2"):
        config_of(refadgen_base, "measure.every=3")
    with pytest.raises(ValueError, match="no product is seen there"):
        config_of(refadgen_base, "measure.every=2", "model.trains=text_to_image")


def test_what_measures_travels_to_the_workers() -> None:
    import pickle

    assert pickle.loads(pickle.dumps(IdentityMeasures())) == IdentityMeasures()
