"""The benchmark of the filters by content in short: 28 planted ads on drawn scenes, without OCR."""

import cv2
import numpy as np
import planted_ads
from planted_ads import KINDS, Picture, planted


def _picture(number: int) -> Picture:
    rng = np.random.default_rng(number)
    image = np.full((320, 256, 3), rng.integers(90, 200, 3), np.uint8)
    image[220:] = rng.integers(60, 200, 3)
    mask = np.zeros((320, 256), np.uint8)
    cv2.rectangle(mask, (80, 90), (175, 250), 255, -1)
    image[mask > 0] = rng.integers(0, 256, 3)
    noisy = image + rng.normal(0, 2, image.shape)
    return Picture(image_u8=np.clip(noisy, 0, 255).astype(np.uint8), mask=mask)


def test_faults_are_planted_by_seed() -> None:
    picture, other = _picture(0), _picture(1)
    for kind in KINDS:
        once, again = (planted(kind, picture, other, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(once.image_u8, again.image_u8)
        assert np.array_equal(once.image_u8, picture.image_u8) == (kind == "none")
        hidden = 1 - np.count_nonzero(once.mask) / np.count_nonzero(picture.mask)
        assert (0.05 < hidden < 0.5) == (kind in ("hand", "occluder"))


def test_the_filters_find_them_and_spare_the_others() -> None:
    result = planted_ads.measure([_picture(number) for number in range(6)], 28, with_text=False)
    for name, least in (("watermarks", 0.6), ("occluders", 0.6)):
        figures = result[name]
        assert figures["precision"] >= 0.8, (name, figures)
        assert figures["recall"] >= least, (name, figures)
        assert figures["rejected"]["none"] == 0
