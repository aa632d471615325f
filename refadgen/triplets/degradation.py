"""Image degradation: a product image as a careless photograph shows it. One half of the paper's "Dual Augmentation".

The paper names noise, shadows and small warps and gives no strengths. Blur, colour cast and JPEG are our additions,
off by default. Every function takes a product image (uint8 H×W×3, pure white outside of its mask) with its mask (uint8
H×W, 0 or 255) and keeps size, type and white background. `degrade` draws the strengths from a `DegradationConfig` and
applies the functions in the order in which a camera does.
"""

import hashlib
import io
import json
import math

import cv2
import numpy as np
from PIL import Image

from refadgen.config import DegradationConfig
from refadgen.config.dataset import DEGRADATION_LIMITS

_DEFAULT = DegradationConfig()


def row_rng(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on `seed` and `names` alone, so that a row's bytes do not depend on order or batch."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def degrade(
    image_u8: np.ndarray, mask: np.ndarray, rng: np.random.Generator, config: DegradationConfig = _DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """A worse photograph of the product.

    image_u8: uint8 H×W×3. mask: uint8 H×W, 0 or 255, not empty.
    Returns: image and mask of the same shapes; the image is exactly white outside of the new mask, which is not empty.
    The same state of `rng` gives the same bytes.
    """
    # Each degradation has its own generator, so that turning on an option does not change what the others draw.
    seeds = rng.integers(2**63, size=len(DEGRADATION_LIMITS))
    own = {name: np.random.default_rng(seed) for name, seed in zip(DEGRADATION_LIMITS, seeds, strict=True)}
    strength = {name: float(own[name].uniform(*getattr(config, name))) for name in own}
    image, mask = warp(image_u8, mask, own["warp"], strength["warp"])
    image = vary_shadow(image, mask, own["shadow"], strength["shadow"])
    image = cast_color(image, mask, own["color_cast"], strength["color_cast"])
    image = blur(image, mask, strength["blur"])
    image = add_noise(image, mask, own["noise"], strength["noise"])
    image = jpeg(image, mask, round(strength["jpeg"]))
    return image, mask


def add_noise(image_u8: np.ndarray, mask: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Sensor noise. sigma: its standard deviation at mid-grey, in grey levels (0 … 255). Shapes as in `degrade`."""
    value = image_u8.astype(np.float32)
    # A third of the variance at mid-grey is read noise; the rest is photon noise, which grows with the light.
    grain = rng.standard_normal(value.shape, dtype=np.float32)
    return _on_white(value + sigma * np.sqrt(1 / 3 + 2 / 3 * value / 127.5) * grain, mask)


def vary_shadow(image_u8: np.ndarray, mask: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A fall-off of the light and the soft edge of a cast shadow, both across the product. Shapes as in `degrade`.

    strength: share of the light that the product's darkest pixel loses, 0 … 1; its brightest pixel loses none.
    """
    left, top, right, bottom = _box(mask)
    half = max(right - left, bottom - top) / 2
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32) + 0.5
    x, y = (x - (left + right) / 2) / half, (y - (top + bottom) / 2) / half
    shade = rng.uniform(0.3, 1.0) * _along(x, y, rng)
    bend, place, softness = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), rng.uniform(0.16, 0.6)
    across = _along(x, y, rng) + bend * (x**2 + y**2) - place
    shade += (1 + np.tanh(across / softness)) / 2
    inside = shade[mask > 127]
    shade = (shade - inside.min()) / max(float(np.ptp(inside)), 1e-6)
    light = 1 - strength * np.clip(shade, 0, 1)
    # Pixels are gamma-encoded: a factor on linear light is its power of 1/2.2 on them.
    return _on_white(image_u8 * light[..., None] ** (1 / 2.2), mask)


def _along(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The coordinate along a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    return math.cos(angle) * x + math.sin(angle) * y


def warp(
    image_u8: np.ndarray, mask: np.ndarray, rng: np.random.Generator, extent: float
) -> tuple[np.ndarray, np.ndarray]:
    """A small affine and perspective map of image and mask together. Shapes as in `degrade`.

    extent: the largest displacement of a corner of the product's box, as a share of the box's longer side.
    The result is shifted so that the product stays in the image. A product that would vanish when resampled is left
    unchanged.
    """
    height, width = mask.shape
    left, top, right, bottom = _box(mask)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    center, side = corners.mean(axis=0), max(right - left, bottom - top)
    affine = rng.normal(size=(2, 2))
    way = (corners - center) / side @ affine.T + rng.normal(scale=0.3, size=2) + rng.normal(scale=0.3, size=(4, 2))
    way *= extent * side / np.linalg.norm(way, axis=1).max()
    if extent == 0:
        return _on_white(image_u8, mask), mask.copy()
    target = corners + way
    target += np.maximum(0, -target.min(axis=0)) - np.maximum(0, target.max(axis=0) - (width, height))
    # The box counts pixel edges, OpenCV pixel centres: half a pixel less.
    matrix = cv2.getPerspectiveTransform((corners - 0.5).astype(np.float32), (target - 0.5).astype(np.float32))
    # Colours are weighted by the mask, else the white around the product would bleed in over its edge.
    alpha = (mask > 127).astype(np.float32)
    weighted = np.dstack([image_u8 * alpha[..., None], alpha])
    moved = cv2.warpPerspective(weighted, matrix, (width, height), flags=cv2.INTER_LINEAR)
    new_mask = np.where(moved[..., 3] > 0.5, 255, 0).astype(np.uint8)
    if not new_mask.any():
        return _on_white(image_u8, mask), mask.copy()
    return _on_white(moved[..., :3] / np.maximum(moved[..., 3:], 0.5), new_mask), new_mask


def blur(image_u8: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """A lens out of focus. sigma: standard deviation as a share of the image's height. Shapes as in `degrade`.

    The mask's edge stays sharp.
    """
    sigma_px = sigma * mask.shape[0]
    if sigma_px < 0.05:  # too small to change a pixel
        return _on_white(image_u8, mask)
    # Weighted as in `warp`: no white bleeds in.
    alpha = (mask > 127).astype(np.float32)
    weighted = np.dstack([image_u8 * alpha[..., None], alpha])
    soft = cv2.GaussianBlur(weighted, (0, 0), sigmaX=sigma_px)
    return _on_white(soft[..., :3] / np.maximum(soft[..., 3:], 1e-6), mask)


def cast_color(image_u8: np.ndarray, mask: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A wrong white balance: warm or cold, with a little green or magenta. Shapes as in `degrade`.

    strength: the largest change of a channel, as a share of its value.
    """
    warm, green = rng.choice([-1.0, 1.0]), rng.uniform(-0.3, 0.3)
    return _on_white(image_u8 * (1 + strength * np.array([warm, green, -warm])), mask)


def jpeg(image_u8: np.ndarray, mask: np.ndarray, loss: int) -> np.ndarray:
    """JPEG artefacts, colour at half resolution. loss: 100 minus the quality; 0: unchanged. Shapes as in `degrade`."""
    if not loss:
        return _on_white(image_u8, mask)
    buffer = io.BytesIO()
    Image.fromarray(image_u8).save(buffer, format="JPEG", quality=100 - loss, subsampling="4:2:0")
    with Image.open(buffer) as picture:
        return _on_white(np.asarray(picture.convert("RGB")), mask)


def _on_white(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values 0 … 255 (clipped), H×W×3, as uint8 with pure white outside of the mask."""
    return np.where(mask[..., None] > 127, np.clip(np.rint(image), 0, 255), 255).astype(np.uint8)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the product in pixels; right and bottom are exclusive."""
    assert mask.any(), "the mask is empty"
    rows, columns = np.flatnonzero((mask > 127).any(axis=1)), np.flatnonzero((mask > 127).any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
