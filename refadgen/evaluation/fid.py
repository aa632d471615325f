"""FID over many files: statistics of parts are made in Ray tasks and merged in a fixed order."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import ray
from PIL import Image, UnidentifiedImageError

from refadgen.batch.ray_connection import results_of
from refadgen.config import EvaluateConfig
from refadgen.config.devices import resolve_device
from refadgen.evaluation.measures.frechet import FeatureStatistics
from refadgen.evaluation.measures.inception import InceptionFeatures
from refadgen.storage.store import Storage
from refadgen.training.rows import online_files
from refadgen.triplets import schema

Group = tuple[str, int, tuple[int, ...]]
"""File, row group, and the rows of the test split in it."""
_FILES_A_TASK = 16
_IMAGES_AT_ONCE = 64


def merged(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all parts, in their order."""
    total = parts[0]
    for part in parts[1:]:
        total = total.merged(part)
    return total


def statistics_of_files(uri: str, files: npt.ArrayLike, rows: npt.ArrayLike) -> FeatureStatistics:
    """The statistics of scored images, by Ray tasks.

    files: of each image the key of its features below `uri`. rows: of each its row in that file.
    """
    names, numbers = np.unique(np.asarray(files, dtype=object).astype(str), return_inverse=True)
    places = np.asarray(rows, np.int64)
    wanted = [(name, places[numbers == index]) for index, name in enumerate(names.tolist())]
    chunks = [wanted[start : start + _FILES_A_TASK] for start in range(0, len(wanted), _FILES_A_TASK)]
    return merged(results_of([_files_task.remote(uri, chunk) for chunk in chunks]))


def _of_files(uri: str, wanted: Sequence[tuple[str, npt.NDArray[np.int64]]]) -> FeatureStatistics:
    storage = Storage(uri)
    return merged([FeatureStatistics.of(np.load(io.BytesIO(storage.read(key)))[rows]) for key, rows in wanted])


_files_task = ray.remote(_of_files)


def ads_of_test_split(uri: str, option: str = "--dataset") -> list[Group]:
    """Where the ads of the test split lie. option: that named them. Raises: ValueError where there is none."""
    groups = [
        (key, index, offsets["test"])
        for key, found in online_files(uri).items()
        for index, offsets in found
        if offsets["test"]
    ]
    if not groups:
        raise ValueError(
            f"{option} {uri}: has no rows of the split test: real ads to compare with are those that no model saw"
        )
    return groups


def statistics_of_ads(uri: str, groups: Sequence[Group], config: EvaluateConfig) -> FeatureStatistics:
    """The statistics of a data set's ads, by Ray tasks. Raises: ValueError naming a row that is no picture."""
    pool = config.stages.score
    workers = int(ray.cluster_resources().get("GPU", 1) if pool.num_gpus else ray.cluster_resources()["CPU"])
    workers = max(1, min(workers if pool.num_actors == "auto" else pool.num_actors, len(groups)))
    cuts = [round(len(groups) * part / workers) for part in range(workers + 1)]
    task: Any = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(features_of_ads)
    chunks = [groups[start:end] for start, end in itertools.pairwise(cuts)]
    return merged(results_of([task.remote(uri, chunk, config) for chunk in chunks]))


def features_of_ads(uri: str, groups: Sequence[Group], config: EvaluateConfig) -> FeatureStatistics:
    """The statistics of a data set's ads in this process. Raises: ValueError naming a row that is no picture."""
    device = resolve_device(config.score.device, gpu_expected=config.stages.score.num_gpus > 0, field="score.device")
    network = InceptionFeatures(str(config.fid.weights), config.score.batch_size, device)
    storage, _ = schema.dataset_files(uri)
    parts = []
    for key, index, offsets in groups:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            table = pq.ParquetFile(handle).read_row_group(index, columns=["row_id", "ad_image"]).take(offsets)
        for batch in table.to_batches(max_chunksize=_IMAGES_AT_ONCE):
            parts.append(FeatureStatistics.of(network([_pixels(row, uri) for row in batch.to_pylist()])))
        parts = [merged(parts)]
    return parts[0]


def _pixels(row: dict[str, Any], uri: str) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(row["ad_image"])).convert("RGB"))
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise ValueError(f"--dataset {uri}: row {row['row_id']!r}: ad_image: {error}") from error
