"""Channels' rules: complete, sourced, and refused in words where they cannot be."""

from pathlib import Path

import pytest

from refadgen.catalog.layout import SafeZone
from refadgen.channels.canvases import canvas_size, canvases_of
from refadgen.channels.rules import chosen_rules, has_ratio, load_rules, ratio_of
from refadgen.config import GenerateConfig, load_config

OWN = """
catalogue-page:
  ratio: "3:1"
  size: [1500, 500]
  least: [900, 300]
  formats: [webp]
  max_bytes: 400000
  source: the print shop
  read_on: 2026-11
"""


def test_each_rule_names_where_and_when_it_was_read() -> None:
    rules = load_rules()
    assert len(rules) >= 9
    for rule in rules.values():
        assert rule.source
        assert rule.read_on.startswith("202")
        assert has_ratio(rule.size, ratio_of(rule.ratio))


def test_the_rules_as_read() -> None:
    merchant, landscape, stories = chosen_rules(["merchant", "pmax-landscape", "stories"])
    assert (merchant.size, merchant.least, merchant.formats) == ((1500, 1500), (600, 600), ("jpeg", "png"))
    assert (landscape.size, landscape.least, landscape.max_bytes) == ((1200, 628), (600, 314), 5120 * 1024)
    assert stories.safe_zone == SafeZone(top=0.14, bottom=0.2)
    assert (merchant.format("webp"), merchant.format("png")) == ("jpeg", "png")


def test_own_rules_stand_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    (page,) = chosen_rules(["catalogue-page"], str(tmp_path / "own.yaml"))
    assert (page.size, page.formats) == ((1500, 500), ("webp",))
    assert "merchant" in load_rules(str(tmp_path / "own.yaml"))
    assert "catalogue-page" not in load_rules()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"3:1"', '"3"'), "ratio='3': is written width:height"),
        (("[1500, 500]", "[1500, 900]"), "has not the ratio 3:1 within 1%"),
        (("[1500, 500]", "1500"), "size=1500: must be "),
        (("[900, 300]", "[3000, 1000]"), "is below least"),
        (("[webp]", "[gif]"), "formats=.'gif'.: must be some of jpeg, png, webp"),
        (("max_bytes: 400000", "bytes: 4"), "unknown 'bytes'"),
        (("source: the print shop", "safe_zone: {top: 2}"), "safe_zone.top=2: must be 0 to below 0.5"),
        (("catalogue-page", "Catalogue Page"), "a name has small letters"),
    ],
)
def test_rules_that_cannot_be(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace(*change))
    with pytest.raises(ValueError, match=f"channels_file=.*{said}"):
        load_rules(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("ratio", "mini", "full"),
    [
        ("1:1", (144, 144), (576, 576)),
        ("1.91:1", (200, 104), (800, 416)),
        ("4:5", (128, 160), (512, 640)),
        ("9:16", (104, 184), (416, 736)),
        ("2:3", (112, 168), (448, 672)),
    ],
)
def test_canvases_have_the_ratio_near_the_models_area(ratio: str, mini: tuple[int, int], full: tuple[int, int]) -> None:
    assert (canvas_size(ratio, 128 * 160), canvas_size(ratio, 512 * 640)) == (mini, full)


def test_a_ratio_without_a_canvas() -> None:
    with pytest.raises(ValueError, match=r"channels: no canvas of the ratio 40:1 within 1% has about the model's 4096"):
        canvas_size("40:1", 64 * 64)


def test_a_canvas_keeps_the_safe_zones_of_all_channels_of_its_ratio() -> None:
    words = ["sampling.width_px=512", "sampling.height_px=640", "channels=[pmax-vertical, merchant, pmax-square]"]
    canvases = canvases_of(load_config(GenerateConfig, None, words))
    assert list(canvases) == ["9:16", "1:1"]
    assert canvases["9:16"].safe_zone == SafeZone(top=0.14, bottom=0.2)  # of stories, which is not asked for
    assert str(canvases["1:1"]) == "1:1 at 576×576 px: merchant, pmax-square"
    assert canvases_of(load_config(GenerateConfig)) == {}
