"""`python -m refadgen.provenance` names the maker and the ledger row, from each mark alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refadgen.batch.ledger import now
from refadgen.batch.rows import to_table
from refadgen.config import OutputConfig, SamplingConfig
from refadgen.config.provenance import ProvenanceConfig
from refadgen.generation.encoding import GenerationRecord, encode_ad, facts_of
from refadgen.generation.ledger import AdLedger, AdLedgerRow
from refadgen.generation.scores import FidelityScores
from refadgen.generation.wanted import WantedImage
from refadgen.provenance.__main__ import main
from refadgen.provenance.marks import AdMarks
from refadgen.storage.store import Storage

ID = "5b" * 16
RECORD = GenerationRecord.of(
    WantedImage(image_id=ID, scene="forest", variant=0, prompt="p", seed=7),
    sku="mug-1",
    negative_prompt=None,
    seed=7,
    input_sha256="ab" * 32,
    scores=FidelityScores(color_similarity=1, structure_similarity=1, local_similarity=1, hue_similarity=1),
    rung="first",
    fusion_scale=1.0,
    as_photographed=False,
    sampling=SamplingConfig(guidance_scale=2.0),
    fingerprint="f" * 16,
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    values = dict.fromkeys((field.name for field in dataclasses.fields(AdLedgerRow)), None)
    texts = ("run_id", "reason", "detail", "uri", "product_uri", "image", "input_sha256", "prompt", "negative_prompt")
    values |= dict.fromkeys((*texts, "mask_source", "model"), "")
    values |= dict.fromkeys(("row", "variant", "attempts", "seed", "fetch_s", "segment_s", "publish_s"), 0)
    rows = [AdLedgerRow(**values | {"image_id": each * 16, "sku": sku, "scene": "forest", "status": "done"})
            for each, sku in (("5b", "mug-1"), ("6c", "mug-2"))]  # fmt: skip
    table = to_table([dataclasses.replace(row, recorded_at=now()) for row in rows], AdLedgerRow)
    AdLedger(Storage(str(tmp_path / "out"))).append(table)
    return tmp_path / "out"


def report(file: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return main([str(file), "--ledger", str(output)]), capsys.readouterr().out


def test_each_mark_alone_leads_to_the_row(
    tmp_path: Path, output: Path, certificate: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("c2pa", reason="needs the extra refadgen[provenance]")
    words = dict(word.removeprefix("provenance.").split("=") for word in certificate())
    marks = AdMarks(ProvenanceConfig(**words, watermark="spread-spectrum"))
    scene = np.random.default_rng(1).normal(128, 6, (320, 256, 3)).astype(np.uint8)
    data = encode_ad(marks.watermarked(scene, ID), RECORD, OutputConfig(format="png"))
    file = tmp_path / "ad.png"
    file.write_bytes(marks.signed(data, "png", facts_of(RECORD)).data)
    code, said = report(file, output, capsys)
    assert code == 0
    assert "signed (C2PA): Valid, by Test signer, Test shop; trainedAlgorithmicMedia" in said
    assert "XMP: trainedAlgorithmicMedia; made by RefAdGen: sku mug-1, scene forest" in said
    assert "watermark (spread-spectrum): 5b5b5b5b5b5b" in said
    assert f"image_id: {ID}" in said
    assert "  sku: mug-1" in said
    assert "mug-2" not in said
    Image.open(file).save(tmp_path / "bare.jpg", quality=85)  # all metadata is gone
    code, said = report(tmp_path / "bare.jpg", output, capsys)
    assert code == 0
    assert "signed (C2PA): nothing\nXMP: nothing\n" in said
    assert "image_id: 5b5b5b5b5b5b\n" in said
    assert "  sku: mug-1" in said


def test_a_file_of_others(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (200, 200), "red").save(tmp_path / "other.png")
    code, said = report(tmp_path / "other.png", output, capsys)
    assert code == 1
    assert "image_id: not known" in said
