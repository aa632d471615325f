"""Every setting of training. The presets in `refadgen/training/presets/` set them; `paper` is Table 2."""

from dataclasses import dataclass, field
from typing import Literal

from refadgen.config.loading import require

VARIANT_KINDS = ("original", "relit", "degraded", "novel_view")
"""Kinds of product image: the ad's own pixels under its mask, in place; the same view in other light (a product
photograph); a degraded one; the product turned. The paper has all but `relit`, which only a studio can make."""


@dataclass(frozen=True, kw_only=True)
class TrainDataConfig:
    """The triplets and what of them a step sees."""

    path: str = ""
    """Folder or file of triplets, a path or s3:// (see refadgen/triplets/schema.py); `tiny`: the set that ships."""
    width_px: int = 512
    height_px: int = 640
    """Canvas: pictures are resized to cover it and cropped, with one crop for ad, product and mask."""
    variants: tuple[str, ...] = VARIANT_KINDS
    """Kinds of product image to draw from; `original` alone is training without dual augmentation."""
    mask: Literal["variant", "ad", "none"] = "variant"
    """M′: the drawn product image's own mask (the authors'), the product's mask in the ad, or no mask (all zero)."""
    precompute: bool = True
    """Whether latents and embeddings are computed once into `cache` (then the crop is decided there), or every time."""
    cache: str | None = None
    """Folder of what is precomputed, a path or s3://; None: `cache/` in the output."""
    encode_batch_size: int = 8
    """Pictures in one pass of the encoders."""
    shuffle_rows: int = 1024
    """Rows of a window inside which the order is random; windows are of random row groups. A worker holds its share of
    two windows."""
    load_cpus: float = 0.5
    """Logical CPUs of one loading task; the cluster needs them beside the workers'."""

    def __post_init__(self) -> None:
        for name in ("width_px", "height_px"):
            value = getattr(self, name)
            require(16 <= value <= 4096 and value % 8 == 0, f"data.{name}", value, "a multiple of 8, 16 to 4096")
        unknown = [kind for kind in self.variants if kind not in VARIANT_KINDS]
        require(bool(self.variants) and not unknown, "data.variants", self.variants, f"of {', '.join(VARIANT_KINDS)}")
        require(self.encode_batch_size >= 1, "data.encode_batch_size", self.encode_batch_size, "at least 1")
        require(self.shuffle_rows >= 1, "data.shuffle_rows", self.shuffle_rows, "at least 1")
        require(0 <= self.load_cpus <= 64, "data.load_cpus", self.load_cpus, "0 to 64")


@dataclass(frozen=True, kw_only=True)
class TrainModelConfig:
    """What training starts from, and what the finished model recommends."""

    base: str = ""
    """A Stable Diffusion 1.5 folder or hub id, or a RefAdGen one to go on from."""
    image_encoder: str | None = None
    """CLIP vision model, folder or hub id, for the Reference U-Net's context; None: the base's, or the empty prompt."""
    trains: Literal["product", "everything", "text_to_image"] = "product"
    """`product`: Reference U-Net, `conv_in`, AFM projections, image projection (the paper). `everything`: the whole
    Generation U-Net and the text encoder as well. `text_to_image`: the base itself, without any product."""
    prompt_suffix: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    reference_in_uncond: bool | None = None
    """These travel with the finished model (see RefAdGenPipeline); None: the base's, or that class's default."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the finished model's weights; checkpoints are always float32."""

    def __post_init__(self) -> None:
        if self.image_encoder is not None and self.trains == "text_to_image":
            raise ValueError(
                f"model.image_encoder={self.image_encoder!r} with model.trains=text_to_image: no product is seen "
                "there; set it to null"
            )
        if self.guidance_scale is not None:
            require(self.guidance_scale >= 0, "model.guidance_scale", self.guidance_scale, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Eq. 2 and its randomness."""

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False
    """Rescales the betas so that the last timestep is pure noise; needs v_prediction."""
    noise_offset: float = 0.05
    """Table 2."""
    min_snr_gamma: float | None = None
    """Min-SNR loss weights with this γ (arXiv 2303.09556); None: equal weights."""
    product_weight: float = 1.0
    """Weight of errors inside of M′; 1 is Eq. 2."""
    timesteps: Literal["uniform", "stratified"] = "uniform"
    """`stratified`: one from each of batch_size equal slices."""
    image_dropout: float = 0.05
    text_dropout: float = 0.05
    both_dropout: float = 0.05
    """Shares of rows without image tokens, without text, without both (the authors'; disjoint)."""
    reference_dropout: float = 0.0
    """Share of rows that do not see the product (λ = 0)."""

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "objective.zero_terminal_snr=True with objective.prediction_type=epsilon: at the last timestep nothing "
                "of the image is left, so ε says nothing about it; use v_prediction"
            )
        require(0 <= self.noise_offset <= 1, "objective.noise_offset", self.noise_offset, "0 to 1")
        if self.min_snr_gamma is not None:
            require(self.min_snr_gamma > 0, "objective.min_snr_gamma", self.min_snr_gamma, "above 0")
        require(self.product_weight > 0, "objective.product_weight", self.product_weight, "above 0")
        shares = ("image_dropout", "text_dropout", "both_dropout", "reference_dropout")
        for name in shares:
            require(0 <= getattr(self, name) <= 1, f"objective.{name}", getattr(self, name), "0 to 1")
        total = self.image_dropout + self.text_dropout + self.both_dropout
        require(total <= 1, "objective.image_dropout + text_dropout + both_dropout", total, "at most 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its rate, and the average of the weights."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` (torchao, the extra `quantized`) keeps the moments in 8 bits by blocks of 256 (arXiv 2110.02861): a
    quarter of their memory. With `run.strategy=ddp` only: `fsdp` shares them out already. Set `run.compile` on GPUs."""
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "linear", "cosine", "trapezoid"] = "linear"
    """How the rate falls after the warm-up: not, to 0 by the last step, or (trapezoid) over the last `decay_share`."""
    warmup_steps: int = 500
    decay_share: float = 0.3
    ema_decay: float | None = 0.9999
    """Of the averaged weights, which become the model; None: no average."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "0 to below 1")
        require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "above 0")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "above 0")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(0 < self.decay_share <= 1, "optimizer.decay_share", self.decay_share, "above 0, at most 1")
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, "optimizer.ema_decay", self.ema_decay, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, on how many workers, and what is written on the way."""

    num_epochs: int | None = 8
    num_steps: int | None = None
    """One of both: passes over the training rows, or steps."""
    batch_size: int = 6
    """Rows of a step over all workers."""
    micro_batch_size: int | None = None
    """Rows in one pass of a worker; its share of a step is accumulated from such passes. None: its whole share."""
    num_workers: int = 1
    min_workers: int | None = None
    """Elastic training goes on with as few as this when nodes are lost; None: always `num_workers`."""
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    """Of one worker."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`fsdp` (FSDP2) shares out weights, gradients and optimizer state among workers."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic, and of frozen weights. auto: bfloat16 on GPUs, float32 on CPUs."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: much less memory for a third more arithmetic."""
    compile: bool = False
    torch_threads: int | None = None
    """Threads of a worker on CPUs; None: as many as `num_cpus`."""
    max_failures: int = 3
    """Lost workers to go on after, from the last checkpoint."""
    seed: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    sample_every: int = 0
    """Steps between sheets of held-out samples, at checkpoints; 0: none."""
    num_samples: int = 6
    sample_steps: int = 20
    """Images of a sheet, and denoising steps of each."""
    log_rows: bool = False
    """Whether the metrics of each step name its rows."""

    def __post_init__(self) -> None:
        if (self.num_epochs is None) == (self.num_steps is None):
            raise ValueError("run.num_epochs and run.num_steps: set one of them, the other to null")
        for name in ("num_epochs", "num_steps", "micro_batch_size", "min_workers", "torch_threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"run.{name}", value, "at least 1")
        for name in (
            "batch_size",
            "num_workers",
            "checkpoint_every",
            "keep_checkpoints",
            "num_samples",
            "sample_steps",
        ):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        if self.min_workers is not None:
            require(self.min_workers <= self.num_workers, "run.min_workers", self.min_workers, "at most num_workers")
        # Elastic training takes any number between both.
        for workers in range(self.min_workers or self.num_workers, self.num_workers + 1):
            if self.batch_size % workers:
                raise ValueError(f"run.batch_size={self.batch_size}: cannot be shared out evenly to {workers} workers")
        require(self.num_gpus >= 0, "run.num_gpus", self.num_gpus, "0 or more")
        require(self.num_cpus > 0, "run.num_cpus", self.num_cpus, "above 0")
        require(self.max_failures >= 0, "run.max_failures", self.max_failures, "0 or more")
        require(self.sample_every >= 0, "run.sample_every", self.sample_every, "0 or more")
        if self.sample_every % self.checkpoint_every:
            raise ValueError(
                f"run.sample_every={self.sample_every}: must be a multiple of run.checkpoint_every="
                f"{self.checkpoint_every}: a sheet lies beside its checkpoint"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of one training."""

    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    model: TrainModelConfig = field(default_factory=TrainModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.optimizer.name == "adamw_8bit" and self.run.strategy == "fsdp":
            raise ValueError(
                "optimizer.name=adamw_8bit with run.strategy=fsdp: FSDP2 shares out the moments already; use adamw, or "
                "run.strategy=ddp"
            )
