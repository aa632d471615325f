"""The product images of a triplet, by plan: its own, degraded ones, degraded novel views (dual augmentation)."""

from typing import TYPE_CHECKING, Any

from refadgen.config import DatasetConfig
from refadgen.triplets.degradation import degrade, row_rng
from refadgen.triplets.schema import Variant

if TYPE_CHECKING:
    from refadgen.dataset.multi_view import NovelView, NovelViews


class VariantMaker:
    """Makes the variants of `triplet.variants`. One row's depend on its id and the seed alone."""

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self._views: NovelViews | None = None
        if "novel_view" in config.triplet.variants:
            import torch

            from refadgen.dataset import multi_view  # torch only where it is used

            torch.set_num_threads(1)  # sums in another order give other pixels
            self._views = multi_view.NovelViews(config.multi_view, gpu_expected=config.stages.augment.num_gpus > 0)

    def make(self, original: Variant, row_id: str) -> tuple[list[Variant], list[dict[str, Any]]]:
        """The variants in the plan's order, and of each novel view its angles and measures.

        A view that passes no triage becomes a `degraded` one.
        """
        plan = dict(enumerate(self._config.triplet.variants[1:], start=1))
        rngs = {number: row_rng(self._config.triplet.seed, row_id, str(number)) for number in plan}
        turned = [number for number, kind in plan.items() if kind == "novel_view"]
        drawn: list[NovelView | None] = []
        if self._views is not None:
            drawn = self._views.draw_each(original.image, original.mask, [rngs[number] for number in turned])
        view_of = dict(zip(turned, drawn, strict=True))

        variants, views = [original], []
        for number, kind in plan.items():
            image, mask = original.image, original.mask
            if kind == "novel_view":
                view = view_of[number]
                if view is None:
                    kind = "degraded"
                else:
                    image, mask = view.image, view.mask
                views.append({"variant": number, **({"failed": True} if view is None else view.facts())})
            if kind != "original":
                image, mask = degrade(image, mask, rngs[number], self._config.degradation)
            variants.append(Variant(kind, image, mask))
        return variants, views
