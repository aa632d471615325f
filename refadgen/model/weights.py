"""Which files of a component's folder hold its weights, in the layouts that models are published in. Without torch.

diffusion_pytorch_model.safetensors, model.safetensors    plain, or in numbered pieces
model.fp16.safetensors                                     a variant, taken where there is no plain file
pytorch_model.bin                                          pickled, taken where there are no safetensors
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

FUSION_FILE = "attention_fusion.safetensors"
"""The AFM projections, beside the Generation U-Net's own weights."""
STATES_FILE = "mp_rank_00_model_states.pt"
"""DeepSpeed's file of model states, as the authors' checkpoint has it."""
_NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files of one component's weights."""

    names: tuple[str, ...]
    variant: str | None
    """As in `model.fp16.safetensors`; None: plain."""
    pickled: bool


def choose_weights(names: Iterable[str]) -> WeightFiles | None:
    """Of the names of a folder's files, those to load: safetensors before pickles, plain before fp16 before others."""
    groups: dict[tuple[bool, bool, bool, str], list[str]] = {}
    for name in names:
        if found := _NAME.fullmatch(name):
            variant = found["variant"] or ""
            groups.setdefault((found["kind"] == "bin", variant != "", variant != "fp16", variant), []).append(name)
    if not groups:
        return None
    (pickled, _, _, variant), chosen = min(groups.items())
    return WeightFiles(tuple(sorted(chosen)), variant or None, pickled)
