"""Judges: they are tested on renders they have not learned from, and kept in files that run no code."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from refadgen.evaluation import judges
from refadgen.evaluation.held_out import SIZE
from refadgen.evaluation.judges import Judge, Renders, SceneClassifier, Segmenter, judge_at, judge_images


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """An untrained judge, which `judge_at` makes in place of a trained one."""
    made = Judge(Segmenter().eval(), SceneClassifier().eval(), 0.5, 0.25, 8)
    monkeypatch.setattr(judges, "train_judge", lambda pool, *, speed: made)
    return made


def test_renders_that_test_and_renders_that_train_are_different() -> None:
    numbers = np.arange(12)
    own, learned = Renders(numbers, numbers, numbers).split(4)
    assert list(own.images) == [0, 1, 2, 3]
    assert list(learned.images) == list(range(4, 12))


def test_a_judge_in_a_file_gives_the_verdict_of_the_one_saved(judge: Judge, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE["height_px"], SIZE["width_px"], 3), np.uint8)
    masks, words = images[..., 0] > 127, np.zeros((3, 3), np.int64)
    with ThreadPoolExecutor() as pool:
        first = judge_at(tmp_path / "judge.pt", pool, speed=8)
        again = judge_at(tmp_path / "judge.pt", pool, speed=8)
    assert first is judge
    assert again is not judge
    assert (again.own_iou, again.own_scene_accuracy, again.speed) == (0.5, 0.25, 8)
    one, other = judge_images(first, images, masks, words), judge_images(again, images, masks, words)
    np.testing.assert_array_equal(one.ious, other.ious)
    np.testing.assert_array_equal(one.words_right, other.words_right)
    assert one.scenes_right.shape == (3,)


def test_a_judge_of_another_speed_is_refused(judge: Judge, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        judge_at(tmp_path / "judge.pt", pool, speed=8)
        with pytest.raises(ValueError, match=r"judge\.pt: was trained with --judge-speed 8, not 1"):
            judge_at(tmp_path / "judge.pt", pool, speed=1)


def _no_pickle(file: Path) -> None:
    file.write_bytes(b"not a judge")


def _an_object(file: Path) -> None:
    file.write_bytes(pickle.dumps(Path("/")))


def _other_networks(file: Path) -> None:
    torch.save({"segmenter": {}, "classifier": {}}, file)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("write", [_no_pickle, _an_object, _other_networks, _empty])
def test_a_file_that_is_no_judge_is_refused(write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path / "judge.pt")
    with ThreadPoolExecutor() as pool, pytest.raises(ValueError, match=r"judge\.pt: not a judge of this version"):
        judge_at(tmp_path / "judge.pt", pool, speed=1)
