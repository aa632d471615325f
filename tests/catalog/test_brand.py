"""The brand file: words, light, negative prompt and the logo's place, in job and endpoint alike."""

from pathlib import Path

import numpy as np
import pytest

from refadgen.catalog.brand import load_brand
from refadgen.catalog.layout import place
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig, LayoutConfig, load_config
from refadgen.generation.wanted import RowImages, WantedImages, pixel_settings

BRAND = """
palette: [sage green, warm white]
wanted: [linen]
banned: [marble, spotlight]
negative_prompt: text
light: soft daylight from the left
keep_free: [0, 0, 0.4, 0.2]
categories:
  cup:
    light: candle light
    palette: []
"""
ROW = CatalogRow(row=0, sku="A-1", image="images/a.jpg", category="Home > Cups")


def images(file: Path | None, row: CatalogRow = ROW, *words: str) -> RowImages:
    config = load_config(GenerateConfig, None, [*words, *([f"brand.file={file}"] if file else [])])
    settings = pixel_settings(config, "f")
    return WantedImages(load_scenes(), config, settings).of(settings.branded(row))


@pytest.fixture
def brand(tmp_path: Path) -> Path:
    (tmp_path / "brand.yaml").write_text(BRAND)
    return tmp_path / "brand.yaml"


def prompts(found: RowImages) -> list[str]:
    return [image[3] for image in found.images]


def test_templates_are_chosen_and_written_in_the_brands_words(brand: Path) -> None:
    plain, branded = prompts(images(None)), prompts(images(brand))
    assert plain[0] == "a cup on concrete in front of a pink wall, morning sun from the left"
    assert len(branded) == 2
    assert not any("marble" in each or "sun " in each for each in branded)
    assert all(each.startswith("a cup on ") and each.endswith(", linen, candle light") for each in branded)
    bag = prompts(images(brand, ROW._replace(category="Bags")))
    assert all(each.endswith(", in sage green and warm white, linen, soft daylight from the left") for each in bag)


def test_a_rows_own_prompt_keeps_its_words(brand: Path) -> None:
    row = ROW._replace(prompts=("a cup on marble, evening sun",))
    assert prompts(images(brand, row)) == ["a cup on marble, evening sun, linen, candle light"]


def test_the_negative_prompt_stands_behind_the_rows_own(brand: Path) -> None:
    found = load_brand(str(brand))
    assert found is not None
    assert found.over(ROW).negative_prompt == "text"
    assert found.over(ROW._replace(negative_prompt="blur")).negative_prompt == "blur, text"


def test_ids_hold_the_files_content_and_not_its_place(brand: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text("# the same\n" + BRAND)
    (tmp_path / "other.yaml").write_text(BRAND.replace("linen", "oak"))
    assert images(brand) == images(tmp_path / "copy.yaml")
    ids = [{image[0] for image in images(file).images} for file in (None, brand, tmp_path / "other.yaml")]
    assert len(set.union(*ids)) == 6


SHAPES = [(100, 40), (40, 100), (60, 60)]


@pytest.mark.parametrize("anchor", ["top", "top-left", "left", "center", "bottom", "right"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("margin", [0.05, 0.4])
def test_the_product_stays_out_of_the_logos_place(anchor: str, shape: tuple[int, int], margin: float) -> None:
    mask = np.full(shape, 255, np.uint8)
    image = np.full((*shape, 3), 90, np.uint8)
    for free in ((0.0, 0.0, 0.4, 0.2), (0.3, 0.3, 0.6, 0.6), (0.0, 0.8, 1.0, 1.0), (0.7, 0.0, 1.0, 1.0)):
        layout = LayoutConfig(anchor=anchor, keep_free=free, margin=margin)
        found = place(image, mask, layout, 256, 320).mask
        left, top, right, bottom = free
        assert not found[int(top * 320) : int(bottom * 320), int(left * 256) : int(right * 256)].any()
        assert found.any()


def test_a_product_that_is_not_in_the_way_stays() -> None:
    mask, image = np.full((60, 60), 255, np.uint8), np.full((60, 60, 3), 90, np.uint8)
    plain = place(image, mask, LayoutConfig(), 256, 320)
    kept = place(image, mask, LayoutConfig(keep_free=(0.0, 0.0, 0.4, 0.2)), 256, 320)
    assert np.array_equal(plain.canvas, kept.canvas)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must have some of the fields palette"),
        ("colors: [red]", "colors: unknown; there are palette"),
        ("palette: red", "palette='red': must be a list of words"),
        ("light: 3", "light=3: must be text"),
        ("categories: {cup: {lihgt: x}}", "categories.cup.lihgt: unknown"),
        ("keep_free: [0, 0, 1]", "must be left, top, right and bottom"),
        ("keep_free: [0.5, 0, 0.2, 1]", "0 ≤ left < right ≤ 1"),
        ("keep_free: [0.1, 0.1, 0.9, 0.9]", "a side needs 0.2 of the canvas"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^brand.file=") as found:
        load_brand(str(tmp_path / "b.yaml"))
    assert problem in str(found.value)


def test_words_that_leave_too_few_scenes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("banned: [wall, sky, hedge]")
    found = load_brand(str(tmp_path / "b.yaml"))
    assert found is not None
    with pytest.raises(ValueError, match=r"brand.file: its banned words leave 0 scenes for '.*scenes_per_product=2"):
        found.check(load_scenes(), 2)
