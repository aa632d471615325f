"""A model's folder, index and fingerprint, read without loading the model and without torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MINI = Path(__file__).parents[1] / "mini" / "weights"
"""The built-in model."""


def find_model(
    path_or_id: str | Path,
    patterns: Sequence[str] = ("*.json", "*.safetensors", "*.txt"),
    *,
    field: str = "model.path",
) -> Path:
    """The local folder of a model: `mini`, a folder, or a hub id (downloaded: the user asked for it by name).

    patterns: of the files to download. field: the setting that errors name. Raises: ValueError when it is none of them.
    """
    if path_or_id == "mini":
        if not MINI.is_dir():
            raise ValueError(
                f"{field}=mini: its weights are not in {MINI}; refadgen/mini/README.md tells how to make them"
            )
        return MINI
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or str(path_or_id).count("/") != 1 or str(path_or_id).startswith("."):
        raise ValueError(f"{field}={str(path_or_id)!r}: no such folder, and not of the form of a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises its own, requests' and OS errors
        raise ValueError(f"{field}={str(path_or_id)!r}: neither a folder nor a reachable hub id: {error}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """The entries of `model_index.json`: components and settings. Raises: ValueError where there is none."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no readable model_index.json ({error})") from error
    if not isinstance(index, dict):
        raise ValueError(f"{folder}: model_index.json holds no entries")
    return index


def require_refadgen(folder: Path, index: dict[str, Any]) -> None:
    """Raises: ValueError unless the index is that of a RefAdGen model whose components are all there."""
    if index.get("_class_name") != "RefAdGenPipeline":
        raise ValueError(f"{folder}: holds a {index.get('_class_name')}, not a RefAdGenPipeline")
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[0] is not None and not (folder / name).is_dir():
            raise ValueError(f"{folder}: the component {name}/ is missing")


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of all files that decide a model's pixels: its first 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json", ".txt") and file.is_file():
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
