"""All random choices about one row of one step: the draws of `plan`, decided by the settings.

Both sources of rows (see `rows`) choose here, so a precomputed training and an online one see the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from refadgen.config.train import ObjectiveConfig, TrainDataConfig
from refadgen.training.plan import Plan, PlannedRow, RowDraw, draw


@dataclass(frozen=True, kw_only=True)
class RowChoices:
    """What one step sees of one row. Indices point into the row's lists of variants and captions."""

    planned: PlannedRow
    row_id: str
    drawn: RowDraw
    variant: int
    kind: str
    """The variant's kind."""
    image_dropped: bool
    """Whether the image encoder's states are replaced by those of a zero image."""
    caption: int | None
    """None: the caption is dropped and the empty prompt takes its place."""
    mask: int | None
    """The variant whose mask is M′; None: M′ is zero everywhere."""
    timestep: float
    """In [0, 1): share of the noise schedule."""
    fusion_scale: float
    """λ: 1, or 0 where the reference is dropped."""


@dataclass(frozen=True)
class RowChooser:
    """Decides with the settings of a training."""

    data: TrainDataConfig
    objective: ObjectiveConfig

    def choose(
        self, plan: Plan, planned: PlannedRow, *, row_id: str, kinds: Sequence[str], num_captions: int
    ) -> RowChoices:
        """The choices for a planned row. kinds: of its variants, in order.

        Raises: ValueError naming the row where none of its variants is of `data.variants`.
        """
        # Each product image of an ad has draws of its own: noise, timestep, caption.
        name = row_id if planned.image is None else f"{row_id}/{planned.image}"
        drawn = draw(plan.seed, planned.epoch, name)
        image_dropped, text_dropped = self.drops(drawn)
        variant = self._variant(kinds, planned, drawn, row_id)
        # One draw from each of batch_size equal slices of the schedule lowers the variance of a batch's mean loss.
        stratified = (planned.position + drawn.timestep) / plan.batch_size
        return RowChoices(
            planned=planned,
            row_id=row_id,
            drawn=drawn,
            variant=variant,
            kind=kinds[variant],
            image_dropped=image_dropped,
            caption=None if text_dropped else int(drawn.caption * num_captions),
            mask=self._mask(kinds, variant),
            timestep=stratified if self.objective.timesteps == "stratified" else drawn.timestep,
            fusion_scale=float(drawn.reference_dropout >= self.objective.reference_dropout),
        )

    def drops(self, drawn: RowDraw) -> tuple[bool, bool]:
        """Whether image tokens and text are dropped: three disjoint shares of one draw, as in the authors' code."""
        image, text, both = (
            self.objective.image_dropout,
            self.objective.text_dropout,
            self.objective.both_dropout,
        )
        drops_both = drawn.dropout < both
        drops_image = both <= drawn.dropout < both + image
        drops_text = both + image <= drawn.dropout < both + image + text
        return drops_both or drops_image, drops_both or drops_text

    def _variant(self, kinds: Sequence[str], planned: PlannedRow, drawn: RowDraw, row_id: str) -> int:
        """The index of the planned variant, or of a drawn one: each eligible image is as likely, not each kind."""
        eligible = [index for index, kind in enumerate(kinds) if kind in self.data.variants]
        if not eligible:
            raise ValueError(
                f"row {row_id!r}: variants {sorted(set(kinds))}: none is of data.variants={list(self.data.variants)}"
            )
        return eligible[int(drawn.variant * len(eligible)) if planned.image is None else planned.image]

    def _mask(self, kinds: Sequence[str], variant: int) -> int | None:
        """The index of the variant whose mask is M′, by `data.mask`."""
        if self.data.mask == "none":
            return None
        # Only an `original` lies where the product lies in the ad; a row without one falls back to the drawn variant.
        return kinds.index("original") if self.data.mask == "ad" and "original" in kinds else variant
