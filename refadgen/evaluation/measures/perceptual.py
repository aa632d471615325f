"""LPIPS (Zhang et al. 2018), and MP-LPIPS (Chen et al. 2024): LPIPS of patches at points that features match.

MP-LPIPS, as its authors' program defines it: both pictures at 512×512, black outside their masks; of the placed
product's mask the points whose x and y are multiples of 40; the matched point is where the ad's features, enlarged to
512×512, are most like the point's. Where it lies in the ad's mask, dilated by a square of 17, the value is the LPIPS of
the two patches of 33×33, else that of a white and a black patch. The mean over the points.
Departures: both masks are M′, since that is where the product was asked for; `mp_lpips.features` says which network
matches, and the number of another one is another metric.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from refadgen.evaluation.measures.picture import AdPicture, ImageU8, Values, by_size, on_white
from refadgen.evaluation.measures.state import read_state

SIDE_PX, SPACING_PX, PATCH_PX, DILATION_PX = 512, 40, 33, 17
FeatureMap = Callable[[ImageU8], Tensor]
"""A picture, uint8 H×W×3, to its features, channels×h×w."""


class PerceptualDistance:
    """The LPIPS network, with the linear layers of the package `lpips` and a backbone from a file."""

    def __init__(self, network: Literal["alex", "vgg", "squeeze"], backbone: str, device: torch.device) -> None:
        """backbone: torchvision's state of that network. Raises: ValueError naming the setting."""
        try:
            import lpips
        except ImportError as error:
            raise ValueError(f"lpips.backbone: needs the extra `evaluate` (refadgen[evaluate]): {error}") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks torchvision in an old way
            model: Any = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        state = read_state("lpips.backbone", backbone)
        own = {name: name.split(".", 1)[1] for name in model.net.state_dict()}  # slice2.3.weight is features.3.weight
        try:
            model.net.load_state_dict({name: state[f"features.{rest}"] for name, rest in own.items()})
        except KeyError as error:
            raise ValueError(f"lpips.backbone={backbone!r}: not torchvision's {network}: it has no {error}") from error
        except RuntimeError as error:
            raise ValueError(f"lpips.backbone={backbone!r}: weights of another architecture: {error}") from error
        self._model = model.eval().requires_grad_(False).to(device)
        self._device = device
        self.label = f"{network}, {Path(backbone).name} (BSD-3-Clause), linear layers of lpips 0.1 (BSD-2-Clause)"

    def __call__(self, first: Sequence[ImageU8], second: Sequence[ImageU8]) -> list[float]:
        """The distances of pairs of one size, uint8 H×W×3, from 0 upwards."""
        with torch.inference_mode():
            found = self._model(self._pixels(first), self._pixels(second))
        distances: list[float] = found.flatten().double().tolist()
        return distances

    def _pixels(self, images: Sequence[ImageU8]) -> Tensor:
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().to(self._device) / 127.5 - 1


class Lpips:
    """`lpips` of the complete ad and the placed product on white; `lpips_product` of both white outside M′."""

    measures = ("lpips", "lpips_product")

    def __init__(self, distance: PerceptualDistance, batch_size: int) -> None:
        self._distance, self._batch_size = distance, batch_size
        self.network = distance.label

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        whole: list[float | None] = [None] * len(pictures)
        product = whole.copy()
        for batch in by_size(pictures, lambda picture: picture.ad_u8.shape, self._batch_size):
            rows = [pictures[index] for index in batch]
            masked = [(on_white(row.ad_u8, row.inside), on_white(row.canvas_u8, row.inside)) for row in rows]
            distances = self._distance([row.ad_u8 for row in rows], [row.canvas_u8 for row in rows])
            inner = self._distance([pair[0] for pair in masked], [pair[1] for pair in masked])
            for index, first, second in zip(batch, distances, inner, strict=True):
                whole[index], product[index] = first, second
        return {"lpips": whole, "lpips_product": product}


class MatchedPatches:
    """`mp_lpips`; None where no point of the grid lies in M′."""

    measures = ("mp_lpips",)

    def __init__(self, distance: PerceptualDistance, features: FeatureMap, label: str) -> None:
        """label: of the network that gives the features."""
        self._distance, self._features = distance, features
        self.network = f"points matched by {label}; patches by {distance.label}; the ad's mask is M′"

    @cached_property
    def missed(self) -> float:
        """The value of a point whose match lies outside: LPIPS of a white and a black patch."""
        white = np.full((PATCH_PX, PATCH_PX, 3), 255, np.uint8)
        return self._distance([white], [np.zeros_like(white)])[0]

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        return {"mp_lpips": [self._score(picture) for picture in pictures]}

    def _score(self, picture: AdPicture) -> float | None:
        size = (SIDE_PX, SIDE_PX)
        mask = cv2.resize(picture.mask_u8, size, interpolation=cv2.INTER_LINEAR) > 127
        product, ad = (
            np.where(mask[..., None], cv2.resize(each, size, interpolation=cv2.INTER_CUBIC), np.uint8(0))
            for each in (picture.canvas_u8, picture.ad_u8)
        )
        points = np.argwhere(mask[::SPACING_PX, ::SPACING_PX]) * SPACING_PX
        if not len(points):
            return None
        matches = matched_points(self._features(product), self._features(ad), points)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((DILATION_PX, DILATION_PX), np.uint8)) > 0
        kept = [index for index, (y, x) in enumerate(matches) if near[y, x]]
        first, second = (
            [patch(image, point) for point in chosen]
            for image, chosen in ((product, points[kept]), (ad, matches[kept]))
        )
        found = self._distance(first, second) if kept else []
        return float((sum(found) + self.missed * (len(points) - len(kept))) / len(points))


def matched_points(product: Tensor, ad: Tensor, points: np.ndarray) -> np.ndarray:
    """Where the ad's features are most like the product's at the points. Maps: channels×h×w, of any size.

    points: n×2, y and x in 0 … 511. Returns: likewise.
    """

    def enlarged(features: Tensor) -> Tensor:
        large = torch.nn.functional.interpolate(features[None], (SIDE_PX, SIDE_PX), mode="bilinear")[0]
        return torch.nn.functional.normalize(large.flatten(1), dim=0)  # channels×(512·512)

    with torch.inference_mode():
        wanted = enlarged(product)[:, torch.from_numpy(points[:, 0] * SIDE_PX + points[:, 1]).to(product.device)]
        places = (wanted.T @ enlarged(ad)).argmax(1).cpu().numpy()
    return np.stack([places // SIDE_PX, places % SIDE_PX], axis=1)


def patch(image_u8: ImageU8, point: np.ndarray) -> ImageU8:
    """The patch of 33×33 px around a point (y, x), black beyond the picture."""
    half = PATCH_PX // 2
    padded = np.pad(image_u8, ((half, half), (half, half), (0, 0)))
    y, x = int(point[0]), int(point[1])
    return padded[y : y + PATCH_PX, x : x + PATCH_PX]
