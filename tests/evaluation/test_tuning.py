"""The search for cheaper sampling: what counts as no worse, what is tried, what it costs, and the job around it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import refadgen
from jobs import tune_sampling as job
from refadgen.config import GenerateConfig, ServeConfig, load_config
from refadgen.evaluation import tune_sampling
from refadgen.evaluation.examples import Example, Examples, studio_examples, triplet_examples
from refadgen.evaluation.tuning import Candidate, Drawer, Search, compare
from refadgen.generation.model_settings import with_model_settings
from refadgen.model import RefAdGenPipeline

FULL = Candidate("model", 20)
TINY = str(Path(refadgen.__file__).parent / "triplets" / "tiny")
PRODUCTS = [str(number) for number in range(40)]


def scores(mean: float, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Three seeds of forty products, whose mean is exactly `mean`."""
    values = np.random.default_rng(seed).normal(0, spread, (3, 40))
    return values - values.mean() + mean


def test_the_same_scores_are_no_worse_and_differ_by_nothing():
    measured = compare(scores(0.7), scores(0.7), PRODUCTS)
    assert measured.no_worse
    assert measured.mean == measured.full_mean == pytest.approx(0.7)
    assert measured.difference_interval == (0, 0)
    assert measured.full_interval[0] < 0.7 < measured.full_interval[1]


@pytest.mark.parametrize(
    ("candidate", "no_worse"),
    [
        (scores(0.699, seed=1), True),
        (scores(0.6, seed=1), False),
        (scores(0.7) - 0.002, True),  # surely, but next to nothing
        (scores(0.7) - 0.012, False),  # within the interval, and in every product
        (scores(0.9, seed=1), True),
    ],
)
def test_worse_is_below_the_interval_or_surely_less(candidate, no_worse):
    assert compare(candidate, scores(0.7), PRODUCTS).no_worse == no_worse


def test_images_of_one_product_count_as_one():
    """Ten good images of one product and one bad of another: half and half."""
    values = np.array([[1.0] * 10 + [0.0]])
    assert compare(values, values, ["a"] * 10 + ["b"]).mean == 0.5


def cost(candidate: Candidate) -> float:
    share = 1.0 if candidate.guidance_interval == (0.0, 1.0) else 0.8
    return candidate.num_inference_steps / 20 * share / (1 + 0.2 * (candidate.reuse_steps - 1))


def searched(good) -> Search:
    """A search in a world where the images of candidates for which `good` is true are as good as the full run's."""
    asked = []

    def scores_of(candidate: Candidate):
        assert candidate not in asked
        asked.append(candidate)
        return {"identity": scores(0.8 if candidate == FULL or good(candidate) else 0.6), "scene": scores(0.5)}

    search = Search(FULL, scores_of, cost, PRODUCTS, schedulers=("model", "dpm++"), steps=(12, 10, 8, 6))
    search.run()
    assert asked.count(FULL) == 1
    return search


def test_the_cheapest_that_is_no_worse_is_found():
    search = searched(
        lambda each: (
            each.num_inference_steps >= (8 if each.scheduler == "dpm++" else 12)
            and each.guidance_interval in ((0.0, 1.0), (0.25, 1.0))
            and each.reuse_steps == 1
        )
    )
    assert search.best is not None
    assert search.best.candidate == Candidate("dpm++", 8, (0.25, 1.0))
    assert Candidate("model", 8) not in search.tried  # ten were too few already
    together = [each for each in search.tried if each.num_inference_steps < 20 and each.reuse_steps > 1]
    assert together == []  # worse alone


def test_where_all_is_worse_nothing_is_found():
    assert searched(lambda _: False).best is None


def test_parts_are_tried_with_the_full_run_where_no_other_steps_will_do():
    search = searched(lambda each: each.num_inference_steps == 20)
    assert search.best is not None
    assert search.best.candidate.reuse_steps == 3
    assert search.best.candidate.guidance_interval != (0.0, 1.0)


@pytest.fixture(scope="module")
def drawer(random_model):
    pipeline = RefAdGenPipeline.from_pretrained(random_model)
    canvas = np.full((160, 128, 3), 255, np.uint8)
    canvas[40:120, 30:90] = 60
    rows = [Example(canvas, 255 - canvas[..., 0], prompt, prompt) for prompt in ("a cup", "a bottle")]
    return Drawer(pipeline, rows, Candidate("model", 4))


def test_costs_are_shares_of_the_full_runs_operations(drawer):
    assert drawer.cost(Candidate("model", 4)) == 1
    assert drawer.cost(Candidate("dpm++", 2)) == 0.5
    unguided = drawer.cost(Candidate("model", 4, (0.0, 0.0)))
    assert 0.5 < unguided < 0.6  # one branch of two, and what both share
    again = drawer.cost(Candidate("model", 4, reuse_steps=2))
    assert 0.5 < again < 0.8
    assert drawer.cost(Candidate("model", 4, (0.0, 0.0), 2)) < min(unguided, again)


def test_images_depend_on_candidate_and_seed_only(drawer):
    first = drawer.draw(Candidate("model", 2), 0)
    assert first.shape == (2, 160, 128, 3)
    assert not np.array_equal(drawer.draw(Candidate("unipc", 2), 0), first)
    assert not np.array_equal(drawer.draw(Candidate("model", 2), 1), first)
    assert np.array_equal(drawer.draw(Candidate("model", 2), 0), first)
    assert drawer.usable(["model", "euler", "ddim"]) == ["model", "euler"]  # its own is DDIM


def test_candidates_of_which_nan_comes_out_are_worse_and_a_full_run_of_nan_ends_the_search():
    nothing = {"identity": scores(0.8) * np.nan}
    search = Search(FULL, lambda each: {"identity": scores(0.8)} if each == FULL else nothing, cost, PRODUCTS)
    assert search.run() is None
    search = Search(FULL, lambda _: nothing, cost, PRODUCTS)
    with pytest.raises(ValueError, match="model, 20 steps: identity is NaN"):
        search.run()


def test_latents_of_nan_are_no_images(drawer, monkeypatch):
    """Decoded they would be black, and all candidates as good as the full run."""
    start = drawer._pipeline.start

    def started(*inputs, **settings):
        row = start(*inputs, **settings)
        row.latents *= float("nan")
        return row

    monkeypatch.setattr(drawer._pipeline, "start", started)
    with pytest.raises(ArithmeticError, match=r"try another model\.dtype"):
        drawer.draw(Candidate("model", 2), 0)


def measured_by(folder: Path, examples, draw, decides=("model",)):
    """What the job keeps beside its output in `folder`."""
    words = ["mini", "--seeds", "2", "--output", str(folder / "tuned.yaml")]

    class Drawn:
        def draw(self, candidate, seed):
            return draw(candidate)

    return tune_sampling._Measured(job.parse_arguments(words), list(decides), Drawn(), examples)


def test_what_was_measured_is_kept_for_the_same_examples_and_model_only(tmp_path):
    canvas = np.full((4, 4, 3), 255, np.uint8)
    rows = [Example(canvas, canvas[..., 0], prompt, prompt) for prompt in ("a cup", "a bottle")]
    drawn = []

    def draw(candidate):
        drawn.append(candidate)
        if candidate.num_inference_steps == 2:
            raise ArithmeticError("NaN")
        return np.stack([canvas, canvas])

    def examples(rows):
        return Examples(rows, lambda images: {"identity": np.array([0.5, 0.75])}, "")

    first = measured_by(tmp_path, examples(rows), draw)
    with pytest.raises(ValueError, match="model, 2 steps: NaN"):
        first.scores(Candidate("model", 2))  # as the full run, with which all others would be compared
    assert first.scores(FULL)["identity"].tolist() == [[0.5, 0.75]] * 2
    assert np.isnan(first.scores(Candidate("dpm++", 2))["identity"]).all()
    with (tmp_path / "tuned.measured.jsonl").open("a") as file:
        file.write('\n{"run": "cut off')
    drawn.clear()
    again = measured_by(tmp_path, examples(rows), draw)
    assert again.scores(FULL)["identity"].tolist() == [[0.5, 0.75]] * 2
    assert np.isnan(again.scores(Candidate("dpm++", 2))["identity"]).all()
    assert drawn == []
    other_photo = [Example(canvas // 2, canvas[..., 0], row.prompt, row.product) for row in rows]
    for changed, decides in ((other_photo, ["model"]), (rows, ["another model"]), (rows[::-1], ["model"])):
        drawn.clear()
        measured_by(tmp_path, examples(changed), draw, decides).scores(FULL)
        assert len(drawn) == 2  # seeds


def test_triplets_are_examples_of_their_test_split():
    examples = triplet_examples(TINY, 2, (128, 160), None)
    assert 1 <= len({row.product for row in examples.rows}) == len(examples.rows) <= 2
    same = examples.judge(np.stack([row.canvas for row in examples.rows]))
    assert same["color_similarity"].min() > 0.99
    assert examples.unmeasured.startswith("the scene")
    with pytest.raises(ValueError, match="--clip nowhere: no CLIP"):
        triplet_examples(TINY, 2, (128, 160), "nowhere")


def test_the_job_writes_settings_that_another_model_refuses(random_model, tmp_path, capsys, monkeypatch):
    output = tmp_path / "tuned.yaml"
    words = [str(random_model), "--data", TINY, "--products", "2", "--seeds", "1", "--steps", "2"]
    words += ["--output", str(output), "--sheet", str(tmp_path / "sheet.png")]
    code = job.main(words)
    printed = capsys.readouterr().out
    assert "| model, 2 steps | 1 |" in printed
    assert "not measured: the scene" in printed
    assert "only 2 products: their intervals say little" in printed
    assert "# only 2 products" in output.read_text()
    lines = [json.loads(line) for line in output.with_suffix(".measured.jsonl").read_text().splitlines() if line]
    assert len({line["candidate"] for line in lines}) == len(lines) > 5
    # Random weights: anything may be as good. What is found is a share of the work, and names its model.
    assert code == 0
    assert (tmp_path / "sheet.png").exists()
    found = yaml.safe_load(output.read_text())["sampling"]
    config = load_config(GenerateConfig, output, [f"model.path={random_model}"])
    assert with_model_settings(config)[1].fingerprint == found["tuned_for"]
    with pytest.raises(ValueError, match=r"sampling.tuned_for='[0-9a-f]{16}': .* measured for another"):
        with_model_settings(load_config(GenerateConfig, output, ["model.path=mini"]))
    served = load_config(ServeConfig, output, [f"model.path={random_model}"]).generation()
    assert with_model_settings(served)[0].sampling == with_model_settings(config)[0].sampling
    # The same command again measures nothing anew.
    monkeypatch.setattr(Drawer, "draw", lambda *_: pytest.fail("drawn again"))
    assert job.main(words[:-2]) == code


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["mini", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["mini", "--products", "4"], "--products 4: must be a multiple of 3"),
        (["mini", "--clip", "somewhere"], "--clip: measures triplets"),
        (["no/model/here"], "no/model/here"),
        (["mini", "--data", "no/triplets"], "no/triplets"),
        (["mini", "sampling.guidance_scale=3"], "sampling.guidance_scale=3: only model.field=value"),
        (["mini", "--output", "no/folder/tuned.yaml"], "--output no/folder/tuned.yaml: must be a file in a folder"),
        (["mini", "--sheet", "sheet.txt"], "--sheet sheet.txt: must end as pictures do"),
    ],
)
def test_a_wrong_option_is_named(words, problem, tmp_path, capsys):
    assert job.main([words[0], "--output", str(tmp_path / "tuned.yaml"), *words[1:]]) == 2
    assert problem in capsys.readouterr().err


def test_the_studio_measures_models_of_its_size_only(tmp_path):
    with pytest.raises(ValueError, match=r"--data studio: is for models of 128×160 px .* canvas is 512×640"):
        studio_examples(48, (512, 640), tmp_path / "judge.pt")
