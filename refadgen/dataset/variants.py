"""The product images of a triplet: its original, degraded ones, degraded novel views (the paper's dual augmentation).

`triplet.variants` lists their kinds in order.
"""

from typing import TYPE_CHECKING

from refadgen.config import DatasetConfig
from refadgen.triplets.degradation import degrade, row_rng
from refadgen.triplets.schema import Variant

if TYPE_CHECKING:
    from refadgen.dataset.multi_view import NovelView, NovelViews


class VariantMaker:
    """Makes the product images that `triplet.variants` lists.

    They depend on the original, the row's id and the settings alone: not on the batch, the actor or a retry.
    """

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self._views: NovelViews | None = None
        if "novel_view" in config.triplet.variants:
            import torch

            from refadgen.dataset import multi_view  # torch only where it is used

            torch.set_num_threads(1)  # sums in another order give other pixels
            self._views = multi_view.NovelViews(config.multi_view, gpu_expected=config.stages.augment.num_gpus > 0)

    def make(self, original: Variant, row_id: str) -> tuple[list[Variant], list[dict[str, float]]]:
        """Returns the variants in the order of `triplet.variants`, and the numbers of each novel view for JSON.

        A novel view is `{"variant": its number, …}` with its angles and measures, or with `"failed": True` where no try
        passed `multi_view.max_holes` and `max_stretch`; a degraded image takes its place then.
        """
        kinds = dict(enumerate(self._config.triplet.variants[1:], start=1))
        # A generator per variant, so that one more kind in the list does not change the others.
        rngs = {number: row_rng(self._config.triplet.seed, row_id, str(number)) for number in kinds}
        turned = [number for number, kind in kinds.items() if kind == "novel_view"]
        drawn: list[NovelView | None] = []
        if self._views is not None:
            different = turned[:1] if self._config.triplet.one_view else turned
            drawn = self._views.draw_each(original.image, original.mask, [rngs[number] for number in different])
            drawn *= len(turned) // len(different)
        view_of = dict(zip(turned, drawn, strict=True))

        variants = [original]
        views: list[dict[str, float]] = []
        for number, kind in kinds.items():
            image, mask = original.image, original.mask
            if kind == "novel_view":
                view = view_of[number]
                if view is None:
                    kind = "degraded"
                else:
                    image, mask = view.image, view.mask
                views.append({"variant": number, **({"failed": True} if view is None else view.measures())})
            if kind != "original":
                image, mask = degrade(image, mask, rngs[number], self._config.degradation)
            variants.append(Variant(kind, image, mask))
        return variants, views


def require_sam2(config: DatasetConfig) -> None:
    """What `triplet.sam2_masks` needs, before Ray starts. Raises: ValueError naming the setting and the remedy."""
    if config.triplet.sam2_masks and config.segmentation.sam2_checkpoint is None:
        raise ValueError(
            "triplet.sam2_masks=True: needs segmentation.sam2_checkpoint (with segmentation.grounding_dino), or "
            "triplet.sam2_masks=false for the masks of warp and view"
        )
