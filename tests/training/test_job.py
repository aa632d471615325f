"""The training job before and after Ray: which runs may resume, which rows are sampled, what a worker checks first."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import TINY, Training, config_of

from jobs import train
from refadgen.config import TrainConfig, to_yaml
from refadgen.storage.store import Storage
from refadgen.training import feed
from refadgen.training import job as job_module
from refadgen.training.checkpoints import CheckpointStore
from refadgen.training.job import TrainingJob, TrainingStopped
from refadgen.training.networks import Parts, load_parts
from refadgen.training.worker import SETTINGS, STOPPED, require_shared, resume
from refadgen.triplets.schema import SCHEMA


def checkpoint_of(job: TrainingJob, step: int) -> None:
    """Puts a checkpoint that `job` may resume from into its output."""
    training = Training(job.config)
    training.run.step = step
    CheckpointStore(job.output).save(training.run.state(job._facts), keep=1)


def test_fewer_steps_than_are_done_are_refused(refadgen_base: Path, tmp_path: Path) -> None:
    checkpoint_of(TrainingJob(config_of(refadgen_base, "run.num_steps=6"), str(tmp_path)), 6)
    assert "6 done before" in TrainingJob(config_of(refadgen_base, "run.num_steps=6"), str(tmp_path)).describe()
    with pytest.raises(ValueError, match=r"run\.num_steps, run\.num_epochs: 4 steps, but --output has a .* step 6;"):
        TrainingJob(config_of(refadgen_base, "run.num_steps=4"), str(tmp_path))


def test_the_driver_loads_the_base_once_and_exports_what_it_did_not_train_as_it_was(
    refadgen_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captions that it tokenizes on the way leave no padding or truncation in the exported tokenizer."""
    output = tmp_path / "out"
    config = config_of(refadgen_base, "data.precompute=false")
    loaded: list[None] = []

    def counted(config: TrainConfig) -> Parts:
        loaded.append(None)
        return load_parts(config)

    monkeypatch.setattr(job_module, "load_parts", counted)
    checkpoint_of(TrainingJob(config, str(output)), 4)
    loaded.clear()
    (output / "metrics").mkdir()
    (output / "metrics" / "step-00000004.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    job = TrainingJob(config, str(output))
    assert "mean loss of the last steps 1.0000" in job.run()
    assert len(loaded) == 1
    untouched = load_parts(config)
    untouched.tokenizer.save_pretrained(tmp_path / "tokenizer")
    untouched.vae.save_pretrained(tmp_path / "vae")
    for name in ("tokenizer/tokenizer.json", "vae/diffusion_pytorch_model.safetensors"):
        assert (output / "model" / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize("word", ["data.precompute=false", "data.shuffle_rows=4", "optimizer.name=adamw_8bit"])
def test_what_would_change_the_steps_is_refused(word: str, refadgen_base: Path, tmp_path: Path) -> None:
    checkpoint_of(TrainingJob(config_of(refadgen_base), str(tmp_path)), 2)
    with pytest.raises(ValueError, match=rf"step 2 there was made with {word.split('=')[0]}="):
        TrainingJob(config_of(refadgen_base, word), str(tmp_path))


def _data_set(folder: Path, splits: list[str]) -> Path:
    """Rows of the data set that ships, one row group each."""
    folder.mkdir()
    rows = pq.read_table(TINY).slice(0, len(splits)).to_pylist()
    for number, (row, split) in enumerate(zip(rows, splits, strict=True)):
        row |= {"split": split, "product_id": f"product {number}"}
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "rows.parquet", row_group_size=1)
    return folder


@pytest.mark.parametrize("num_tests", [0, 1, 2])
def test_samples_read_the_row_groups_of_held_out_rows_only(
    num_tests: int, refadgen_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = ["train"] * 4 + ["test"] * num_tests + ["train"] * 2
    words = (f"data.path={_data_set(tmp_path / 'data', splits)}", "run.sample_every=2", "run.num_samples=2")
    job = TrainingJob(config_of(refadgen_base, *words), str(tmp_path / "out"))
    read: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def watched(self: Any, index: int, **settings: Any) -> pa.Table:
        if "columns" not in settings:
            read.append(index)
        return read_row_group(self, index, **settings)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    assert len(job._held_out()) == num_tests
    assert read == [4, 5][:num_tests]


def test_a_worker_without_the_drivers_folder_says_so(refadgen_base: Path, tmp_path: Path) -> None:
    config = config_of(refadgen_base)
    storage = Storage(str(tmp_path))
    with pytest.raises(RuntimeError, match=rf"--output {tmp_path}: on this node it is not the folder"):
        require_shared(storage, config)
    storage.write(SETTINGS, to_yaml(config).encode())
    require_shared(storage, config)
    with pytest.raises(RuntimeError, match="name a shared folder or s3://"):
        require_shared(storage, config_of(refadgen_base, "run.seed=1"))


def test_rank_0_decides_where_all_workers_resume(refadgen_base: Path, tmp_path: Path) -> None:
    """Another worker resumes there, although it has seen a newer checkpoint meanwhile."""
    training, store = Training(config_of(refadgen_base)), CheckpointStore(str(tmp_path))
    for step in (2, 4):
        store.save(dataclasses.replace(training.run.state({}), step=step), keep=5)

    class Second:
        rank, world_size = 1, 2

        def broadcast_from_rank_0(self, value: int) -> int:
            assert value == 0  # its own number is ignored
            return 2

    resume(training.run, store)
    assert training.run.step == 4
    training.run.workers = Second()  # type: ignore[assignment]
    resume(training.run, store)
    assert training.run.step == 2


def test_a_loading_task_returns_the_message_of_a_bad_row(refadgen_base: Path) -> None:
    training = Training(config_of(refadgen_base))

    class Bad:
        bytes_per_row = 1

        def load(self, *_: Any, **__: Any) -> Any:
            raise ValueError("row 'a': it is so")

    window = {"epoch": [0], "first_step": [0], "num_steps": [1]}
    (handed,) = feed._load(window, training.plan, Bad(), rank=0, world_size=1)  # type: ignore[arg-type]
    assert handed["bad_row"].tolist() == ["row 'a': it is so"]
    (good,) = feed._load(window, training.plan, training.source, rank=0, world_size=1)
    assert "bad_row" not in good
    assert good["step"].tolist() == [0] * 4


@pytest.mark.parametrize(("bad_input", "kind"), [(True, ValueError), (False, TrainingStopped)])
def test_the_driver_raises_the_reason_that_a_worker_wrote(
    bad_input: bool, kind: type[Exception], refadgen_base: Path, tmp_path: Path
) -> None:
    job = TrainingJob(config_of(refadgen_base), str(tmp_path))
    job._require_not_stopped()
    (tmp_path / STOPPED).write_text(json.dumps({"message": "row 'a': it is so", "bad_input": bad_input}))
    with pytest.raises(kind, match="row 'a': it is so"):
        job._require_not_stopped()


def test_a_full_disk_in_the_driver_is_no_traceback(
    refadgen_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Storage.write

    def full(self: Storage, key: str, data: bytes) -> None:
        if key == SETTINGS:
            raise OSError(errno.ENOSPC, "No space left on device", self.path(key))
        write(self, key, data)

    monkeypatch.setattr(Storage, "write", full)
    monkeypatch.setattr(job_module, "connect_ray", lambda config: None)
    monkeypatch.setattr(TrainingJob, "require_resources", lambda self: None)
    words = ["--data", "tiny", "--base", str(refadgen_base), "--output", str(tmp_path), "--config", "debug"]
    assert train.main([*words, "data.width_px=64", "data.height_px=80"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"train: OSError: [Errno 28] No space left on device: '{tmp_path}/train.yaml'; ")


def _table_of(folder: Path, splits: list[str], images_per_ad: int) -> Path:
    """A data set of that many ads and product images without any picture: enough for a plan."""
    folder.mkdir()
    count = len(splits)
    names = pa.array([f"ad {number}" for number in range(count)])
    many = count * images_per_ad
    empty = pa.array([b""]).take(pa.array(np.zeros(many, np.int32)))
    kinds = pa.array(["novel_view"]).take(pa.array(np.zeros(many, np.int32)))
    offsets = pa.array(np.arange(0, many + 1, images_per_ad, dtype=np.int32))
    captions = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), names)
    variants = pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays([kinds, empty, empty], ["kind", "image", "mask"])
    )
    columns = [names, names, names, pa.array(splits), captions, empty[:count], variants, names]
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), folder / "rows.parquet")
    return folder


@pytest.mark.parametrize(
    ("splits", "words", "said"),
    [
        (
            ["train"] * 6 + ["test"],
            ("run.batch_size=3", "run.num_workers=1"),
            [
                "6 training rows (ads) with 30 product images, 1 held out",
                "epoch: 30 product images // 3 a step = 10 steps (data.epoch_counts=product_images)",
                "steps: 8 epochs × 10 = 80 of 3 product images on 1 workers, 240 samples; 0 done before",
            ],
        ),
        (
            ["train"] * 108_118 + ["test"] * 12_013,
            (),
            [
                "108,118 training rows (ads) with 540,590 product images, 12,013 held out",
                "epoch: 540,590 product images // 6 a step = 90,098 steps (data.epoch_counts=product_images)",
                "steps: 8 epochs × 90,098 = 720,784 of 6 product images on 2 workers, 4,324,704 samples; 0 done before",
            ],
        ),
        (
            ["train"] * 6 + ["test"],
            ("run.batch_size=3", "run.num_workers=1", "data.epoch_counts=ads"),
            [
                "epoch: 6 rows // 3 a step = 2 steps (data.epoch_counts=ads)",
                "steps: 8 epochs × 2 = 16 of 3 rows on 1 workers, 48 samples; 0 done before",
            ],
        ),
    ],
    ids=["six ads", "the authors' counts", "an epoch of ads"],
)
def test_a_dry_run_of_the_paper_counts_product_images(
    splits: list[str],
    words: tuple[str, ...],
    said: list[str],
    stable_diffusion_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The paper's Table 1 counts 600,655 product images of 120,131 ads, of which nine in ten train."""
    data = _table_of(tmp_path / "data", splits, images_per_ad=5)
    fixed = ["--config", "paper", "--dry-run", "--data", str(data), "--base", str(stable_diffusion_base)]
    assert train.main([*fixed, "--output", str(tmp_path / "out"), *words]) == 0
    lines = capsys.readouterr().out
    for line in said:
        assert line in lines
    if not torch.cuda.is_available():
        assert "note: run.num_gpus=1: PyTorch sees no GPU here" in lines


def test_a_training_on_a_missing_gpu_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, refadgen_base: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"run\.num_gpus=1: PyTorch sees no GPU here"):
        job_module.connect_ray(config_of(refadgen_base, "run.num_gpus=1"))


def test_product_images_that_came_or_went_are_another_training(refadgen_base: Path, tmp_path: Path) -> None:
    """Rows and their ids are the same; only where an epoch counts product images does it change the steps."""
    for name, images in (("five", 5), ("four", 4)):
        _table_of(tmp_path / name, ["train"] * 8, images)
    for counts in ("ads", "product_images"):
        facts = [
            TrainingJob(
                config_of(refadgen_base, f"data.path={tmp_path / name}", f"data.epoch_counts={counts}"),
                str(tmp_path / "out"),
            )._facts
            for name in ("five", "four")
        ]
        assert (facts[0] == facts[1]) == (counts == "ads")
