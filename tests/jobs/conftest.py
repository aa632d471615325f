"""Puts the helpers of this folder on the path, and makes one uninterrupted run that others are compared with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import job_runs


@pytest.fixture(scope="session")
def whole_run(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted run over the sample catalogue."""
    output = tmp_path_factory.mktemp("whole") / "out"
    finished = job_runs.run(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return output
