"""Which kind a catalogue is taken for: files by their content, folders by what lies in them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feed_files import open_here, report_of, told


def write(folder: Path, *names: str, text: str = "sku,image\n{name},a.jpg\n") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(name=name))
    return folder


def parquet(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"sku": ["p"], "image": ["p.jpg"], "colour": ["red"]}), file)
    return file


def test_parquet_is_scanned_where_it_lies(tmp_path: Path) -> None:
    for place in (parquet(tmp_path / "shop" / "rows" / "feed.csv"), tmp_path / "shop" / "rows"):
        if place.is_dir():
            (place / "feed.csv").rename(place / "feed.parquet")
        catalog = open_here(place)
        assert catalog.read_as == f"{place}: read as parquet"
        assert (catalog.stage, catalog.report, told(catalog)) == (None, None, [("p", "p.jpg", None, None)])
        assert catalog.lines() == [
            "columns not used: colour",
            "the first 1 rows as understood:",
            "  sku 'p', image 'p.jpg'",
        ]


def test_a_folder_of_feeds_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop" / "feeds", "part-2.csv", "part-1.csv", "_hidden.csv", "notes.md")
    catalog = open_here(folder)
    assert [row[0] for row in told(catalog)] == ["part-1.csv", "part-2.csv"]
    assert catalog.scan.left_out == {"no feed": ("notes.md",)}
    write(folder, "part-3.csv", text='{{"sku": 1, "image": "a"}}')
    with pytest.raises(ValueError, match=r"holds feeds of several kinds .*part-3\.csv: JSON Lines.*: give one file"):
        open_here(folder)


def test_a_folder_of_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop" / "photos", "Egg_Cups/blue-7.JPG", "red.png", "a:b.webp", "list.md")
    catalog = open_here(folder)
    assert "read as folder of product images, one product a file" in catalog.read_as
    assert told(catalog) == [
        ("Egg_Cups/blue-7", "./Egg_Cups/blue-7.JPG", "blue 7", "Egg Cups"),
        ("a:b", "./a:b.webp", "a:b", None),
        ("red", "./red.png", "red", None),
    ]
    assert catalog.scan.left_out == {"no picture": ("list.md",)}
    assert report_of(catalog).rows == 3


def test_feeds_beside_pictures_are_for_the_user_to_tell(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop" / "mixed", "red.png", "feed.csv")
    with pytest.raises(ValueError, match=r"holds a feed and pictures \(feed\.csv, red\.png\): give the feed's file"):
        open_here(folder)
    assert [row[0] for row in told(open_here(folder, "catalog.format=images"))] == ["red"]
    assert [row[0] for row in told(open_here(folder, "catalog.format=csv"))] == ["feed.csv"]


def test_an_output_among_the_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--output .*out: lies in the folder of product images"):
        open_here(write(tmp_path, "red.png", "shop/blue.png") / "shop" / "..")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("images", r"catalog\.format=images: is a folder, and .*feed\.csv is a file"),
        ("parquet", "not a readable parquet file"),
        ("xml", r"catalog\.format='xml': must be one of auto, parquet, csv"),
    ],
)
def test_a_format_that_does_not_fit(word: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        open_here(write(tmp_path / "shop", "feed.csv") / "feed.csv", f"catalog.format={word}")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    with pytest.raises(ValueError, match="there is no such catalogue"):
        open_here(tmp_path / "shop" / "none.csv")
    with pytest.raises(ValueError, match=r"the folder holds no \.parquet file"):
        open_here(tmp_path / "shop")
