"""Ids that outputs of earlier versions hold: as long as these stay, an output made before a change is resumed after it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.catalog.placement import Placement
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import scan_catalog, unusable_row_id
from refadgen.catalog.scenes import load_scenes
from refadgen.config import DatasetConfig, GenerateConfig, load_config
from refadgen.dataset.files import triplets_key
from refadgen.dataset.ledgers import dataset_ledger, screening_ledger
from refadgen.dataset.planning import AdPlanner
from refadgen.generation.ledger import AdLedger
from refadgen.generation.publisher import image_key
from refadgen.generation.wanted import attempt_seed, pixel_settings, wanted_images
from refadgen.ledger import now, short_key
from refadgen.storage import Storage
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


def test_image_ids_and_seeds() -> None:
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
    plans = list(AdPlanner(first_rows=scan.first_rows).rows(scan.fragments[0]))
    assert [plan["row_id"] for plan in plans] == [
        "bf4071bf3b2100deabdbadd30f737906",
        "eb77b5ed5fdb3ac76da39c338f4ce778",
    ]
    assert unusable_row_id(3, {"sku": "x", "image": b"\x00"}) == "482473db486d7005ea9d9fa1883d88ca"
    assert triplets_key("train", ["a", "b"]) == "data/train/triplets-c8687a08aa5d6ed2.parquet"


def test_places_of_ledgers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    row = {"recorded_at": now(), "status": "done", "reason": ""}
    AdLedger(storage).append([{**row, "image_id": 32 * "0"}])
    screening_ledger(storage).append([{**row, "row_id": 32 * "0"}])
    dataset_ledger(storage).append([{**row, "row_id": 32 * "1"}])
    folders = [key.partition("/")[0] for key in storage.keys()]
    assert folders == ["ledger", "ledger", "screening"]
    assert all(key.split("/")[1].startswith("part-") and key.split("-")[2] == "0" for key in storage.keys())


def test_names_of_cache_parts_and_draws() -> None:
    recipe = {"vae": "0123", "width_px": 512, "height_px": 640, "crop_seed": 0, "dtype": "auto"}
    assert unit_name("data/train/part-0.parquet", "feedbeef", 3, recipe) == "part-68aac2eaa289b4e2e7f7.parquet"
    drawn = draw(3, 1, "row-9")
    assert (drawn.noise_seed, drawn.variant) == (3338298141800774407, 0.28824014897002515)


def test_settings_that_outputs_keep() -> None:
    """What `dataset.json` and a checkpoint's facts compare: names and values."""
    from refadgen.dataset.planning import triplet_settings

    assert triplet_settings(load_config(DatasetConfig)) == {
        "filter": {
            "min_side_px": 256,
            "max_aspect": 3.0,
            "duplicate_distance": 4,
            "duplicate_color": 12.0,
            "text": False,
            "max_text_area": 0.02,
            "min_text_score": 0.6,
            "unsafe_model": None,
            "unsafe_labels": ("nsfw", "porn", "hentai", "sexy"),
            "max_unsafe_score": 0.5,
            "people": True,
            "max_person_overlap": 0.1,
            "max_products": 1,
        },
        "caption": {
            "model": None,
            "prompts": (
                "Describe this advertising image in one sentence: product, what it stands on, what is behind it, the light.",
                "Describe the scene of this advertising photograph in one sentence. Name the product by its kind only.",
                "Write the prompt, one sentence, that an image generator would need to make this advertising image.",
                "In one sentence, say where this product is shown, in what surroundings and in what mood.",
            ),
            "max_new_tokens": 96,
            "max_side_px": 768,
            "min_words": 3,
            "max_words": 80,
            "min_latin": 0.8,
        },
        "segmentation": {
            "background_tolerance": 12.0,
            "grounding_dino": None,
            "sam2_checkpoint": None,
            "sam2_config": "configs/sam2.1/sam2.1_hiera_l.yaml",
            "box_threshold": 0.35,
            "text_threshold": 0.25,
            "min_area": 0.005,
            "max_area": 0.95,
            "max_edge_contact": 0.2,
            "max_pieces": 8,
            "min_piece": 0.02,
            "min_score": 0.5,
        },
        "multi_view": {
            "depth_model": None,
            "yaw_deg": (5.0, 20.0),
            "pitch_deg": (0.0, 5.0),
            "distance": (0.95, 1.05),
            "camera_distance": 4.0,
            "max_holes": 0.01,
            "max_stretch": 0.1,
            "num_tries": 4,
        },
        "degradation": {
            "noise": (2.0, 8.0),
            "shadow": (0.15, 0.6),
            "warp": (0.01, 0.04),
            "blur": (0.0, 0.0),
            "color_cast": (0.0, 0.0),
            "jpeg": (0.0, 0.0),
        },
        "triplet": {
            "max_side_px": 1024,
            "variants": ("original", "degraded", "novel_view", "novel_view", "novel_view"),
            "test_percent": 10,
            "seed": 0,
        },
    }
