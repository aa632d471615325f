"""Novel views of a product: its image is lifted to Gaussians, seen by a new camera, and the view is measured.

Positive yaw turns the product's front to the right, as `refadgen.studio.camera.View.yaw_deg` does. Positive pitch
raises the camera, so that it looks down on the product more. Both are relative to the photograph.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import cos, radians, sin

import cv2
import numpy as np
import torch
from torch import Tensor

from refadgen.config import MultiViewConfig
from refadgen.config.devices import resolve_device
from refadgen.dataset.masks import product_box
from refadgen.dataset.multi_view.depth import DepthAnything, DepthModel, InflatedDepth
from refadgen.dataset.multi_view.gaussians import SIGMA_PX, Gaussians, Shell, lift, places
from refadgen.dataset.multi_view.rasterizer import Camera, Splats, choose_backend, project, rasterize

_FINE = 2
"""Pictures are rasterized at this multiple of their size and averaged: a pixel's filter blurs less then."""
_FRINGE = 0.004
"""Half the width of the widest hair that is removed, as a share of the product's size."""
MAX_STRETCH = 2.0
"""A Gaussian is stretched where it is longer than this multiple of its length in the photograph."""


@dataclass(frozen=True, kw_only=True)
class NovelView:
    """A product as another camera sees it, with the measures by which a view is accepted."""

    image: np.ndarray
    """uint8 H×W×3, white outside of the mask."""
    mask: np.ndarray
    """uint8 H×W, 0 or 255: where the rendered alpha is above one half."""
    yaw_deg: float
    pitch_deg: float
    distance: float
    """The camera's, as a multiple of the photograph's."""
    holes: float
    """Area of holes in the new mask that the photograph does not have, as a share of the mask."""
    stretch: float
    """Share of the new mask that shows stretched Gaussians (MAX_STRETCH), or surfaces the photograph does not show."""
    num_tries: int = 1
    """Tries until the view was accepted."""

    def measures(self) -> dict[str, float]:
        """Returns all fields but the images, rounded to four places, for JSON."""
        numbers = {name: value for name, value in asdict(self).items() if name not in ("image", "mask")}
        return {name: round(value, 4) for name, value in numbers.items()}


@dataclass(frozen=True)
class _Scene:
    """A photograph's product, lifted to Gaussians; shared by all its views."""

    shell: Shell
    mask: np.ndarray
    box: tuple[int, int, int, int]
    distance: float
    """The photograph's camera's, in pixels."""
    middle: np.ndarray
    """float32 [H, W]: the mean of the relief's front and back."""

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


class NovelViews:
    """Renders novel views of products. Keeps nothing between calls but the depth network."""

    def __init__(self, config: MultiViewConfig, depth: DepthModel | None = None, *, gpu_expected: bool = False) -> None:
        """depth: used instead of `multi_view.depth_model`. gpu_expected: the cluster gave this process a GPU.

        Raises: ValueError naming the field whose device, package or weights are missing.
        """
        self._config = config
        self._device = resolve_device(config.device, gpu_expected=gpu_expected, field="multi_view.device")
        self._backend = choose_backend(config.rasterizer, self._device)
        if depth is None:
            named = config.depth_model
            depth = InflatedDepth() if named is None else DepthAnything(named, self._device)
        self._depth = depth

    def draw(self, image_u8: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> NovelView | None:
        """Draws a view from the configured ranges; None where no try passes `max_holes` and `max_stretch`.

        image_u8: uint8 H×W×3; mask: uint8 H×W, 0 or 255, not empty. Each of `num_tries` tries halves the angles of the
        one before. The same state of `rng` gives the same bytes. The number of tries does not change how many random
        numbers are drawn.
        """
        return self.draw_each(image_u8, mask, [rng])[0]

    def draw_each(
        self, image_u8: np.ndarray, mask: np.ndarray, rngs: Sequence[np.random.Generator]
    ) -> list[NovelView | None]:
        """Draws a view for each of `rngs`, as `draw` does. The product's depth is estimated once."""
        if not rngs:
            return []
        scene = self._scene(image_u8, mask)
        return [self._draw(scene, rng) for rng in rngs]

    def _draw(self, scene: _Scene, rng: np.random.Generator) -> NovelView | None:
        config = self._config
        # All numbers before the first try: how many are drawn must not depend on the views.
        angles = [rng.uniform(*limits) * rng.choice([-1.0, 1.0]) for limits in (config.yaw_deg, config.pitch_deg)]
        distance = float(rng.uniform(*config.distance))
        for tried in range(config.num_tries):
            yaw_deg, pitch_deg = (float(angle) / 2**tried for angle in angles)
            view = self._render(scene, yaw_deg, pitch_deg, distance, tried + 1)
            if view.holes <= config.max_holes and view.stretch <= config.max_stretch:
                return view
        return None

    def render(
        self, image_u8: np.ndarray, mask: np.ndarray, yaw_deg: float, pitch_deg: float = 0.0, distance: float = 1.0
    ) -> NovelView:
        """Renders one view without judging it. distance: a multiple of the photograph's. Shapes as in `draw`."""
        return self._render(self._scene(image_u8, mask), yaw_deg, pitch_deg, distance, 1)

    def _scene(self, image_u8: np.ndarray, mask: np.ndarray) -> _Scene:
        left, top, right, bottom = product_box(mask)
        distance = self._config.camera_distance * max(right - left, bottom - top)
        relief = self._depth.relief(image_u8, mask, distance)
        shell = lift(image_u8, mask, relief, distance, ((left + right) / 2, (top + bottom) / 2))
        middle = (relief.front + relief.back) / 2
        return _Scene(shell.to(self._device), mask, (left, top, right, bottom), distance, middle)

    def _render(self, scene: _Scene, yaw_deg: float, pitch_deg: float, distance: float, num_tries: int) -> NovelView:
        rotation = turn(yaw_deg, pitch_deg)
        gaussians, camera = _placed(scene, rotation, distance)
        picture, alpha = self._rasterize(gaussians, camera)
        # Divided by alpha: a pixel at the edge has the product's colour, without the black behind it.
        seen = picture / np.maximum(alpha, 0.5)[..., None]
        inside = without_fringes(alpha > 0.5, seen[..., 3] > 0.5)
        image = np.where(inside[..., None], np.clip(np.rint(seen[..., :3] * 255), 0, 255), 255).astype(np.uint8)
        mask = np.where(inside, 255, 0).astype(np.uint8)
        return NovelView(
            image=image,
            mask=mask,
            yaw_deg=yaw_deg,
            pitch_deg=pitch_deg,
            distance=distance,
            holes=measure_holes(mask, _turned_background(scene, camera)),
            stretch=float(seen[inside, 3].mean()) if inside.any() else 1.0,
            num_tries=num_tries,
        )

    def _rasterize(self, gaussians: Gaussians, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """Returns the picture float32 [H, W, C], weighted by alpha, and alpha float32 [H, W]."""
        fine = replace(
            camera,
            focal_px=_FINE * camera.focal_px,
            principal=(_FINE * camera.principal[0], _FINE * camera.principal[1]),
            width_px=_FINE * camera.width_px,
            height_px=_FINE * camera.height_px,
        )
        with torch.inference_mode():
            picture, alpha = rasterize(gaussians, fine, self._backend)
        shape = (camera.height_px, _FINE, camera.width_px, _FINE)
        return (
            picture.reshape(*shape, -1).mean(dim=(1, 3)).cpu().numpy(),
            alpha.reshape(shape).mean(dim=(1, 3)).cpu().numpy(),
        )


def turn(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """Returns the product's rotation [3, 3] in the camera's axes: first about its upright axis, then by the pitch."""
    yaw, pitch = radians(yaw_deg), radians(pitch_deg)
    upright = np.array([[cos(yaw), 0, -sin(yaw)], [0, 1, 0], [sin(yaw), 0, cos(yaw)]])
    rise = np.array([[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]])
    rotation: np.ndarray = rise @ upright
    return rotation


def _placed(scene: _Scene, rotation: np.ndarray, distance: float) -> tuple[Gaussians, Camera]:
    """Returns the Gaussians that face the new camera, and the camera.

    A fourth colour channel is 1 where a Gaussian is stretched. The camera's principal point is moved so that the
    product keeps its base line and the middle of its box, and stays in the picture. A product that would be larger than
    the picture is scaled down to fit.
    """
    own = scene.shell.gaussians
    height, width = scene.mask.shape
    camera = Camera(
        rotation=own.means.new_tensor(rotation.tolist()),
        translation=own.means.new_tensor([0, 0, distance * scene.distance]),
        focal_px=scene.distance,
        principal=(0.0, 0.0),
        width_px=width,
        height_px=height,
    )
    colors = torch.cat([own.colors, _is_stretched(scene, camera, distance)[:, None]], 1)
    facing = own.facing(-camera.rotation.T @ camera.translation)
    gaussians = replace(own, colors=colors).chosen(facing)
    splats = project(gaussians, camera)
    # A surfel's edge is half a pixel from its centre where its standard deviation is SIGMA_PX.
    reach = splats.covariances[:, [0, 2]].sqrt() * (0.5 / SIGMA_PX)
    low = (splats.centers - reach).min(dim=0).values.tolist()
    high = (splats.centers + reach).max(dim=0).values.tolist()
    # At most 1: filling the picture would undo the drawn distance.
    zoom = min(1.0, width / (high[0] - low[0]), height / (high[1] - low[1]))
    left, _, right, bottom = scene.box
    place = ((left + right) / 2 - zoom * (low[0] + high[0]) / 2, bottom - zoom * high[1])
    size = (width, height)
    x, y = (min(max(place[i], -zoom * low[i]), size[i] - zoom * high[i]) for i in (0, 1))
    return gaussians, replace(camera, focal_px=zoom * scene.distance, principal=(x, y))


def _is_stretched(scene: _Scene, camera: Camera, distance: float) -> Tensor:
    """Returns float32 [N]: 1 for Gaussians stretched more than MAX_STRETCH times, or not in the photograph."""
    photographed = replace(
        camera,
        rotation=torch.eye(3, device=camera.rotation.device),
        translation=camera.translation / distance,
    )
    before, after = (_lengths(project(scene.shell.gaussians, each)) for each in (photographed, camera))
    stretched = after * distance > MAX_STRETCH * before
    stretched[scene.shell.num_front :] = True  # back and rim: their colours are guesses
    return stretched.float()


def _lengths(splats: Splats) -> Tensor:
    """Returns the standard deviation [N] along the longer axis: the root of a 2×2 matrix's larger eigenvalue."""
    xx, xy, yy = splats.covariances.unbind(1)
    return ((xx + yy) / 2 + (((xx - yy) / 2) ** 2 + xy**2).sqrt()).sqrt()


def without_fringes(inside: np.ndarray, is_stretched: np.ndarray) -> np.ndarray:
    """Returns the mask bool [H, W] without the hairs in which a revealed side with a jagged outline ends.

    inside: bool [H, W]. is_stretched: bool [H, W], surfaces that the photograph does not show. Only these are removed:
    the product's own thin parts stay.
    """
    radius = round(_FRINGE * np.ptp(np.nonzero(inside), axis=1).max(initial=0)) if inside.any() else 0
    if radius == 0:
        return inside
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    solid = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_OPEN, disk) > 0
    kept: np.ndarray = inside & (solid | ~is_stretched)
    return kept


def measure_holes(mask: np.ndarray, background: np.ndarray) -> float:
    """Returns the area of the mask's torn holes as a share of the mask; 1 for an empty mask.

    A hole is torn where less than half of it is background. mask: uint8 [H, W], 0 or 255; background: bool [H, W], the
    photograph's background as this view would show it.
    """
    if not mask.any():
        return 1.0
    # Padded, so that the surroundings are one component with the corner's label. With four neighbours a hole does not
    # leak through the diagonal of a thin wall.
    _, labels = cv2.connectedComponents(np.pad(255 - mask, 1, constant_values=255), connectivity=4)
    inner = labels[1:-1, 1:-1]
    areas = np.bincount(inner.ravel(), minlength=labels.max() + 1)
    free = np.bincount(inner[background], minlength=labels.max() + 1)
    torn = free < areas / 2
    torn[[0, labels[0, 0]]] = False  # the product itself, and its surroundings
    return float(areas[torn].sum() / np.count_nonzero(mask))


def _turned_background(scene: _Scene, camera: Camera) -> np.ndarray:
    """Returns bool [H, W]: the photograph's background in the new view, as deep as the nearest pixel of the product."""
    inside = scene.mask > 127
    height, width = inside.shape
    if inside.all():
        return ~inside
    _, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    middle = np.zeros(nearest.max() + 1)
    middle[nearest[inside]] = scene.middle[inside]
    rows, columns = np.nonzero(~inside)
    points = places(rows, columns, middle[nearest[~inside]], scene.distance, scene.center)
    x, y, z = camera.rotation.cpu().numpy() @ points.T + camera.translation.cpu().numpy()[:, None]
    columns = np.floor(camera.principal[0] + camera.focal_px * x / z).astype(int)
    rows = np.floor(camera.principal[1] + camera.focal_px * y / z).astype(int)
    there = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = np.zeros((height, width), np.uint8)
    moved[rows[there], columns[there]] = 1
    # Pixels that move apart leave gaps of one pixel between them.
    return cv2.dilate(moved, np.ones((3, 3), np.uint8)) > 0
