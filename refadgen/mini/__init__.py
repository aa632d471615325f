"""The built-in model: see README.md for what it is and is not."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")
"""Its folder in our checkpoint layout."""


def model_folder(path_or_id: str) -> str:
    """`model.path` as a folder or hub id: `mini` is the built-in model's folder."""
    return str(WEIGHTS) if path_or_id == "mini" else path_or_id
