"""The facts that checkpoints hold: while these stay equal, a training begun before a change can be resumed."""

from pathlib import Path

from tiny_training import config_of

from refadgen.training.job import TrainingJob

OBJECTIVE = {
    "prediction_type": "epsilon",
    "zero_terminal_snr": False,
    "noise_offset": 0.05,
    "min_snr_gamma": None,
    "product_weight": 1.0,
    "timesteps": "uniform",
    "image_dropout": 0.05,
    "text_dropout": 0.05,
    "both_dropout": 0.05,
    "reference_dropout": 0.0,
}


def test_names_and_values_of_the_facts(refadgen_base: Path, tmp_path: Path) -> None:
    job = TrainingJob(config_of(refadgen_base), str(tmp_path))
    facts = dict(job._facts)
    assert facts.pop("architecture") == job._module.architecture()
    assert facts.pop("data.path (its rows)") == job.scan.fingerprint
    assert len(facts.pop("model.base (its files)")) == 16
    assert facts == {
        "run.seed": 0,
        "run.batch_size": 4,
        "model.image_encoder (its files)": None,
        "data.width_px": 64,
        "data.height_px": 80,
        "data.mask": "variant",
        "data.shuffle_rows": 1024,
        "data.precompute": True,
        "data.variants": ["original", "relit", "degraded", "novel_view"],
        "optimizer.name": "adamw",
        **{f"objective.{name}": value for name, value in OBJECTIVE.items()},
    }
