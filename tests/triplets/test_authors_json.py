"""The importer of the authors' layout: a folder as theirs becomes triplets, every bad entry is named with its field."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refadgen.triplets import authors_json
from refadgen.triplets.authors_json import main, read_authors_json
from refadgen.triplets.schema import Triplet, decode, scan, split_of

HEIGHT, WIDTH = 40, 32
TEXTS = ["A person with a green backpack.", "A backpack outdoors.", "Ein Rucksack.", "a green bag"]


def _mask(shift: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : 3 * height // 4, width // 4 + shift : 3 * width // 4 + shift] = True
    return mask


def _product(value: int, mask: np.ndarray) -> np.ndarray:
    """A product image of one colour under its mask and nearly white outside, as after JPEG."""
    return np.where(mask[..., None], value, 250).astype(np.uint8).repeat(3, axis=2)


class Layout:
    """The authors' folders with three ads: `17_5` complete, `18_6` without its variant 00, `19_7` with nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.json = folder, folder / "data_sources", folder / "jsons" / "train_sd.json"
        for name in ("Ad Image", "Product Image", "mask_npy"):
            (self.root / name).mkdir(parents=True)
        self.json.parent.mkdir()
        self.entries: list[dict[str, Any]] = []
        for ad, variants in (("17_5", range(5)), ("18_6", range(1, 5)), ("19_7", range(1))):
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), int(ad[:2]), np.uint8)).save(self.root / f"Ad Image/{ad}.png")
            np.save(self.root / f"mask_npy/{ad}.npy", _mask())
            np.save(self.root / f"mask_npy/{ad}_gs.npy", _mask(3))
            for index in variants:
                name, turned = f"{ad}_{index:02d}", index > 2
                product = _product(100 + index, _mask(3 if turned else 0))
                Image.fromarray(product).save(self.root / f"Product Image/{name}.png")
                self.entries.append(
                    {
                        "image_type": "sports ball" if ad == "19_7" else "backpack",
                        "original_image": f"{ad}.png",
                        "mask_image": f"{name}.png",
                        "mask_npy": f"{ad}{'_gs' if turned else ''}.npy",
                        "image_text": TEXTS,
                    }
                )

    def write(self, content: object = None) -> Path:
        self.json.write_text(json.dumps(self.entries if content is None else content), encoding="utf-8")
        return self.json

    def read(self) -> list[Triplet]:
        return list(read_authors_json(self.write(), self.root))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_one_triplet_per_ad_with_its_product_images_by_kind(layout: Layout) -> None:
    triplets = layout.read()
    assert [each.row_id for each in triplets] == [each.product_id for each in triplets] == ["17_5", "18_6", "19_7"]
    kinds = [[variant.kind for variant in each.variants] for each in triplets]
    assert kinds == [
        ["original", "degraded", "degraded", "novel_view", "novel_view"],
        ["degraded", "degraded", "novel_view", "novel_view"],
        ["original"],
    ]
    assert [each.category for each in triplets] == ["Backpack", "Backpack", "Sports ball"]
    assert [each.split for each in triplets] == [split_of(name) for name in ("17_5", "18_6", "19_7")]
    for triplet in triplets:
        assert triplet.captions == TEXTS
        assert (triplet.ad_image == int(triplet.row_id[:2])).all()
    names = [f"17_5_{index:02d}.png" for index in range(5)]
    assert json.loads(triplets[0].facts) == {"product_images": names}


def test_a_product_image_is_its_file_on_pure_white(layout: Layout) -> None:
    for index, variant in enumerate(layout.read()[0].variants):
        mask = _mask(3 if variant.kind == "novel_view" else 0)
        np.testing.assert_array_equal(variant.mask, np.where(mask, 255, 0))
        assert variant.image.dtype == variant.mask.dtype == np.uint8
        assert (variant.image[mask] == 100 + index).all()
        assert (variant.image[~mask] == 255).all()


def test_entries_of_an_ad_are_grouped_wherever_they_stand(layout: Layout) -> None:
    layout.entries = layout.entries[::2] + layout.entries[1::2]
    triplets = layout.read()
    assert sorted(each.row_id for each in triplets) == ["17_5", "18_6", "19_7"]
    assert [len(each.variants) for each in triplets if each.row_id == "17_5"] == [5]


def test_captions_of_all_entries_each_once(layout: Layout) -> None:
    layout.entries[1]["image_text"] = [" another ", "", TEXTS[0]]
    assert layout.read()[0].captions == [*TEXTS, "another"]


@pytest.mark.parametrize(
    "array",
    [
        _mask(),
        _mask()[None],
        _mask().astype(np.uint8),
        _mask().astype(np.uint8) * 255,
        np.where(_mask(), 128, 127).astype(np.uint8),
        _mask().astype(np.float16),
        np.where(_mask(), 0.51, 0.49).astype(np.float32)[None],
        _mask() * 255.0,
        np.asfortranarray(_mask()),
        _mask().astype(">f4"),
    ],
)
def test_masks_of_every_type_and_shape_are_cut_at_half_of_their_range(layout: Layout, array: np.ndarray) -> None:
    np.save(layout.root / "mask_npy/19_7.npy", array)
    np.testing.assert_array_equal(layout.read()[2].variants[0].mask, np.where(_mask(), 255, 0))


def test_product_image_and_mask_take_the_size_of_the_ad(layout: Layout) -> None:
    small = _mask(height=HEIGHT // 2, width=WIDTH // 2)
    large = _mask(height=3 * HEIGHT, width=3 * WIDTH)
    Image.fromarray(_product(90, large)).save(layout.root / "Product Image/19_7_00.png")
    np.save(layout.root / "mask_npy/19_7.npy", small)
    [variant] = layout.read()[2].variants
    np.testing.assert_array_equal(variant.mask, np.where(_mask(), 255, 0))
    inner = variant.image[HEIGHT // 4 + 2 : 3 * HEIGHT // 4 - 2, WIDTH // 4 + 2 : 3 * WIDTH // 4 - 2]
    assert abs(inner.astype(int) - 90).max() < 5  # a resampling rings a little
    assert (variant.image[~_mask()] == 255).all()


def test_sizes_may_differ_by_the_rounding_to_pixels(layout: Layout) -> None:
    # 32×40 at 2.53 times the size: 80.96×101.2
    Image.fromarray(_product(90, _mask(height=101, width=81))).save(layout.root / "Product Image/19_7_00.png")
    assert layout.read()[2].variants[0].image.shape == (HEIGHT, WIDTH, 3)


def test_without_a_root_files_lie_beside_the_json(layout: Layout) -> None:
    layout.json = layout.root / "train.json"
    assert len(list(read_authors_json(str(layout.write())))) == 3


def test_an_absolute_name_below_the_root_is_taken(layout: Layout) -> None:
    layout.entries[-1]["original_image"] = str(layout.root / "Ad Image/19_7.png")
    assert (layout.read()[2].ad_image == 19).all()


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must be a list of entries, is a dict"),
        ('"x"', "must be a list of entries, is a str"),
        ("[]", "must be a list of entries, is an empty list"),
        ("[1", "not JSON: "),
        ("", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("[17]", "^entry 0: must be an object with image_type, original_image, .*, is a int"),
    ],
)
def test_a_json_of_another_kind(layout: Layout, text: str, message: str) -> None:
    layout.json.write_text(text)
    with pytest.raises(ValueError, match=message):
        next(read_authors_json(layout.json, layout.root))


def test_no_json(layout: Layout) -> None:
    with pytest.raises(ValueError, match=r"train_sd\.json: cannot be read: No such file"):
        next(read_authors_json(layout.json, layout.root))


@pytest.mark.parametrize("key", ["image_type", "original_image", "mask_image", "mask_npy", "image_text"])
def test_a_missing_key_or_one_without_a_text(layout: Layout, key: str) -> None:
    for value in (None, 3, " ", [], {}):
        layout.entries[4][key] = value
        with pytest.raises(ValueError, match=rf"^entry 4: {key}=.*: (must be a|no caption)"):
            layout.read()
    del layout.entries[4][key]
    with pytest.raises(ValueError, match=rf"^entry 4: {key} is missing; add it or drop the entry"):
        layout.read()


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_empty_captions(layout: Layout, texts: list[str]) -> None:
    layout.entries[2]["image_text"] = texts
    with pytest.raises(ValueError, match=r"^entry 2: image_text=.*: no caption; write one or drop the entry"):
        layout.read()


def test_captions_that_are_no_texts(layout: Layout) -> None:
    layout.entries[2]["image_text"] = ["a bag", None]
    with pytest.raises(ValueError, match=r"^entry 2: image_text=\['a bag', None\]: must be a list of captions"):
        layout.read()


def test_the_texts_of_all_entries_are_checked_before_the_first_triplet(layout: Layout) -> None:
    layout.entries[-1]["image_text"] = []
    with pytest.raises(ValueError, match=r"^entry 9: "):
        next(read_authors_json(layout.write(), layout.root))


def _changed(index: int, key: str, value: str) -> Callable[[Layout], None]:
    def change(layout: Layout) -> None:
        layout.entries[index][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _changed(1, "mask_image", "17_5_00.png"),
            "entry 1: mask_image='17_5_00.png': an earlier entry has the same file; drop",
        ),
        (_changed(1, "image_type", "bottle"), "entry 1: image_type='Bottle': entry 0 of the same ad has 'Backpack'"),
        (_changed(1, "mask_image", "18_6_01.png"), "entry 1: mask_image='18_6_01.png': must be named 17_5_00 to 17_5_"),
        (_changed(1, "mask_image", "17_5.png"), "entry 1: mask_image='17_5.png': must be named 17_5_00 to 17_5_99"),
        (_changed(1, "mask_npy", "18_6.npy"), "entry 1: mask_npy='18_6.npy': must be named 17_5.npy or 17_5_gs.npy"),
        (_changed(1, "original_image", "other/17_5.png"), "entry 1: original_image='other/17_5.png': entry 0 has "),
    ],
)
def test_entries_that_do_not_go_together(layout: Layout, change: Callable[[Layout], None], message: str) -> None:
    change(layout)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        layout.read()


FIELDS = [
    ("original_image", "Ad Image", "17_5.png"),
    ("mask_image", "Product Image", "17_5_03.png"),
    ("mask_npy", "mask_npy", "17_5_gs.npy"),
]


def _number(field: str) -> int:
    """The entry at whose turn the file is read first: an ad's own picture is read with its first entry."""
    return 0 if field == "original_image" else 3


@pytest.mark.parametrize(("field", "folder", "name"), FIELDS)
def test_a_missing_file(layout: Layout, field: str, folder: str, name: str) -> None:
    (layout.root / folder / name).unlink()
    message = rf"^entry {_number(field)}: {field}='{name}': no such file: .*{name}; add it, drop the entry or "
    with pytest.raises(ValueError, match=message):
        layout.read()


@pytest.mark.parametrize(("field", "folder", "name"), FIELDS)
@pytest.mark.parametrize("way", ["../{folder}/{name}", "../../outside/{name}", "{outside}/{name}", "sub/../{name}"])
def test_files_outside_of_the_root(layout: Layout, field: str, folder: str, name: str, way: str) -> None:
    outside = layout.folder / "outside"
    outside.mkdir()
    (outside / name).write_bytes((layout.root / folder / name).read_bytes())
    for entry in layout.entries[:5]:
        if entry[field] == name:
            entry[field] = way.format(folder=folder, name=name, outside=outside)
    with pytest.raises(
        ValueError, match=rf"^entry {_number(field)}: {field}='.*{name}': leads outside of .*below --root"
    ):
        layout.read()


@pytest.mark.parametrize(("field", "folder", "name"), FIELDS)
def test_a_link_out_of_the_root(layout: Layout, field: str, folder: str, name: str) -> None:
    inside, outside = layout.root / folder / name, layout.folder / name
    os.replace(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(ValueError, match=rf"^entry {_number(field)}: {field}='{name}': leads outside of "):
        layout.read()


def test_a_name_that_no_file_can_have(layout: Layout) -> None:
    layout.entries[3]["mask_npy"] = "\0/17_5_gs.npy"
    with pytest.raises(ValueError, match=r"^entry 3: mask_npy=.*: not a file name"):
        layout.read()


@pytest.mark.parametrize(("field", "folder", "name"), FIELDS[:2])
def test_a_picture_that_cannot_be_decoded(layout: Layout, field: str, folder: str, name: str) -> None:
    file = layout.root / folder / name
    for data in (b"", b"not a picture", file.read_bytes()[:60]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^entry {_number(field)}: {field}='{name}': cannot be decoded: .*"):
            layout.read()


def _npy(array: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, **options)


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, _mask())


def _promises_more(path: Path) -> None:
    """A header of 10¹² values, and none of them."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)


NAN = np.where(_mask(), np.nan, 0.0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a readable .npy array: "),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "not a readable .npy array: "),
        (lambda path: path.write_text("0 0 1 1"), "not a readable .npy array: "),
        (_npy(np.array([[None, 1]], object), allow_pickle=True), "not a readable .npy array: "),
        (_promises_more, "not a readable .npy array: "),
        (_npz, "an .npz archive; save its array as .npy"),
        (_npy(np.stack([_mask(), _mask()])), "shape 2×40×32: must be H×W or 1×H×W"),
        (_npy(_mask()[None, None]), "shape 1×1×40×32: must be"),
        (_npy(_mask().ravel()), "shape 1280: must be"),
        (_npy(_mask().astype(np.int64)), "type int64: must be bool, uint8 or float"),
        (_npy(_mask().astype(complex)), "type complex128: must be"),
        (_npy(np.full((HEIGHT, WIDTH), "x")), "type <U1: must be"),
        (_npy(NAN), "values from nan to nan; must be 0…1 or 0…255"),
        (_npy(_mask() - 0.5), "values from -0.5 to 0.5; must be"),
        (_npy(_mask() * 256.0), "values from 0.0 to 256.0; must be"),
        (_npy(_mask() & False), "the mask is empty; drop the entry"),
        (_npy(_mask() * 0.5), "the mask is empty; drop the entry"),
        (_npy(_mask(height=WIDTH)), "32×32 px, but the product image is 32×40 px; make it from that image"),
    ],
)
def test_a_bad_mask(layout: Layout, write: Callable[[Path], object], message: str) -> None:
    write(layout.root / "mask_npy/17_5_gs.npy")
    with pytest.raises(ValueError, match=re.escape(f"entry 3: mask_npy='17_5_gs.npy': {message}")):
        layout.read()


def test_a_product_image_of_another_ratio(layout: Layout) -> None:
    square = _mask(height=WIDTH)
    Image.fromarray(_product(90, square)).save(layout.root / "Product Image/17_5_03.png")
    np.save(layout.root / "mask_npy/17_5_gs.npy", square)
    message = "entry 3: mask_image='17_5_03.png': 32×32 px, but the ad is 32×40 px; bring it to the ad's ratio"
    with pytest.raises(ValueError, match=re.escape(message)):
        layout.read()


# The command


def _run(layout: Layout, *words: str) -> int:
    return main([str(layout.write()), "--root", str(layout.root), "--output", str(layout.folder / "out"), *words])


def test_the_command_writes_a_data_set_in_files(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(layout, "--rows-per-file", "2") == 0
    out = layout.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["triplets-00000.parquet", "triplets-00001.parquet"]
    found = scan(str(out))
    assert [sum(file.group_rows) for file in found.files] == [2, 1]
    rows = [row for file in found.files for row in pq.read_table(file.uri).to_pylist()]
    for row, triplet in zip(rows, layout.read(), strict=True):
        read = decode(row)
        assert read.row_id == triplet.row_id
        assert [variant.kind for variant in read.variants] == [variant.kind for variant in triplet.variants]
        np.testing.assert_array_equal(read.variants[-1].image, triplet.variants[-1].image)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["category", "train", "test"]
    splits = [split_of(name) for name in ("17_5", "18_6")]
    assert printed[1].split() == ["Backpack", str(splits.count("train")), str(splits.count("test"))]
    assert printed[2].split()[:2] == ["Sports", "ball"]
    assert printed[3] == f"3 triplets in {out}"


def test_one_ad_at_a_time_is_in_memory(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    read, encode = authors_json._triplet, authors_json.write_triplets.__globals__["encode"]
    monkeypatch.setattr(authors_json, "_triplet", lambda *rest: events.append("read") or read(*rest))
    monkeypatch.setitem(
        authors_json.write_triplets.__globals__, "encode", lambda triplet: events.append("encode") or encode(triplet)
    )
    assert _run(layout) == 0
    assert events == ["read", "encode"] * 3


def test_a_bad_entry_ends_the_command_and_leaves_nothing(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    intact = (layout.root / "mask_npy/19_7.npy").read_bytes()
    np.save(layout.root / "mask_npy/19_7.npy", _mask() & False)
    assert _run(layout, "--rows-per-file", "1") == 2
    assert capsys.readouterr().err == "error: entry 9: mask_npy='19_7.npy': the mask is empty; drop the entry\n"
    assert list((layout.folder / "out").iterdir()) == []
    (layout.root / "mask_npy/19_7.npy").write_bytes(intact)
    assert _run(layout, "--rows-per-file", "1") == 0
    assert scan(str(layout.folder / "out")).num_rows == 3


def test_a_second_run_into_the_folder_is_refused(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(layout) == 0
    before = (layout.folder / "out/triplets-00000.parquet").read_bytes()
    assert _run(layout) == 2
    assert "out: holds .parquet files already; give a new folder" in capsys.readouterr().err
    assert (layout.folder / "out/triplets-00000.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--rows-per-file", "0"), "--rows-per-file=0: must be 1 or more"), (("--output", "gs://x"), "not gs://")],
)
def test_bad_options(layout: Layout, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(layout, *words) == 2
    assert message in capsys.readouterr().err
