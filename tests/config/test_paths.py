"""Paths of settings: one resolver for the jobs and the endpoint, so that they refuse and resolve alike."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from refadgen.config import DatasetConfig, GenerateConfig, SegmentationConfig, ServeConfig, TrainConfig, load_config
from refadgen.config.paths import absolute_paths
from refadgen.generation.job import CatalogJob
from refadgen.serving.app import build

CATALOG = str(Path(__file__).parents[2] / "catalogs" / "demo.parquet")


def test_places_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    words = ["filter.unsafe_model=a", "caption.model=./a", "multi_view.depth_model=a", "fetch.file_roots=[a, .]"]
    found = absolute_paths(load_config(DatasetConfig, None, words))
    here = str(tmp_path / "a")
    assert (found.filter.unsafe_model, found.caption.model, found.multi_view.depth_model) == (here, here, here)
    assert found.fetch.file_roots == (here, str(tmp_path))
    trained = absolute_paths(load_config(TrainConfig, None, ["data.path=a", "data.cache=new", "model.base=org/base"]))
    assert (trained.data.path, trained.data.cache) == (here, str(tmp_path / "new"))
    assert (trained.model.base, trained.model.image_encoder) == ("org/base", None)
    assert absolute_paths(trained) == trained


def test_an_onnx_file_is_a_path_though_it_looks_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("isnet.onnx", "isnet.bin"):
        (tmp_path / "models" / name).touch()
        config = load_config(GenerateConfig, None, [f"segmentation.saliency_model=models/{name}"])
        # The segmenter refuses isnet.bin, and names the complete path.
        assert absolute_paths(config).segmentation.saliency_model == str(tmp_path / "models" / name)
    for name in ("models/none.onnx", "./models/none"):
        with pytest.raises(
            ValueError, match=rf"^segmentation\.saliency_model='{name}': there is no.*{tmp_path}/models"
        ):
            absolute_paths(load_config(GenerateConfig, None, [f"segmentation.saliency_model={name}"]))
    words = ["segmentation.saliency_model=org/network", "segmentation.sam3=models"]
    found = absolute_paths(load_config(GenerateConfig, None, words)).segmentation
    assert (found.saliency_model, found.sam3) == ("org/network", str(tmp_path / "models"))


def test_addresses_in_stores_stay_as_they_are() -> None:
    words = ["data.path=s3://shop/triplets", "data.cache=s3://shop/cache"]
    found = absolute_paths(load_config(TrainConfig, None, words)).data
    assert (found.path, found.cache) == ("s3://shop/triplets", "s3://shop/cache")
    file = "catalog.scenes_file=s3://shop/scenes.yaml"
    assert absolute_paths(load_config(GenerateConfig, None, [file])).catalog.scenes_file == "s3://shop/scenes.yaml"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (DatasetConfig, "multi_view.depth_model=./nowhere"),
        (DatasetConfig, "fetch.file_roots=[./nowhere]"),
        (TrainConfig, "data.path=./nowhere"),
        (TrainConfig, "model.base=./nowhere"),
        (ServeConfig, "catalog.scenes_file=./nowhere"),
        (ServeConfig, "model.path=./nowhere"),
    ],
)
def test_a_place_where_nothing_is(
    config: type[Any], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    field = word.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{field}='\./nowhere': there is no.*{tmp_path}/nowhere"):
        absolute_paths(load_config(config, None, [word]))


def test_an_empty_place_is_refused_where_a_place_is_asked_for() -> None:
    words = ["segmentation.sam2_checkpoint=''", "segmentation.grounding_dino=''"]
    with pytest.raises(ValueError, match=r"^segmentation\.(sam2_checkpoint|grounding_dino)=''"):
        absolute_paths(load_config(GenerateConfig, None, words))
    assert absolute_paths(TrainConfig()).data.path == ""  # not given; the job asks for it


WEIGHTS = {"segmentation.sam2_checkpoint": "weights/sam2.pt", "segmentation.grounding_dino": "./weights/dino"}


def _job(tmp_path: Path, settings: dict[str, str]) -> CatalogJob:
    words = [f"{name}={value}" for name, value in settings.items()]
    return CatalogJob(load_config(GenerateConfig, None, words), CATALOG, str(tmp_path / "out"))


def _served(settings: dict[str, str]) -> tuple[SegmentationConfig, SegmentationConfig]:
    """The segmentation settings of the endpoint's segmentation replicas, and those of its ingress."""
    ingress = build(dict(settings))._bound_deployment
    config, _, segmenting, _ = ingress.init_args
    return segmenting._bound_deployment.init_args[0].segmentation, config.segmentation


def test_job_and_endpoint_refuse_the_same_path_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^segmentation\.\w+='\S+': there is ") as job:
        _job(tmp_path, WEIGHTS)
    with pytest.raises(ValueError, match=r"^segmentation\.\w+='\S+': there is ") as endpoint:
        build(dict(WEIGHTS))
    assert str(job.value) == str(endpoint.value)
    assert str(tmp_path) in str(job.value)


def test_job_and_endpoint_make_the_same_path_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "dino").mkdir(parents=True)
    (tmp_path / "weights" / "sam2.pt").touch()
    job = _job(tmp_path, WEIGHTS)
    replica, ingress = _served(WEIGHTS)
    found = job._stage_config.segmentation
    assert found.sam2_checkpoint == str(tmp_path / "weights" / "sam2.pt")
    assert found.grounding_dino == str(tmp_path / "weights" / "dino")
    assert replica == found
    # Ids come from the words as the user wrote them, in the job and in the endpoint.
    assert ingress == job._config.segmentation
    assert dataclasses.replace(ingress, **dataclasses.asdict(found)) != ingress
