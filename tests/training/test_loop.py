"""One worker's loop without Ray: a resumed run repeats an uninterrupted one; a loss of NaN changes nothing."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import Training, config_of
from torch import Tensor

from refadgen.config.train import OptimizerConfig, TrainConfig
from refadgen.training.checkpoints import CheckpointStore
from refadgen.training.loop import MetricsLog, StepMetrics, read_metrics, run_steps
from refadgen.training.optimization import MovingAverage, learning_rate, make_optimizer
from refadgen.training.rows import Arrays

FACTS = {"architecture": {}}
LONG = ("run.num_steps=6", "run.checkpoint_every=2")


def state_of(training: Training) -> dict[str, Tensor]:
    """Copies of weights, average and moments."""
    state = training.run.state(FACTS)
    parts = {"weights": state.weights, "average": state.average, "optimizer": state.optimizer}
    return {f"{part}/{name}": tensor.clone() for part, tensors in parts.items() for name, tensor in tensors.items()}


class Killed(Exception):
    """Ends a run in the middle."""


def run_to_the_end(
    training: Training,
    folder: Path,
    *,
    killed_in: int | None = None,
    before_checkpoint: Callable[[int], None] = lambda _: None,
) -> list[StepMetrics]:
    """As a worker runs, from the newest checkpoint, with its metrics log."""
    store, log, seen = CheckpointStore(str(folder)), MetricsLog(str(folder)), []
    checkpoint = store.latest()
    if checkpoint is not None:
        training.run.load(checkpoint)

    def feed() -> Iterator[Arrays]:
        for arrays in training.feed():
            if arrays["step"][0] == killed_in:
                raise Killed
            yield arrays

    def step(metrics: StepMetrics) -> None:
        seen.append(metrics)
        log.add(metrics)

    def before(done: int) -> None:
        log.flush(done)
        before_checkpoint(done)

    run_steps(
        training.run,
        feed(),
        training.make_batch,
        store,
        FACTS,
        on_step=step,
        before_checkpoint=before,
        after_checkpoint=lambda _: None,
    )
    return seen


def told(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "seconds"} for each in metrics]


@pytest.fixture(scope="module")
def config(refadgen_base: Path) -> TrainConfig:
    return config_of(refadgen_base, *LONG, "run.log_rows=true", "objective.reference_dropout=0.2")


@pytest.fixture(scope="module")
def whole(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict]]:
    """Final state and metrics of an uninterrupted run."""
    training, folder = Training(config), tmp_path_factory.mktemp("whole")
    run_to_the_end(training, folder)
    return state_of(training), told(read_metrics(str(folder)))


@pytest.mark.parametrize("killed_in", [2, 3, 5])
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(
    killed_in: int, config: TrainConfig, whole: tuple[dict[str, Tensor], list[dict]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run_to_the_end(Training(config), tmp_path, killed_in=killed_in)
    resumed = Training(config)
    again = run_to_the_end(resumed, tmp_path)
    assert [metrics.step for metrics in again] == list(range(killed_in // 2 * 2, 6))
    state, metrics = whole
    found = state_of(resumed)
    assert found.keys() == state.keys()
    assert not [name for name, tensor in state.items() if not torch.equal(tensor, found[name])]
    logged = told(read_metrics(str(tmp_path)))
    assert [each["step"] for each in logged] == list(range(6))
    assert logged == metrics


def test_a_crash_between_metrics_and_checkpoint_loses_and_doubles_no_step(
    config: TrainConfig, whole: tuple[dict[str, Tensor], list[dict]], tmp_path: Path
) -> None:
    def crash(step: int) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        run_to_the_end(Training(config), tmp_path, before_checkpoint=crash)
    run_to_the_end(Training(config), tmp_path)
    assert told(read_metrics(str(tmp_path))) == whole[1]


def resumed_with(config: TrainConfig, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """The final state after going on from step 4 with a checkpoint that lacks something."""
    with pytest.raises(Killed):
        run_to_the_end(Training(config), folder, killed_in=4)
    store = CheckpointStore(str(folder))
    saved = store.latest()
    assert saved is not None
    training = Training(config)
    training.run.load(dataclasses.replace(saved, **changes))
    for _ in range(2):
        training.step()
    return state_of(training)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, False),
        ({"optimizer": {}}, True),  # AdamW without its moments
        ({"step": 0}, True),  # the rows and the rate of other steps
        ({"average": {}}, True),
    ],
    ids=["nothing", "moments", "position", "average"],
)
def test_each_part_of_a_checkpoint_is_needed(
    changes: dict[str, Any],
    differs: bool,
    config: TrainConfig,
    whole: tuple[dict[str, Tensor], list[dict]],
    tmp_path: Path,
) -> None:
    """The comparison above is sharp: it sees a checkpoint without moments, position or average."""
    found = resumed_with(config, tmp_path, **changes)
    different = [name for name, tensor in whole[0].items() if not torch.equal(tensor, found[name])]
    assert bool(different) == differs
    if differs:
        kind = "average" if "average" in changes else "weights"
        assert len([name for name in different if name.startswith(kind)]) > 100


def test_a_dropped_position_trains_on_other_rows(config: TrainConfig, tmp_path: Path) -> None:
    """And `run_steps` does not take another step's rows for its own."""
    training = Training(config)
    training.run.step = 1
    rows = iter(Training(config).feed())
    with pytest.raises(AssertionError, match=r"rows of step .*0.* in step 1"):
        run_steps(
            training.run,
            rows,
            training.make_batch,
            CheckpointStore(str(tmp_path)),
            FACTS,
            on_step=lambda _: None,
            before_checkpoint=lambda _: None,
            after_checkpoint=lambda _: None,
        )


def test_the_end_is_a_checkpoint_and_a_finished_run_takes_no_step(refadgen_base: Path, tmp_path: Path) -> None:
    config = config_of(refadgen_base, "run.num_steps=3", "run.checkpoint_every=2", "run.keep_checkpoints=5")
    seen: list[int] = []
    run_to_the_end(Training(config), tmp_path, before_checkpoint=seen.append)
    assert seen == CheckpointStore(str(tmp_path)).steps() == [2, 3]
    assert run_to_the_end(Training(config), tmp_path) == []


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_accumulated_passes_are_one_pass(micro_batch_size: int, refadgen_base: Path) -> None:
    """Three of four leave a last pass of one: passes of different sizes weigh by their rows."""
    gradients, losses = [], []
    for words in ((), (f"run.micro_batch_size={micro_batch_size}",)):
        training = Training(config_of(refadgen_base, *words))
        # The moments after one step are the gradient, clipped at a norm of 1, times 1 − β.
        losses.append(training.step().loss)
        state = training.run.state(FACTS).optimizer
        gradients.append(torch.cat([state[name].flatten() for name in sorted(state) if name.endswith("exp_avg")]))
    # Sums of the same float32 products in another order.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item() < 1e-4


def test_gradient_checkpointing_trains_alike_on_a_cpu(refadgen_base: Path) -> None:
    metrics = [
        Training(config_of(refadgen_base, f"run.gradient_checkpointing={word}")).step() for word in ("false", "true")
    ]
    assert metrics[1].loss == metrics[0].loss
    assert metrics[1].grad_norm == pytest.approx(metrics[0].grad_norm, rel=1e-5)  # sums in another order


def test_bfloat16_arithmetic_trains_float32_weights(refadgen_base: Path) -> None:
    usual = Training(config_of(refadgen_base)).step()
    training = Training(config_of(refadgen_base, "run.dtype=bfloat16"))
    metrics = training.step()
    assert metrics.loss == pytest.approx(usual.loss, rel=0.05)  # 8 bits of mantissa
    assert {parameter.dtype for parameter in training.run.trained.values()} == {torch.float32}
    assert training.module.generation_unet.conv_in.weight.dtype == torch.float32
    assert training.module.generation_unet.mid_block.resnets[0].conv1.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in state_of(training).values()} == {torch.float32}


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_no_number_changes_nothing(broken: str, refadgen_base: Path, tmp_path: Path) -> None:
    config = config_of(refadgen_base)
    training = Training(config)
    with pytest.raises(Killed):
        run_to_the_end(training, tmp_path, killed_in=2)
    before = state_of(training)
    arrays = next(training.feed())
    batch, names = training.make_batch(arrays), [str(row) for row in arrays["row_id"]]
    if broken == "loss":
        batch["latents"][1, 0, 0, 0] = float("nan")
    else:
        parameter = next(iter(training.run.trained.values()))
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    what = "the loss is nan" if broken == "loss" else "the gradient's norm is (nan|inf)"
    with pytest.raises(
        FloatingPointError, match=rf"step 2: {what}; its rows: {', '.join(names)}\. Checkpoints of earlier"
    ):
        training.run.train_step(batch, names)
    after = state_of(training)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert training.run.step == 2
    assert all(parameter.grad is None for parameter in training.run.trained.values())
    saved = CheckpointStore(str(tmp_path)).latest()
    assert saved is not None
    assert saved.step == 2
    assert all(torch.equal(tensor, before[f"weights/{name}"]) for name, tensor in saved.weights.items())


@pytest.fixture
def config_8bit(config: TrainConfig) -> TrainConfig:
    pytest.importorskip("torchao", reason="needs the extra `quantized`")
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="adamw_8bit"))


def test_8bit_moments_are_kept_as_they_are(config_8bit: TrainConfig, tmp_path: Path) -> None:
    """Codes and scales, not numbers quantized a second time: so this run too resumes bit for bit."""
    whole = Training(config_8bit)
    run_to_the_end(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run_to_the_end(Training(config_8bit), tmp_path / "killed", killed_in=3)
    resumed = Training(config_8bit)
    run_to_the_end(resumed, tmp_path / "killed")
    state, found = state_of(whole), state_of(resumed)
    assert found.keys() == state.keys()
    assert not [name for name, tensor in state.items() if not torch.equal(tensor, found[name])]
    codes = [name for name in state if name.endswith("/codes")]
    assert len(codes) > 20
    assert {state[name].dtype for name in codes} == {torch.uint8}


def test_8bit_moments_train_as_whole_ones(config: TrainConfig, config_8bit: TrainConfig) -> None:
    """And are needed: without them the last steps go elsewhere."""
    changes = []
    for each, forgets in ((config, False), (config_8bit, False), (config_8bit, True)):
        training = Training(each)
        before = training.weights()
        for step in range(6):
            if forgets and step == 3:
                training.run.load(dataclasses.replace(training.run.state(FACTS), optimizer={}))
                training.run.optimizer.state.clear()
            training.step()
        changes.append(torch.cat([(after - before[name]).flatten() for name, after in training.weights().items()]))
    full, small, forgetful = changes
    assert not torch.equal(small, full)
    near = ((small - full).norm() / full.norm()).item()
    far = ((forgetful - full).norm() / full.norm()).item()
    assert near < 0.1
    assert far > 2 * near


def test_without_torchao_the_setting_is_named(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    settings = dataclasses.replace(config.optimizer, name="adamw_8bit")
    with pytest.raises(ValueError, match=r"optimizer\.name=adamw_8bit needs torchao: .* extra `quantized`"):
        make_optimizer(settings, {"a": torch.nn.Parameter(torch.zeros(3))})


def test_after_a_broken_batch_a_good_one_trains_as_if_it_had_not_been(refadgen_base: Path) -> None:
    one, two = Training(config_of(refadgen_base)), Training(config_of(refadgen_base))
    batch = one.make_batch(next(one.feed()))
    with pytest.raises(FloatingPointError, match=r"step 0: .*Nothing is trained yet: the weights that it starts from"):
        one.run.train_step({**batch, "noise": batch["noise"] * float("nan")}, ["a"])
    for training in (one, two):
        training.step()
    found = state_of(two)
    assert all(torch.equal(tensor, found[name]) for name, tensor in state_of(one).items())


def test_frozen_weights_stay_and_trained_ones_move(refadgen_base: Path) -> None:
    training = Training(config_of(refadgen_base))
    everything = {
        f"{part}.{name}": (parameter, parameter.detach().clone())
        for part, network in vars(training.parts).items()
        if isinstance(network, torch.nn.Module)
        for name, parameter in network.named_parameters()
    }
    for _ in range(2):
        training.step()
    moved = {name for name, (parameter, before) in everything.items() if not torch.equal(parameter, before)}
    assert moved == training.run.trained.keys()


def test_metrics_name_the_rows_in_the_batchs_order(config: TrainConfig) -> None:
    training = Training(config)
    arrays = next(training.feed())
    metrics = training.step()
    assert metrics.rows == list(arrays["row_id"])
    assert metrics.step == 0
    assert metrics.learning_rate == 1e-3
    assert metrics.grad_norm > 0
    assert (
        Training(dataclasses.replace(config, run=dataclasses.replace(config.run, log_rows=False))).step().rows is None
    )


def test_gradients_are_clipped(refadgen_base: Path) -> None:
    norms, before = [], []
    for largest in (1e3, 0.1, 1e-3, "null"):  # null: never
        training = Training(config_of(refadgen_base, f"optimizer.max_grad_norm={largest}"))
        before.append(training.step().grad_norm)
        state = training.run.state(FACTS).optimizer
        moments = torch.cat([state[name].flatten() for name in state if name.endswith("exp_avg")])
        norms.append(moments.norm().item() / (1 - 0.9))
    assert before == pytest.approx([before[0]] * 4)  # what is told is the norm before
    assert before[0] > 0.1
    assert norms == pytest.approx([before[0], 0.1, 1e-3, before[0]], rel=1e-3)


def rates(num_steps: int = 100, **changes: Any) -> list[float]:
    config = OptimizerConfig(**{"learning_rate": 2.0, "warmup_steps": 10, "decay_share": 0.4, **changes})
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "trapezoid"])
def test_every_rate_warms_up_and_stays_positive(schedule: Any) -> None:
    found = rates(schedule=schedule)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert found[10] == pytest.approx(2.0)
    assert min(found) > 0
    assert max(found) <= 2.0
    assert found[10:] == sorted(found[10:], reverse=True)
    assert rates(schedule=schedule, warmup_steps=0)[0] == 2.0
    # A warm-up longer than the training, and a training of one step.
    assert rates(5, schedule=schedule)[0] == pytest.approx(0.2)
    assert min(rates(5, schedule=schedule)) > 0
    assert rates(1, schedule=schedule, warmup_steps=0) == [2.0]


def test_rates_at_their_corners() -> None:
    assert set(rates(schedule="constant")[9:]) == {2.0}
    linear = rates(schedule="linear")
    assert linear[55] == pytest.approx(1.0)
    assert linear[99] == pytest.approx(2.0 / 90)  # the step after the last would have 0
    cosine = rates(schedule="cosine")
    assert cosine[55] == pytest.approx(1.0)
    assert cosine[99] == pytest.approx(1 - math.cos(math.pi / 90))
    trapezoid = rates(schedule="trapezoid")
    assert set(trapezoid[9:61]) == {2.0}
    assert trapezoid[80] == pytest.approx(1.0)
    assert trapezoid[99] == pytest.approx(2.0 / 40)
    assert rates(schedule="trapezoid", decay_share=1.0, warmup_steps=0)[50] == pytest.approx(1.0)


def test_the_average_is_exponential_and_begins_fast() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    trained, wanted = {"w": weight}, 1.0
    average = MovingAverage(trained, 0.5)
    for step in range(20):
        with torch.no_grad():
            weight.fill_(float(step))
        average.update(trained, step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * step
        assert average.gather_to_rank_0()["w"].item() == pytest.approx(wanted, rel=1e-5)
    average.load({"w": torch.tensor([7.0])})
    assert average.gather_to_rank_0()["w"].item() == 7.0
    assert weight.item() == 19.0


def test_without_an_average_there_is_none(refadgen_base: Path, tmp_path: Path) -> None:
    words = ["run.num_steps=1", "optimizer.ema_decay="]
    training = Training(config_of(refadgen_base, *words))
    run_to_the_end(training, tmp_path)
    saved = CheckpointStore(str(tmp_path)).latest()
    assert saved is not None
    assert saved.average == {}
    later = Training(config_of(refadgen_base))  # one that begins now begins at the weights
    later.run.load(saved)
    assert all(torch.equal(t, saved.weights[name]) for name, t in later.run.average.gather_to_rank_0().items())


def metrics_of(step: int, loss: float = 0.5) -> StepMetrics:
    return StepMetrics(step=step, loss=loss, learning_rate=1e-3, grad_norm=1.0, seconds=0.1, workers=1)


def test_only_steps_of_a_checkpoint_are_logged_each_once(tmp_path: Path) -> None:
    first = MetricsLog(str(tmp_path))
    for step in range(5):
        first.add(metrics_of(step))
        if step == 3:
            first.flush(4)
    # It crashes in step 5 and resumes from 4.
    assert [each["step"] for each in read_metrics(str(tmp_path))] == [0, 1, 2, 3]
    second = MetricsLog(str(tmp_path))
    for step in range(4, 8):
        second.add(metrics_of(step))
    second.flush(8)
    assert [each["step"] for each in read_metrics(str(tmp_path))] == list(range(8))
    assert "rows" not in read_metrics(str(tmp_path))[0]


def test_steps_of_overlapping_files_are_read_once(tmp_path: Path) -> None:
    """The checkpoint at 8 was damaged; the run went on from 4 and writes every 3 steps now."""
    for last, steps in ((4, range(4)), (8, range(4, 8)), (6, range(4, 6)), (9, range(6, 9))):
        log = MetricsLog(str(tmp_path))
        for step in steps:
            log.add(metrics_of(step))
        log.flush(last)
    assert [each["step"] for each in read_metrics(str(tmp_path))] == list(range(9))
    assert read_metrics(str(tmp_path / "nothing")) == []
