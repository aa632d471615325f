"""Every setting of the evaluation, `jobs/evaluate.py`. A network without its weights measures nothing."""

from dataclasses import dataclass, field
from typing import Literal

from refadgen.config.marks import Decides, Place, Section, device_setting, require, setting
from refadgen.config.sections import SegmentationConfig, StageConfig

# Nothing of an evaluation enters an id of the main job: kept scores have a key of their own (`evaluation/scoring.py`).
_RUN = Decides.RUN


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Section, name="clip"):
    """CLIP-Score: how well an image fits its prompt."""

    model: str | None = setting(None, _RUN, place=Place.MODEL)
    """CLIP, a folder or hub id of transformers: openai/clip-vit-large-patch14, openai/clip-vit-base-patch16 (both MIT).
    yuvalkirstain/PickScore_v1 has the same layout and is trained on people's preferences."""


@dataclass(frozen=True, kw_only=True)
class FidConfig(Section, name="fid"):
    """FID against the ads of a data set's test split (`--dataset`)."""

    weights: str | None = setting(None, _RUN, place=Place.PATH)
    """InceptionV3 as torch-fidelity and pytorch-fid have it, `weights-inception-2015-12-05-6726825d.pth`
    (Apache-2.0)."""
    min_images: int = setting(2048, _RUN, least=2)
    """Images that each side must have. A covariance of 2,048 features has full rank from 2,049 images on; with fewer,
    FID measures mostly their number."""


@dataclass(frozen=True, kw_only=True)
class LpipsConfig(Section, name="lpips"):
    """LPIPS between the ad and the placed product; MP-LPIPS compares patches with the same network."""

    network: Literal["alex", "vgg", "squeeze"] = setting("alex", _RUN)
    """Backbone; alex is the metric's default."""
    backbone: str | None = setting(None, _RUN, place=Place.PATH)
    """Weights of that network as torchvision has them, `alexnet-owt-7be5be79.pth` (BSD-3-Clause). The linear layers
    come with the package lpips (BSD-2-Clause)."""


@dataclass(frozen=True, kw_only=True)
class MpLpipsConfig(Section, name="mp_lpips"):
    """MP-LPIPS: LPIPS of patches at points of the product that features match in the ad."""

    features: str | None = setting(None, _RUN, place=Place.MODEL)
    """The network that matches points, a folder or hub id. The metric was defined with Stable Diffusion 2.1
    (CreativeML Open RAIL++-M); numbers of other networks do not compare with it."""
    kind: Literal["diffusion", "vision"] = setting("diffusion", _RUN)
    """diffusion: a Stable Diffusion of diffusers, features as DIFT takes them. vision: a vision transformer of
    transformers, such as facebook/dinov2-base (Apache-2.0)."""
    prompt: str = setting("a photo of a product", _RUN)
    """What a diffusion network is told. The metric's authors, who measured garments: a photo of an upper-garment."""
    ensemble: int = setting(8, _RUN, least=1, most=64)
    """Draws of noise whose features are averaged."""


@dataclass(frozen=True, kw_only=True)
class DinoConfig(Section, name="dino"):
    """Cosine of the product's and the ad's features, both cut to the mask's box and white outside the mask."""

    model: str | None = setting(None, _RUN, place=Place.MODEL)
    """A vision transformer, a folder or hub id of transformers: facebook/dinov2-base, facebook/dinov2-large
    (Apache-2.0); facebook/dinov3-vitb16-pretrain-lvd1689m (DINOv3 License: ask for access on its page)."""


@dataclass(frozen=True, kw_only=True)
class OcrConfig(Section, name="ocr"):
    """Character error rate of the product's own print."""

    read: bool = setting(False, _RUN)
    """Whether RapidOCR reads product and ad inside the mask (the extra `ocr`; its models are in its package,
    Apache-2.0)."""
    min_characters: int = setting(3, _RUN, least=1)
    """A product on which fewer letters and digits are read is not measured."""
    min_score: float = setting(0.6, _RUN, least=0, most=1)
    """Least score of a piece of text that counts."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section, name="judge"):
    """A vision-language model that compares ad and product, on a sample."""

    url: str | None = setting(
        None, _RUN, pattern=r"https?://[^/@?#\s]+(/[^@?#\s]*)?", rule="http(s)://host[:port]/path, without a key in it"
    )
    """Address with OpenAI's interface, up to `/v1`: of a vLLM, an Ollama or a service. It sees product and ad."""
    model: str = setting("", _RUN)
    """Name of the model there, such as Qwen/Qwen2.5-VL-7B-Instruct (Apache-2.0)."""
    key_variable: str | None = setting(None, _RUN, pattern=r"[A-Za-z_][A-Za-z0-9_]*", rule="a name of a variable")
    """Environment variable that holds the key; None: none is sent. The key itself is never a setting, nor logged."""
    share: float = setting(0.1, _RUN, above=0, most=1)
    """Share of ads that are judged: by product and prompt, the same in all runs."""
    picture_px: int = setting(768, _RUN, least=64, most=4096)
    """Longer side of the pictures that are sent."""
    max_tokens: int = setting(200, _RUN, least=16, most=8192)
    """Longest answer; a longer one is cut off and not scored. Models that think before they answer need more."""
    timeout_s: float = setting(120.0, _RUN, above=0)
    """Of one request; it is made five times at most."""

    def check(self) -> None:
        require(self.url is None or bool(self.model.strip()), "judge.model", self.model, "named where judge.url is")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Section, name="score"):
    """How images are scored."""

    device: str = device_setting()
    """Where networks run: auto, cpu, cuda, cuda:1, …"""
    batch_size: int = setting(8, _RUN, least=1, most=512)
    """Images that a network sees at once."""
    images_per_part: int = setting(256, _RUN, least=1, most=4096)
    """Images of one file of scores: what a kill may cost, and what a lost actor measures again."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig(Section, name="show"):
    """The report page."""

    max_groups: int = setting(120, _RUN, least=1, most=2000)
    """Wanted images on the page, each with its picture of every run; the worst and best by each measure are chosen."""
    max_megabytes: float = setting(6.0, _RUN, least=0.5, most=100)
    """Size of the page at most; fewer images are shown where this does not suffice."""
    picture_px: int = setting(200, _RUN, least=32, most=1024)
    """Longer side of the pictures on the page."""


@dataclass(frozen=True, kw_only=True)
class EvaluateStagesConfig(Section, name="stages"):
    """The actor pool of the job."""

    score: StageConfig = field(default_factory=lambda: StageConfig(num_cpus=1.0))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """All settings of one evaluation."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    fid: FidConfig = field(default_factory=FidConfig)
    lpips: LpipsConfig = field(default_factory=LpipsConfig)
    mp_lpips: MpLpipsConfig = field(default_factory=MpLpipsConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    ocr: OcrConfig = field(default_factory=OcrConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Networks that find the product in the ads; without one, the project's own mask network does."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    stages: EvaluateStagesConfig = field(default_factory=EvaluateStagesConfig)
