"""The sections that several jobs share: catalogue, fetching, layout, segmentation, model, sampling, quality, output."""

import re
import string
import typing
from dataclasses import dataclass
from typing import Literal

from refadgen.config.marks import Decides, Place, Section, device_setting, require, setting

_IMAGE = Decides.ONE_IMAGE
_LAYOUT = Decides.ONE_IMAGE | Decides.ALWAYS_HASHED
_PIXELS = Decides.PIXELS | Decides.ALWAYS_HASHED
_MASK = Decides.PIXELS | Decides.TRIPLETS | Decides.ALWAYS_HASHED
_LATER_MASK = Decides.PIXELS | Decides.TRIPLETS
_RUN = Decides.RUN

Anchor = Literal["top", "center", "bottom", "left", "right", "bottom-left", "bottom-right", "top-left", "top-right"]
ImageFormat = Literal["jpeg", "png", "webp"]
SchedulerName = Literal["model", "ddim", "euler", "dpm++", "unipc"]
FeedFormat = Literal[
    "auto",
    "parquet",
    "csv",
    "tsv",
    "jsonl",
    "merchant-xml",
    "shopify",
    "woocommerce",
    "magento",
    "images",
    "delta",
    "iceberg",
]
LeaveOut = Literal["virtual", "draft", "out-of-stock"]
SaliencyNormalization = Literal["imagenet", "centered", "none"]
_CONDITION = r"\s*[\w.-]+(/[\w.-]+)?\s*=\s*!?([\w.-]+|in\(\s*[\w.-]+(\s*,\s*[\w.-]+)*\s*\))\s*"
_LEAST_ROOM = 0.2
"""Share of the canvas's width or height that a product needs beside what is kept free."""
ONNX_SUFFIX = ".onnx"
DEFAULT_STEPS = 20
"""Denoising steps where neither the user nor the model says (Fig. 9: about 20 suffice)."""


@dataclass(frozen=True, kw_only=True)
class CatalogConfig(Section, name="catalog"):
    """How catalogue rows become wanted images."""

    scenes_file: str | None = setting(None, _IMAGE, place=Place.PATH_OR_URI)
    """YAML of scene templates by category; None: the one that ships with the package."""
    taxonomy_file: str | None = setting(None, _IMAGE, place=Place.PATH_OR_URI)
    """Google's `taxonomy-with-ids.LANGUAGE.txt`, for categories written as numbers; None: only the most common ones."""
    scenes_per_product: int = setting(2, _IMAGE, least=1, most=100)
    """Scene templates taken for a product without prompts of its own."""
    num_variants: int = setting(1, _IMAGE, least=1, most=100)
    """Images of each scene, where the row does not say."""
    format: FeedFormat = setting("auto", _RUN)
    """What the catalogue is, where its content does not tell; auto: found, and said in the first line."""
    leave_out: tuple[str, ...] = setting(("virtual", "draft", "out-of-stock"), _IMAGE)
    """States of products that are not wanted: `virtual`, `draft`, `out-of-stock`. Only feeds tell them, not parquet."""
    rows_per_block: int = setting(4, _RUN, least=1, most=4096)
    """Catalogue rows in one block of the stream; work in an unwritten block is lost in a crash."""

    def check(self) -> None:
        for name in self.leave_out:
            known = typing.get_args(LeaveOut)
            require(name in known, "catalog.leave_out", name, f"some of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class FetchConfig(Section, name="fetch"):
    """How product images are read, and which addresses a foreign catalogue may reach."""

    # All of these decide whether a row fails, none of them the pixels of a row that does not.
    timeout_s: float = setting(20.0, _RUN, above=0, most=3600)
    """For connecting and between two received bytes."""
    total_timeout_s: float = setting(60.0, _RUN, above=0, most=3600)
    """For one complete attempt, against slow-loris servers that drip bytes."""
    num_retries: int = setting(3, _RUN, least=0, most=10)
    """Further attempts after timeouts, connection errors and the statuses 408, 425, 429 and 5xx."""
    backoff_s: float = setting(0.5, _RUN, least=0, most=60)
    """Wait before the first retry; doubles each time; Retry-After is honoured up to `timeout_s`."""
    max_per_host: int = setting(4, _RUN, least=1, most=256)
    """Simultaneous requests to one host, in one actor."""
    max_bytes: int = setting(50_000_000, _RUN, least=1)
    """Largest encoded image."""
    max_pixels: int = setting(52_000_000, _RUN, least=1)
    """Largest decoded image, width times height: a bound against decompression bombs."""
    min_side_px: int = setting(16, _RUN, least=1)
    """Smallest width and height that can show a product."""
    file_roots: tuple[str, ...] = setting((), _RUN, place=Place.PATH)
    """Folders besides the catalogue's own below which `file:` images may lie."""
    allow_private_addresses: bool = setting(False, _RUN)
    """Whether http(s) images may come from private, loopback or link-local addresses."""
    headers_file: str | None = setting(None, _RUN, place=Place.PATH)
    """YAML of request headers by host, `*` for every host: `cdn.shop.example: {User-Agent: Mozilla/5.0}`."""


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(Section, name="layout"):
    """Where the product stands on the canvas, where the row's `placement` does not say."""

    # A row's `placement` may override these, so each id holds the layout of its own image.
    size: float = setting(0.6, _LAYOUT, least=0.05, most=1.0)
    """The product's larger extent relative to the canvas: of the height for tall products, of the width for wide."""
    anchor: Anchor = setting("bottom", _LAYOUT)
    """The side or corner of the canvas (inside the margin) that the product stands at."""
    margin: float = setting(0.12, _LAYOUT, least=0.0, most=0.4)
    """Free border, a share of the canvas's width and height."""
    as_photographed: bool = setting(False, _IMAGE)
    """Whether the product stays where the photograph has it, in place of the three above: the photograph is squashed to
    the canvas, and the ad resized to the photograph's ratio. A row with a `placement` is placed as it says."""
    long_side_px: int | None = setting(None, _IMAGE, least=64, most=4096)
    """With `as_photographed`: the longer side of the ad's file; None: as many pixels as the canvas has."""
    keep_free: tuple[float, float, float, float] | None = setting(None, _IMAGE)
    """Left, top, right and bottom of a rectangle that the product stays out of, as shares of the canvas; where it must,
    the product moves, and then shrinks. None: there is none. With `as_photographed` the product stays where it is."""

    def check(self) -> None:
        if self.keep_free is not None:
            left, top, right, bottom = self.keep_free
            ok = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            require(ok, "layout.keep_free", self.keep_free, "0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1")
            ok = max(left, top, 1 - right, 1 - bottom) >= _LEAST_ROOM
            require(ok, "layout.keep_free", self.keep_free, f"smaller: a side needs {_LEAST_ROOM} of the canvas")
        if self.long_side_px is not None and not self.as_photographed:
            raise ValueError(f"layout.long_side_px={self.long_side_px}: needs layout.as_photographed=true")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(Section, name="segmentation"):
    """The chain alpha channel, plain background, networks that the user brings; and when a mask is weak.

    Networks: a saliency model, SAM 3, Grounding DINO + SAM2. Where several are set, they vote.
    """

    background_tolerance: float = setting(12.0, _MASK, above=0, most=100)
    """Largest distance of a plain background's border pixels from their median, in CIE Lab units (ΔE*ab)."""
    # The identity holds both model places as the user wrote them: it did so from the first id on.
    grounding_dino: str | None = setting(None, _MASK, place=Place.MODEL)
    """Path or hub id of a transformers Grounding DINO checkpoint; None: this link of the chain is off."""
    sam2_checkpoint: str | None = setting(None, _MASK, place=Place.PATH)
    """Path of a SAM2 weights file; needs `sam2_config`."""
    sam2_config: str = setting("configs/sam2.1/sam2.1_hiera_l.yaml", _MASK)
    """The SAM2 configuration the weights belong to, by its name in the sam2 package."""
    box_threshold: float = setting(0.35, _MASK, least=0, most=1)
    """Least score of a Grounding DINO box."""
    text_threshold: float = setting(0.25, _MASK, least=0, most=1)
    """Least score of the words of a Grounding DINO box."""
    device: str = device_setting()
    """Where the networks run: auto, cpu, cuda, cuda:1, …"""
    min_area: float = setting(0.005, _MASK, least=0, most=1)
    """Least share of the image that a product covers."""
    max_area: float = setting(0.95, _MASK, least=0, most=1)
    """Largest share of the image that a product covers."""
    max_edge_contact: float = setting(0.2, _MASK, least=0, most=1)
    """Largest share of the product's extent along one side of the image that may touch it; more means it is cut off."""
    max_pieces: int = setting(8, _MASK, least=1)
    """Largest number of separate pieces, each with at least the share `min_piece` of the product's area."""
    min_piece: float = setting(0.02, _MASK, least=0, most=1)
    """Share of the product's area from which a piece counts as one."""
    min_score: float = setting(0.5, _MASK, least=0, most=1)
    """Least score of the mask: a network's own, or the agreement of several; for a plain background its separation."""
    # Not ALWAYS_HASHED: these came later, and ids made before them stay.
    saliency_model: str | None = setting(None, _LATER_MASK, place=Place.MODEL_OR_FILE)
    """An ONNX file (`.onnx`) of a background remover such as BiRefNet, IS-Net or U²-Net, or a folder or hub id of a
    transformers semantic segmenter with one or two labels; None: off."""
    saliency_normalization: SaliencyNormalization = setting("imagenet", _LATER_MASK)
    """What the ONNX file takes: imagenet (ImageNet's mean and deviation: U²-Net, BiRefNet), centered (−0.5…0.5: IS-Net,
    BEN), none (0…1)."""
    sam3: str | None = setting(None, _LATER_MASK, place=Place.MODEL)
    """Path or hub id of a transformers SAM 3 checkpoint, which finds the product by its name; None: off."""
    sam3_threshold: float = setting(0.5, _LATER_MASK, least=0, most=1)
    """Least score of an object that SAM 3 finds."""
    min_agreement: float = setting(0.9, _LATER_MASK, least=0, most=1)
    """Where several networks are set: least IoU of two of their masks; below it the photograph is refused."""
    second_opinion: bool = setting(True, _LATER_MASK)
    """Whether the built-in mask network looks at each photograph without a mask; off: colours alone decide."""
    min_probability: float = setting(0.8, _LATER_MASK, least=0, most=1)
    """With `second_opinion`: least probability that the mask is right (IoU of 0.95 with the true one)."""

    @property
    def has_networks(self) -> bool:
        """Whether a network can find the product in a scene."""
        return any(place is not None for place in (self.saliency_model, self.sam3, self.grounding_dino))

    def check(self) -> None:
        require(self.min_area < self.max_area, "segmentation.min_area", self.min_area, "below segmentation.max_area")
        if self.saliency_normalization != "imagenet" and not (self.saliency_model or "").endswith(ONNX_SUFFIX):
            raise ValueError(
                f"segmentation.saliency_normalization={self.saliency_normalization!r}: is for an ONNX file in "
                "segmentation.saliency_model; a transformers model brings its own in preprocessor_config.json"
            )
        if (self.grounding_dino is None) != (self.sam2_checkpoint is None):
            raise ValueError(
                "segmentation.grounding_dino and segmentation.sam2_checkpoint belong together: set both, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, name="model"):
    """Which model, and how it runs."""

    # Not hashed: the fingerprint of its files stands in the identity instead.
    path: str = setting("mini", _RUN, pattern=r"(?s).+", rule="mini, a folder or a hub id", place=Place.MODEL)
    """`mini` (built in), a folder, or a hub id."""
    device: str = device_setting()
    """auto (CUDA where there is a GPU, else CPU), cpu, cuda, cuda:1, …"""
    # Hashed as the user wrote it, `auto` too: ids are made by a driver that may have no GPU to resolve it with.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", _PIXELS)
    """auto: on GPUs what the model recommends, else bfloat16 where they have it, float16 where not; float32 on CPU."""
    compile: bool = setting(False, _RUN)
    """Compile the denoising step with torch.compile: minutes at the first step, worth it for long runs."""
    cuda_graphs: bool = setting(False, _RUN)
    """With `compile`: capture the step as a CUDA graph (mode reduce-overhead)."""
    channels_last: bool = setting(False, _RUN)
    """Memory format of the convolutions; faster on GPUs, refused on CPUs, where group norms lose three digits in it."""
    torch_threads: int = setting(1, _RUN, least=1, most=256)
    """CPU threads of one actor. Fixed, since sums in another order give other pixels."""

    def check(self) -> None:
        if self.cuda_graphs and not self.compile:
            raise ValueError("model.cuda_graphs=True: needs model.compile=true")
        if self.channels_last and self.device == "cpu":
            raise ValueError("model.channels_last=True: is for GPUs, and model.device=cpu; set it to false")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Section, name="sampling"):
    """How one image is sampled. None: the value that the checkpoint recommends."""

    # Ids hold the checkpoint's values in place of None (see `generation.model_settings`). A later setting that a
    # checkpoint fills in would therefore change old ids; give it a default of its own.
    num_inference_steps: int | None = setting(None, _PIXELS, least=1, most=1000)
    """Denoising steps; None, where the checkpoint recommends none: `DEFAULT_STEPS`."""
    guidance_scale: float | None = setting(None, _PIXELS, least=1, most=50)
    """Classifier-free guidance."""
    scheduler: SchedulerName = setting("model", Decides.PIXELS)
    """The solver: the model's own, or DDIM, Euler, DPM-Solver++ or UniPC with the model's noise schedule."""
    guidance_interval: tuple[float, float] = setting((0.0, 1.0), Decides.PIXELS, least=0, most=1)
    """Guidance only at steps whose timestep, as a share of the training's, lies in it: others run one branch of two."""
    reuse_steps: int = setting(1, Decides.PIXELS, least=1, most=10)
    """Steps on one set of the network's deep features; at the others of them only the outer blocks run. 1: none."""
    tuned_for: str = setting("", _RUN, pattern=r"([0-9a-f]{16})?", rule="a model's fingerprint, 16 hexadecimal digits")
    """The model that these settings were measured for (`jobs/tune_sampling.py`): the job refuses another."""
    fusion_scale: float = setting(1.0, _PIXELS, least=0, most=10)
    """λ of the Attention Fusion Module (Sec. 5.5)."""
    reference_in_uncond: bool | None = setting(None, _PIXELS)
    """Whether the unconditional branch sees the product too."""
    # The VAE's latents are an eighth of the canvas.
    width_px: int | None = setting(None, _PIXELS, multiple_of=8, least=64, most=4096)
    """Canvas width, a multiple of 8."""
    height_px: int | None = setting(None, _PIXELS, multiple_of=8, least=64, most=4096)
    """Canvas height, a multiple of 8."""
    # Not hashed itself: each id holds its image's own seed, so that a row's seed is independent of the job's.
    seed: int = setting(0, _IMAGE, least=0, most=2**63 - 1, rule="0 to 2^63 - 1")
    """Seed of the job, from which each image's own seed derives where the row gives none."""
    # Pixels: kernels are chosen by shape and round differently.
    batch_size: int = setting(8, Decides.PIXELS, least=1, most=256)
    """Images denoised at once; short batches are padded, so that results do not depend on how rows fall together.
    Another number changes pixels by rounding, and so the ids."""

    @property
    def num_steps(self) -> int:
        """Denoising steps of an image. Only after `with_model_settings` is a checkpoint's recommendation in it."""
        return DEFAULT_STEPS if self.num_inference_steps is None else self.num_inference_steps

    @property
    def kinds_of_steps(self) -> int:
        """The most kinds of steps that one image has: with and without guidance, with and without reuse."""
        return (1 if self.guidance_interval == (0, 1) else 2) * (1 if self.reuse_steps == 1 else 2)

    @property
    def images_in_flight(self) -> int:
        """Images that the step engine has on their way: a batch of each kind, so that one of them is always full."""
        return self.batch_size * self.kinds_of_steps


@dataclass(frozen=True, kw_only=True)
class QualityConfig(Section, name="quality"):
    """The fidelity gate: the scores that an image needs to be published."""

    min_color_similarity: float = setting(0.0, _PIXELS, least=0, most=1)
    """Least in-mask colour similarity to the placed product, 0 to 1."""
    min_structure_similarity: float = setting(0.0, _PIXELS, least=0, most=1)
    """Least in-mask structure similarity (SSIM) to the placed product, 0 to 1."""
    min_local_similarity: float = setting(0.0, Decides.PIXELS, least=0, most=1)
    """Least similarity where the image differs most from the placed product after the light is taken out, 0 to 1."""
    min_hue_similarity: float = setting(0.0, Decides.PIXELS, least=0, most=1)
    """Least hue similarity to the placed product after the light is taken out, 0 to 1; 0.67 is a turn by 10°."""
    # Pixels: a further attempt has another seed, so more attempts may publish another picture.
    max_attempts: int = setting(1, _PIXELS, least=1, most=10)
    """Images drawn for one wanted image, each with a seed of its own, before the last one is given up as failed."""
    fusion_attempts: int = setting(0, Decides.PIXELS, least=0, most=10)
    """Further images, drawn with `stronger_fusion_scale` where none of `max_attempts` passes."""
    stronger_fusion_scale: float = setting(1.2, Decides.PIXELS, least=0, most=10)
    """λ of `fusion_attempts`."""
    product_pixels: bool = setting(False, Decides.PIXELS)
    """Whether, where none of these passes, the product's own pixels are laid into the best image that was drawn."""
    product_tone: float = setting(0.0, Decides.PIXELS, least=0, most=1)
    """How far those pixels take on the lightness of the product that was drawn, in broad strokes. 0: not at all, they
    are the photograph's."""
    unsafe_model: str | None = setting(None, Decides.PIXELS, place=Place.MODEL)
    """Image classifier of what must not be published, a folder or hub id of transformers; None: nobody looks."""
    unsafe_labels: tuple[str, ...] = setting(("nsfw", "porn", "hentai", "sexy"), Decides.PIXELS)
    """Labels of that classifier that mean unsafe, in upper or lower case; it need not have all of them."""
    max_unsafe_score: float = setting(0.5, Decides.PIXELS, least=0, most=1)
    """An ad is `unsafe` where the sum of these labels' probabilities is above this."""

    def check(self) -> None:
        ok = self.unsafe_model is None or any(label.strip() for label in self.unsafe_labels)
        require(ok, "quality.unsafe_labels", self.unsafe_labels, "labels of quality.unsafe_model")


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Section, name="output"):
    """How ad images are encoded."""

    format: ImageFormat = setting("jpeg", _PIXELS)
    """Encoding of the ad images."""
    quality: int = setting(92, _PIXELS, least=1, most=100)
    """Quality of JPEG and WebP, 1 to 100; PNG is lossless."""
    public_url: str | None = setting(None, _RUN, pattern=r"https?://[^\s,]+", rule="an address that begins with http")
    """Where others reach the ads, such as `https://cdn.example/ads/{uri}`: channels' feeds are written. It may hold
    `{uri}` (of the ledger), `{image_id}`, `{sku}` and `{channel}`. None: no feeds."""

    def check(self) -> None:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(self.public_url or "{uri}") if name is not None}
        except ValueError as error:
            raise ValueError(f"output.public_url={self.public_url!r}: {error}") from error
        ok = bool(names & {"uri", "image_id"}) and names <= {"uri", "image_id", "sku", "channel"}
        require(
            ok,
            "output.public_url",
            self.public_url,
            "an address with {uri} or {image_id}, and {sku} and {channel} at most",
        )


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(Section, name="review"):
    """Which masks a person is asked about, on the pages `review.html`."""

    max_masks: int = setting(500, _RUN, least=0, most=100_000)
    """Masks on the pages, the most doubtful ones; 0: none, and nothing is kept for them."""
    accepted_below: float = setting(0.95, _RUN, least=0, most=1)
    """Score below which an accepted mask is shown too, beside those that were refused."""


@dataclass(frozen=True, kw_only=True)
class LogConfig(Section, name="log"):
    """What driver and actors write into their logs."""

    format: Literal["text", "json"] = setting("text", _RUN)
    """json: one object a line, with run id, stage and sku; those of actors only in Ray's log files on their nodes. Each
    image that fails or is rejected has one, and the progress bar is a line every half minute."""


@dataclass(frozen=True, kw_only=True)
class StageConfig(Section, name="stages.*"):
    """The size of one stage's actor pool."""

    num_actors: int | Literal["auto"] = setting("auto", _RUN, least=1, most=10_000)
    """Actors of the pool; a number fixes them. auto: of the generating stage as many as there are GPUs, or cores, for;
    of others one with a GPU, or from one upwards without, as their blocks pile up (`batch/pool_sizes.py`)."""
    num_cpus: float = setting(0.5, _RUN, least=0)
    """Logical CPUs of one actor."""
    num_gpus: float = setting(0.0, _RUN, least=0)
    """GPUs of one actor: a share of one, or a whole number."""
    label_selector: tuple[str, ...] = setting((), _RUN)
    """Nodes that its actors may run on, such as `ray.io/accelerator-type=H100`: conditions on labels in Ray's words
    (`name=value`, `=!value`, `=in(a, b)`; several joined by `&`). Of several such texts the first that a node fulfils
    counts; the others are what Ray falls back on."""

    def check(self) -> None:
        for text in self.label_selector:
            fine = all(re.fullmatch(_CONDITION, condition) for condition in text.split("&"))
            require(fine, "stages.*.label_selector", text, "name=value, =!value or =in(a, b), joined by &")
        whole = self.num_gpus <= 1 or float(self.num_gpus).is_integer()
        require(whole, "stages.*.num_gpus", self.num_gpus, "a whole number above 1, for so Ray shares GPUs out")
