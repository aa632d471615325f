"""Settings of the endpoint are checked before anything starts, in the same words as the catalogue job's."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refadgen.serving.app import build

sys.path.append(str(Path(__file__).resolve().parents[2] / "jobs"))
import generate_catalog

WRONG = [
    {"segmentation": {"sam2_checkpoint": "nowhere/sam2.pt", "grounding_dino": "org/dino", "sam2_config": "sam2.yaml"}},
    {"segmentation": {"sam2_checkpoint": "sam2.pt", "grounding_dino": "./nowhere", "sam2_config": "sam2.yaml"}},
    {"catalog": {"scenes_file": "nowhere.yaml"}},
    {"fetch": {"file_roots": ["nowhere"]}},
    {"model": {"path": "./nowhere"}},
]
FIELDS = [
    "segmentation.sam2_checkpoint",
    "segmentation.grounding_dino",
    "catalog.scenes_file",
    "fetch.file_roots",
    "model.path",
]


@pytest.mark.parametrize(("settings", "field"), list(zip(WRONG, FIELDS, strict=True)), ids=FIELDS)
def test_a_path_where_nothing_is_is_refused_in_the_catalogue_jobs_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, dict[str, object]],
    field: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sam2.pt").touch()
    pq.write_table(pa.table({"sku": ["A"], "image": ["a.png"]}), "catalog.parquet")

    with pytest.raises(ValueError, match=f"^{field}=") as refused:
        build(settings)
    words = [f"{section}.{name}={value}" for section, values in settings.items() for name, value in values.items()]
    assert generate_catalog.main(["catalog.parquet", "--dry-run", *words]) == 2
    assert capsys.readouterr().err == f"generate_catalog: {refused.value}\n"


def test_another_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^method: the endpoint makes RefAdGen's images only"):
        build({"method": {"class": "refadgen.evaluation.baselines.product_paste:PlainPaste"}})
