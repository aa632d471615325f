"""The depth of a product's surface from one photograph.

A `DepthModel` makes a `Relief` of image and mask. `InflatedDepth` needs no weights: it reads the silhouette and its
base line, which a standing product shows from a little above. `DepthAnything` runs the network of that name.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from refadgen.config.weights import require_all_weights
from refadgen.dataset.masks import product_box

BASE_PITCH_DEG = 5.0
"""Assumed downward angle of a product photograph's camera: one picture does not tell."""
MAX_TURN = 0.9
"""Steepest middle plane that is believed. A base line that slants more is not level, and says nothing of a turn."""
DEPTH_RATIO = (0.1, 1.0)
"""Smallest and largest half depth of a product, as a share of its half width."""

# Tuned on 93 studio products, three of each kind, none of them in the benchmark; every optimum is flat.
_UPRIGHT = 2.0
"""A wide bar's half thickness squared, divided by its half height squared."""
_SMOOTH = 0.04
"""Standard deviation of the smoothing from row to row, as a share of the product's size."""
_BASE_BAND = 0.15
"""The base is as wide as the product is in this lowest share of its size."""
_BASE_SHARE = 0.85
"""Middle share of the base that is read: its corners are round."""
_BASE_NOISE = 0.008
"""Standard deviation of a base line from its model, as a share of the product's size."""
_PRIOR_RATIO = (0.6, 0.5)
"""Usual depth ratio: mean and standard deviation."""
_PRIOR_TURN = (0.0, 0.45)
"""Usual slope of the middle plane: mean and standard deviation."""


@dataclass(frozen=True)
class Relief:
    """The product's front and back surface over its pixels.

    Heights are in pixels from the plane of the turning axis, positive toward the camera.
    """

    front: np.ndarray
    """float32 [H, W]; undefined outside of the mask."""
    back: np.ndarray
    """float32 [H, W], at most `front`; undefined outside of the mask."""


class DepthModel(Protocol):
    """Estimates a product's relief."""

    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        """Returns the relief.

        image_u8: uint8 [H, W, 3]; mask: uint8 [H, W], 0 or 255, not empty; distance: the camera's, in pixels.
        """
        ...


class InflatedDepth:
    """Inflates the silhouette: round about its upright axis, thin where it is narrow in either direction.

    The base line gives depth and turn: the nearer a point of the base is, the lower it lies in the picture.
    """

    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        """See `DepthModel`. Only the mask is read."""
        left, top, right, bottom = product_box(mask)
        inside = mask[top:bottom, left:right] > 127
        turn, ratio = read_base(inside, distance)
        middle = turn * (np.arange(mask.shape[1], dtype=np.float32) + 0.5 - (left + right) / 2)
        half = np.zeros(mask.shape, np.float32)
        half[top:bottom, left:right] = ratio * inflate(inside)
        return Relief(front=middle + half, back=middle - half)


def inflate(inside: np.ndarray) -> np.ndarray:
    """Returns the half thickness, float32 [H, W] in pixels, of a product as deep as it is wide. inside: bool [H, W].

    A run of pixels in a row is taken as a circle seen from the side, as in anything made on a lathe. A part that is
    wider than high, such as a handle's arm or the seat of a bench, is not much thicker than high.
    """
    across, upright = _in_runs(inside), _UPRIGHT * _in_runs(inside.T).T
    # A harmonic mean of the squares: the smaller of both decides.
    half = np.sqrt(across * upright / np.maximum(across + upright, 1e-6))
    # Where a thin part joins a thick one the surface is steep, not torn.
    deviation = _SMOOTH / 8 * max(inside.shape)
    return _blur(half, inside, deviation, deviation)


def _in_runs(inside: np.ndarray) -> np.ndarray:
    """Returns float32 [H, W], in px²: the squared height of a half circle over each run of pixels in a row."""
    width = inside.shape[1]
    place = np.arange(width)
    first = np.maximum.accumulate(np.where(inside, -1, place), axis=1) + 1
    last = np.minimum.accumulate(np.where(inside, width, place)[:, ::-1], axis=1)[:, ::-1]
    square = ((place + 0.5 - first) * (last - place - 0.5)).astype(np.float32) * inside
    # Runs join and end from one row to the next; a product's surface is smoother. The limit keeps thin parts thin.
    smooth: np.ndarray = np.minimum(_blur(square, inside, 0, _SMOOTH * max(inside.shape)), 3 * square)
    return smooth


def _blur(values: np.ndarray, inside: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Returns the Gaussian mean [H, W] of the values inside; 0 outside. Sigmas below half a pixel count as that."""
    sigma_x, sigma_y = max(sigma_x, 0.5), max(sigma_y, 0.5)  # OpenCV derives a sigma of 0 from the kernel's size
    arrays: tuple[np.ndarray, np.ndarray] = (values, inside.astype(np.float32))
    blurred, share = (
        cv2.GaussianBlur(each, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_CONSTANT)
        for each in arrays
    )
    # Divided by the share that is inside, or the zeros outside would pull the edge down.
    mean: np.ndarray = blurred / np.maximum(share, 1e-3) * inside
    return mean


def read_base(inside: np.ndarray, distance: float) -> tuple[float, float]:
    """Returns the slope of the product's middle plane and its depth ratio.

    The slope is depth toward the camera per pixel to the right. inside: bool [H, W], cut to the product's box;
    distance: the camera's, in pixels. The lower hull of the mask is taken as the line where the product touches the
    ground. A slanted line and half an ellipse, seen from `BASE_PITCH_DEG` above, are fitted to it. A narrow or odd base
    gives the usual values: no slope, and 0.6 times the width.
    """
    height, width = inside.shape
    size = max(height, width)
    low = np.flatnonzero(inside[height - max(1, round(_BASE_BAND * size)) :].any(axis=0))
    left, right = int(low[0]), int(low[-1]) + 1
    half = (right - left) / 2
    columns = np.flatnonzero(inside[:, left:right].any(axis=0))
    bottoms = height - inside[::-1, left:right].argmax(axis=0)[columns]
    hull = _lower_hull(columns + left + 0.5, bottoms)
    place = np.linspace(-_BASE_SHARE, _BASE_SHARE, 33)
    line = np.interp((left + right) / 2 + half * place, hull[:, 0], hull[:, 1])
    # One pixel nearer is so many pixels lower in the picture: by the view from above, and by perspective.
    drop = np.sin(np.radians(BASE_PITCH_DEG)) + height / 2 / distance
    terms = np.stack([np.ones(33), drop * half * place, drop * half * np.sqrt(1 - place**2)], axis=1)
    # Least squares with a prior. Errors of neighbouring places are correlated, so six of them count as one.
    trust = 1 / 6 / ((_BASE_NOISE * size) ** 2 + 0.1)  # px²: a step of one pixel has a variance of 1/12
    matrix = trust * terms.T @ terms + np.diag([0, _PRIOR_TURN[1] ** -2, _PRIOR_RATIO[1] ** -2])
    target = trust * terms.T @ line + [0, 0, _PRIOR_RATIO[0] * _PRIOR_RATIO[1] ** -2]
    _, turn, ratio = np.linalg.solve(matrix, target)
    return (float(turn) if abs(turn) <= MAX_TURN else 0.0), float(np.clip(ratio, *DEPTH_RATIO))


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the corners [K, 2] of the points' lower hull. x ascends; y counts downwards."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) >= 2 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array(hull)


def _turns_up(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Returns whether `second` is on or above the line from `first` to `third`."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0]) >= 0


class DepthAnything:
    """Depth Anything (Yang et al. 2024), versions 1 and 2, the models of relative depth.

    The network gives inverse depths of unknown scale and shift. Both are fitted by least squares to the inflated
    silhouette: the product's depth is about that of `InflatedDepth`, its form is the network's.
    """

    def __init__(self, address: str, device: torch.device, *, field: str = "multi_view.depth_model") -> None:
        """address: folder or hub id. field: the setting that names it. Raises: ValueError naming the setting."""
        self._device = device
        self._processor, self._model = _load(f"{field}={address!r}", address)
        self._model.to(device).eval()

    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        """See `DepthModel`."""
        return fitted_relief(self.nearness(image_u8), mask, InflatedDepth().relief(image_u8, mask, distance))

    def nearness(self, image_u8: np.ndarray) -> np.ndarray:
        """Returns relative inverse depths, float32 [H, W], greater is nearer. image_u8: uint8 [H, W, 3]."""
        # A copy: torch warns of read-only arrays.
        inputs = self._processor(images=image_u8.copy(), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
            found = self._processor.post_process_depth_estimation(outputs, target_sizes=[image_u8.shape[:2]])
            nearness: np.ndarray = found[0]["predicted_depth"].float().cpu().numpy()
        return nearness


def fitted_relief(nearness: np.ndarray, mask: np.ndarray, inflated: Relief) -> Relief:
    """Returns the relief of relative inverse depths, as deep as an inflated one.

    nearness: float32 [H, W], greater is nearer, of any scale and shift; mask: uint8 [H, W]. The back is the inflated
    back, moved behind the front where it would lie before it.
    """
    inside = mask > 127
    # Percentiles, as networks blend product and background at the silhouette.
    low, high = np.percentile(nearness[inside], [2, 98])
    seen = np.clip(nearness, low, high) - nearness[inside].mean()
    target = inflated.front - inflated.front[inside].mean()
    # A negative scale would turn the product inside out: then the front is flat.
    scale = (seen * target)[inside].sum() / max(float((seen**2)[inside].sum()), 1e-12)
    front = (max(scale, 0.0) * seen + inflated.front[inside].mean()).astype(np.float32)
    return Relief(front=front, back=np.minimum(inflated.back, front))


def _load(field: str, address: str) -> tuple[Any, Any]:
    """Loads image processor and model. field: setting and value. Raises: ValueError, also for a missing weight."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

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
