"""Ids that outputs of earlier versions hold. While these stay equal, an output made before a change can be resumed.

A raised version in `ALGORITHM_VERSIONS` gives new ids on purpose. The ids of the first versions stay here, too: they
hold everything else that is hashed. Today's stand beside them.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refadgen.batch.ledger import Ledger, now, short_key
from refadgen.catalog.placement import Placement
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import scan_catalog, unusable_row_id
from refadgen.catalog.scenes import load_scenes
from refadgen.config import DatasetConfig, GenerateConfig, load_config
from refadgen.config.identity import ALGORITHM_VERSIONS, triplet_identity
from refadgen.dataset.files import triplets_key
from refadgen.dataset.ledgers import dataset_ledger, screening_ledger
from refadgen.dataset.planning import AdPlanner
from refadgen.generation.encoding import image_key
from refadgen.generation.ledger import AdLedger
from refadgen.generation.wanted import attempt_seed, pixel_settings, wanted_images
from refadgen.storage.store import Storage
from refadgen.training.cache import unit_name
from refadgen.training.plan import draw

PLAIN = CatalogRow(row=0, sku="mug-7", image="images/mug-7.jpg", category="Kitchen > Mugs", title="Blue mug")
FULL = CatalogRow(
    row=1,
    sku="lamp-1",
    image=b"encoded",
    mask="masks/lamp-1.png",
    category="Lamps",
    prompts=("a lamp on a desk", "a lamp by a window"),
    negative_prompt="people",
    num_variants=2,
    seed=5,
    placement=Placement(size=0.4, anchor="left"),
)


@pytest.fixture
def first_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALGORITHM_VERSIONS:
        monkeypatch.setitem(ALGORITHM_VERSIONS, name, 1)


@pytest.mark.usefixtures("first_versions")
def test_image_ids_and_seeds_of_the_first_versions() -> None:
    config = load_config(GenerateConfig)
    settings = pixel_settings(config, "0123456789abcdef")
    plain = wanted_images(PLAIN, load_scenes(), config, settings)
    assert [(image.image_id, image.seed) for image in plain] == [
        ("ef67f1795e018bfd97aba16f75d8ebf5", 8546105287881444942),
        ("37e311d3f430a1f80cd553b792f39f9f", 8783562049664914406),
    ]
    full = wanted_images(FULL, load_scenes(), config, settings)
    assert [(image.image_id, image.seed) for image in full] == [
        ("b8ff53b4809f73be8e1febd688f5036c", 5),
        ("27d21aca05f3d16cd46deb03a9610e08", 6),
        ("245b5c072ea21053bddc5a5e921895d4", 5),
        ("ad08303359f0bcb5773ab32d11880203", 6),
    ]
    assert attempt_seed(7, 2) == 1893595818792535028
    changed = load_config(
        GenerateConfig,
        None,
        ["sampling.guidance_scale=3", "segmentation.min_area=0.01", "output.format=webp", "quality.max_attempts=2"],
    )
    assert (
        wanted_images(PLAIN, load_scenes(), changed, pixel_settings(changed, "0123456789abcdef"))[0].image_id
        == "dbb65fb44217d86b34da951e25ff1ce3"
    )
    assert image_key("3f" + 30 * "a", "jpeg") == "images/3f/3f" + 30 * "a" + ".jpg"
    assert short_key("00000000000000ff" + 16 * "0") == 255


def test_row_ids_of_ads(tmp_path: Path) -> None:
    rows = [
        {"sku": "a", "image": "a.jpg", "category": "Mugs", "captions": ["a mug"], "group": "g"},
        {"sku": "", "image": "b.jpg", "category": None, "captions": [], "group": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ads.parquet")
    scan = scan_catalog(str(tmp_path / "ads.parquet"))
    ads = AdPlanner(first_rows=scan.first_rows).ads(scan.fragments[0])
    assert [ad.row_id for ad in ads] == [
        "bf4071bf3b2100deabdbadd30f737906",
        "eb77b5ed5fdb3ac76da39c338f4ce778",
    ]
    assert unusable_row_id(3, {"sku": "x", "image": b"\x00"}) == "482473db486d7005ea9d9fa1883d88ca"
    assert triplets_key("train", ["a", "b"]) == "data/train/triplets-c8687a08aa5d6ed2.parquet"


def append(ledger: Ledger, rows: list[dict]) -> None:
    ledger.append(pa.Table.from_pylist(rows, schema=ledger.schema))


def test_places_of_ledgers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    row = {"recorded_at": now(), "status": "done", "reason": ""}
    append(AdLedger(storage), [{**row, "image_id": 32 * "0"}])
    append(screening_ledger(storage), [{**row, "row_id": 32 * "0"}])
    append(dataset_ledger(storage), [{**row, "row_id": 32 * "1"}])
    folders = [key.partition("/")[0] for key in storage.keys("")]
    assert folders == ["ledger", "ledger", "screening"]
    assert all(key.split("/")[1].startswith("part-") and key.split("-")[2] == "0" for key in storage.keys(""))


def test_names_of_cache_parts_and_draws() -> None:
    recipe = {"vae": "0123", "width_px": 512, "height_px": 640, "crop_seed": 0, "dtype": "auto"}
    assert unit_name("data/train/part-0.parquet", "feedbeef", 3, recipe) == "part-68aac2eaa289b4e2e7f7.parquet"
    drawn = draw(3, 1, "row-9")
    assert (drawn.noise_seed, drawn.variant) == (3338298141800774407, 0.28824014897002515)


def _dataset_settings() -> str:
    settings = json.dumps(triplet_identity(load_config(DatasetConfig)), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


@pytest.mark.usefixtures("first_versions")
def test_settings_that_a_dataset_of_the_first_versions_keeps() -> None:
    """`dataset.json` holds these names and values; a run with others is refused."""
    assert _dataset_settings() == "9a846f456fb6a08d"


def test_ids_of_today() -> None:
    """Changed by a raised version alone, which the changelog names."""
    config = load_config(GenerateConfig)
    settings = pixel_settings(config, "0123456789abcdef")
    plain, full = (wanted_images(row, load_scenes(), config, settings) for row in (PLAIN, FULL))
    assert [image.image_id for image in (*plain, *full)] == [
        "538702ba5ac3850f30cea80f8719ede5",
        "74b8d84433c77ac78fdd94a75af4e6b2",
        "c6b38558976cc8fd013ecdb0559195f3",
        "6498ab43e226b2ec0fc3e72cf6dde639",
        "4ec26e55819fad51a3d61f1764c3dd17",
        "d680707580559eb9bf0a4aed464504dc",
    ]
    assert _dataset_settings() == "a04949324cc32b19"
