"""The crop: it covers the canvas, or is the authors' random window of an image whose shorter side is resized."""

import numpy as np
import pytest

from refadgen.triplets.geometry import CoverCrop


@pytest.mark.parametrize(
    ("width_px", "height_px", "visible"),
    [(1138, 640, 0.45), (800, 640, 0.64), (640, 640, 0.8), (640, 1280, 0.4), (300, 300, 0.8), (512, 640, 0.64)],
)
def test_the_authors_crop_shows_this_share_of_an_ad(width_px: int, height_px: int, visible: float) -> None:
    """Shorter side to 640, then 512×640 of it: also of ads that are smaller than that, which are enlarged."""
    columns = np.broadcast_to(np.linspace(0, 200, width_px), (height_px, width_px))
    rows = np.broadcast_to(np.linspace(0, 200, height_px)[:, None], (height_px, width_px))
    picture = np.stack([columns, rows, rows], axis=2).astype(np.uint8)
    shares = []
    for channel, side in ((0, 1), (1, 0)):
        ends = [CoverCrop(512, 640, share, share, zoomed=True)(picture)[..., channel] for share in (0.0, 1.0)]
        assert all(each.shape == (640, 512) for each in ends)
        seen = [float(each.take(-1, side).mean()) - float(each.take(0, side).mean()) for each in ends]
        assert seen[0] == pytest.approx(seen[1], abs=3)
        assert ends[0].min() <= 2  # the crop reaches both ends
        assert ends[1].max() >= 197
        shares.append(seen[0] / 200)
    assert shares[0] * shares[1] == pytest.approx(visible, abs=0.02)


def test_a_canvas_that_is_just_covered_shows_all_of_one_side() -> None:
    rows = np.broadcast_to(np.arange(0, 128, dtype=np.uint8)[:, None], (128, 256))
    seen = CoverCrop(512, 640, 0.5, 0.5)(rows)
    assert seen.shape == (640, 512)
    assert (seen.min(), seen.max()) == (0, 127)
