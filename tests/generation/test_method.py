"""Another generator in the main job: what it is asked for, what its failures cost, what enters ids."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import own_methods
import pytest
from PIL import Image
from test_generator import block, images_of, placed

from refadgen.batch.rows import from_table, to_table
from refadgen.config import GenerateConfig, as_words, load_config
from refadgen.generation.generator import AdGenerator
from refadgen.generation.ledger import AdLedgerRow
from refadgen.generation.method_settings import with_method_settings
from refadgen.generation.publisher import AdPublisher
from refadgen.generation.rows import GeneratedProduct
from refadgen.generation.wanted import attempt_seed
from refadgen.provenance.record import read_record
from refadgen.storage.pictures import from_png

SHADE = "method.class=own_methods:Shade"


def resolved(*words: str, method: str = SHADE):
    return with_method_settings(load_config(GenerateConfig, None, [method, *words]))


def fingerprint(*words: str, method: str = SHADE) -> str:
    return resolved(*words, method=method)[1].fingerprint


def made_of(config: GenerateConfig, *rows) -> list[GeneratedProduct]:
    generator = AdGenerator(config, "run-1")
    own_methods.Shade.asked.clear()
    try:
        return [row for table in generator(block(*rows)) for row in from_table(table, GeneratedProduct)]
    finally:
        generator._engine.stop()


def outcomes(rows: list[GeneratedProduct]) -> list[str]:
    return [image.error.detail if image.error else "" for row in rows for image in row.images]


def test_a_method_makes_the_images_in_full_batches() -> None:
    config, _ = resolved("sampling.batch_size=4", "method.settings.shade=9")
    rows = made_of(config, placed(1, 3), placed(2, 3))
    assert outcomes(rows) == [""] * 6
    assert [len(prompts) for prompts in own_methods.Shade.asked] == [4] * len(own_methods.Shade.asked)
    for row, product in zip(rows, (placed(1, 3), placed(2, 3)), strict=True):
        expected = np.maximum(from_png(product.canvas).astype(int) - 9, 0)
        for image in row.images:
            assert np.array_equal(from_png(image.ad), expected)
            assert (image.rung, image.attempts, image.batch_size) == ("first", 1, 4)
            assert 0 < image.scores.color_similarity < 1


def test_a_method_without_batches_gets_one_request_at_a_time() -> None:
    config, _ = resolved(method="method.class=own_methods:OneByOne")
    assert config.sampling.batch_size == 1
    made_of(config, placed(1, 3))
    assert own_methods.Shade.asked == [["a cup"]] * 3


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("broken", "row 2, sku 'sku-2': RuntimeError: this product breaks it"),
        ("small", "row 2, sku 'sku-2': ValueError: Shade.generate gave uint8 of 10×48×3, not uint8 of 64×48×3"),
        ("floats", "row 2, sku 'sku-2': ValueError: Shade.generate gave float32 of 64×48×3, not uint8 of 64×48×3"),
        ("missing", "row 2, sku 'sku-2': ValueError: Shade.generate gave 0 images for 4 requests"),
    ],
)
@pytest.mark.parametrize("method", ["Shade", "OneByOne"])
def test_what_fails_for_one_product_costs_its_row(method: str, prompt: str, problem: str) -> None:
    words = ["sampling.batch_size=4"] if method == "Shade" else []
    config, _ = resolved(*words, method=f"method.class=own_methods:{method}")
    rows = made_of(config, placed(1), placed(2, prompt=prompt), placed(3))
    expected = problem if method == "Shade" else problem.replace("Shade", method).replace("for 4", "for 1")
    assert outcomes(rows) == ["", expected, ""]
    assert {image.error.reason for row in rows for image in row.images if image.error} == {"generation_error"}


def test_the_gate_asks_a_method_for_another_seed() -> None:
    config, _ = resolved("quality.max_attempts=2", "quality.min_color_similarity=0.9", "sampling.batch_size=2")
    product = placed(0, 2)
    unlucky = dataclasses.replace(product.wanted[0], seed=13)
    found = images_of(made_of(config, dataclasses.replace(product, wanted=(unlucky, product.wanted[1]))))
    assert [(image.rung, image.attempts) for image in found.values()] == [("seed", 2), ("first", 1)]
    assert found[unlucky.image_id].seed == attempt_seed(13, 1)


def test_ledger_and_file_name_the_method(tmp_path: Path) -> None:
    config, identity = resolved("sampling.batch_size=2", "output.format=png")
    rows = made_of(config, placed(1))
    publisher = AdPublisher(config, "run-1", str(tmp_path), identity)
    rows = [
        GeneratedProduct(**{**vars(row), "width_px": 48, "height_px": 64, "as_photographed": False}) for row in rows
    ]
    (row,) = from_table(publisher(to_table(rows, GeneratedProduct)), AdLedgerRow)
    assert (row.status, row.digital_source_type) == ("done", "trainedAlgorithmicMedia")
    assert row.model == f"own_methods:Shade@{identity.fingerprint}"
    record = read_record((tmp_path / row.uri).read_bytes())
    assert record["method"] == "own_methods:Shade"
    assert not {"num_inference_steps", "guidance_scale", "fusion_scale"} & record.keys()
    assert Image.open(tmp_path / row.uri).size == (48, 64)


def test_the_fingerprint_follows_what_decides_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fingerprint()
    assert plain == fingerprint("method.settings.threads=4") == fingerprint("method.settings.shade=0")
    assert plain != fingerprint("method.settings.shade=1")
    assert plain != fingerprint(method="method.class=own_methods:OneByOne")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"other")
    marks = [fingerprint(f"method.settings.weights={tmp_path / name}") for name in "abc"]
    assert marks[0] == marks[1] != marks[2]
    assert plain not in marks
    monkeypatch.setattr(own_methods.Shade, "version", 2)
    assert fingerprint() != plain


def test_a_completed_configuration_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors work elsewhere, and `run.json` keeps it."""
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(b"w")
    config, identity = resolved("method.settings.weights=weights")
    assert config.method.settings["weights"] == str(tmp_path / "weights")
    assert (config.sampling.width_px, config.sampling.height_px) == (64, 80)
    again = load_config(GenerateConfig, None, as_words(config))
    assert again == config
    assert with_method_settings(again)[1] == identity
    assert json.loads(json.dumps(as_words(config)))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["method.class=own_methods"], "method.class='own_methods': must be module:Class"),
        (["method.class=nowhere.at_all:X"], "method.class='nowhere.at_all:X': cannot be imported (ModuleNotFoundError"),
        (["method.class=own_methods:Nothing"], "cannot be imported (AttributeError"),
        (["method.class=own_methods:Other"], "must be a subclass of refadgen.generation.method.AdMethod"),
        (["method.class=own_methods:Unfinished"], "'own_methods:Unfinished': does not implement generate"),
        (
            [SHADE, "method.settings.shadow=1"],
            "unknown setting method.settings.shadow; did you mean method.settings.sh",
        ),
        ([SHADE, "method.settings.shade=300"], "method.settings.shade=300: must be 0 to 255"),
        ([SHADE, "method.settings.shade=dark"], "method.settings.shade='dark': must be of type int"),
        ([SHADE, "method.settings.weights=/nowhere"], "method.settings.weights='/nowhere': there is nothing at"),
        ([SHADE, "method.settings.needs=x"], "method.settings.needs='x': is not installed"),
        ([SHADE, "method.settings=x"], "method.settings='x': must be names with values"),
        (["method.settings.shade=3"], "method.settings: are those of method.class"),
        ([SHADE, "model.path=org/other"], "model.path='org/other': is RefAdGen's; own_methods:Shade has its own"),
        ([SHADE, "sampling.num_inference_steps=9"], "sampling.num_inference_steps=9: is RefAdGen's"),
        ([SHADE, "quality.fusion_attempts=2"], "quality.fusion_attempts=2: is RefAdGen's"),
        (
            ["method.class=own_methods:OneByOne", "sampling.batch_size=4"],
            "own_methods:OneByOne makes one image at a time",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        with_method_settings(load_config(GenerateConfig, None, words))


def test_a_method_without_settings_has_none_to_propose() -> None:
    from refadgen.config.loading import build
    from refadgen.generation.method import NoSettings

    with pytest.raises(ValueError, match=r"^unknown setting method\.settings\.x; there are none here$"):
        build(NoSettings, {"x": 1}, "method.settings.")


def test_the_class_in_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(
        source + "\ndef my_model(canvas, mask, prompt, seed, strength):\n    return canvas\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config, _ = resolved("method.settings.strength=0.7", method="method.class=mine:Mine")
    (row,) = made_of(config, placed(1))
    assert np.array_equal(from_png(row.images[0].ad), from_png(placed(1).canvas))
