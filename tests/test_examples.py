"""The examples run as a user runs them: in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from refadgen.mini.architecture import HEIGHT_PX, WIDTH_PX

ROOT = Path(__file__).parents[1]
CATALOG = ROOT / "catalogs" / "demo.parquet"
SCENES = ROOT / "examples" / "custom_scenes.yaml"


def run(folder: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_listed() -> None:
    listed = set(re.findall(r"\]\((\w+\.\w+)\)", (ROOT / "examples" / "README.md").read_text()))
    assert listed == {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".yaml")}


def test_pictures_from_the_pipeline_in_fifteen_lines(tmp_path: Path) -> None:
    (tmp_path / "catalogs").symlink_to(ROOT / "catalogs")
    source = (ROOT / "examples" / "pictures.py").read_text()
    assert len([line for line in source.splitlines()[1:] if line]) <= 15
    run(tmp_path, str(ROOT / "examples" / "pictures.py"))
    first, second = (np.asarray(Image.open(tmp_path / f"ad-{index}.png")).astype(int) for index in range(2))
    assert first.shape == (HEIGHT_PX, WIDTH_PX, 3)
    corner = np.s_[:20, :20]  # a pink wall, a green hedge; the product stands below
    assert np.abs(first[corner] - second[corner]).mean() > 20


@pytest.mark.slow
def test_own_masks_and_own_scenes_reach_the_ledger(tmp_path: Path) -> None:
    text = run(tmp_path, str(ROOT / "examples" / "own_segmentation.py"), str(CATALOG), str(tmp_path / "own"))
    assert "12 of 12 products have a mask" in text
    own = pq.read_table(tmp_path / "own" / "catalog.parquet")
    assert own.column_names == pq.read_table(CATALOG).column_names
    job = str(ROOT / "jobs" / "generate_catalog.py")
    catalog, output = str(tmp_path / "own" / "catalog.parquet"), tmp_path / "ads"
    settings = [f"catalog.scenes_file={SCENES}", "catalog.scenes_per_product=1", "sampling.num_inference_steps=2"]
    run(tmp_path, job, catalog, "--output", str(output), "--limit", "3", *settings)
    rows = pq.read_table(output / "ledger").to_pylist()
    assert [row["status"] for row in rows] == ["done"] * 3
    assert {row["mask_source"] for row in rows} == {"own_mask"}
    scenes = yaml.safe_load(SCENES.read_text())
    prompts = {name: text for entry in scenes.values() for name, text in entry["scenes"].items()}
    for row in rows:
        assert row["prompt"].startswith(prompts[row["scene"]].partition("{category}")[0])
    (cup,) = [row for row in rows if row["category"] == "Cup"]
    assert cup["scene"].startswith("spring-")
