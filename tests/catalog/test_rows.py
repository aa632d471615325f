"""One catalogue row: what it may hold, and which reason a bad one gets."""

import decimal
import pickle

import numpy as np
import pyarrow as pa
import pytest

from refadgen.catalog.rows import CatalogRow, Placement, parse_row
from refadgen.config import LayoutConfig
from refadgen.errors import RowError


def _row(**values: object) -> CatalogRow:
    return parse_row(7, {"sku": "a", "image": "a.png", **values})


def _reason(**values: object) -> str:
    with pytest.raises(RowError) as error:
        _row(**values)
    assert error.value.status == "rejected"
    assert error.value.detail.startswith("row 7: ")
    return error.value.reason


def test_least_and_full_row():
    assert _row() == CatalogRow(row=7, sku="a", image="a.png")
    full = _row(
        title="Mug",
        category="Home > Cups",
        brand="Acme",
        prompt=["one", "two"],
        negative_prompt="text",
        num_variants=3,
        seed=2**63 - 1,
        placement="size=0.5 anchor=left",
        mask=b"png",
    )
    assert full.prompts == ("one", "two")
    assert full.placement == Placement(size=0.5, anchor="left")
    assert (full.category, full.num_variants, full.seed, full.mask) == ("Home > Cups", 3, 2**63 - 1, b"png")
    assert pickle.loads(pickle.dumps(full)) == full


@pytest.mark.parametrize(
    "sku", ["a/b\\c", "'\";--", "line\nbreak\ttab", "🍋 Zitrone", " padded ", "x" * 256, "../../etc", "\x00"]
)
def test_any_sku_is_kept_as_it_is(sku):
    assert _row(sku=sku).sku == sku


@pytest.mark.parametrize("sku", [4711, np.int64(4711), decimal.Decimal("4711")])
def test_whole_number_skus_become_text(sku):
    assert _row(sku=sku).sku == "4711"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sku": None}, "empty_sku"),
        ({"sku": ""}, "empty_sku"),
        ({"sku": " \n"}, "empty_sku"),
        ({"sku": float("nan")}, "empty_sku"),
        ({"sku": "x" * 257}, "sku_too_long"),
        ({"sku": 1.5}, "wrong_type"),
        ({"sku": True}, "wrong_type"),
        ({"sku": b"a"}, "wrong_type"),
        ({"image": None}, "missing_image"),
        ({"image": "  "}, "missing_image"),
        ({"image": b""}, "missing_image"),
        ({"image": {"bytes": None, "path": None}}, "missing_image"),
        ({"image": 3}, "wrong_type"),
        ({"prompt": " "}, "empty_prompt"),
        ({"prompt": ["a", ""]}, "empty_prompt"),
        ({"prompt": ["a", None]}, "empty_prompt"),
        ({"prompt": ["a", 3]}, "wrong_type"),
        ({"prompt": 3}, "wrong_type"),
        ({"prompt": ["a"] * 101}, "too_many_prompts"),
        ({"num_variants": 0}, "bad_num_variants"),
        ({"num_variants": 101}, "bad_num_variants"),
        ({"num_variants": 1.5}, "bad_num_variants"),
        ({"num_variants": True}, "wrong_type"),
        ({"seed": -1}, "bad_seed"),
        ({"seed": 2**63}, "bad_seed"),
        ({"seed": float("inf")}, "bad_seed"),
        ({"seed": 2.0**60}, "bad_seed"),  # a float that wide has lost digits
        ({"seed": "1"}, "wrong_type"),
        ({"placement": "size=2"}, "bad_placement"),
        ({"placement": 3}, "wrong_type"),
        ({"mask": 3}, "wrong_type"),
    ],
)
def test_bad_values(values, reason):
    assert _reason(**values) == reason


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float64("nan"), "", []])
def test_nothing_said_about_scenes(nothing):
    assert _row(prompt=nothing).prompts == ()


def test_null_and_blank_fields_say_nothing():
    nothing = dict.fromkeys(("title", "category", "brand", "negative_prompt", "mask", "placement"), " ")
    assert _row(**nothing) == _row()
    assert _row(num_variants=float("nan"), seed=None, placement={"size": None, "anchor": None}) == _row()


def test_values_as_numpy_and_pandas_hand_them_over():
    import pandas as pd

    row = _row(
        sku=np.str_("s"), prompt=np.array(["x"], dtype=object), num_variants=np.float64(2), seed=pd.NA, title=pd.NaT
    )
    assert (row.sku, row.prompts, row.num_variants, row.seed, row.title) == ("s", ("x",), 2, None, None)


def test_image_struct_prefers_its_bytes():
    assert _row(image={"bytes": b"x", "path": "p"}).image == b"x"
    assert _row(image={"bytes": b"", "path": " p "}).image == "p"
    assert _row(image=bytearray(b"x")).image == b"x"


def test_values_as_arrow_hands_them_over():
    table = pa.table(
        {
            "sku": pa.array(["s"]).dictionary_encode(),
            "image": pa.array([{"bytes": b"x", "path": None}]),
            "prompt": pa.array([["p"]], pa.large_list(pa.string_view())),
            "seed": pa.array([5], pa.decimal128(20, 0)),
            "placement": pa.array([{"size": 0.3, "anchor": "top"}]),
        }
    )
    row = parse_row(0, table.to_pylist()[0])
    assert (row.sku, row.image, row.prompts, row.seed) == ("s", b"x", ("p",), 5)
    assert row.placement == Placement(size=0.3, anchor="top")


@pytest.mark.parametrize(
    "text", ["size=0.5 anchor=bottom-left", "anchor = bottom_left,size=.5;", '{"size": 0.5, "anchor": "Bottom-Left"}']
)
def test_placement_forms(text):
    assert _row(placement=text).placement == Placement(size=0.5, anchor="bottom-left")


def test_placement_lies_over_the_layout():
    layout = LayoutConfig(size=0.4, anchor="left", margin=0.1)
    assert Placement(size=0.7).over(layout) == LayoutConfig(size=0.7, anchor="left", margin=0.1)


@pytest.mark.parametrize(
    ("placement", "complaint"),
    [
        ("size=2", "size=2.0: must be 0.05 to 1.0"),
        ("size=nan", "must be 0.05 to 1.0"),
        ("size=big", "size='big' is not a number"),
        ("anchor=middle", "anchor='middle': must be one of"),
        ("sise=0.5", "is 'size' meant"),
        ("half the canvas", "cannot read 'half'"),
        ("size=0.5 size=0.6", "cannot read 'size=0.6'"),
        ('{"size": ', "not JSON"),
        ('{"size": "0.5"}', "not a number"),
        ({"size": 10**400}, "must be 0.05 to 1.0"),
        ({"anchor": 3}, "not a text"),
        ({"size": True}, "not a number"),
    ],
)
def test_bad_placements_say_how_to_write_them(placement, complaint):
    with pytest.raises(RowError) as error:
        _row(placement=placement)
    assert error.value.reason == "bad_placement"
    assert complaint in error.value.detail
