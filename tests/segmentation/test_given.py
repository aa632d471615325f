"""Masks that were given: specks, the wrong way round, and alpha channels that show more or less than the product."""

import cv2
import numpy as np
import pytest
from pictures import disk, iou, photograph
from PIL import Image

from refadgen.catalog.layout import place
from refadgen.config import LayoutConfig, SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation import ProductMasker, Segmentation
from refadgen.segmentation.specks import without_specks

RNG = np.random.default_rng(5)
SCENE = cv2.resize(RNG.integers(0, 255, (8, 8, 3), np.uint8), (400, 500), interpolation=cv2.INTER_CUBIC)
PRODUCT = disk()
RED = (200, 40, 40)


def _segment(image: np.ndarray, own_mask: np.ndarray | None = None) -> Segmentation:
    mask = None if own_mask is None else own_mask.astype(np.uint8) * 255
    return ProductMasker(SegmentationConfig()).segment(Image.fromarray(image), None, mask)


def _reason(image: np.ndarray, own_mask: np.ndarray | None = None) -> tuple[str, str | None]:
    """(reason, field) of the refusal."""
    with pytest.raises(RowError) as caught:
        _segment(image, own_mask)
    return caught.value.reason, caught.value.field


def _ellipse(size: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    cv2.ellipse(mask, (size // 2, size // 2), (size // 4, size // 3), 0, 0, 360, 255, -1)
    return mask


@pytest.mark.parametrize(("size", "speck"), [(160, 1), (160, 2), (800, 1), (800, 3), (800, 9), (2400, 2), (2400, 25)])
def test_specks_are_dropped_and_counted(size: int, speck: int) -> None:
    mask = _ellipse(size)
    specked = mask.copy()
    specked[3 : 3 + speck, 3 : 3 + speck] = 255
    specked[-3 - speck : -3, -3 - speck : -3] = 200
    specked[-3 - speck : -3, -3] = 40  # its faint rim
    rest, count = without_specks(specked)
    assert count == 2
    assert (rest == mask).all()


@pytest.mark.parametrize("source", ["own mask", "alpha"])
def test_specks_do_not_move_the_product(source: str) -> None:
    mask = _ellipse(400) > 127
    specked = mask.copy()
    specked[5, 5] = specked[390:392, 8:10] = True
    image = photograph(mask, RED, 90)
    boxes = []
    for each in (mask, specked):
        if source == "alpha":
            photo = np.dstack([image, each.astype(np.uint8) * 255])
            found = _segment(photo)
        else:
            photo, found = image, _segment(image, each)
        placed = place(photo, found.alpha, LayoutConfig(), 128, 160)
        boxes.append(cv2.boundingRect(placed.mask))
        assert found.measurements.specks == (0 if each is mask else 2)
    assert boxes[0] == boxes[1]


def _earrings() -> np.ndarray:
    return disk((60, 100), 22) | disk((340, 100), 22) | disk((60, 150), 4) | disk((340, 150), 4)


def _necklace() -> np.ndarray:
    beads = np.zeros((500, 400), bool)
    for angle in np.linspace(0, np.pi, 40):
        beads |= disk((int(200 - 150 * np.cos(angle)), int(60 + 300 * np.sin(angle))), 2)
    return beads | disk((200, 385), 18)


def _confetti() -> np.ndarray:
    spots = np.zeros((500, 400), bool)
    spots[40:460:60, 40:360:60] = True
    return spots


@pytest.mark.parametrize("draw", [_earrings, _necklace, _confetti, lambda: PRODUCT | disk((330, 260), 2)])
def test_small_parts_stay(draw) -> None:
    mask = draw().astype(np.uint8) * 255
    rest, count = without_specks(mask)
    assert count == 0
    assert (rest == mask).all()


def test_dust_on_a_plain_backdrop_does_not_count() -> None:
    image = photograph(PRODUCT, RED)
    image[20:23, 30:33] = image[480:482, 380:384] = 60
    assert iou(_segment(image).mask, PRODUCT) > 0.98


def _pair() -> np.ndarray:
    return disk((110, 250), 70) | disk((290, 250), 70)


def _torso() -> np.ndarray:
    torso = disk((200, 120), 60)
    torso[180:, 110:290] = True
    return torso


@pytest.mark.parametrize("backdrop", [255, 200, 30, (40, 90, 160), "scene"])
@pytest.mark.parametrize("draw", [lambda: PRODUCT, _pair, lambda: disk(radius=40)])
def test_inverted_own_mask(draw, backdrop) -> None:
    product = draw()
    image = photograph(product, RED, SCENE if backdrop == "scene" else np.asarray(backdrop))
    assert _reason(image, ~product) == ("inverted_mask", "mask")
    assert iou(_segment(image, product).mask, product) == 1


def test_inverted_mask_of_a_product_that_is_cut_off() -> None:
    product = _torso()
    assert _reason(photograph(product, RED), ~product) == ("inverted_mask", "mask")


def test_inverted_mask_of_white_on_white() -> None:
    assert _reason(photograph(PRODUCT, (250, 250, 250)), ~PRODUCT)[0] == "inverted_mask"


@pytest.mark.parametrize("backdrop", [255, "scene"])
def test_inverted_alpha(backdrop) -> None:
    image = photograph(PRODUCT, RED, SCENE if backdrop == "scene" else backdrop)
    assert _reason(np.dstack([image, np.where(PRODUCT, 0, 255).astype(np.uint8)])) == ("inverted_mask", "image")


def _frame() -> np.ndarray:
    frame = np.ones((500, 400), bool)
    frame[60:-60, 60:-60] = False
    return frame


def _rug() -> np.ndarray:
    """A pattern all over."""
    tile = RNG.integers(0, 255, (20, 20, 3), np.uint8)
    return np.tile(tile, (25, 20, 1))


def test_products_around_their_middle_are_not_inverted() -> None:
    wood = np.clip(np.asarray((120, 70, 30)) + RNG.normal(0, 25, (500, 1, 3)), 0, 255)
    frame = np.where(_frame()[..., None], np.broadcast_to(wood, (500, 400, 3)), 235).astype(np.uint8)
    assert _segment(frame, _frame()).measurements.area == pytest.approx(_frame().mean())
    wreath = disk((200, 250), 195) & ~disk((200, 250), 110)
    assert _segment(photograph(wreath, (30, 120, 40)), wreath).source == "own_mask"
    lattice = np.ones((500, 400), bool)
    for top in range(20, 480, 80):
        for left in range(20, 380, 80):
            lattice[top : top + 60, left : left + 60] = False
    assert _segment(photograph(lattice, (140, 90, 40)), lattice).source == "own_mask"


def test_a_product_that_fills_its_image_is_not_inverted() -> None:
    masker = ProductMasker(SegmentationConfig(max_area=1))
    for holes in (np.zeros((500, 400), bool), disk((120, 130), 40) | disk((260, 300), 60)):
        found = masker.segment(Image.fromarray(_rug()), None, np.where(holes, 0, 255).astype(np.uint8))
        assert found.measurements.area == pytest.approx((~holes).mean())


def _glass(alpha: float, rim: int, size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """RGBA of a bottle whose body has this alpha inside an opaque rim, and its true mask."""
    outline = np.zeros((size, size), np.uint8)
    points = np.array(
        [(0.4, 0.1), (0.6, 0.1), (0.6, 0.3), (0.75, 0.4), (0.7, 0.9), (0.3, 0.9), (0.25, 0.4), (0.4, 0.3)]
    )
    cv2.fillPoly(outline, [np.int32(points * size)], 255)
    soft = cv2.GaussianBlur(outline, (0, 0), 0.8)
    body = cv2.erode(outline, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0 if rim else np.ones_like(outline, bool)
    shown = np.where(body, soft * (alpha / 255), soft)
    color = np.full((size, size, 3), (190, 215, 210), np.uint8)
    return np.dstack([color, np.round(shown).astype(np.uint8)]), outline > 127


@pytest.mark.parametrize(("alpha", "rim"), [(60, 8), (20, 8), (120, 4), (200, 8), (60, 0), (110, 0), (150, 0)])
@pytest.mark.parametrize("size", [300, 1500])
def test_a_translucent_body_is_product_and_stays_translucent(alpha: int, rim: int, size: int) -> None:
    image, product = _glass(alpha, rim, size)
    found = _segment(image)
    assert iou(found.mask, product) > (0.98 if alpha >= 60 else 0.97)
    placed = place(image, found.alpha, LayoutConfig(), 256, 320)
    rows, columns = np.nonzero(placed.mask)
    middle = placed.canvas[int(rows.mean()), int(columns.mean())].astype(float)
    expected = 255 + (np.array((190, 215, 210)) - 255) * alpha / 255
    assert np.abs(middle - expected).max() <= 3
    assert placed.mask[int(rows.mean()), int(columns.mean())] == 255


def _with_shadow(strength: float, sigma: float, color: int, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    image, product = _glass(255, 0)
    image[..., :3] = RED
    shadow = np.zeros(product.shape, np.float32)
    cv2.ellipse(shadow, (250 + shift[0], 440 + shift[1]), (150, 30), 0, 0, 360, 1, -1)
    shadow = cv2.GaussianBlur(shadow, (0, 0), sigma) * strength
    image[image[..., 3] == 0, :3] = color
    image[..., 3] = np.maximum(image[..., 3], shadow.astype(np.uint8))
    return image, product


@pytest.mark.parametrize(
    ("strength", "sigma", "color", "shift"),
    [(180, 12, 0, (0, 0)), (60, 12, 0, (0, 0)), (25, 12, 0, (40, 0)), (220, 8, 20, (60, 5)), (120, 5, 60, (0, 10))],
)
def test_a_shadow_in_alpha_is_no_product(strength: float, sigma: float, color: int, shift: tuple[int, int]) -> None:
    image, product = _with_shadow(strength, sigma, color, shift)
    found = _segment(image)
    assert iou(found.mask, product) > 0.98
    placed = place(image, found.alpha, LayoutConfig(), 256, 320)
    around = cv2.dilate(placed.mask, np.ones((7, 7), np.uint8)) == 0
    assert placed.canvas[around].min() >= 250


def test_glass_and_shadow_in_one_picture() -> None:
    image, product = _glass(60, 8)
    shadow, _ = _with_shadow(150, 10, 0, (0, 0))
    behind = image[..., 3] == 0
    image[behind] = np.where(behind[..., None], shadow, image)[behind]
    assert iou(_segment(image).mask, product) > 0.97


def test_dark_product_with_a_soft_edge_and_smoked_glass_are_no_shadow() -> None:
    for sigma in (1.0, 2.5):
        alpha = cv2.GaussianBlur(PRODUCT.astype(np.uint8) * 255, (0, 0), sigma)
        found = _segment(np.dstack([np.full((500, 400, 3), 15, np.uint8), alpha]))
        assert iou(found.mask, PRODUCT) > 0.97
    smoked, product = _glass(130, 0)
    smoked[..., :3] = 25
    assert iou(_segment(smoked).mask, product) > 0.97
    fur = PRODUCT.astype(np.uint8) * 255
    for angle in np.linspace(0, 2 * np.pi, 700):
        end = (int(200 + 134 * np.cos(angle)), int(260 + 134 * np.sin(angle)))
        cv2.line(fur, (200, 260), end, 255, 1, cv2.LINE_AA)
    black = np.dstack([np.full((500, 400, 3), 10, np.uint8), fur])
    assert iou(_segment(black).mask, fur > 127) > 0.9


def test_lace_keeps_its_holes() -> None:
    lace = PRODUCT.astype(np.uint8) * 255
    lace[::12] = lace[:, ::12] = 0
    lace = cv2.GaussianBlur(cv2.erode(lace, np.ones((3, 3), np.uint8)), (0, 0), 0.6)
    found = _segment(np.dstack([np.full((500, 400, 3), 240, np.uint8), lace]))
    assert iou(found.mask, lace > 127) > 0.95


def _cropped(image: np.ndarray, outline: str) -> np.ndarray:
    """RGBA of twice the width and more: the image within an outline, in a transparent margin."""
    height, width = image.shape[:2]
    alpha = np.zeros((height, width), np.uint8)
    if outline == "rectangle":
        alpha[:] = 255
    elif outline == "circle":
        cv2.circle(alpha, (width // 2, height // 2), min(width, height) // 2 - 3, 255, -1, cv2.LINE_AA)
    else:
        cv2.rectangle(alpha, (40, 1), (width - 41, height - 2), 255, -1)
        cv2.rectangle(alpha, (1, 40), (width - 2, height - 41), 255, -1)
        for x in (40, width - 41):
            for y in (40, height - 41):
                cv2.circle(alpha, (x, y), 39, 255, -1, cv2.LINE_AA)
    image = np.where(alpha[..., None] > 0, image, 0).astype(np.uint8)
    return cv2.copyMakeBorder(np.dstack([image, alpha]), 30, 50, 20, 60, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))


OUTLINES = ["rectangle", "circle", "rounded"]


@pytest.mark.parametrize("outline", OUTLINES)
@pytest.mark.parametrize("color", [RED, (30, 30, 40), (90, 140, 60)])
def test_a_cropped_photograph_on_white_goes_on_to_the_plain_backdrop(outline: str, color: tuple[int, int, int]) -> None:
    product = disk((200, 250), 110)
    found = _segment(_cropped(photograph(product, color, 252), outline))
    assert found.source == "plain_background"
    margin = cv2.copyMakeBorder(product.astype(np.uint8), 30, 50, 20, 60, cv2.BORDER_CONSTANT)
    assert iou(found.mask, margin > 0) > 0.98


@pytest.mark.parametrize("outline", OUTLINES)
@pytest.mark.parametrize("backdrop", [(40, 90, 160), "scene"])
def test_a_cropped_photograph_of_another_kind_is_refused(outline: str, backdrop) -> None:
    image = photograph(disk((200, 250), 110), RED, SCENE if backdrop == "scene" else np.asarray(backdrop))
    assert _reason(_cropped(image, outline)) == ("alpha_not_cutout", "image")


def _book() -> np.ndarray:
    cover = np.full((500, 400, 3), (120, 30, 40), np.uint8)
    cv2.putText(cover, "A TITLE", (60, 150), cv2.FONT_HERSHEY_SIMPLEX, 2, (240, 230, 200), 5, cv2.LINE_AA)
    cv2.putText(cover, "of many words", (60, 250), cv2.FONT_HERSHEY_SIMPLEX, 1, (240, 230, 200), 2, cv2.LINE_AA)
    return cover


def _plate() -> np.ndarray:
    rows, columns = np.mgrid[:500, :400]
    radius = np.hypot(rows - 250, columns - 200)
    return np.repeat((225 - 40 * (radius / 200) ** 2).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("image", "outline"), [(_book(), "rectangle"), (_book(), "rounded"), (_plate(), "circle"), (_rug(), "rectangle")]
)
def test_a_product_that_is_a_rectangle_or_a_disk_is_a_cut_out(image: np.ndarray, outline: str) -> None:
    cut = _cropped(image, outline)
    found = _segment(cut)
    assert found.source == "alpha"
    assert iou(found.mask, cut[..., 3] > 127) > 0.99
