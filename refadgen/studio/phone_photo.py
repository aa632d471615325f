"""Product photographs as taken with a phone: in a room, tilted, in lamp light, with noise; with the true mask."""

import cv2
import numpy as np

from refadgen.studio.camera import View
from refadgen.studio.render import Product, render_ad
from refadgen.studio.scenes import make_scene

_ROOM_SURFACES = ("wooden table", "concrete", "marble slab", "dark slate")
_ROOM_WALLS = ("white wall", "grey wall", "yellow wall", "blue wall")
_ROOM_LIGHTS = ("soft studio light", "morning sun from the left", "evening sun from the right")


def render_phone_photo(
    product: Product, seed: int, *, width_px: int = 480, height_px: int = 640, spp: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """One phone photograph. The seed decides everything but the product.

    Returns: rgb uint8 [H, W, 3]; mask uint8 [H, W], 0 or 255.
    """
    rng = np.random.default_rng([seed, 8])
    view = View(
        yaw_deg=float(rng.uniform(-30, 30)),
        pitch_deg=float(rng.uniform(8, 20)),
        height_share=float(rng.uniform(0.45, 0.65)),
        center_x=float(rng.uniform(0.42, 0.58)),
        base_y=float(rng.uniform(0.76, 0.88)),
        roll_deg=float(rng.uniform(-4, 4)),
    )
    scene = make_scene(
        str(rng.choice(_ROOM_SURFACES)), str(rng.choice(_ROOM_WALLS)), str(rng.choice(_ROOM_LIGHTS)), seed=seed
    )
    rgb, mask = render_ad(product, scene, view, width_px=width_px, height_px=height_px, spp=spp)
    return _through_phone(rgb, rng), mask


def _through_phone(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Wrong white balance, dark corners, a little blur and sensor noise. uint8 [H, W, 3] → the same."""
    height, width = rgb.shape[:2]
    image = rgb.astype(np.float64) * np.array([rng.uniform(1.0, 1.08), 1.0, rng.uniform(0.86, 0.98)])
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image *= (1 - rng.uniform(0.1, 0.22) * (x**2 + y**2) / 2)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), sigmaX=0.0012 * height)
    # Phones filter noise: the rest is a little coarser than a pixel.
    noise = cv2.GaussianBlur(rng.normal(size=image.shape), (0, 0), sigmaX=0.7)
    return np.asarray(np.clip(np.round(image + rng.uniform(3, 6) * noise), 0, 255), np.uint8)
