"""The verdict's calibration, on measurements whose truth is known by construction."""

import json

import numpy as np
import pytest

from refadgen.mask_training.calibrate import Measured, _folds, fit, measure_scenes, reliability
from refadgen.segmentation.second_opinion import WEIGHTS
from refadgen.segmentation.verdict import Verdict, load_verdict


def _rows(count: int, seed: int) -> list[Measured]:
    """Masks that are right with a probability that only one of two measurements tells."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        telling, silent = rng.normal(size=2)
        right = rng.random() < 1 / (1 + np.exp(-3 * telling))
        rows.append(
            Measured(
                "white", f"family {rng.integers(12)}", 0.97 if right else 0.6, {"telling": telling, "silent": silent}
            )
        )
    return rows


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return fit(_rows(2000, 0), num_steps=80)


def test_what_it_says_is_what_happens(verdict: Verdict) -> None:
    rows = _rows(2000, 1)
    said = np.array([verdict.probability(row.features) for row in rows])
    happened = np.array([row.iou >= 0.95 for row in rows])
    for mean, share, count in reliability(said, happened):
        assert count == 200
        assert abs(mean - share) < 0.12
    assert said[happened].mean() > 0.7 > 0.3 > said[~happened].mean()


def test_no_family_is_in_two_folds() -> None:
    families = ["cup"] * 50 + ["bag"] * 30 + [name for name in "abcdefgh" for _ in range(10)]
    folds = _folds(families, seed=3)
    assert sorted(np.concatenate(folds)) == list(range(len(families)))
    assert sum(len({families[index] for index in fold}) for fold in folds) == len(set(families))
    assert max(map(len, folds)) == 50  # of the one large family


def test_a_verdict_is_the_same_after_reading(verdict: Verdict, tmp_path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps(verdict.to_json()))
    features = {"telling": 0.4, "silent": -1.0}
    assert load_verdict(tmp_path / "verdict.json").probability(features) == pytest.approx(
        verdict.probability(features), abs=1e-5
    )


def test_scenes_are_measured_the_same_each_time() -> None:
    first, again = (list(measure_scenes("calibrate", None, WEIGHTS, first=20, count=2)) for _ in range(2))
    assert first == again
    assert {*first[0].features} == {*load_verdict().names}
    assert all(0 <= row.iou <= 1 for row in first)
