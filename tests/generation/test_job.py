"""What a job checks before anything starts."""

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from refadgen.config import GenerateConfig, load_config
from refadgen.config.identity import pixel_identity
from refadgen.config.paths import absolute_paths
from refadgen.generation.job import CatalogJob
from refadgen.generation.model_settings import with_model_defaults

CATALOG = str(Path(__file__).parents[2] / "catalogs" / "demo.parquet")


def config(*words: str) -> GenerateConfig:
    return load_config(GenerateConfig, None, words)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["fetch.file_roots=[./nowhere]"], "fetch.file_roots"),
        (["catalog.scenes_file=./nowhere.yaml"], "catalog.scenes_file"),
        (
            ["segmentation.sam2_checkpoint=./nowhere.pt", "segmentation.grounding_dino=org/model"],
            "segmentation.sam2_checkpoint",
        ),
    ],
)
def test_a_path_where_nothing_is_stops_the_job(words: list[str], field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}='./nowhere.*: there is nothing at /"):
        absolute_paths(config(*words))


def test_paths_reach_the_actors_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("roots", "model", "dino"):
        (tmp_path / name).mkdir()
    (tmp_path / "sam2.pt").touch()
    words = ["fetch.file_roots=[roots]", "model.path=model", "segmentation.grounding_dino=dino"]
    found = absolute_paths(config(*words, "segmentation.sam2_checkpoint=sam2.pt"))
    assert found.fetch.file_roots == (str(tmp_path / "roots"),)
    assert found.model.path == str(tmp_path / "model")
    assert found.segmentation.grounding_dino == str(tmp_path / "dino")
    assert found.segmentation.sam2_checkpoint == str(tmp_path / "sam2.pt")
    assert absolute_paths(config("model.path=org/model")).model.path == "org/model"
    assert absolute_paths(config()).model.path == "mini"


def test_a_setting_that_neither_user_nor_model_gives_is_named(tmp_path: Path) -> None:
    index = {"guidance_scale": 2.0, "reference_in_uncond": False, "height_px": 160}
    with pytest.raises(ValueError, match=r"sampling\.width_px: neither set nor in"):
        with_model_defaults(config(), index, tmp_path)
    assert with_model_defaults(config("sampling.width_px=128"), index, tmp_path).sampling.height_px == 160


def test_a_model_without_one_of_its_components_stops_the_job(random_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(random_model, model)
    shutil.rmtree(model / "vae")
    with pytest.raises(ValueError, match="the component vae/ is missing"):
        CatalogJob(config(f"model.path={model}"), CATALOG, str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["generate_catalog", "build_dataset"])
def test_a_dry_run_starts_no_ray(
    name: str, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have left
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = Path(CATALOG).parents[1] / "jobs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    words = [f"model.path={random_model}"] if name == "generate_catalog" else []
    assert job.main([CATALOG, "--output", str(tmp_path / "out"), "--dry-run", *words]) == 0
    told = capsys.readouterr().out
    wanted = (
        "images wanted: 24, to make: 24, skipped (reconciled): 0" if words else "ads: 12, to screen: 12, reconciled: 0"
    )
    assert wanted in told
    assert re.search(r"actors on this Ray: \w+ 1", told)


def test_a_dry_run_of_a_feed_tells_how_it_is_understood(random_model: Path, tmp_path: Path) -> None:
    feed = tmp_path / "feed.tsv"
    feed.write_text(
        "id\ttitle\timage_link\tproduct_type\tavailability\tgtin\n"
        "00123\tTea Cup\thttps://h.example/1.jpg?signature=secret\tCups\tin_stock\t00012345678905\n"
        "7\tPot\thttps://h.example/2.jpg\tPots\tout_of_stock\t\n"
        "8\tMug\t\tMugs\tin_stock\t\n"
    )
    for local in (True, False):
        job = CatalogJob(config(f"model.path={random_model}"), str(feed), str(tmp_path / "out"), local=local)
        assert job.read_as == f"{feed}: read as Google Merchant text feed, separated by tabs, UTF-8"
        assert (tmp_path / "out" / "feed").is_dir() is not local
        told = job.describe()
        assert (
            "rows in the feed: 3, products: 2, left out: 1\n"
            "        1 out-of-stock (catalog.leave_out); the first: 7\n"
            "columns not used: gtin\n"
            "the first 2 rows as understood:\n"
            "  sku '00123', image 'https://h.example/1.jpg', title 'Tea Cup', category 'Cups'\n"
            "  missing_image: row 1: image is empty; give a path, an address or an encoded image\n"
        ) in told
        assert "images wanted: 3, to make: 3" in told
        assert not list((tmp_path / "out").rglob("*.parquet"))


def test_steps_that_are_left_out_are_the_models_and_ids_hold_their_number(tmp_path: Path) -> None:
    index = {"guidance_scale": 2.0, "reference_in_uncond": False, "width_px": 128, "height_px": 160}

    def identity(steps: int | None, *words: str) -> dict[str, Any]:
        own = index if steps is None else index | {"num_inference_steps": steps}
        return pixel_identity(with_model_defaults(config(*words), own, tmp_path), "f")

    assert identity(30)["sampling"]["num_inference_steps"] == 30
    assert identity(30) == identity(None, "sampling.num_inference_steps=30")
    # Without a recommendation, and with an explicit number, all is as it was before models recommended steps.
    assert identity(None) == identity(30, "sampling.num_inference_steps=20")
    assert pixel_identity(config(), "f") == pixel_identity(config("sampling.num_inference_steps=20"), "f")


@pytest.mark.parametrize("steps", [0, 1001, 12.5, "30", True])
def test_a_model_that_recommends_no_number_of_steps_is_named(steps: object, tmp_path: Path) -> None:
    index = {"guidance_scale": 2.0, "reference_in_uncond": False, "width_px": 128, "height_px": 160}
    with pytest.raises(ValueError, match=r"model_index\.json: num_inference_steps=.*: must be 1 to 1000"):
        with_model_defaults(config(), index | {"num_inference_steps": steps}, tmp_path)
