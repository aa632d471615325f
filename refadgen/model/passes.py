"""Which of the network's passes each step of an image needs: with or without guidance, complete or with deep features
of an earlier step. The settings of fast mode choose them; without those, all steps of an image are alike."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """How the network runs at one step of an image. Only images of one pass share a batch: each pass has shapes of its
    own, so that an image is the same whichever steps others are at."""

    guided: bool
    """Both guidance branches; else the conditional one alone."""
    full: bool = True
    """The complete network; else its outer blocks, on the deep features of an earlier step."""


@dataclass(frozen=True, kw_only=True)
class FastMode:
    """What saves work at the steps of an image. The defaults save nothing."""

    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance only while the timestep, as a share of the training's, lies in it (Kynkäänniemi et al. 2024)."""
    reuse_steps: int = 1
    """Steps on one set of deep features, the one that makes them included (Ma et al. 2024, DeepCache)."""


FULL_STEPS = FastMode()


def passes_of(shares: Sequence[float], *, guided: bool, fast: FastMode) -> tuple[Pass, ...]:
    """The pass of each step. shares: of each step, its timestep ÷ the number of timesteps in training. guided: whether
    the image has guidance at all."""
    low, high = fast.guidance_interval
    passes: list[Pass] = []
    age = 0  # steps since a full pass
    for share in shares:
        # Bounds of 0 and 1 are none: a few schedulers have timesteps of another kind.
        now = guided and (low == 0 or low <= share) and (high == 1 or share <= high)
        # What a pass without guidance has made lacks the unconditional branch.
        full = not passes or age + 1 >= fast.reuse_steps or (now and not passes[-1].guided)
        age = 0 if full else age + 1
        passes.append(Pass(now, full))
    return tuple(passes)
