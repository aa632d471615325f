"""A staged feed: the same ids as parquet, row groups for side by side work, nothing left behind."""

import gc
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feed_files import open_here, rows_of, settings

from refadgen.catalog.feeds import staging
from refadgen.catalog.feeds.opening import OpenCatalog, open_catalog
from refadgen.catalog.feeds.staging import plain_title
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig
from refadgen.generation.wanted import pixel_settings, wanted_images
from refadgen.storage.store import Storage

PRODUCTS = {
    "id": ["00123", "14-x", "0004006381333931", "1e5"],
    "image_link": ["https://h.example/1.jpg", "//h.example/2.jpg", "img/3.jpg", "https://h.example/4.jpg, x"],
    "title": ["Tea Cup", "Blue Denim Jacket", None, "Bottle <= 5 l"],
    "product_type": ["Kitchen > Cups", "Coats & Jackets", None, None],
    "google_product_category": ["2169", None, "499973", None],
    "brand": ["Acme", None, None, "Cups"],
    "prompt": [None, "a jacket on sand", None, None],
    "negative_prompt": [None, "text", None, None],
    "seed": [None, 7, None, None],
    "num_variants": [2, None, None, None],
    "placement": [None, "size=0.5 anchor=bottom-left", None, None],
}


def written(folder: Path) -> dict[str, Path]:
    """The products in every form that can hold them all."""
    folder.mkdir(parents=True)
    table = pa.table(PRODUCTS)
    pq.write_table(table, folder / "feed.parquet")
    rows = table.to_pylist()
    for name, separator in (("feed.tsv", "\t"), ("feed.csv", ";")):
        lines = [separator.join("" if value is None else str(value) for value in row.values()) for row in rows]
        (folder / name).write_text("\n".join([separator.join(PRODUCTS), *lines]) + "\n")
    (folder / "feed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = ["".join(f"<g:{k}><![CDATA[{v}]]></g:{k}>" for k, v in row.items() if v is not None) for row in rows]
    xml = "".join(f"<item>{item}</item>" for item in items)
    root = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
    (folder / "feed.xml").write_text(f"{root}{xml}</channel></rss>")
    return {file.suffix: file for file in folder.iterdir()}


def ids(catalog: OpenCatalog) -> list[str]:
    config = GenerateConfig()
    scenes, fixed = load_scenes(), pixel_settings(config, "f")
    return [image.image_id for row in rows_of(catalog) for image in wanted_images(row, scenes, config, fixed)]


def test_the_same_products_have_the_same_ids_in_every_kind_of_feed(tmp_path: Path) -> None:
    by_kind = {suffix: ids(open_here(file)) for suffix, file in written(tmp_path / "shop").items()}
    assert set(by_kind) == {".parquet", ".tsv", ".csv", ".jsonl", ".xml"}
    assert len(set(by_kind[".parquet"])) == 9
    assert all(found == by_kind[".parquet"] for found in by_kind.values())


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_ROWS_OF_GROUP", 5_000)
    (tmp_path / "shop").mkdir()
    rows = "".join(f"{row},a.jpg\n" for row in range(20_000))
    (tmp_path / "shop" / "feed.csv").write_text(f"sku,image\n{rows}7,late.jpg\n")
    catalog = open_here(tmp_path / "shop" / "feed.csv")
    sizes = [fragment.num_rows for fragment in catalog.scan.fragments]
    assert sum(sizes) == catalog.scan.num_rows == 20_001
    assert len(sizes) == 3
    assert catalog.scan.first_rows == {"7": 7}


def test_a_feed_is_staged_in_the_output_of_a_job_and_removed(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("sku,image\n1,a.jpg\n")
    output = Storage(str(tmp_path / "out"))

    def stage(label: str) -> OpenCatalog:
        place = str(tmp_path / "shop.csv")
        return open_catalog(place, settings(), None, ignored=frozenset(), output=output, label=label, in_output=True)

    killed, other_shard, own = stage("1-of-2"), stage("2-of-2"), stage("1-of-2")
    assert len(list(output.keys("feed"))) == 3
    own.discard(others=True)
    assert [row.sku for row in rows_of(own)] == [row.sku for row in rows_of(other_shard)] == ["1"]
    with pytest.raises(ValueError, match=rf"{tmp_path}/shop\.csv: not a readable"):
        rows_of(killed)
    own.discard()
    other_shard.discard()
    assert list(output.keys("feed")) == []


def test_a_feed_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("sku,image\n1,a.jpg\n2")
    output = Storage(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="ends in the middle of the row at line 3"):
        open_catalog(
            str(tmp_path / "shop.csv"),
            settings(),
            None,
            ignored=frozenset(),
            output=output,
            label="",
            in_output=True,
        )
    gc.collect()
    assert list(output.keys("feed")) == []


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("Tea Cup", "Tea Cup"),
        ("<b>Pots</b> &amp; Pans<br/>new", "Pots & Pans new"),
        ("Bottle <= 5 l, > 3 l & more", "Bottle <= 5 l, > 3 l & more"),
        ("5 < 6 cups", "5 < 6 cups"),
    ],
)
def test_titles_of_html(title: str, plain: str) -> None:
    assert plain_title(title) == plain


def test_a_feed_in_s3_is_staged_in_s3(s3: str) -> None:
    shop = Storage(f"s3://{s3}/feeds")
    shop.write("feed.tsv", b"\xef\xbb\xbfsku\timage\n007\tred.jpg\n")
    output = Storage(f"s3://{s3}/out-of-feeds")
    catalog = open_catalog(
        f"s3://{s3}/feeds/feed.tsv", settings(), None, ignored=frozenset(), output=output, label="", in_output=True
    )
    assert catalog.read_as.endswith("separated by tabs, UTF-8")
    assert len(list(output.keys("feed"))) == 1
    assert [row.sku for row in rows_of(catalog)] == ["007"]
    catalog.discard()
    assert list(output.keys("feed")) == []
