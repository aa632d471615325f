"""The watermark: read after what happens to images on their way, and never where none is."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from refadgen.config.provenance import ProvenanceConfig
from refadgen.provenance.marks import AdMarks
from refadgen.provenance.spread_spectrum import SpreadSpectrum
from refadgen.provenance.watermarks import id_prefix, load_watermark, payload_of

ID = "3fa9" * 8


@pytest.fixture(scope="module")
def scene() -> npt.NDArray[np.uint8]:
    """Soft shapes with some grain, 512×640 px."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(60, 200, (10, 8, 3), dtype=np.uint8)).resize(
        (512, 640), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 3, (640, 512, 1))
    return np.clip(np.asarray(rough) + grain, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def marked(scene: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(AdMarks(ProvenanceConfig(watermark="spread-spectrum")).watermarked(scene, ID))


def jpeg_70(image: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=70)
    return Image.open(sink)


def half(image: Image.Image) -> Image.Image:
    return image.resize((256, 320), Image.Resampling.LANCZOS)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((29, 35, 487, 611))


@pytest.mark.parametrize("change", [lambda image: image, jpeg_70, half, cropped], ids=["none", "jpeg", "half", "crop"])
def test_the_payload_survives(marked: Image.Image, change) -> None:
    found = SpreadSpectrum().read(np.asarray(change(marked).convert("RGB")))
    assert found == payload_of(ID) == 0x3FA93FA93FA9
    assert id_prefix(found) == ID[:12]


def test_it_is_hard_to_see_and_always_the_same(scene: npt.NDArray[np.uint8], marked: Image.Image) -> None:
    again = SpreadSpectrum().embed(scene, payload_of(ID))
    assert np.array_equal(again, np.asarray(marked))
    error = np.mean((again.astype(float) - scene) ** 2)
    assert 10 * np.log10(255**2 / error) > 40


def test_nothing_is_found_where_nothing_is(scene: npt.NDArray[np.uint8]) -> None:
    blurred = np.asarray(Image.fromarray(scene).filter(ImageFilter.GaussianBlur(2)))
    for image in (scene, blurred, np.zeros((200, 200, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)):
        assert SpreadSpectrum().read(image) is None


class OwnWatermark:
    """Hides nothing, and remembers its weights."""

    def __init__(self, weights: str | None) -> None:
        self.weights = weights

    def embed(self, image_u8: npt.NDArray[np.uint8], payload: int) -> npt.NDArray[np.uint8]:
        return image_u8

    def read(self, image_u8: npt.NDArray[np.uint8]) -> int | None:
        return None


def test_a_class_of_ones_own_gets_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "own_watermark", sys.modules[__name__])
    config = ProvenanceConfig(watermark="own_watermark:OwnWatermark", watermark_weights="w.pt")
    made = load_watermark(config)
    assert isinstance(made, OwnWatermark)
    assert made.weights == "w.pt"
    with pytest.raises(ValueError, match=r"provenance.watermark='own_watermark:Missing'"):
        load_watermark(ProvenanceConfig(watermark="own_watermark:Missing"))
