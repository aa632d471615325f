"""Wanted images: stable ids and seeds, and every setting that changes pixels changes the id."""

import pytest

from refadgen.catalog.rows import CatalogRow, Placement
from refadgen.catalog.scan import unusable_row_id
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig, as_dict, load_config
from refadgen.generation.wanted import attempt_seed, pixel_settings, wanted_images

ROW = CatalogRow(row=3, sku="A-1", image="images/a.jpg", category="Cup")


def images(row: CatalogRow = ROW, *settings: str, fingerprint: str = "f"):
    config = load_config(GenerateConfig, None, settings)
    return wanted_images(row, load_scenes(), config, pixel_settings(config, fingerprint))


def test_an_id_is_the_same_in_every_process_and_version() -> None:
    # A changed value here means that every user's finished images would be made again: say so in the release notes.
    assert [image.image_id for image in images(ROW, "catalog.scenes_per_product=1")] == [GOLDEN_ID]


GOLDEN_ID = "9e067050421a6f58dfa50ecf086be05e"


def test_the_place_of_the_row_in_the_catalogue_does_not_matter() -> None:
    assert images(ROW._replace(row=999)) == images()


def test_scenes_and_variants_have_ids_and_seeds_of_their_own() -> None:
    found = images(ROW, "catalog.num_variants=3")
    assert len(found) == 6
    assert len({image.image_id for image in found}) == len({image.seed for image in found}) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"sku": "A-2"},
        {"image": "images/b.jpg"},
        {"image": b"bytes"},
        {"mask": "m.png"},
        {"prompts": ("a cup",)},
        {"negative_prompt": "x"},
        {"seed": 5},
        {"placement": Placement(size=0.4)},
    ],
)
def test_a_changed_row_is_another_wanted_image(change: dict[str, object]) -> None:
    assert images(ROW._replace(**change))[0].image_id != images()[0].image_id


PIXEL_SETTINGS = [
    "sampling.fusion_scale=0.5",
    "sampling.guidance_scale=3",
    "sampling.num_inference_steps=7",
    "sampling.reference_in_uncond=true",
    "sampling.width_px=256",
    "sampling.height_px=256",
    "sampling.seed=1",
    "sampling.batch_size=2",
    "sampling.scheduler=dpm++",
    "sampling.guidance_interval=[0, 0.7]",
    "sampling.reuse_steps=2",
    "layout.size=0.5",
    "layout.anchor=center",
    "layout.margin=0.2",
    "layout.as_photographed=true",
    "layout.keep_free=[0, 0, 0.3, 0.2]",
    "output.format=png",
    "output.quality=50",
    "quality.min_color_similarity=0.5",
    "quality.min_structure_similarity=0.5",
    "quality.min_local_similarity=0.5",
    "quality.min_hue_similarity=0.5",
    "quality.max_attempts=2",
    "quality.fusion_attempts=1",
    "quality.stronger_fusion_scale=1.4",
    "quality.product_pixels=true",
    "quality.product_tone=0.5",
    "quality.unsafe_model=a-classifier",
    "quality.unsafe_labels=[gore]",
    "quality.max_unsafe_score=0.4",
    "provenance.watermark=spread-spectrum",
    "model.dtype=float32",
    "segmentation.background_tolerance=9",
    "segmentation.min_score=0.4",
]
MACHINE_SETTINGS = [
    "sampling.tuned_for=0123456789abcdef",
    "stages.generate.num_actors=3",
    "stages.fetch.num_cpus=2",
    "model.device=cpu",
    "model.torch_threads=2",
    "model.compile=true",
    "fetch.timeout_s=1",
    "catalog.rows_per_block=1",
    "output.public_url=https://cdn.example/{uri}",
    "provenance.include_prompt=true",
    "catalog.format=parquet",
    "catalog.leave_out=[draft]",
    "segmentation.device=cpu",
]


@pytest.mark.parametrize("setting", PIXEL_SETTINGS)
def test_a_setting_that_changes_pixels_changes_the_id(setting: str) -> None:
    assert images(ROW, setting)[0].image_id != images()[0].image_id


@pytest.mark.parametrize("setting", MACHINE_SETTINGS)
def test_the_machine_does_not_change_the_id(setting: str) -> None:
    assert images(ROW, setting) == images()


def test_every_setting_of_sampling_is_on_one_of_the_lists() -> None:
    listed = {setting.partition("=")[0] for setting in PIXEL_SETTINGS + MACHINE_SETTINGS}
    assert {f"sampling.{name}" for name in as_dict(GenerateConfig())["sampling"]} <= listed
    assert {f"output.{name}" for name in as_dict(GenerateConfig())["output"]} <= listed


def test_one_image_a_ratio_of_the_channels() -> None:
    size = ["sampling.width_px=128", "sampling.height_px=160", "catalog.scenes_per_product=1"]
    plain = images(ROW, *size)
    two = images(ROW, *size, "channels=[merchant, pmax-portrait]")
    more = images(ROW, *size, "channels=[merchant, pmax-square, pmax-portrait]")
    assert [image.ratio for image in plain] == [""]
    assert [image.ratio for image in two] == [image.ratio for image in more] == ["1:1", "4:5"]
    assert {image.seed for image in (*plain, *two)} == {plain[0].seed}
    assert len({image.image_id for image in (*plain, *two)}) == 3
    # A channel more at one ratio leaves the images of the others alone.
    assert (two[0].image_id != more[0].image_id, two[1].image_id == more[1].image_id) == (True, True)
    # A changed id here means that every user's images for channels would be made again: say so in the release notes.
    assert two[1].image_id == CHANNEL_ID


CHANNEL_ID = "f555d52a3e7d1e188ce6dcc18a96400c"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["channels=[merchnt]"], "channels: unknown channel 'merchnt'; did you mean merchant"),
        (["channels_file=rules.yaml"], r"channels_file='rules\.yaml': needs channels"),
        (["channels=[stories]", "layout.as_photographed=true"], "layout.as_photographed=True: channels have ratios"),
        (["channels=[stories]", "output.public_url=https://c.example/{image_id}"], "with channels it needs {uri}"),
    ],
)
def test_channels_that_cannot_be(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        images(ROW, "sampling.width_px=128", "sampling.height_px=160", *words)


def test_another_model_is_another_image() -> None:
    assert images(fingerprint="g")[0].image_id != images()[0].image_id


def test_a_signed_address_is_known_without_its_signature() -> None:
    first = ROW._replace(image="https://h/a.jpg?v=2&X-Amz-Signature=aa&X-Amz-Date=1")
    second = ROW._replace(image="https://h/a.jpg?v=2&X-Amz-Signature=bb&X-Amz-Date=2")
    other = ROW._replace(image="https://h/a.jpg?v=3&X-Amz-Signature=bb")
    assert images(first) == images(second)
    assert images(first) != images(other)


def test_the_rows_seed_counts_on_by_variant() -> None:
    found = images(ROW._replace(seed=7, num_variants=2, prompts=("a cup",)))
    assert [image.seed for image in found] == [7, 8]


def test_attempts_have_seeds_of_their_own_and_the_first_keeps_the_images() -> None:
    seeds = [attempt_seed(7, attempt) for attempt in range(5)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 5


def test_rows_that_want_nothing_are_told_apart_by_place_and_content() -> None:
    ids = {
        unusable_row_id(1, {"sku": ""}),
        unusable_row_id(2, {"sku": ""}),
        unusable_row_id(1, {"sku": "", "image": "a"}),
        unusable_row_id(1, {"sku": "", "image": b"a"}),
    }
    assert len(ids) == 4
