"""Encoded images: the bytes are Pillow's at the given settings, for arrays and pictures alike."""

import io

import numpy as np
import pytest
from PIL import Image

from refadgen.storage.pictures import to_jpeg, to_png

RGB = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)


@pytest.mark.parametrize("pixels", [RGB, RGB[..., 0], np.dstack([RGB, RGB[..., 0]])])
@pytest.mark.parametrize("compress_level", [1, 2])
def test_png_keeps_every_value_and_has_its_level(pixels: np.ndarray, compress_level: int) -> None:
    data = to_png(pixels, compress_level=compress_level)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert data == to_png(Image.fromarray(pixels), compress_level=compress_level)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=compress_level)
    assert data == buffer.getvalue()


def test_jpeg_is_smaller_at_lower_quality() -> None:
    assert len(to_jpeg(RGB, quality=50)) < len(to_jpeg(RGB, quality=90))
    assert Image.open(io.BytesIO(to_jpeg(RGB, quality=90))).size == (16, 20)
