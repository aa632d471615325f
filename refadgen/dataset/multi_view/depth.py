"""How far the product's surface stands out toward the camera, from one photograph.

A `DepthModel` gives a `Relief` of image and mask. `InflatedDepth` needs no weights: it reads the silhouette, and its
base line, which a product that stands on something shows a little from above. `DepthAnything` runs the network.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from refadgen.config.weights import require_all_weights

BASE_PITCH_DEG = 5.0
"""How far a product photograph's camera looks down, for want of better."""
MAX_TURN = 0.9
"""Slope of the middle plane beyond which a slanting base line is no sign of a turn: the base is not level."""
DEPTH_RATIO = (0.1, 1.0)
"""Least and greatest half depth of a product as a share of its half width."""

# Tuned on 93 studio products, three of each kind, none of them in the benchmark; every optimum is flat.
_UPRIGHT = 2.0
"""Square of the half thickness of a wide bar over that of its half height."""
_SMOOTH = 0.04
"""Deviation of the surface's smoothing from row to row, as a share of the product's size."""
_BASE_BAND = 0.15
"""The base is as wide as this lowest share of the product's size …"""
_BASE_SHARE = 0.85
"""… of which the outermost part is not read: corners are round."""
_BASE_NOISE = 0.008
"""Deviation of a base line from what it should be, as a share of the product's size."""
_PRIOR_RATIO = (0.6, 0.5)
_PRIOR_TURN = (0.0, 0.45)
"""Usual depth ratio and slope: mean and deviation."""


@dataclass(frozen=True)
class Relief:
    """Two surfaces over the pixels of the product, in pixels toward the camera from the plane of the turning axis."""

    front: np.ndarray
    """float32 [H, W]; anything outside of the mask."""
    back: np.ndarray
    """float32 [H, W], nowhere in front of `front`."""


class DepthModel(Protocol):
    """Anything that knows a product's relief."""

    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        """image_u8: uint8 [H, W, 3]; mask: uint8 [H, W], 0 or 255, not empty; distance: of the camera, in pixels."""


class InflatedDepth:
    """The silhouette blown up: round across its upright axis, thin where it is thin in either direction.

    How deep, and how much turned, tells the base line: a point of the base lies lower in the picture the nearer it is.
    """

    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        """See `DepthModel`; the colours do not count."""
        left, top, right, bottom = product_box(mask)
        inside = mask[top:bottom, left:right] > 127
        turn, ratio = read_base(inside, distance)
        middle = turn * (np.arange(mask.shape[1], dtype=np.float32) + 0.5 - (left + right) / 2)
        half = np.zeros(mask.shape, np.float32)
        half[top:bottom, left:right] = ratio * inflate(inside)
        return Relief(front=middle + half, back=middle - half)


def product_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of the product."""
    assert mask.any(), "a mask without a product"
    rows, columns = np.flatnonzero((mask > 127).any(axis=1)), np.flatnonzero((mask > 127).any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def inflate(inside: np.ndarray) -> np.ndarray:
    """Half thickness, float32 [H, W] in pixels, of a product as deep as it is wide. inside: bool [H, W].

    A row's run of pixels is a circle seen from the side, as of everything made on a lathe. What is lower than it is
    wide, such as a handle's arm or the seat of a bench, is not much thicker than high.
    """
    across, upright = _in_runs(inside), _UPRIGHT * _in_runs(inside.T).T
    half = np.sqrt(across * upright / np.maximum(across + upright, 1e-6))
    # Where a thin part joins a thick one the surface is steep, not torn.
    deviation = _SMOOTH / 8 * max(inside.shape)
    return _blur(half, inside, deviation, deviation)


def _in_runs(inside: np.ndarray) -> np.ndarray:
    """float32 [H, W]: the square of the height of a half circle over each row's runs of pixels."""
    width = inside.shape[1]
    place = np.arange(width)
    first = np.maximum.accumulate(np.where(inside, -1, place), axis=1) + 1
    last = np.minimum.accumulate(np.where(inside, width, place)[:, ::-1], axis=1)[:, ::-1]
    square = ((place + 0.5 - first) * (last - place - 0.5)).astype(np.float32) * inside
    # From row to row runs join and end; the surface of a product is smoother than that. But thin stays thin.
    return np.minimum(_blur(square, inside, 0, _SMOOTH * max(inside.shape)), 3 * square)


def _blur(values: np.ndarray, inside: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Gaussian mean of what is inside, [H, W]; 0 outside. Half a pixel is the least deviation."""
    sigma = {"sigmaX": max(sigma_x, 0.5), "sigmaY": max(sigma_y, 0.5)}
    blurred, share = (
        cv2.GaussianBlur(each, (0, 0), **sigma, borderType=cv2.BORDER_CONSTANT)
        for each in (values, inside.astype(np.float32))
    )
    return blurred / np.maximum(share, 1e-3) * inside


def read_base(inside: np.ndarray, distance: float) -> tuple[float, float]:
    """Slope of the product's middle plane (depth toward the camera per pixel to the right) and its depth ratio.

    inside: bool [H, W], cut to the product's box; distance: of the camera, in pixels. What touches the ground is the
    lower hull of the mask, which is fitted, as seen from `BASE_PITCH_DEG` above, with a slanted line and half an
    ellipse. A narrow or odd base leaves the usual values: no slope, and six tenths of the width.
    """
    height, width = inside.shape
    size = max(height, width)
    low = inside[height - max(1, round(_BASE_BAND * size)) :].any(axis=0)
    left, right = int(low.argmax()), width - int(low[::-1].argmax())
    half = (right - left) / 2
    columns = np.flatnonzero(inside[:, left:right].any(axis=0))
    bottoms = height - inside[::-1, left:right].argmax(axis=0)[columns]
    hull = _lower_hull(columns + left + 0.5, bottoms)
    place = np.linspace(-_BASE_SHARE, _BASE_SHARE, 33)
    line = np.interp((left + right) / 2 + half * place, hull[:, 0], hull[:, 1])
    # A pixel nearer is this many pixels lower in the picture: seen from above, and by perspective.
    drop = np.sin(np.radians(BASE_PITCH_DEG)) + height / 2 / distance
    terms = np.stack([np.ones(33), drop * half * place, drop * half * np.sqrt(1 - place**2)], axis=1)
    # Least squares with a prior; neighbouring places err together, so six count as one.
    trust = 1 / 6 / ((_BASE_NOISE * size) ** 2 + 0.1)  # px²: a step of one pixel has a variance of 1/12
    matrix = trust * terms.T @ terms + np.diag([0, _PRIOR_TURN[1] ** -2, _PRIOR_RATIO[1] ** -2])
    target = trust * terms.T @ line + [0, 0, _PRIOR_RATIO[0] * _PRIOR_RATIO[1] ** -2]
    _, turn, ratio = np.linalg.solve(matrix, target)
    return (float(turn) if abs(turn) <= MAX_TURN else 0.0), float(np.clip(ratio, *DEPTH_RATIO))


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Corners [K, 2] of the lower hull of points, x ascending; y counts downwards."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) >= 2 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array(hull)


def _turns_up(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Whether `second` is not below the line from `first` to `third`."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0]) >= 0


class DepthAnything:
    """Depth Anything (Yang et al. 2024), versions 1 and 2, the models of relative depth.

    Its numbers are inverse depths of unknown scale and shift. Both are fitted by least squares to the inflated
    silhouette, so the product is about as deep as without the network, and its form is what the network sees.
    """

    def __init__(self, address: str, device: torch.device) -> None:
        """address: folder or hub id. Raises: ValueError naming `multi_view.depth_model`."""
        self._device = device
        self._processor, self._model = _load(address)
        self._model.to(device).eval()

    @torch.inference_mode()
    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        """See `DepthModel`."""
        inputs = self._processor(images=image_u8.copy(), return_tensors="pt").to(self._device)
        outputs = self._model(**inputs)
        found = self._processor.post_process_depth_estimation(outputs, target_sizes=[image_u8.shape[:2]])
        nearness = found[0]["predicted_depth"].float().cpu().numpy()
        return fitted_relief(nearness, mask, InflatedDepth().relief(image_u8, mask, distance))


def fitted_relief(nearness: np.ndarray, mask: np.ndarray, inflated: Relief) -> Relief:
    """The relief of relative inverse depths, as deep as an inflated one.

    nearness: float32 [H, W], greater is nearer, of any scale and shift; mask: uint8 [H, W]. The back side is the
    inflated one's, moved to where nothing of it is in front.
    """
    inside = mask > 127
    # At the silhouette networks blend into the background.
    low, high = np.percentile(nearness[inside], [2, 98])
    seen = np.clip(nearness, low, high) - nearness[inside].mean()
    wanted = inflated.front - inflated.front[inside].mean()
    scale = (seen * wanted)[inside].sum() / max(float((seen**2)[inside].sum()), 1e-12)
    front = (max(scale, 0.0) * seen + inflated.front[inside].mean()).astype(np.float32)
    return Relief(front=front, back=np.minimum(inflated.back, front))


def _load(address: str) -> tuple[Any, Any]:
    """Image processor and model, every weight of it present."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

    field = f"multi_view.depth_model={address!r}"
    try:
        config = AutoConfig.from_pretrained(address)
        if config.model_type != "depth_anything":
            raise ValueError(f"is a {config.model_type} model, must be depth_anything")
        if config.depth_estimation_type != "relative":
            raise ValueError(f"estimates {config.depth_estimation_type} depth, must be a model of relative depth")
        processor = AutoImageProcessor.from_pretrained(address)
        model, report = AutoModelForDepthEstimation.from_pretrained(
            address, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{field}: cannot be loaded: {error}") from error
    require_all_weights(field, report)
    return processor, model
