"""The place of a product on the canvas: view, pinhole camera and exact silhouette.

Zoom and lens shift follow from the view: they put the product's bounding box exactly where the view says. Product
photograph, ad and mask therefore agree to the pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from refadgen.studio.meshes import Part, rotation_y
from refadgen.studio.shapes import Shape, turned_vertices

CAMERA_DISTANCE = 5.5
"""From the camera to the product, in product heights: the perspective of a short telephoto lens."""
_MAX_WIDTH_SHARE = 0.64
_SUPERSAMPLING = 8  # OpenCV fills polygons without smoothing: a pixel's coverage is counted on 8 × 8 of them


@dataclass(frozen=True, kw_only=True)
class View:
    """Turn of the product and place of its silhouette; shares are of the canvas."""

    yaw_deg: float
    """Turn of the product; positive shows its front to the right."""
    pitch_deg: float
    """Angle by which the camera looks down."""
    height_share: float
    """Height of the silhouette; products that would be wider than 64 % of the canvas get smaller."""
    center_x: float
    base_y: float
    """Where the silhouette ends at the bottom, 0 top … 1 bottom."""
    roll_deg: float = 0.0
    """Tilt of a hand-held camera."""


@dataclass(frozen=True, kw_only=True)
class Pinhole:
    """A camera: `pixel = principal + focal_px · (right, -up) / forward`."""

    origin: np.ndarray
    axes: np.ndarray
    """[3, 3]; rows are right, up and forward."""
    focal_px: float
    principal: tuple[float, float]
    """Principal point (x, y) in pixels from the top left corner."""

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points [N, 3] to pixels [N, 2]."""
        right, up, forward = self.axes @ (points - self.origin).T
        x = self.principal[0] + self.focal_px * right / forward
        y = self.principal[1] - self.focal_px * up / forward
        return np.stack([x, y], axis=1)


def sample_view(seed: int) -> View:
    """The view of a seed: turned by up to 35°, seen slightly from above."""
    rng = np.random.default_rng([seed, 2])
    height_share = float(rng.uniform(0.45, 0.75))
    return View(
        yaw_deg=float(rng.uniform(-35, 35)),
        pitch_deg=float(rng.uniform(2, 9)),
        height_share=height_share,
        center_x=float(rng.uniform(0.35, 0.65)),
        base_y=float(rng.uniform(max(0.7, height_share + 0.05), 0.9)),
    )


def nearby_view(view: View, rng: np.random.Generator) -> View:
    """A view of the product in the same place, turned by 5–25° to either side, from a little higher or lower."""
    turn = rng.uniform(5, 25) * rng.choice([-1.0, 1.0])
    return replace(
        view,
        yaw_deg=float(view.yaw_deg + turn),
        pitch_deg=float(np.clip(view.pitch_deg + rng.uniform(-4, 6), 1, 16)),
        height_share=float(view.height_share * rng.uniform(0.95, 1.05)),
    )


def camera_for(shape: Shape, view: View, *, width_px: int, height_px: int) -> Pinhole:
    """The camera that shows `shape` as `view` says, shifted where the product would leave the canvas."""
    vertices = turned_vertices(shape, view.yaw_deg)
    middle = np.array([0.0, vertices[:, 1].max() / 2, 0.0])
    pitch, roll = np.radians(view.pitch_deg), np.radians(view.roll_deg)
    forward = -np.array([0.0, np.sin(pitch), np.cos(pitch)])
    right, up = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(pitch), -np.sin(pitch)])
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    unit = Pinhole(
        origin=middle - CAMERA_DISTANCE * forward,
        axes=np.stack([right, up, forward]),
        focal_px=1.0,
        principal=(0.0, 0.0),
    )
    flat = unit.project(vertices)
    low, high = flat.min(axis=0), flat.max(axis=0)
    width, height = high - low
    focal = min(view.height_share * height_px / height, _MAX_WIDTH_SHARE * width_px / width)
    left = view.center_x * width_px - focal * width / 2
    # A margin of 2 % on both sides, since `center_x` may ask for a place where a wide product does not fit.
    left = np.clip(left, 0.02 * width_px, 0.98 * width_px - focal * width)
    # Rounded to integer pixels: an open lens can be shifted by nothing else (mitsuba_scene._open_lens).
    principal = (float(round(left - focal * low[0])), float(round(view.base_y * height_px - focal * high[1])))
    return Pinhole(origin=unit.origin, axes=unit.axes, focal_px=float(focal), principal=principal)


def silhouette(shape: Shape, view: View, *, width_px: int, height_px: int) -> np.ndarray:
    """The product's true mask, uint8 [height_px, width_px]: 255 where it covers half a pixel or more, else 0."""
    camera = camera_for(shape, view, width_px=width_px, height_px=height_px)
    turned = [part.mapped(rotation_y(view.yaw_deg)) for part in shape.parts]
    covered = coverage(turned, camera, width_px=width_px, height_px=height_px)
    return np.where(covered >= 128, 255, 0).astype(np.uint8)


def coverage(parts: Sequence[Part], camera: Pinhole, *, width_px: int, height_px: int) -> np.ndarray:
    """How much of each pixel the parts cover with nothing before them, uint8 [height_px, width_px], 255 is all."""
    canvas = np.zeros((height_px * _SUPERSAMPLING, width_px * _SUPERSAMPLING), np.uint8)
    for part in parts:
        pixels = camera.project(part.vertices)
        # Pixel (i, j) of the fine canvas is centred at i + 0.5; OpenCV counts in 1/16 pixels.
        fine = np.round((pixels * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        for triangle in fine[part.faces]:
            cv2.fillConvexPoly(canvas, triangle, 255, lineType=cv2.LINE_8, shift=4)
    return np.asarray(cv2.resize(canvas, (width_px, height_px), interpolation=cv2.INTER_AREA), np.uint8)
