"""Settings of training: presets load, unknown names get a proposal, and each check names its field."""

from pathlib import Path

import pytest
import yaml

import refadgen.training
from refadgen.config import TrainConfig, load_config, to_yaml
from refadgen.config.loading import preset_file
from refadgen.model.authors_checkpoint import SETTINGS as AUTHORS

PRESETS = sorted((Path(refadgen.training.__file__).parent / "presets").glob("*.yaml"))


def load(*words: str) -> TrainConfig:
    return load_config(TrainConfig, None, words)


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_load(file: Path, tmp_path: Path) -> None:
    config = load_config(TrainConfig, file)
    assert preset_file(file.stem, refadgen.training) == str(file)
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(TrainConfig, tmp_path / "again.yaml") == config
    for section, values in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        for name, value in values.items():
            assert getattr(getattr(config, section), name) == value


def test_the_presets_are_those_that_the_job_names() -> None:
    assert {file.stem for file in PRESETS} == {"paper", "mini-base", "mini", "debug"}
    with pytest.raises(
        ValueError, match=r"--config papre: no preset of that name; there are debug, mini, mini-base, paper"
    ):
        preset_file("papre", refadgen.training)
    assert preset_file("my.yaml", refadgen.training) == "my.yaml"
    assert preset_file(None, refadgen.training) is None


def test_paper_is_table_2() -> None:
    config = load_config(TrainConfig, preset_file("paper", refadgen.training))
    optimizer, run = config.optimizer, config.run
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_steps) == (1e-5, 0.01, 500)
    assert (optimizer.schedule, run.num_epochs, config.objective.noise_offset) == ("linear", 8, 0.05)
    assert run.batch_size == 3 * run.num_workers
    assert (config.data.width_px, config.data.height_px) == (512, 640)
    assert (config.data.epoch_counts, config.model.image_projection) == ("product_images", None)
    assert config.model.prompt_suffix == AUTHORS["prompt_suffix"]
    assert config.model.negative_prompt == AUTHORS["negative_prompt"]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("run.num_step=4", "run.num_steps"),
        ("optimizer.lr_rate=1", "optimizer.learning_rate"),
        ("model.train=product", "model.trains"),
        ("data.varients=original", "data.variants"),
        ("objective.noise_offest=0", "objective.noise_offset"),
        ("optimiser.beta1=0.5", "optimizer"),
    ],
)
def test_unknown_settings_propose_the_nearest(word: str, near: str) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown setting {word.split('=')[0].split('.')[0]}\S*; did you mean {near}\?"
    ):
        load(word)


AUTHORS_NOISE = ["objective.authors_noise=true"]
WRONG = [
    "data.width_px=500",
    "data.width_px=8",
    "data.height_px=4104",
    "data.height_px=640.0",
    "data.variants=[]",
    "data.variants=[original, turned]",
    "data.mask=all",
    "data.encode_batch_size=0",
    "data.shuffle_rows=0",
    "data.load_cpus=-1",
    "data.load_cpus=65",
    "model.trains=all",
    "model.guidance_scale=-1",
    "model.save_dtype=int8",
    "objective.prediction_type=sample",
    "objective.noise_offset=-0.1",
    "objective.noise_offset=1.5",
    "objective.min_snr_gamma=0",
    "objective.product_weight=0",
    "objective.timesteps=cosine",
    "objective.image_dropout=1.5",
    "objective.text_dropout=-0.1",
    "objective.both_dropout=2",
    "objective.reference_dropout=1.1",
    "optimizer.name=sgd",
    "optimizer.learning_rate=0",
    "optimizer.learning_rate=.nan",
    "optimizer.weight_decay=-1",
    "optimizer.beta1=1",
    "optimizer.beta2=-0.1",
    "optimizer.epsilon=0",
    "optimizer.max_grad_norm=0",
    "optimizer.schedule=step",
    "optimizer.warmup_steps=-1",
    "optimizer.decay_share=0",
    "optimizer.decay_share=1.1",
    "optimizer.ema_decay=0",
    "optimizer.ema_decay=1",
    "run.num_epochs=0",
    "run.batch_size=0",
    "run.micro_batch_size=0",
    "run.num_workers=0",
    "run.min_workers=0",
    "run.torch_threads=0",
    "run.num_gpus=-1",
    "run.num_cpus=0",
    "run.strategy=deepspeed",
    "run.dtype=float16",
    "run.max_failures=-1",
    "run.seed=0.5",
    "run.checkpoint_every=0",
    "run.keep_checkpoints=0",
    "run.num_samples=0",
    "run.sample_steps=0",
    "run.sample_every=-500",
]


@pytest.mark.parametrize("word", WRONG)
def test_each_check_names_its_field_and_value(word: str) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 — all of the message is looked at
        load(word)
    message = str(caught.value)
    assert message.startswith(f"{name}=")
    assert "must be" in message
    assert value.strip("[].").split(",")[0] in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run.num_steps=4"], r"run\.num_epochs and run\.num_steps: set one of them, the other to null"),
        (["run.num_epochs="], r"run\.num_epochs and run\.num_steps: set one"),
        (["run.num_epochs=", "run.num_steps=0"], r"run\.num_steps=0: must be at least 1"),
        (["run.batch_size=6", "run.num_workers=4"], r"run\.batch_size=6: cannot be split evenly over 4 workers"),
        (
            ["run.batch_size=8", "run.num_workers=4", "run.min_workers=2"],  # it may run on three
            r"run\.batch_size=8: cannot be split evenly over 3 workers",
        ),
        (["run.min_workers=3", "run.num_workers=2"], r"run\.min_workers=3: must be at most num_workers"),
        (["run.sample_every=700"], r"run\.sample_every=700: must be a multiple of run\.checkpoint_every=500"),
        (
            ["optimizer.name=adamw_8bit", "run.strategy=fsdp"],
            r"optimizer\.name=adamw_8bit with run\.strategy=fsdp: .*use adamw",
        ),
        (
            ["objective.zero_terminal_snr=true"],
            r"objective\.zero_terminal_snr=True with objective\.prediction_type=epsilon: .*use v_prediction",
        ),
        (
            ["objective.image_dropout=0.5", "objective.text_dropout=0.4", "objective.both_dropout=0.2"],
            r"objective\.image_dropout \+ text_dropout \+ both_dropout=1\.1\d*: must be at most 1",
        ),
        (
            [*AUTHORS_NOISE, "objective.min_snr_gamma=5"],
            r"objective\.authors_noise=True: .*set objective\.min_snr_gamma=null too$",
        ),
        (
            [*AUTHORS_NOISE, "objective.prediction_type=v_prediction", "objective.zero_terminal_snr=true"],
            r"set objective\.prediction_type=epsilon objective\.zero_terminal_snr=false too$",
        ),
        (["data.crop=random"], r"data\.crop=random with data\.precompute=True: .*set data\.precompute=false"),
        (
            ["model.trains=text_to_image", "model.image_encoder=clip"],
            r"model\.image_encoder='clip' with model\.trains=text_to_image: .*set it to null",
        ),
    ],
)
def test_settings_that_do_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(*words)


def test_settings_at_their_bounds() -> None:
    load("run.batch_size=12", "run.num_workers=4", "run.min_workers=2")
    load("run.sample_every=1000", "run.checkpoint_every=500")
    load("objective.zero_terminal_snr=true", "objective.prediction_type=v_prediction")
    load("objective.image_dropout=0.5", "objective.text_dropout=0.5", "objective.both_dropout=0")
    load("objective.authors_noise=true", "data.crop=random", "data.precompute=false", "optimizer.max_grad_norm=")
    load("optimizer.ema_decay=", "objective.min_snr_gamma=", "data.load_cpus=0", "optimizer.decay_share=1")
    load("data.width_px=16", "data.height_px=4096", "optimizer.warmup_steps=0", "run.max_failures=0")
