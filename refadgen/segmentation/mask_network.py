"""The mask network: a small U-Net that tells what each pixel of a product photograph is (`classes`).

It gives a second opinion about every mask that the colours alone have drawn. `refadgen.mask_training` trains it on
scenes with known masks. Its weights and their card are in `segmentation/weights/`.
"""

import itertools

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refadgen.segmentation.classes import NUM_CLASSES
from refadgen.segmentation.surface import fit_surface

SIDE_PX = 320
"""The network sees every photograph at this size, squeezed into a square."""
CHANNELS = (16, 32, 64, 112, 176)
"""Channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's size."""
NUM_INPUTS = 6
"""Planes of `network_input`."""


def network_input(image_u8: npt.NDArray[np.uint8], side_px: int = SIDE_PX) -> npt.NDArray[np.float32]:
    """What the network sees of a photograph, float32 [6, side_px, side_px], -1 to 1.

    image_u8: uint8 HW3, RGB. Three planes are the RGB. The others are the difference from the smooth surface through
    the picture's border, in L*, in a*b* and in all, magnified so that a white product on white shows.
    """
    small = cv2.resize(image_u8, (side_px, side_px), interpolation=cv2.INTER_AREA)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    difference = lab - fit_surface(lab, tolerance=12.0).lab
    tint = np.linalg.norm(difference[..., 1:], axis=-1)
    total = np.hypot(difference[..., 0], tint)
    planes = (np.tanh(difference[..., 0] / 5), np.tanh(tint / 5), np.tanh(total / 30))
    return np.concatenate([small.transpose(2, 0, 1) / 127.5 - 1, np.stack(planes)]).astype(np.float32)


class MaskNetwork(nn.Module):
    """A U-Net of plain 3×3 convolutions with one self-attention at its bottom, 1/32 of the input's size."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        """channels: as `CHANNELS`; the last is a multiple of four, the number of attention heads."""
        super().__init__()
        self.stem = _convolution(NUM_INPUTS, channels[0], stride=2)
        pairs = list(itertools.pairwise(channels))
        self.sides = nn.ModuleList(_convolution(wide, wide) for wide, _ in pairs)
        self.downs = nn.ModuleList(_convolution(wide, deep, stride=2) for wide, deep in pairs)
        self.bottom = nn.Sequential(_convolution(channels[-1], channels[-1]), _convolution(channels[-1], channels[-1]))
        self.attention = nn.MultiheadAttention(channels[-1], 4, batch_first=True)
        self.ups = nn.ModuleList(
            nn.Sequential(_convolution(deep + wide, wide), _convolution(wide, wide)) for wide, deep in reversed(pairs)
        )
        self.head = nn.Conv2d(channels[0], 4 * NUM_CLASSES, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the logits of the classes, N×5×H×W.

        inputs: N×6×H×W, as `network_input` makes them; H and W are multiples of 32.
        """
        features, kept = self.stem(inputs), []
        for side, down in zip(self.sides, self.downs, strict=True):
            kept.append(side(features))
            features = down(kept[-1])
        features = self.bottom(features)
        tokens = features.flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        features = features + attended.transpose(1, 2).reshape(features.shape)
        for up in self.ups:
            features = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = up(torch.cat([features, kept.pop()], dim=1))
        return F.pixel_shuffle(self.head(features), 2)


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, ReLU. stride: 2 halves height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
