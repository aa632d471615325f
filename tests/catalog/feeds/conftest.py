"""Puts the helpers of this folder on the path, and opens feeds that tests give as text."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from feed_files import Open, open_here

from refadgen.catalog.feeds.opening import OpenCatalog


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_it(name: str, content: str | bytes, *words: str, limit: int | None = None) -> OpenCatalog:
        file = tmp_path / "shop" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_here(file, *words, limit=limit)

    return open_it
