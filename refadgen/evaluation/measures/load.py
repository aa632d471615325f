"""The scorers that the settings give, and why others are left out."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from refadgen.config import EvaluateConfig
from refadgen.config.devices import resolve_device
from refadgen.evaluation.measures.diffusion_features import DiffusionFeatures
from refadgen.evaluation.measures.inception import InceptionFeatures
from refadgen.evaluation.measures.masks import MaskOverlap
from refadgen.evaluation.measures.perceptual import Lpips, MatchedPatches, PerceptualDistance
from refadgen.evaluation.measures.picture import Scorer
from refadgen.evaluation.measures.pixels import Candidates, ColorDrift, NearestProduct, Registration
from refadgen.evaluation.measures.table import IMAGE_REWARD_MISSING, MEASURES, licensed
from refadgen.evaluation.measures.text import CharacterErrors
from refadgen.evaluation.measures.transformers_features import ClipScore, DinoSimilarity, VisionFeatures
from refadgen.evaluation.measures.vision_language import VisionLanguageJudge

_EXTRA = {"fid.weights": "torch_fidelity", "lpips.backbone": "lpips"}
_NO_WEIGHTS = "no weights: set {}"


def skipped_measures(config: EvaluateConfig, *, dataset: bool) -> dict[str, str]:
    """The measures that cannot be made, with the reason. dataset: whether there are real ads.

    Raises: ValueError naming the setting whose package is not installed.
    """
    given = {
        "clip.model": config.clip.model,
        "fid.weights": config.fid.weights,
        "lpips.backbone": config.lpips.backbone,
        "mp_lpips.features": config.mp_lpips.features,
        "dino.model": config.dino.model,
        "ocr.read": config.ocr.read,
        "judge.url": config.judge.url,
    }
    for field, package in _EXTRA.items():
        if given[field] and importlib.util.find_spec(package) is None:
            remedy = "needs the extra `evaluate` (pip install 'refadgen[evaluate]')"
            raise ValueError(f"{field}: {remedy}: no {package} here")
    if config.ocr.read and importlib.util.find_spec("rapidocr") is None:
        raise ValueError("ocr.read=True: needs the extra `ocr` (pip install 'refadgen[ocr]'): no rapidocr here")
    skipped = {each.name: _NO_WEIGHTS.format(each.needs) for each in MEASURES if each.needs and not given[each.needs]}
    if "character_error_rate" in skipped:
        skipped["character_error_rate"] = "off: set ocr.read=true"
    skipped |= {name: "off: set judge.url and judge.model" for name in skipped if name.startswith("judge_")}
    if config.mp_lpips.features and not config.lpips.backbone:
        skipped["mp_lpips"] = _NO_WEIGHTS.format("lpips.backbone, which compares the patches")
    if config.fid.weights and not dataset:
        skipped["fid"] = "no real ads to compare with: give --dataset"
    return skipped | {"image_reward": IMAGE_REWARD_MISSING}


@dataclass(frozen=True)
class Scorers:
    """All that measures one ad after the other."""

    scorers: tuple[Scorer, ...]
    inception: InceptionFeatures | None
    """None: no FID."""

    @property
    def networks(self) -> dict[str, str]:
        """What each measure asks, by the measure's name."""
        found = {name: each.network for each in self.scorers for name in each.measures}
        return found if self.inception is None else found | {"fid": self.inception.label}


def load_scorers(
    config: EvaluateConfig, skipped: Mapping[str, str], candidates: Candidates, *, gpu_expected: bool
) -> Scorers:
    """Loads all networks that the settings give.

    skipped: as `skipped_measures` has it. candidates: for the nearest product.
    gpu_expected: the cluster gave this process a GPU. Raises: ValueError naming the setting of what cannot be loaded.
    """
    device = resolve_device(config.score.device, gpu_expected=gpu_expected, field="score.device")
    scorers: list[Scorer] = [
        Registration(),
        ColorDrift(),
        NearestProduct(candidates),
        MaskOverlap(config.segmentation, gpu_expected=gpu_expected),
    ]
    if config.clip.model:
        scorers.append(ClipScore(config.clip.model, device))
    if config.lpips.backbone:
        distance = PerceptualDistance(config.lpips.network, config.lpips.backbone, device)
        scorers.append(Lpips(distance, config.score.batch_size))
        if config.mp_lpips.features:
            scorers.append(_matched_patches(config, distance, device))
    if config.dino.model:
        scorers.append(DinoSimilarity(config.dino.model, device))
    if config.ocr.read:
        scorers.append(CharacterErrors(config.ocr))
    if config.judge.url:
        scorers.append(VisionLanguageJudge(config.judge))
    inception = None
    if "fid" not in skipped and config.fid.weights:
        inception = InceptionFeatures(config.fid.weights, config.score.batch_size, device)
    return Scorers(tuple(scorers), inception)


def _matched_patches(config: EvaluateConfig, distance: PerceptualDistance, device: torch.device) -> MatchedPatches:
    place = str(config.mp_lpips.features)
    if config.mp_lpips.kind == "vision":
        vision = VisionFeatures("mp_lpips.features", place, device)
        return MatchedPatches(distance, vision.patches, f"{licensed(place)}, not the network that defines the metric")
    diffusion = DiffusionFeatures(place, config.mp_lpips.prompt, config.mp_lpips.ensemble, device)
    return MatchedPatches(distance, diffusion, diffusion.label)
