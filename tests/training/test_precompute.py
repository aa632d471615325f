"""Which bytes the cache's rows hold, and that encoded values belong to the row they were made from."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import TINY, config_of
from torch import Tensor

from refadgen.training.precompute import TripletEncoder

PIXELS = 8
"""Side of the square of pixels that one latent stands for."""


class ExactEncoders:
    """Stands in for `Encoders`: whole numbers below 2048, so every machine computes the same bytes.

    Those of the real networks differ between processors in the last bit, and a stored digest of them would fail there.
    """

    text_encoder = image_encoder = True

    def __init__(self) -> None:
        self.passes: list[tuple[str, int]] = []
        """Each call and its number of items: real encoders round by the size of a pass."""

    def prepared(self) -> "ExactEncoders":
        return self

    def latents(self, images_u8: np.ndarray) -> Tensor:
        self.passes.append(("latents", len(images_u8)))
        return torch.from_numpy(images_u8[:, ::PIXELS, ::PIXELS].astype(np.float32)).permute(0, 3, 1, 2)

    def mask_latents(self, masks_u8: np.ndarray) -> Tensor:
        self.passes.append(("mask_latents", len(masks_u8)))
        return torch.from_numpy((masks_u8[:, None, ::PIXELS, ::PIXELS] > 127).astype(np.float32))

    def token_ids(self, texts: list[str]) -> Tensor:
        return torch.tensor([list(text.encode().ljust(80)[:80]) for text in texts])

    def text_states(self, token_ids: Tensor) -> Tensor:
        self.passes.append(("text_states", len(token_ids)))
        return torch.stack([token_ids, 2 * token_ids], dim=-1).float()

    def clip_pixels(self, images_u8: np.ndarray) -> Tensor:
        return torch.from_numpy(images_u8[:, ::16, ::16].astype(np.float32))

    def image_states(self, clip_pixels: Tensor) -> Tensor:
        self.passes.append(("image_states", len(clip_pixels)))
        return clip_pixels.flatten(2)


@pytest.fixture
def make_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TripletEncoder]:
    def make(encoders: Any, *words: str) -> TripletEncoder:
        parts = SimpleNamespace(encoders=lambda *_: encoders)
        monkeypatch.setattr("refadgen.training.precompute.load_parts", lambda config: parts)
        return TripletEncoder(config_of("none", *words), str(TINY), str(tmp_path))

    return make


def digest_of(file: Path) -> str:
    return hashlib.sha256(repr(pq.read_table(file).to_pylist()).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("width_px", "digest"), [(64, "c4b816572bfe7606"), (40, "49753d3726430670")])
def test_a_part_holds_the_rows_it_held_before(
    width_px: int, digest: str, make_encoder: Callable[..., TripletEncoder], tmp_path: Path
) -> None:
    """Digests stored from earlier code: parts that exist are kept, so new ones must hold what they would have held."""
    encoders = ExactEncoders()
    encode = make_encoder(encoders, "data.encode_batch_size=32", f"data.width_px={width_px}")
    made = encode({"key": [TINY.name], "group": [0], "part": ["part.parquet"]})
    assert made["errors"] == ["[]"]
    assert digest_of(tmp_path / "part.parquet") == digest
    passes = {name: [size for each, size in encoders.passes if each == name] for name, _ in encoders.passes}
    # 20 ads with 121 product images, 80 captions: the last pass of each is not full.
    assert passes == {
        "latents": [32, 32, 32, 32, 13],
        "mask_latents": [32, 32, 32, 25],
        "text_states": [32, 32, 16],
        "image_states": [32, 32, 32, 25],
    }


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("latents", "latents"),
        ("mask_latents", "mask"),
        ("token_ids", "token_ids"),
        ("text_states", "text_states"),
        ("image_states", "image_states"),
    ],
)
def test_a_missing_value_names_its_field(
    method: str, field: str, make_encoder: Callable[..., TripletEncoder], tmp_path: Path
) -> None:
    """Paired by position, each value after the missing one would belong to another row, without an error."""
    encoders = ExactEncoders()
    encode = getattr(encoders, method)
    setattr(encoders, method, lambda items: encode(items)[:-1])
    with pytest.raises(RuntimeError, match=rf"^{field}: the encoder gave \d+ values for \d+ items$"):
        make_encoder(encoders)({"key": [TINY.name], "group": [0], "part": ["part.parquet"]})
    assert not (tmp_path / "part.parquet").exists()
