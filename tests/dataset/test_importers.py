"""Inputs that are no parquet: a folder of images and the authors' JSON become rows; what is neither says so."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refadgen.dataset.importers import Input, as_catalog
from refadgen.storage.store import Storage


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def rows_of(uri: str) -> list[dict]:
    return pq.read_table(uri).to_pylist()


def test_a_folder_of_images_is_a_row_each_with_the_folder_as_category(tmp_path: Path) -> None:
    for name in ("wine_glass/b.JPG", "wine_glass/a.png", "loose.webp"):
        picture(tmp_path / "ads" / name)
    (tmp_path / "ads" / "notes.txt").write_text("no picture")
    made = as_catalog(str(tmp_path / "ads"), Storage(str(tmp_path / "out")))
    uri, folder = made.catalog, made.folder
    assert folder == str(tmp_path / "ads")
    assert made.left_out == {"no image": ("notes.txt",)}
    found = {row["sku"]: (row["image"], row["category"]) for row in rows_of(uri)}
    assert found == {
        "loose.webp": (f"{folder}/loose.webp", None),
        "wine_glass/a.png": (f"{folder}/wine_glass/a.png", "wine glass"),
        "wine_glass/b.JPG": (f"{folder}/wine_glass/b.JPG", "wine glass"),
    }
    assert as_catalog(str(tmp_path / "ads"), Storage(str(tmp_path / "out"))).catalog == uri


def test_photographs_under_every_common_suffix_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    names = ["a.jfif", "b.gif", "c.HEIC", "d.heif", "e.jpe", "f.ppm"]
    for name in [*names, "._a.jfif", "__MACOSX/a.jpg", "raw.dng"]:
        (tmp_path / "ads" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ads" / name).write_bytes(b"a photograph")
    made = as_catalog(str(tmp_path / "ads"), Storage(str(tmp_path / "out")))
    assert [row["sku"] for row in rows_of(made.catalog)] == names
    hidden = ("._a.jfif", "__MACOSX/a.jpg")
    assert made.left_out == {"name begins with _ or .": hidden, "no image": ("raw.dng",)}


def test_parquet_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ads.parquet"
    file.write_bytes(b"")
    output = Storage(str(tmp_path / "out"))
    assert as_catalog(str(file), output) == Input(catalog=str(file))
    assert as_catalog(str(tmp_path), output) == Input(catalog=str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither \.parquet nor images"):
        as_catalog(str(tmp_path), Storage(str(tmp_path / "out")))


def test_a_file_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "ads" / "ok.jpg")
    (tmp_path / "ads" / "ok.jpg").rename(os.fsdecode(os.fsencode(tmp_path) + b"/ads/caf\xe9.jpg"))
    with pytest.raises(ValueError, match=r"the file name 'caf\\udce9\.jpg' is not UTF-8"):
        as_catalog(str(tmp_path / "ads"), Storage(str(tmp_path / "out")))


@pytest.mark.parametrize("uri", ["https://h/ads.parquet?X-Signature=SECRET", "https://u:SECRET@h/x.json"])
def test_no_message_shows_the_secrets_of_an_input(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="h/") as error:
        as_catalog(uri, Storage(str(tmp_path)))
    assert "SECRET" not in str(error.value)


def authors(folder: Path, **changed: object) -> Path:
    picture(folder / "Ad Image" / "17_52.png")
    (folder / "mask_npy").mkdir()
    mask = np.zeros((30, 20), np.float32)
    mask[5:25, 4:16] = 1
    np.save(folder / "mask_npy" / "17_52.npy", mask)
    entry = {
        "image_type": "backpack",
        "original_image": "17_52.png",
        "mask_image": "17_52_00.png",
        "mask_npy": "17_52.npy",
        "image_text": ["a backpack on a rock", "a photo"],
    }
    view = {**entry, "mask_image": "17_52_03.png", "mask_npy": "17_52_gs.npy"}
    file = folder / "train_sd.json"
    file.write_text(json.dumps([{**entry, **changed}, view]))
    return file


def test_the_authors_json_is_a_row_an_ad_with_its_mask_and_captions(tmp_path: Path) -> None:
    made = as_catalog(str(authors(tmp_path)), Storage(str(tmp_path / "out")))
    uri, folder = made.catalog, made.folder
    assert folder == str(tmp_path)
    (row,) = rows_of(uri)
    assert (row["sku"], row["category"]) == ("17_52", "Backpack")
    assert row["captions"] == ["a backpack on a rock", "a photo"]
    assert row["image"] == str(tmp_path / "Ad Image" / "17_52.png")
    mask = np.asarray(Image.open(io.BytesIO(row["mask"])))
    assert mask.shape == (30, 20)
    assert np.count_nonzero(mask) == 20 * 12


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"image_text": []}, "image_text"),
        ({"original_image": "../secret.png"}, "original_image"),
        ({"mask_npy": "none.npy"}, None),
    ],
)
def test_a_bad_entry_is_named(changed: dict, what: str | None, tmp_path: Path) -> None:
    file = authors(tmp_path, **changed)
    if what is None:  # an ad without a mask of its own is left to segmentation
        (row,) = rows_of(as_catalog(str(file), Storage(str(tmp_path / "out"))).catalog)
        assert row["mask"] is None
        return
    with pytest.raises(ValueError, match=rf"entry 0: {what}="):
        as_catalog(str(file), Storage(str(tmp_path / "out")))


def test_the_authors_json_on_s3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a local disk"):
        as_catalog("s3://bucket/train_sd.json", Storage(str(tmp_path)))
