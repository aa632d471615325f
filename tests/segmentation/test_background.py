"""The plain-background link: what it cuts out, and what it refuses."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from pictures import SIZE, as_jpeg, disk, iou, mug, photograph, with_shadow

from refadgen.errors import RowError
from refadgen.segmentation.background import WORK_SIDE_PX, propose

TOLERANCE = 12.0


@dataclass(frozen=True)
class Cut:
    """alpha: uint8 HW of the photograph's size, of the mask as it was proposed. score: of the proposal."""

    alpha: np.ndarray
    score: float


def cut_out(image_u8: np.ndarray) -> Cut:
    proposal = propose(image_u8, TOLERANCE)
    return Cut(proposal.alpha(proposal.product), proposal.score)


def test_product_on_white() -> None:
    product = disk()
    cut = cut_out(photograph(product, (200, 40, 40)))
    assert iou(cut.alpha, product) > 0.985
    assert cut.score > 0.95
    assert ((cut.alpha > 0) & (cut.alpha < 255)).any(), "the edge is soft"


@pytest.mark.parametrize(
    "backdrop",
    [
        np.linspace(250, 170, SIZE[0], dtype=np.float32)[:, None, None],
        np.float32([225, 205, 180]),
        245 - 60 * np.linspace(-1, 1, SIZE[1], dtype=np.float32)[None, :, None] ** 2,
        0,
    ],
    ids=["grey gradient", "beige", "vignette", "black"],
)
def test_uniform_and_graded_backdrops(backdrop: np.ndarray) -> None:
    product = disk()
    assert iou(cut_out(photograph(product, (60, 90, 200), backdrop)).alpha, product) > 0.98


@pytest.mark.parametrize("quality", [60, 85])
def test_noisy_jpeg(quality: int) -> None:
    product = disk()
    noise = np.random.default_rng(0).normal(0, 2, (*SIZE, 3))
    noisy = (photograph(product, (40, 140, 60), 240) + noise).clip(0, 255).astype(np.uint8)
    cut = cut_out(as_jpeg(noisy, quality))
    assert iou(cut.alpha, product) > 0.97


def test_a_dark_corner_of_the_backdrop_is_not_product_and_a_second_piece_at_the_border_is() -> None:
    product = disk()
    image = photograph(product, (200, 40, 40))
    corner = cv2.fillPoly(image.copy(), [np.array([[399, 499], [399, 470], [375, 499]])], (60, 60, 60))
    assert not cut_out(corner).alpha[465:, 370:].any()
    lid = cv2.rectangle(image.copy(), (150, 0), (250, 60), (200, 40, 40), -1)
    assert (cut_out(lid).alpha[:55, 155:245] == 255).all()


def test_white_on_white() -> None:
    product = disk()
    cut = cut_out(as_jpeg(photograph(product, (247, 247, 246), 255), 90))
    assert iou(cut.alpha, product) > 0.95
    assert cut.score >= 0.5


def test_white_inside_the_product_stays_product() -> None:
    product = disk()
    image = photograph(product, (30, 60, 160))
    cv2.rectangle(image, (165, 235), (235, 285), (255, 255, 255), -1)  # a printed label, the backdrop's very white
    assert (cut_out(image).alpha[240:280, 170:230] == 255).all()


def test_the_hole_of_a_handle_is_opened() -> None:
    product, hole = mug()
    cut = cut_out(as_jpeg(photograph(product, (180, 60, 50)), 85))
    assert iou(cut.alpha, product) > 0.97
    assert (cut.alpha[hole] < 128).mean() > 0.9


@pytest.mark.parametrize("color", [(190, 40, 60), (175, 175, 178)], ids=["red", "grey"])
def test_soft_ground_shadow_is_background(color: tuple[int, int, int]) -> None:
    product = disk()
    backdrop = with_shadow(252, product, darkness=0.35)
    assert backdrop.min() < 180, "there is a shadow to remove"
    cut = cut_out(as_jpeg(photograph(product, color, backdrop), 90))
    assert iou(cut.alpha, product) > 0.97


def test_pale_grey_product_without_shadow_is_not_eaten() -> None:
    product = disk()
    assert iou(cut_out(photograph(product, (222, 222, 222))).alpha, product) > 0.98


@pytest.mark.parametrize("size", [(120, 96), (3000, 2400)])
def test_small_and_large_images(size: tuple[int, int]) -> None:
    product = disk((size[1] // 2, size[0] // 2), size[1] // 3, size)
    cut = cut_out(photograph(product, (90, 40, 120)))
    assert cut.alpha.shape == size
    assert iou(cut.alpha, product) > 0.96


@pytest.mark.parametrize("size", [(120, 96), (3000, 2400)])
def test_a_proposal_is_at_the_working_size(size: tuple[int, int]) -> None:
    product = disk((size[1] // 2, size[0] // 2), size[1] // 3, size)
    proposal = propose(photograph(product, (90, 40, 120)), TOLERANCE)
    small = size if max(size) <= WORK_SIDE_PX else (1024, 819)
    assert {found.shape for found in (proposal.product, proposal.candidate, proposal.distance)} == {small}
    assert {found.shape for found in (proposal.raw, proposal.backdrop.lab)} == {(*small, 3)}
    assert proposal.product.dtype == proposal.candidate.dtype == bool
    assert proposal.distance.dtype == proposal.raw.dtype == proposal.backdrop.lab.dtype == np.float32
    assert proposal.shape == size
    inside = cv2.erode(proposal.product.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    outside = cv2.dilate(proposal.product.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert proposal.distance[inside].min() > 20
    assert proposal.distance[outside].max() < 3
    assert proposal.candidate[outside].all()
    assert not proposal.candidate[inside].any()


def test_white_that_the_product_encloses_is_a_candidate() -> None:
    image = photograph(disk(), (30, 60, 160))
    cv2.rectangle(image, (165, 235), (235, 285), (255, 255, 255), -1)  # a printed label, the backdrop's very white
    proposal = propose(image, TOLERANCE)
    label = (slice(240, 280), slice(170, 230))
    assert proposal.product[label].all()
    assert proposal.candidate[label].all()


def test_the_alpha_of_another_mask_than_the_proposed() -> None:
    product, hole = mug()
    proposal = propose(photograph(product, (180, 60, 50)), TOLERANCE)
    closed = proposal.alpha(proposal.product | hole)
    assert (closed[hole] == 255).mean() > 0.9
    assert iou(closed, product | hole) > 0.97
    assert ((closed > 0) & (closed < 255)).any(), "the edge is soft"
    assert proposal.alpha(np.zeros_like(product)).max() == 0


def test_an_empty_backdrop_has_no_product() -> None:
    assert cut_out(np.full((*SIZE, 3), 255, np.uint8)).alpha.max() == 0


@pytest.mark.parametrize("size", [(16, 16), (16, 400), (1, 1)])
def test_tiny_images_do_not_break(size: tuple[int, int]) -> None:
    assert cut_out(np.full((*size, 3), 255, np.uint8)).alpha.shape == size


def _texture() -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 60, (*SIZE, 3)).astype(np.float32)
    return (120 + cv2.GaussianBlur(noise, (0, 0), 2) * 4).clip(0, 255)


def _tiles() -> np.ndarray:
    floor = np.full((*SIZE, 3), 215, np.uint8)
    for shift in (-300, 0, 300):
        cv2.line(floor, (shift, 0), (shift + 500, 500), (90, 90, 90), 2)
        cv2.line(floor, (shift + 500, 0), (shift, 500), (90, 90, 90), 2)
    return floor.astype(np.float32)


def _horizon() -> np.ndarray:
    scene = np.full((*SIZE, 3), (150, 190, 230), np.float32)
    scene[200:] = (70, 110, 60)
    return scene


@pytest.mark.parametrize("scene", [_texture, _tiles, _horizon])
def test_scenes_are_refused(scene) -> None:
    with pytest.raises(RowError) as caught:
        cut_out(photograph(disk(radius=80), (200, 40, 40), scene()))
    assert (caught.value.status, caught.value.reason) == ("rejected", "no_plain_background")
    assert "segmentation.background_tolerance" in caught.value.detail
