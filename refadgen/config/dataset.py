"""Every setting of the dataset job: how ad photographs become training triplets."""

from dataclasses import dataclass, field
from typing import Literal

from refadgen.config.marks import Decides, Place, Section, device_setting, require, setting, settings_of
from refadgen.config.sections import FetchConfig, LogConfig, SegmentationConfig, StageConfig

_TRIPLETS = Decides.TRIPLETS | Decides.ALWAYS_HASHED
_RUN = Decides.RUN

VariantKind = Literal["original", "degraded", "novel_view"]

_QUESTIONS = (
    "Describe this advertising image in one sentence: product, what it stands on, what is behind it, the light.",
    "Describe the scene of this advertising photograph in one sentence. Name the product by its kind only.",
    "Write the prompt, one sentence, that an image generator would need to make this advertising image.",
    "In one sentence, say where this product is shown, in what surroundings and in what mood.",
)


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Section, name="filter"):
    """Which ads are too poor to learn from (the paper's filtering: low resolution, text, watermarks, occlusion)."""

    min_side_px: int = setting(256, _TRIPLETS, least=16, most=16384)
    """Least length of an ad's shorter side."""
    max_aspect: float = setting(3.0, _TRIPLETS, least=1, most=100)
    """Longer side over shorter side, at most."""
    duplicate_distance: int | None = setting(4, _TRIPLETS, least=0, most=8)
    """Bits of the 64-bit perceptual hash in which near-duplicates differ at most, 0 to 8; None: duplicates stay."""
    duplicate_color: float = setting(12.0, _TRIPLETS, least=0, most=255)
    """Largest mean difference of near-duplicates' 4×4 thumbnails, in grey levels of 255. Ads that are alike in shape
    but not in colour show different products."""
    duplicate_product_color: float = setting(5.0, Decides.TRIPLETS, least=0, most=200)
    """Largest difference of near-duplicates' product colours in any of 4×4 fields (CIE94 for textiles, ΔE), after the
    shift that the two backdrops show. It tells a gold ring from a silver one, which hardly change the thumbnail."""
    text: bool = setting(False, _TRIPLETS)
    """Whether RapidOCR looks for embedded text and watermarks (the extra `ocr`)."""
    max_text_area: float = setting(0.02, _TRIPLETS, least=0, most=1)
    """Share of the ad that text outside of the product may cover; the product's own print does not count."""
    min_text_score: float = setting(0.6, _TRIPLETS, least=0, most=1)
    """Least score of a piece of text that counts."""
    watermarks: bool = setting(False, Decides.TRIPLETS)
    """Whether marks that are repeated over the picture are looked for; needs no network."""
    max_lattice: float = setting(0.07, Decides.TRIPLETS, least=0, most=1)
    """How much a picture may resemble itself on a lattice: its weakest vector's correlation above its surroundings."""
    watermark_model: str | None = setting(None, Decides.TRIPLETS, place=Place.MODEL)
    """Image classifier for watermarks, a folder or hub id of transformers; None: no such filter."""
    watermark_labels: tuple[str, ...] = setting(("watermark", "watermarked"), Decides.TRIPLETS)
    """Labels of that classifier that mean a watermark, in upper or lower case; it need not have all of them."""
    max_watermark_score: float = setting(0.5, Decides.TRIPLETS, least=0, most=1)
    """Largest sum of those labels' probabilities."""
    occluders: bool = setting(False, Decides.TRIPLETS)
    """Whether things in front are looked for in the gaps of the product's outline; needs no network."""
    max_hidden: float = setting(0.03, Decides.TRIPLETS, least=0, most=1)
    """Share of the product's convex hull that such things may hide."""
    depth_model: str | None = setting(None, Decides.TRIPLETS, place=Place.MODEL)
    """With `occluders`: Depth Anything, a folder or hub id of transformers, tells what is nearer than the product.
    None: colours alone decide."""
    unsafe_model: str | None = setting(None, _TRIPLETS, place=Place.MODEL)
    """Image classifier for unsafe content, a folder or hub id of transformers; None: no such filter."""
    unsafe_labels: tuple[str, ...] = setting(("nsfw", "porn", "hentai", "sexy"), _TRIPLETS)
    """Labels of that classifier that mean unsafe, in upper or lower case; it need not have all of them."""
    max_unsafe_score: float = setting(0.5, _TRIPLETS, least=0, most=1)
    """Largest sum of those labels' probabilities."""
    people: bool | Literal["required"] = setting(True, _TRIPLETS)
    """Whether Grounding DINO or SAM 3, where one is configured, looks for people and hands in front of the product.
    required: the job does not start without one."""
    max_person_overlap: float = setting(0.1, _TRIPLETS, least=0, most=1)
    """Share of the product's box that boxes of hands and people may cover. A person whose box encloses the product's
    wears or carries it, or stands behind it, and does not count."""
    max_products: int = setting(1, _TRIPLETS, least=1)
    """Boxes of the category that Grounding DINO may find apart from each other. Not checked without a category."""

    def check(self) -> None:
        ok = self.unsafe_model is None or any(label.strip() for label in self.unsafe_labels)
        require(ok, "filter.unsafe_labels", self.unsafe_labels, "labels of filter.unsafe_model")
        ok = self.watermark_model is None or any(label.strip() for label in self.watermark_labels)
        require(ok, "filter.watermark_labels", self.watermark_labels, "labels of filter.watermark_model")
        if self.depth_model is not None and not self.occluders:
            raise ValueError(f"filter.depth_model={self.depth_model!r}: is for filter.occluders=true")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Section, name="caption"):
    """Who describes the ads, and how."""

    model: str | None = setting(None, _TRIPLETS, place=Place.MODEL)
    """Qwen2.5-VL, a folder or hub id of transformers; None: captions from category, colours and the row's own texts."""
    prompts: tuple[str, ...] = setting(_QUESTIONS, _TRIPLETS)
    """Questions to the model; each gives one caption, after the row's own. Four is the paper's number."""
    max_new_tokens: int = setting(96, _TRIPLETS, least=8, most=4096)
    """Longest answer, in tokens."""
    batch_size: int = setting(4, _RUN, least=1, most=256)
    """Questions answered at once."""
    max_side_px: int = setting(768, _TRIPLETS, least=56, most=4096)
    """Longer side of the picture that the model sees."""
    min_words: int = setting(3, _TRIPLETS)
    max_words: int = setting(80, _TRIPLETS)
    """Shortest and longest caption that is kept."""
    min_latin: float = setting(0.8, _TRIPLETS, least=0, most=1)
    """Least share of Latin letters among a caption's letters: the text encoder reads English."""
    device: str = device_setting()
    """Where the model runs: auto, cpu, cuda, cuda:1, …"""
    # RUN, so that a data set begun on one kind of GPU may be finished on another.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", _RUN)
    """auto: bfloat16 on GPUs that have it, float16 on others, float32 on CPUs."""

    def check(self) -> None:
        require(1 <= len(self.prompts) <= 16, "caption.prompts", self.prompts, "1 to 16 questions")
        require(all(text.strip() for text in self.prompts), "caption.prompts", self.prompts, "without empty ones")
        ok = 1 <= self.min_words <= self.max_words <= 1000
        require(ok, "caption.min_words, max_words", (self.min_words, self.max_words), "1 ≤ min ≤ max ≤ 1000")


@dataclass(frozen=True, kw_only=True)
class MultiViewConfig(Section, name="multi_view"):
    """Novel views of the product by 3D Gaussian Splatting (dual augmentation, first half), near ones as in the paper.

    Each range is (lowest, highest); values are drawn uniformly, and the signs of yaw and pitch are drawn too.
    """

    depth_model: str | None = setting(None, _TRIPLETS, place=Place.MODEL)
    """Depth Anything, a folder or hub id of transformers; None: the depth of an inflated silhouette."""
    yaw_deg: tuple[float, float] = setting((5.0, 20.0), _TRIPLETS, least=0, most=60)
    """Turn about the product's upright axis."""
    pitch_deg: tuple[float, float] = setting((0.0, 5.0), _TRIPLETS, least=0, most=30)
    """Turn of the camera up or down."""
    distance: tuple[float, float] = setting((0.95, 1.05), _TRIPLETS, least=0.5, most=2)
    """Distance of the new camera, as a factor of the photograph's."""
    camera_distance: float = setting(4.0, _TRIPLETS, least=1.5, most=100)
    """Distance of the photograph's camera, in product sizes (the larger side of its box). Assumed: a photograph does
    not show it."""
    # RUN: a test holds gsplat to the pixels of the reference.
    rasterizer: Literal["auto", "torch", "gsplat"] = setting("auto", _RUN)
    """auto: gsplat where there is CUDA and the package, else the reference in torch."""
    max_holes: float = setting(0.01, _TRIPLETS, least=0, most=1)
    """Largest share of the new mask that consists of holes that the photograph does not have."""
    max_stretch: float = setting(0.1, _TRIPLETS, least=0, most=1)
    """Largest share of the new mask that shows Gaussians stretched more than twice, or sides not in the photograph."""
    num_tries: int = setting(4, _TRIPLETS, least=1, most=20)
    """Views drawn before a variant stays a degraded one; each try halves the angles."""
    device: str = device_setting()
    """Where depth and rasterizer run: auto, cpu, cuda, cuda:1, …"""


@dataclass(frozen=True, kw_only=True)
class DegradationConfig(Section, name="degradation"):
    """Strengths of the degradations (dual augmentation, second half): (lowest, highest), drawn uniformly. (0, 0): off.

    The paper names noise, shadow and warp without their strengths; the others are options.
    """

    noise: tuple[float, float] = setting((2.0, 8.0), _TRIPLETS, least=0, most=64)
    """Sensor noise: standard deviation at mid-grey, in grey levels of 255. At most 64."""
    shadow: tuple[float, float] = setting((0.15, 0.6), _TRIPLETS, least=0, most=0.95)
    """Shadow: share of the light that the product's darkest place loses. At most 0.95."""
    warp: tuple[float, float] = setting((0.01, 0.04), _TRIPLETS, least=0, most=0.2)
    """Geometric warp: largest shift of a corner of the product's box, as a share of its longer side. At most 0.2."""
    blur: tuple[float, float] = setting((0.0, 0.0), _TRIPLETS, least=0, most=0.05)
    """Blur: standard deviation, as a share of the image's height. At most 0.05; 0.002 is slightly soft."""
    color_cast: tuple[float, float] = setting((0.0, 0.0), _TRIPLETS, least=0, most=0.5)
    """Colour cast: largest change of a channel, as a share of its value. At most 0.5; 0.08 is lamp light."""
    jpeg: tuple[float, float] = setting((0.0, 0.0), _TRIPLETS, least=0, most=95)
    """JPEG: 100 minus the quality. At most 95; 0 is off; 30 to 60 is a picture from a messenger."""

    def check(self) -> None:
        integers = all(float(value).is_integer() for value in self.jpeg)
        require(integers, "degradation.jpeg", self.jpeg, "two whole numbers")


# By name, in the order of the fields: `triplets.degradation` gives each its own random generator in this order.
DEGRADATION_LIMITS = {field.name: mark.most for field, mark in settings_of(DegradationConfig).items() if mark.most}


@dataclass(frozen=True, kw_only=True)
class TripletConfig(Section, name="triplet"):
    """Size, product images and split of the triplets."""

    max_side_px: int = setting(1024, _TRIPLETS, least=64, most=8192)
    """Longer side that ads, masks and product images are reduced to; smaller ones stay as they are."""
    variants: tuple[VariantKind, ...] = setting(
        ("original", "degraded", "novel_view", "novel_view", "novel_view"), _TRIPLETS
    )
    """Product images of an ad: its own, degraded ones, degraded novel views; five is the paper's number."""
    one_view: bool = setting(False, Decides.TRIPLETS)
    """Whether all novel views of an ad are the same one, each degraded in its own way."""
    sam2_masks: bool = setting(False, Decides.TRIPLETS)
    """Whether SAM2 (`segmentation.sam2_checkpoint`) makes the masks of degraded images and novel views, as the authors
    do. Their geometric masks, exact by construction, are kept in the column `geometric_masks`."""
    min_sam2_iou: float = setting(0.5, Decides.TRIPLETS, least=0, most=1)
    """Least IoU of SAM2's mask and the geometric one; below it the geometric one stays."""
    test_percent: int = setting(10, _TRIPLETS, least=0, most=99)
    """Percentage of products that are held out for testing (the paper's 9:1). Decided by the product's id alone."""
    rows_per_file: int = setting(32, _RUN, least=1, most=4096)
    """Ads worked on together and written to one file; a crash costs those between the stages."""
    seed: int = setting(0, _TRIPLETS, least=0, most=2**63 - 1, rule="0 to 2^63 - 1")
    """Seed of views and degradations; each row derives its own from its id."""

    def check(self) -> None:
        ok = bool(self.variants) and len(self.variants) <= 32
        require(ok and self.variants[0] == "original", "triplet.variants", self.variants, "1 to 32, `original` first")


@dataclass(frozen=True, kw_only=True)
class DatasetStagesConfig(Section, name="stages"):
    """The actor pools of the job; machine shapes in `cluster/` set them and never change a triplet."""

    screen: StageConfig = field(default_factory=StageConfig)
    """Fetches, decodes and filters; the first of two passes over the ads."""
    describe: StageConfig = field(default_factory=StageConfig)
    """Give it a GPU where `caption.model` is set."""
    extract: StageConfig = field(default_factory=StageConfig)
    """Give it a GPU where segmentation networks are set."""
    augment: StageConfig = field(default_factory=lambda: StageConfig(num_cpus=1.0))


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section):
    """All settings of one run of `jobs/build_dataset.py`."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    multi_view: MultiViewConfig = field(default_factory=MultiViewConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    triplet: TripletConfig = field(default_factory=TripletConfig)
    stages: DatasetStagesConfig = field(default_factory=DatasetStagesConfig)
    log: LogConfig = field(default_factory=LogConfig)
