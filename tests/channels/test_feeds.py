"""Channels' feeds: only done ads, the newest of each, in files that their own readers open."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refadgen.channels.feeds import LEDGER_COLUMNS, public_address, write_feeds
from refadgen.config import GenerateConfig, load_config
from refadgen.storage.store import Storage

URL = "https://cdn.example/ads/{uri}"


def ledger(*rows: tuple[str, str, int, str, str, int]) -> pa.Table:
    """(sku, scene, variant, status, file, day) of each image."""
    return pa.Table.from_pylist(
        [
            {
                "image_id": f"{number:032}",
                "sku": sku,
                "scene": scene,
                "variant": variant,
                "status": status,
                "uri": f"images/{file}" if status == "done" else "",
                "digital_source_type": "trainedAlgorithmicMedia" if status == "done" else None,
                "recorded_at": datetime(2026, 11, day, tzinfo=UTC),
                "ratio": None,
                "channel_files": None,
            }
            for number, (sku, scene, variant, status, file, day) in enumerate(rows)
        ]
    ).select(LEDGER_COLUMNS)


ROWS = ledger(
    ("mug, blue", "b", 0, "done", "4.jpg", 1),
    ("00123", "a", 0, "done", "old.jpg", 1),
    ("00123", "a", 0, "done", "1.jpg", 2),
    ("00123", "a", 0, "failed", "", 3),
    ("00123", "a", 1, "done", "2.webp", 1),
    ("00123", "b", 0, "done", "3.png", 1),
    ("pot", "a", 0, "rejected", "", 1),
    ("cup", "a", 0, "done", "5.webp", 1),
)


def read(folder: Path, name: str, separator: str) -> list[list[str]]:
    with (folder / "channels" / name).open(newline="") as file:
        return list(csv.reader(file, delimiter=separator))


def test_feeds_hold_the_newest_done_ads_that_a_channel_takes(tmp_path: Path) -> None:
    counts = write_feeds(Storage(str(tmp_path)), [ROWS], URL)
    base = "https://cdn.example/ads/images"
    assert read(tmp_path, "merchant.tsv", "\t") == [
        ["id", "lifestyle_image_link"],
        ["00123", f"{base}/1.jpg"],
        ["mug, blue", f"{base}/4.jpg"],
    ]
    assert read(tmp_path, "meta.csv", ",") == [
        ["id", "additional_image_link"],
        ["00123", f"{base}/1.jpg,{base}/3.png"],
        ["mug, blue", f"{base}/4.jpg"],
    ]
    assert read(tmp_path, "pinterest.tsv", "\t") == read(tmp_path, "meta.csv", ",")
    images = pq.read_table(tmp_path / "channels" / "images.parquet").to_pylist()
    assert [(row["id"], row["scene"], row["variant"], row["uri"]) for row in images] == [
        ("00123", "a", 0, "images/1.jpg"),
        ("00123", "a", 1, "images/2.webp"),
        ("00123", "b", 0, "images/3.png"),
        ("cup", "a", 0, "images/5.webp"),
        ("mug, blue", "b", 0, "images/4.jpg"),
    ]
    assert counts == {"merchant.tsv": 2, "meta.csv": 2, "pinterest.tsv": 2, "images.parquet": 5}


def channel_row(sku: str, ratio: str, day: int, *files: tuple[str, str], status: str = "done") -> dict[str, object]:
    """files: (channel, lint) of each."""
    number = f"{sku}{ratio[0]}{day}"
    named = [
        {
            "channel": channel,
            "uri": f"channels/{channel}/{number}.jpg",
            "width_px": 1200,
            "height_px": 628,
            "num_bytes": 1,
            "digital_source_type": "trainedAlgorithmicMedia",
            "lint": lint,
        }
        for channel, lint in files
    ]
    return {
        "image_id": number,
        "sku": sku,
        "scene": "s",
        "variant": 0,
        "status": status,
        "uri": f"images/{number}.jpg",
        "digital_source_type": "trainedAlgorithmicMedia",
        "recorded_at": datetime(2026, 11, day, tzinfo=UTC),
        "ratio": ratio,
        "channel_files": named,
    }


def test_each_feed_names_its_channels_clean_files(tmp_path: Path) -> None:
    rows = [
        channel_row("a", "1:1", 1, ("merchant", "clean"), ("meta-square", "clean")),  # made anew on the next day
        channel_row("a", "1:1", 2, ("merchant", "clean"), ("meta-square", "ratio 3:2, not 1:1")),
        channel_row("a", "4:5", 1, ("meta-portrait", "clean"), ("pmax-portrait", "clean")),
        channel_row("a", "1.91:1", 1, ("pmax-landscape", "clean"), status="failed"),
        channel_row("b", "2:3", 1, ("pinterest", "clean")),
    ]
    tables = [pa.Table.from_pylist(rows[:4]), pa.Table.from_pylist(rows[4:])]
    earlier = ledger(("a", "s", 0, "done", "before.jpg", 3)).cast(ledger(("a", "s", 0, "done", "b.jpg", 3)).schema)
    counts = write_feeds(Storage(str(tmp_path)), [earlier, *tables], "https://c.example/{uri}", for_channels=True)
    base = "https://c.example/channels"
    assert read(tmp_path, "merchant.tsv", "\t")[1:] == [["a", f"{base}/merchant/a12.jpg"]]
    assert read(tmp_path, "meta.csv", ",")[1:] == [["a", f"{base}/meta-portrait/a41.jpg"]]
    assert read(tmp_path, "pinterest.tsv", "\t")[1:] == [["b", f"{base}/pinterest/b21.jpg"]]
    (asset,) = csv.DictReader((tmp_path / "channels" / "google-ads.csv").open(newline=""))
    assert asset == {
        "asset_name": "pmax-portrait a41",
        "id": "a",
        "field_type": "PORTRAIT_MARKETING_IMAGE",
        "image_url": f"{base}/pmax-portrait/a41.jpg",
        "width_px": "1200",
        "height_px": "628",
        "synthetic_content_attestation": "IS_SYNTHETIC",
        "synthetic_content_source": "ADVERTISER_ATTESTED",
    }
    (creative,) = csv.DictReader((tmp_path / "channels" / "dv360.csv").open(newline=""))
    assert creative["syntheticContentAttestationStatus"] == "IS_SYNTHETIC"
    images = pq.read_table(tmp_path / "channels" / "images.parquet").to_pylist()
    assert [(row["id"], row["ratio"], row["channel"]) for row in images] == [
        ("a", "1:1", "merchant"),
        ("a", "4:5", "meta-portrait"),
        ("a", "4:5", "pmax-portrait"),
        ("b", "2:3", "pinterest"),
    ]
    expected = {"merchant.tsv": 1, "meta.csv": 1, "pinterest.tsv": 1, "google-ads.csv": 1, "dv360.csv": 1}
    assert counts == {**expected, "images.parquet": 4}


def test_addresses_by_channel() -> None:
    template = "https://c.example/{channel}/{image_id}.jpg"
    assert (
        public_address(template, uri="x", image_id="0f", sku="s", channel="stories")
        == "https://c.example/stories/0f.jpg"
    )


def test_the_same_ledger_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_feeds(Storage(str(tmp_path / name)), [ROWS if name == "one" else ROWS.take(list(range(7, -1, -1)))], URL)
    for file in (tmp_path / "one" / "channels").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "channels" / file.name).read_bytes()


def test_cells_are_bounded(tmp_path: Path) -> None:
    many = ledger(*(("a", f"s{number:02}", 0, "done", f"{number:060}.jpg", 1) for number in range(30)))
    write_feeds(Storage(str(tmp_path)), [many], URL)
    meta, pinterest = (read(tmp_path, *each)[1][1] for each in (("meta.csv", ","), ("pinterest.tsv", "\t")))
    assert (meta.count(",") + 1, pinterest.count(",") + 1) == (20, 10)
    write_feeds(Storage(str(tmp_path)), [many], f"https://cdn.example/{'x' * 300}/{{uri}}")
    (cell,) = (row[1] for row in read(tmp_path, "meta.csv", ",")[1:])
    assert cell.count(",") + 1 == 5
    assert len(cell) <= 2000


def test_no_ads_at_all(tmp_path: Path) -> None:
    write_feeds(Storage(str(tmp_path)), [ledger(("pot", "a", 0, "rejected", "", 1))], URL)
    assert read(tmp_path, "merchant.tsv", "\t") == [["id", "lifestyle_image_link"]]


def test_addresses_are_escaped() -> None:
    found = public_address("https://c.example/{sku}/{image_id}", uri="images/a.jpg", image_id="0f", sku="mug, blue/1")
    assert found == "https://c.example/mug%2C%20blue%2F1/0f"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("cdn.example/{uri}", "must be an address that begins with http"),
        ("https://cdn.example/ads", r"must be an address with \{uri\} or \{image_id\}"),
        (
            "https://cdn.example/{uri}/{color}",
            r"must be an address with \{uri\} or \{image_id\}, and \{sku\} and \{channel\} at most",
        ),
        ("https://cdn.example/{uri", "expected '}'"),
    ],
)
def test_a_wrong_address_stops_the_job(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"output\.public_url=.*{said}"):
        load_config(GenerateConfig, None, [f"output.public_url={url}"])
