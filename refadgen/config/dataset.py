"""Every setting of the dataset job: how ad photographs become training triplets."""

from dataclasses import dataclass, field
from typing import Literal

from refadgen.config.generate import FetchConfig, SegmentationConfig, StageConfig
from refadgen.config.loading import require, require_device

VariantKind = Literal["original", "degraded", "novel_view"]


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which ads are too poor to learn from (the paper's filtering: low resolution, text, watermarks, occlusion)."""

    min_side_px: int = 256
    """Least length of an ad's shorter side."""
    max_aspect: float = 3.0
    """Longer side over shorter side, at most."""
    duplicate_distance: int | None = 4
    """Bits of the 64-bit perceptual hash in which near-duplicates differ at most, 0 to 8; None: duplicates stay."""
    duplicate_color: float = 12.0
    """Mean difference of their 4×4 thumbnails at most, in grey levels of 255: alike in shape, unlike in colour, is
    another product."""
    text: bool = False
    """Whether RapidOCR looks for embedded text and watermarks (the extra `ocr`)."""
    max_text_area: float = 0.02
    """Share of the ad that text outside of the product may cover; the product's own print does not count."""
    min_text_score: float = 0.6
    """Least score of a piece of text that counts."""
    unsafe_model: str | None = None
    """Image classifier for unsafe content, a folder or hub id of transformers; None: no such filter."""
    unsafe_labels: tuple[str, ...] = ("nsfw", "porn", "hentai", "sexy")
    """Its labels that mean unsafe, in upper or lower case; it need not have all of them."""
    max_unsafe_score: float = 0.5
    """Largest sum of their probabilities."""
    people: bool = True
    """Whether Grounding DINO, where it is configured, looks for people and hands in front of the product."""
    max_person_overlap: float = 0.1
    """Share of the product's box that boxes of hands and people may cover; a person whose box holds the whole product
    wears or carries it, or stands behind it, and does not count."""
    max_products: int = 1
    """Boxes of the category that Grounding DINO may find, each apart from the others; without a category none count."""

    def __post_init__(self) -> None:
        require(16 <= self.min_side_px <= 16384, "filter.min_side_px", self.min_side_px, "16 to 16384")
        require(1 <= self.max_aspect <= 100, "filter.max_aspect", self.max_aspect, "1 to 100")
        if self.duplicate_distance is not None:
            ok = 0 <= self.duplicate_distance <= 8
            require(ok, "filter.duplicate_distance", self.duplicate_distance, "0 to 8, or null")
        require(0 <= self.duplicate_color <= 255, "filter.duplicate_color", self.duplicate_color, "0 to 255")
        for name in ("max_text_area", "min_text_score", "max_unsafe_score", "max_person_overlap"):
            require(0 <= getattr(self, name) <= 1, f"filter.{name}", getattr(self, name), "0 to 1")
        ok = self.unsafe_model is None or any(label.strip() for label in self.unsafe_labels)
        require(ok, "filter.unsafe_labels", self.unsafe_labels, "labels of filter.unsafe_model")
        require(self.max_products >= 1, "filter.max_products", self.max_products, "at least 1")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Who describes the ads, and how."""

    model: str | None = None
    """Qwen2.5-VL, a folder or hub id of transformers; None: captions from category, colours and what the row holds."""
    prompts: tuple[str, ...] = (
        "Describe this advertising image in one sentence: product, what it stands on, what is behind it, the light.",
        "Describe the scene of this advertising photograph in one sentence. Name the product by its kind only.",
        "Write the prompt, one sentence, that an image generator would need to make this advertising image.",
        "In one sentence, say where this product is shown, in what surroundings and in what mood.",
    )
    """One caption each, after the row's own; four is the paper's number."""
    max_new_tokens: int = 96
    """Of one answer."""
    batch_size: int = 4
    """Questions answered at once."""
    max_side_px: int = 768
    """Longer side of the picture that the model sees."""
    min_words: int = 3
    max_words: int = 80
    """Length of a caption that counts."""
    min_latin: float = 0.8
    """Least share of Latin letters among a caption's letters: the text encoder reads English."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, …"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, float16 on others, float32 on CPUs."""

    def __post_init__(self) -> None:
        require(1 <= len(self.prompts) <= 16, "caption.prompts", self.prompts, "1 to 16 questions")
        require(all(text.strip() for text in self.prompts), "caption.prompts", self.prompts, "without empty ones")
        require(8 <= self.max_new_tokens <= 4096, "caption.max_new_tokens", self.max_new_tokens, "8 to 4096")
        require(1 <= self.batch_size <= 256, "caption.batch_size", self.batch_size, "1 to 256")
        require(56 <= self.max_side_px <= 4096, "caption.max_side_px", self.max_side_px, "56 to 4096")
        ok = 1 <= self.min_words <= self.max_words <= 1000
        require(ok, "caption.min_words, max_words", (self.min_words, self.max_words), "1 ≤ min ≤ max ≤ 1000")
        require(0 <= self.min_latin <= 1, "caption.min_latin", self.min_latin, "0 to 1")
        require_device("caption.device", self.device)


@dataclass(frozen=True, kw_only=True)
class MultiViewConfig:
    """Novel views of the product by 3D Gaussian Splatting (dual augmentation, first half), near ones as in the paper.

    Ranges are the lowest and the highest that is drawn, evenly; the sign of yaw and pitch is drawn besides.
    """

    depth_model: str | None = None
    """Depth Anything, a folder or hub id of transformers; None: the depth of an inflated silhouette."""
    yaw_deg: tuple[float, float] = (5.0, 20.0)
    """Turn about the product's upright axis."""
    pitch_deg: tuple[float, float] = (0.0, 5.0)
    """Turn of the camera up or down."""
    distance: tuple[float, float] = (0.95, 1.05)
    """Of the new camera, as a factor of the photograph's."""
    camera_distance: float = 4.0
    """Of the photograph's camera, in product sizes (the larger side of its box): a photograph does not tell."""
    rasterizer: Literal["auto", "torch", "gsplat"] = "auto"
    """auto: gsplat where there is CUDA and the package, else the reference in torch."""
    max_holes: float = 0.01
    """Largest share of the new mask that are holes which the photograph does not have."""
    max_stretch: float = 0.1
    """Largest share of the new mask that shows Gaussians stretched more than twice, or sides not in the photograph."""
    num_tries: int = 4
    """Views drawn before a variant stays a degraded one; each try halves the angles."""
    device: str = "auto"
    """Where depth and rasterizer run: auto, cpu, cuda, cuda:1, …"""

    def __post_init__(self) -> None:
        for name, limit in (("yaw_deg", 60.0), ("pitch_deg", 30.0)):
            require_range(f"multi_view.{name}", getattr(self, name), 0.0, limit)
        require_range("multi_view.distance", self.distance, 0.5, 2.0)
        require(1.5 <= self.camera_distance <= 100, "multi_view.camera_distance", self.camera_distance, "1.5 to 100")
        for name in ("max_holes", "max_stretch"):
            require(0 <= getattr(self, name) <= 1, f"multi_view.{name}", getattr(self, name), "0 to 1")
        require(1 <= self.num_tries <= 20, "multi_view.num_tries", self.num_tries, "1 to 20")
        require_device("multi_view.device", self.device)


DEGRADATION_LIMITS = {"noise": 64.0, "shadow": 0.95, "warp": 0.2, "blur": 0.05, "color_cast": 0.5, "jpeg": 95.0}


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """Strengths of the degradations (dual augmentation, second half): lowest and highest, drawn evenly. (0, 0): never.

    Noise, shadow and warp are the paper's, which gives no strengths; the others are options.
    """

    noise: tuple[float, float] = (2.0, 8.0)
    """Sensor noise: standard deviation at mid-grey, in grey levels of 255. At most 64."""
    shadow: tuple[float, float] = (0.15, 0.6)
    """Shadow: share of the light that the product's darkest place loses. At most 0.95."""
    warp: tuple[float, float] = (0.01, 0.04)
    """Geometric warp: the farthest way of a corner of the product's box, as a share of its longer side. At most 0.2."""
    blur: tuple[float, float] = (0.0, 0.0)
    """Blur: standard deviation, as a share of the image's height. At most 0.05; 0.002 is a little soft."""
    color_cast: tuple[float, float] = (0.0, 0.0)
    """Colour cast: largest change of a channel, as a share of its value. At most 0.5; 0.08 is lamp light."""
    jpeg: tuple[float, float] = (0.0, 0.0)
    """JPEG: 100 minus the quality. At most 95; 0 is no JPEG at all; 30 to 60 is a picture from a messenger."""

    def __post_init__(self) -> None:
        for name, limit in DEGRADATION_LIMITS.items():
            require_range(f"degradation.{name}", getattr(self, name), 0.0, limit)
        whole = all(float(value).is_integer() for value in self.jpeg)
        require(whole, "degradation.jpeg", self.jpeg, "two whole numbers")


def require_range(field_name: str, value: tuple[float, float], lowest: float, highest: float) -> None:
    """Raises: ValueError unless `value` is (low, high) with lowest ≤ low ≤ high ≤ highest."""
    numbers = isinstance(value, tuple) and len(value) == 2 and all(type(each) in (int, float) for each in value)
    ok = numbers and lowest <= value[0] <= value[1] <= highest
    require(ok, field_name, value, f"two numbers, {lowest:g} ≤ lowest ≤ highest ≤ {highest:g}")


@dataclass(frozen=True, kw_only=True)
class TripletConfig:
    """What a triplet holds."""

    max_side_px: int = 1024
    """Ads are made smaller to this longer side, with everything that goes with them."""
    variants: tuple[VariantKind, ...] = ("original", "degraded", "novel_view", "novel_view", "novel_view")
    """Product images of an ad: its own, degraded ones, degraded novel views; five is the paper's number."""
    test_percent: int = 10
    """Products in a hundred that are kept for testing (9:1, the paper's); decided by the product's id alone."""
    rows_per_file: int = 32
    """Ads worked on together and written to one file; a crash costs those between the stages."""
    seed: int = 0
    """Of views and degradations, each row's own by its id."""

    def __post_init__(self) -> None:
        require(64 <= self.max_side_px <= 8192, "triplet.max_side_px", self.max_side_px, "64 to 8192")
        ok = bool(self.variants) and len(self.variants) <= 32
        require(ok and self.variants[0] == "original", "triplet.variants", self.variants, "1 to 32, `original` first")
        require(0 <= self.test_percent <= 99, "triplet.test_percent", self.test_percent, "0 to 99")
        require(1 <= self.rows_per_file <= 4096, "triplet.rows_per_file", self.rows_per_file, "1 to 4096")
        require(0 <= self.seed < 2**63, "triplet.seed", self.seed, "0 to 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class DatasetStagesConfig:
    """The actor pools of the job; machine shapes in `cluster/` set them and never change a triplet."""

    screen: StageConfig = field(default_factory=StageConfig)
    """Fetches, decodes and filters; the first of two passes over the ads."""
    describe: StageConfig = field(default_factory=StageConfig)
    """Give it a GPU where `caption.model` is set."""
    extract: StageConfig = field(default_factory=StageConfig)
    """Give it a GPU where Grounding DINO and SAM2 are set."""
    augment: StageConfig = field(default_factory=lambda: StageConfig(num_cpus=1.0))


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The whole configuration of `jobs/build_dataset.py`."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    multi_view: MultiViewConfig = field(default_factory=MultiViewConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    triplet: TripletConfig = field(default_factory=TripletConfig)
    stages: DatasetStagesConfig = field(default_factory=DatasetStagesConfig)
