"""The second opinion about a mask: what this project's own network says each pixel is, and how sure it is."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from refadgen.segmentation.classes import PRODUCT

if TYPE_CHECKING:
    from refadgen.segmentation.mask_network import MaskNetwork

WEIGHTS = Path(__file__).with_name("weights") / "mask_network.safetensors"


@dataclass(frozen=True)
class Opinion:
    """classes: float32 [5, S, S], the probability of each class (`classes`) for the photograph squeezed into a square.
    mirrored: float32 [S, S], the product's probability as the network sees it in the mirrored photograph."""

    classes: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.float32]

    @property
    def product(self) -> npt.NDArray[np.float32]:
        """float32 [S, S]: the probability of the product, a mean of both looks."""
        return np.asarray((self.classes[PRODUCT] + self.mirrored) / 2, np.float32)


@functools.lru_cache(maxsize=2)
def _network(weights: Path) -> "MaskNetwork":
    # torch is imported here: a chain without a second opinion does without it.
    from safetensors.torch import load_file

    from refadgen.segmentation.mask_network import MaskNetwork

    network = MaskNetwork()
    network.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    network.eval()
    return network


def second_opinion(image_u8: npt.NDArray[np.uint8], weights: Path = WEIGHTS) -> Opinion:
    """Asks the network about a photograph (uint8 HW3, RGB), as it is and mirrored."""
    import torch

    from refadgen.segmentation.mask_network import network_input

    inputs = network_input(image_u8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would move a contour
    try:
        with torch.inference_mode():
            both = torch.from_numpy(np.stack([inputs, inputs[..., ::-1]]))
            straight, mirrored = _network(weights)(both).softmax(dim=1).numpy()
    finally:
        torch.set_num_threads(threads)
    return Opinion(straight, mirrored[PRODUCT][:, ::-1])
