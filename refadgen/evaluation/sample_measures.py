"""The measures of identity that need no weights of other people, for samples that a training draws on its way."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from refadgen.config import SegmentationConfig
from refadgen.evaluation.measures.masks import MaskOverlap
from refadgen.evaluation.measures.picture import AdPicture, Scorer
from refadgen.evaluation.measures.pixels import ColorDrift, NearestProduct, Registration, signature
from refadgen.generation.scores import score_fidelity
from refadgen.training.measuring import Sample


@dataclass(frozen=True)
class IdentityMeasures:
    """The scores of the gate (`generation/scores.py`), nearest product among the samples' own, overlap with M′ and
    expansion by the project's mask network, shift, scale and colour drift (`measures/`)."""

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float | None]]:
        """By the measure's name a value of each sample; None: it has none."""
        fidelity = [asdict(score_fidelity(each.ad_u8, each.canvas_u8, each.mask_u8)) for each in samples]
        values: dict[str, Sequence[float | None]] = {name: [each[name] for each in fidelity] for name in fidelity[0]}
        products = {each.product_id: signature(each.canvas_u8, each.mask_u8) for each in samples}
        scorers: list[Scorer] = [
            NearestProduct({"": products}),
            MaskOverlap(SegmentationConfig(), gpu_expected=False),
            Registration(),
            ColorDrift(),
        ]
        pictures = [
            AdPicture(
                ad_u8=each.ad_u8,
                canvas_u8=each.canvas_u8,
                mask_u8=each.mask_u8,
                prompt=each.prompt,
                sku=each.product_id,
            )
            for each in samples
        ]
        for scorer in scorers:
            values |= scorer(pictures)
        return values
