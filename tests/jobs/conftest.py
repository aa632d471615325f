"""Puts the helpers of this folder on the path; one uninterrupted run for comparison; a Ray that runs share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import job_runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What Ray says it will remove fails the runs that share this process."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("error::ray.util.annotations.RayDeprecationWarning"))


@pytest.fixture(scope="session")
def whole_run(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted run over the sample catalogue."""
    output = tmp_path_factory.mktemp("whole") / "out"
    finished = job_runs.run(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """The Ray of a file's runs in this process."""
    with job_runs.local_ray():
        yield
