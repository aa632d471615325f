"""The wheel holds what the package reads at run time: code, weights, scenes, presets, pages, the tiny data set."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ_AT_RUN_TIME = (
    "refadgen/catalog/scenes.yaml",
    "refadgen/generation/report.html",
    "refadgen/mini/weights/model_index.json",
    "refadgen/mini/weights/generation_unet/attention_fusion.safetensors",
    "refadgen/mini/weights/tokenizer/tokenizer.json",
    "refadgen/serving/page/index.html",
    "refadgen/training/presets/paper.yaml",
    "refadgen/triplets/tiny/triplets.parquet",
)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths in the wheel, which is built in a copy, by the setuptools that is installed: no network."""
    copy, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "refadgen", copy / "refadgen", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=copy, check=True, capture_output=True, text=True)
    (wheel,) = target.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_file_of_the_package_is_in_the_wheel(wheel_names: set[str]) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "refadgen").rglob("*") if path.is_file()}
    missing = {name for name in files - wheel_names if "__pycache__" not in name}
    assert not missing, "add a pattern to [tool.setuptools.package-data] in pyproject.toml"


def test_what_is_read_at_run_time_is_in_the_wheel(wheel_names: set[str]) -> None:
    assert set(READ_AT_RUN_TIME) <= wheel_names


def test_nothing_else_is_in_the_wheel(wheel_names: set[str]) -> None:
    tops = {name.partition("/")[0].partition("-")[0] for name in wheel_names}
    assert tops == {"refadgen"}
