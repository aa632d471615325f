"""Local paths of settings from the root: actors work in other folders than the driver."""

import dataclasses
import os
import re

from refadgen.config import FetchConfig, SegmentationConfig
from refadgen.storage.locations import local_path


def whole_path(field: str, path: str) -> str:
    """Raises: ValueError naming `field` where nothing is at `path`."""
    found = local_path(path)
    if not os.path.exists(found):
        raise ValueError(f"{field}={path!r}: there is nothing at {found}")
    return found


def whole_path_or_id(field: str, path: str) -> str:
    """A model's folder from the root; a hub id or `mini` as it is. Raises: ValueError naming `field` for neither."""
    if os.path.isdir(os.path.expanduser(path)):
        return local_path(path)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise ValueError(f"{field}={path!r}: there is no such folder, and it is no hub id (owner/name)")
    return path


def whole_fetch(fetch: FetchConfig) -> FetchConfig:
    """Raises: ValueError for a root that is not there."""
    roots = tuple(whole_path("fetch.file_roots", root) for root in fetch.file_roots)
    return dataclasses.replace(fetch, file_roots=roots)


def whole_segmentation(segmentation: SegmentationConfig) -> SegmentationConfig:
    """Raises: ValueError for a checkpoint that is not there."""
    if segmentation.sam2_checkpoint is None or segmentation.grounding_dino is None:
        return segmentation
    return dataclasses.replace(
        segmentation,
        sam2_checkpoint=whole_path("segmentation.sam2_checkpoint", segmentation.sam2_checkpoint),
        grounding_dino=whole_path_or_id("segmentation.grounding_dino", segmentation.grounding_dino),
    )
