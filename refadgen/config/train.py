"""Every setting of training. The presets in `refadgen/training/presets/` set them; `paper` is Table 2."""

from dataclasses import dataclass, field
from typing import Literal

from refadgen.config.marks import Decides, Place, Section, require, setting

_STEPS = Decides.STEPS | Decides.ALWAYS_HASHED
_WEIGHTS = Decides.WEIGHTS
_RUN = Decides.RUN

RANDOM = "random"
"""In place of a file: weights are drawn."""
VARIANT_KINDS = ("original", "relit", "degraded", "novel_view")
"""Kinds of product image: the ad's own pixels under its mask, in place; the same view in other light (a product
photograph); a degraded one; the product turned. The paper has all but `relit`, which only a studio can make."""


@dataclass(frozen=True, kw_only=True)
class TrainDataConfig(Section, name="data"):
    """The triplets, and how a step reads them."""

    # Not hashed: the checkpoint's facts hold a fingerprint of the rows, so that a data set may be moved.
    path: str = setting("", _RUN, place=Place.PATH_OR_URI)
    """Folder or file of triplets, a path or s3:// (see refadgen/triplets/schema.py); `tiny`: the set that ships."""
    width_px: int = setting(512, _STEPS, multiple_of=8, least=16, most=4096)
    height_px: int = setting(640, _STEPS, multiple_of=8, least=16, most=4096)
    """Canvas in pixels: pictures are resized to cover it and cropped, with one crop for ad, product and mask."""
    variants: tuple[str, ...] = setting(VARIANT_KINDS, _STEPS)
    """Kinds of product image to draw from; `original` alone is training without dual augmentation."""
    # Not ALWAYS_HASHED: this came later, and checkpoints made before it can still be resumed.
    epoch_counts: Literal["ads", "product_images"] = setting("ads", Decides.STEPS)
    """What comes once in an epoch: `ads`, each with one of its product images drawn, or `product_images` (the paper's
    count), each with its ad."""
    crop: Literal["cover", "random"] = setting("cover", Decides.STEPS)
    """`cover`: resized to just cover the canvas. `random` (the authors'): the shorter side is resized to the canvas's
    longer one, and the canvas lies anywhere in it, elsewhere in every epoch; needs `precompute=false`."""
    mask: Literal["variant", "ad", "none"] = setting("variant", _STEPS)
    """M′: the drawn product image's own mask (the authors'), the product's mask in the ad, or no mask (all zero)."""
    precompute: bool = setting(True, _STEPS)
    """Whether latents and embeddings are computed once into `cache`, with one crop for all epochs, or in every step."""
    cache: str | None = setting(None, _RUN, place=Place.NEW_PATH_OR_URI)
    """Folder for latents and embeddings, a path or s3://; None: `cache/` in the output."""
    encode_batch_size: int = setting(8, _RUN, least=1)
    """Pictures in one pass of the encoders."""
    shuffle_rows: int = setting(1024, _STEPS, least=1)
    """Rows of a window inside which the order is random; windows are of random row groups. A worker holds its share of
    two windows."""
    load_cpus: float = setting(0.5, _RUN, least=0, most=64)
    """Logical CPUs of one loading task; the cluster needs them beside the workers'."""

    def check(self) -> None:
        unknown = [kind for kind in self.variants if kind not in VARIANT_KINDS]
        require(bool(self.variants) and not unknown, "data.variants", self.variants, f"of {', '.join(VARIANT_KINDS)}")
        if self.crop == "random" and self.precompute:
            raise ValueError(
                "data.crop=random with data.precompute=True: the cache keeps one crop for all epochs; set "
                "data.precompute=false"
            )


@dataclass(frozen=True, kw_only=True)
class TrainModelConfig(Section, name="model"):
    """The models that training starts from, and the settings that the finished model recommends."""

    # Neither place is hashed: the facts hold fingerprints of the files.
    base: str = setting("", _RUN, place=Place.MODEL)
    """A Stable Diffusion 1.5 folder or hub id, or that of a RefAdGen model to train further."""
    image_encoder: str | None = setting(None, _RUN, place=Place.MODEL)
    """CLIP vision model, folder or hub id, for the Reference U-Net's context; None: the base's, or the empty prompt."""
    # Not hashed: the facts hold a fingerprint of the file.
    image_projection: str | None = setting(RANDOM, _RUN, place=Place.PATH)
    """Start of the Resampler that makes context of the image encoder's states, where the base has none: an
    IP-Adapter-Plus file (the authors': `ip-adapter-plus_sd15`, .bin or .safetensors), or `random`. None: one of them
    must be named where `image_encoder` is."""
    # Not STEPS: the facts hold the names and shapes of all trained tensors, which differ between the kinds.
    trains: Literal["product", "everything", "text_to_image"] = setting("product", _WEIGHTS)
    """`product`: Reference U-Net, `conv_in`, AFM projections, image projection (the paper). `everything`: all of
    the Generation U-Net and the text encoder as well. `text_to_image`: the base itself, without any product."""
    prompt_suffix: str | None = setting(None, _WEIGHTS)
    negative_prompt: str | None = setting(None, _WEIGHTS)
    guidance_scale: float | None = setting(None, _WEIGHTS, least=0)
    reference_in_uncond: bool | None = setting(None, _WEIGHTS)
    negative_prompt_context: bool | None = setting(None, _WEIGHTS)
    """The finished model recommends these five (see RefAdGenPipeline); None: the base's, or that class's default."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", _WEIGHTS)
    """Number format of the finished model's weights; checkpoints are always float32."""

    def check(self) -> None:
        if self.image_encoder is not None and self.trains == "text_to_image":
            raise ValueError(
                f"model.image_encoder={self.image_encoder!r} with model.trains=text_to_image: no product is seen "
                "there; set it to null"
            )
        if self.image_projection not in (None, RANDOM) and self.image_encoder is None:
            raise ValueError(
                f"model.image_projection={self.image_projection!r}: is for the states of model.image_encoder; name the "
                "image encoder that it was trained with"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section, name="objective"):
    """Eq. 2 and its randomness."""

    prediction_type: Literal["epsilon", "v_prediction"] = setting("epsilon", _STEPS)
    zero_terminal_snr: bool = setting(False, _STEPS)
    """Rescales the betas so that the last timestep is pure noise; needs v_prediction."""
    # Not ALWAYS_HASHED: this came later.
    authors_noise: bool = setting(False, Decides.STEPS)
    """Trains on betas with zero terminal SNR and ε, as the authors' code does, and samples with the plain ones: for
    who reproduces them. At the last timestep ε is the input itself, and sampling has other noise levels."""
    noise_offset: float = setting(0.05, _STEPS, least=0, most=1)
    """Standard deviation of a noise that is constant over a channel, beside the usual one; 0.05 is Table 2."""
    min_snr_gamma: float | None = setting(None, _STEPS, above=0)
    """Min-SNR loss weights with this γ (arXiv 2303.09556); None: equal weights."""
    product_weight: float = setting(1.0, _STEPS, above=0)
    """Weight of errors inside M′; 1 is Eq. 2."""
    timesteps: Literal["uniform", "stratified"] = setting("uniform", _STEPS)
    """`uniform`: each row's timestep is drawn from all. `stratified`: one from each of batch_size equal slices."""
    image_dropout: float = setting(0.05, _STEPS, least=0, most=1)
    text_dropout: float = setting(0.05, _STEPS, least=0, most=1)
    both_dropout: float = setting(0.05, _STEPS, least=0, most=1)
    """Shares of rows without image tokens, without text, without both (the authors'; disjoint)."""
    reference_dropout: float = setting(0.0, _STEPS, least=0, most=1)
    """Share of rows that do not see the product (λ = 0)."""

    def check(self) -> None:
        wrong = {
            "objective.prediction_type=epsilon": self.prediction_type != "epsilon",
            "objective.zero_terminal_snr=false": self.zero_terminal_snr,
            "objective.min_snr_gamma=null": self.min_snr_gamma is not None,
        }
        if self.authors_noise and any(wrong.values()):
            raise ValueError(
                "objective.authors_noise=True: the authors train ε with equal weights, and their betas come with it; "
                f"set {' '.join(words for words, is_wrong in wrong.items() if is_wrong)} too"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "objective.zero_terminal_snr=True with objective.prediction_type=epsilon: at the last timestep nothing "
                "of the image is left, so ε says nothing about it; use v_prediction, or (with zero_terminal_snr=false) "
                "objective.authors_noise to train as the authors did all the same"
            )
        total = self.image_dropout + self.text_dropout + self.both_dropout
        require(total <= 1, "objective.image_dropout + text_dropout + both_dropout", total, "at most 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section, name="optimizer"):
    """AdamW, its rate, and the average of the weights."""

    name: Literal["adamw", "adamw_8bit"] = setting("adamw", _STEPS)
    """`adamw_8bit` (torchao, the extra `quantized`) keeps the moments in 8 bits by blocks of 256 (arXiv 2110.02861): a
    quarter of their memory. With `run.strategy=ddp` only: `fsdp` shards them already. Set `run.compile` on GPUs."""
    # A resumed training may change all that follows: rows, noise and the meaning of the moments stay the same.
    learning_rate: float = setting(1e-5, _WEIGHTS, above=0)
    weight_decay: float = setting(0.01, _WEIGHTS, least=0)
    beta1: float = setting(0.9, _WEIGHTS, least=0, below=1)
    beta2: float = setting(0.999, _WEIGHTS, least=0, below=1)
    epsilon: float = setting(1e-8, _WEIGHTS, above=0)
    max_grad_norm: float | None = setting(1.0, _WEIGHTS, above=0)
    """Gradients of a larger norm, over all that trains, are scaled down to it; None: never (the authors)."""
    schedule: Literal["constant", "linear", "cosine", "trapezoid"] = setting("linear", _WEIGHTS)
    """How the rate falls after the warm-up: never (constant), to 0 by the last step (linear, cosine), or to 0 over the
    last `decay_share` (trapezoid)."""
    warmup_steps: int = setting(500, _WEIGHTS, least=0)
    """First steps, in which the rate rises to its full value."""
    decay_share: float = setting(0.3, _WEIGHTS, above=0, most=1)
    """Share of all steps in which the rate of a trapezoid falls."""
    ema_decay: float | None = setting(0.9999, _WEIGHTS, above=0, below=1)
    """Decay of the moving average of the weights, which becomes the model; None: no average."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section, name="run"):
    """How long, on how many workers, and how often checkpoints and samples are written."""

    num_epochs: int | None = setting(8, _WEIGHTS, least=1)
    num_steps: int | None = setting(None, _WEIGHTS, least=1)
    """Length: passes over what `data.epoch_counts` counts, or steps. One of both is set, the other is None."""
    batch_size: int = setting(6, _STEPS, least=1)
    """Rows of a step over all workers."""
    micro_batch_size: int | None = setting(None, _RUN, least=1)
    """Rows in one pass of a worker; its share of a step is accumulated from these passes. None: all of its share."""
    num_workers: int = setting(1, _RUN, least=1)
    min_workers: int | None = setting(None, _RUN, least=1)
    """Elastic training continues with as few workers as this when nodes are lost; None: always `num_workers`."""
    num_gpus: float = setting(0.0, _RUN, least=0)
    num_cpus: float = setting(1.0, _RUN, above=0)
    """GPUs and logical CPUs of one worker."""
    strategy: Literal["ddp", "fsdp"] = setting("ddp", _RUN)
    """`fsdp` (FSDP2) shards weights, gradients and optimizer state over the workers."""
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", _WEIGHTS)
    """Number format of the arithmetic and of frozen weights. auto: bfloat16 on GPUs that have it, else float32."""
    gradient_checkpointing: bool = setting(False, _RUN)
    """Computes activations again in the backward pass: much less memory for a third more arithmetic."""
    compile: bool = setting(False, _RUN)
    torch_threads: int | None = setting(None, _RUN, least=1)
    """Threads of a worker on CPUs; None: as many as `num_cpus`."""
    max_failures: int = setting(3, _RUN, least=0)
    """Lost workers after which the training still restarts from the last checkpoint."""
    seed: int = setting(0, _STEPS)
    """Seed of rows, noise, timesteps, dropouts and variants."""
    checkpoint_every: int = setting(500, _RUN, least=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = setting(2, _RUN, least=1)
    """Newest checkpoints that stay."""
    sample_every: int = setting(0, _RUN, least=0)
    """Steps between sheets of held-out samples, at checkpoints; 0: none."""
    num_samples: int = setting(6, _RUN, least=1)
    """Images of a sheet."""
    sample_steps: int | None = setting(None, _RUN, least=1)
    """Denoising steps of each image; None: as many as the base recommends, or `DEFAULT_STEPS`."""
    log_rows: bool = setting(False, _RUN)
    """Whether the metrics of each step name its rows."""

    def check(self) -> None:
        if (self.num_epochs is None) == (self.num_steps is None):
            raise ValueError("run.num_epochs and run.num_steps: set one of them, the other to null")
        if self.min_workers is not None:
            require(self.min_workers <= self.num_workers, "run.min_workers", self.min_workers, "at most num_workers")
        # Elastic training may run on any number of workers between both, and each takes an equal share of a step.
        for workers in range(self.min_workers or self.num_workers, self.num_workers + 1):
            if self.batch_size % workers:
                raise ValueError(f"run.batch_size={self.batch_size}: cannot be split evenly over {workers} workers")
        if self.sample_every % self.checkpoint_every:
            raise ValueError(
                f"run.sample_every={self.sample_every}: must be a multiple of run.checkpoint_every="
                f"{self.checkpoint_every}: a sheet lies beside its checkpoint"
            )


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(Section, name="measure"):
    """Measures of held-out samples on the way, without a network of other people."""

    every: int = setting(0, _RUN, least=0)
    """Steps between measures, at checkpoints; 0: none. The last checkpoint is measured too."""
    images: int = setting(12, _RUN, least=1, most=1000)
    """Held-out rows that are drawn, of as many products as possible."""
    num_inference_steps: int = setting(8, _RUN, least=1, most=1000)
    """Denoising steps of each: few, since checkpoints are compared with each other only."""
    best_by: (
        Literal[
            "color_similarity",
            "structure_similarity",
            "local_similarity",
            "hue_similarity",
            "nearest_product",
            "mask_iou",
        ]
        | None
    ) = setting("structure_similarity", _RUN)
    """The measure by which the best checkpoint stays besides the newest and becomes `model-best/`; None: none stays."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """All settings of one training."""

    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    model: TrainModelConfig = field(default_factory=TrainModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def check(self) -> None:
        if self.measure.every % self.run.checkpoint_every:
            raise ValueError(
                f"measure.every={self.measure.every}: must be a multiple of run.checkpoint_every="
                f"{self.run.checkpoint_every}: checkpoints are measured"
            )
        if self.measure.every and self.model.trains == "text_to_image":
            raise ValueError(
                f"measure.every={self.measure.every} with model.trains=text_to_image: no product is seen there that a "
                "sample could be measured against; set it to 0"
            )
        if self.optimizer.name == "adamw_8bit" and self.run.strategy == "fsdp":
            raise ValueError(
                "optimizer.name=adamw_8bit with run.strategy=fsdp: FSDP2 shards the moments already; use adamw, or "
                "run.strategy=ddp"
            )
