"""The interface of a generator in RefAdGen's place: a placed product and a prompt in, an ad image out.

    class Mine(AdMethod):
        def generate(self, requests):
            return [my_model(each.canvas, each.mask, each.prompt, each.seed) for each in requests]

    python jobs/generate_catalog.py CATALOG method.class=my_package.mine:Mine method.settings.strength=0.6

The main job does the rest as for RefAdGen: masks, placing, ledger, resume, gate, report.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from refadgen.config.marks import Section
from refadgen.generation.encoding import TRAINED

if TYPE_CHECKING:
    import torch

ImageU8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class AdRequest:
    """One ad to make.

    canvas: uint8 H×W×3, the product placed on white. mask: uint8 H×W, M′: 255 where the product is, 0 elsewhere.
    negative_prompt: None: the method's own. seed: of all randomness.
    """

    canvas: ImageU8
    mask: ImageU8
    prompt: str
    negative_prompt: str | None
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of canvas and ad, px."""
        height, width = self.mask.shape
        return width, height


@dataclass(frozen=True, kw_only=True)
class NoSettings(Section, name="method.settings"):
    """The settings of a method that has none."""


class AdMethod(ABC):
    """A generator of ads. Made once in each generating actor; only one thread at a time calls it."""

    settings_type: ClassVar[type[Section]] = NoSettings
    """Its settings: a frozen, keyword-only dataclass of `config.marks.setting` fields, each with a default.

    What a setting decides is its mark: PIXELS enters the images' ids, RUN does not. A place (`Place.MODEL`: a folder or
    hub id in diffusers' layout, `Place.PATH`: any file or folder) enters them by a hash of its contents.
    """
    version: ClassVar[int] = 1
    """Raise it where a change of the code moves pixels: images then have other ids."""
    takes_batches: ClassVar[bool] = False
    """False: `generate` gets one request at a time. True: always `sampling.batch_size` requests of one size, the last
    one repeated where there are fewer. An image must depend on its own request only."""
    size: ClassVar[tuple[int, int]] = (512, 640)
    """Width and height of the canvas where `sampling.width_px` and `height_px` are not set, px."""
    source_type: ClassVar[str] = TRAINED
    """IPTC's digital source type of the images: `COMPOSITE` where the product's own pixels stand in them."""

    @classmethod
    def check(cls, settings: Any) -> None:
        """Looks at small files, before Ray starts: nothing is loaded yet.

        settings: a `settings_type`, its paths absolute. Raises: ValueError naming the setting (`method.settings.…`)
        whose weights do not fit, or what is not installed.
        """
        return

    def __init__(self, settings: Any, device: "torch.device", dtype: "torch.dtype") -> None:
        """Loads what the method needs.

        device, dtype: as `model.device` and `model.dtype` say. Raises: ValueError naming the setting.
        """
        self.settings, self.device, self.dtype = settings, device, dtype

    @abstractmethod
    def generate(self, requests: Sequence[AdRequest]) -> Sequence[ImageU8]:
        """The image of each request in order, uint8 H×W×3 of the request's size.

        Raises: RowError for a request that it refuses, any other error for one that fails; where a batch raises, each
        of its requests is tried alone. Memory that does not suffice on a GPU is the job's to handle.
        """
