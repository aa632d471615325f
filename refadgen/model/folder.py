"""A model's folder, index and fingerprint, read without loading the model and without torch."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from refadgen.model.hub import download
from refadgen.model.weights import choose_weights

MINI = Path(__file__).parents[1] / "mini" / "weights"
"""The built-in model."""
SINGLE_FILE_CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
"""What lies beside a base that is a single file, with the files of `tokenizer/`."""


def find_model(path_or_id: str | Path, folders: Collection[str] | None = None, *, field: str = "model.path") -> Path:
    """The local folder of a model: `mini`, a folder, or a hub id (downloaded: the user asked for it by name). For a
    base that is a single `.safetensors` file, that file.

    folders: those of the repository to download (see `hub.needed_files`). field: the setting that errors name.
    Raises: ValueError when it is none of them.
    """
    if path_or_id == "mini":
        if not MINI.is_dir():
            raise ValueError(
                f"{field}=mini: its weights are not in {MINI}; refadgen/mini/README.md tells how to make them"
            )
        return MINI
    path = Path(path_or_id).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return path
    if path.is_file():
        raise ValueError(f"{field}={str(path_or_id)!r}: a single file must be .safetensors; download that one")
    if path.is_absolute() or str(path_or_id).count("/") != 1 or str(path_or_id).startswith("."):
        raise ValueError(f"{field}={str(path_or_id)!r}: no such folder, and not of the form of a hub id (owner/name)")
    try:
        return download(str(path_or_id), folders)
    except Exception as error:  # the hub's client raises its own, httpx' and OS errors
        raise ValueError(f"{field}={str(path_or_id)!r}: neither a folder nor a reachable hub id: {error}") from error


def part_folders(name: str) -> tuple[str, ...]:
    """Where a model's folder may hold a component: at its root, as a pipeline does, or as IP-Adapter does."""
    return "", name, f"models/{name}"


def find_part(folder: Path, name: str) -> Path:
    """The folder of the component `name` in `folder`, absolute; where there is none, the one that a pipeline has."""
    for inside in part_folders(name):
        if (folder / inside / "config.json").is_file():
            return (folder / inside).resolve()
    return (folder / name).resolve()


def read_index(folder: Path) -> dict[str, Any]:
    """The entries of `model_index.json`: components and settings. Raises: ValueError where there is none."""
    if folder.is_file():
        raise ValueError(f"{folder}: a single file is no RefAdGen, but a base for one: jobs/train.py --base")
    try:
        return read_json(folder / "model_index.json")
    except ValueError as error:
        raise ValueError(f"{folder}: no readable model_index.json ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """The entries of a configuration. Raises: ValueError."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: holds no entries")
    return entries


def recommended_steps(index: Mapping[str, Any], folder: Path) -> int | None:
    """The denoising steps that a model recommends; None: none. folder: for the error. Raises: ValueError."""
    steps: int | None = index.get("num_inference_steps")
    if steps is not None and (type(steps) is not int or not 1 <= steps <= 1000):
        raise ValueError(f"{folder / 'model_index.json'}: num_inference_steps={steps!r}: must be 1 to 1000")
    return steps


def recommended_dtype(index: Mapping[str, Any], folder: Path) -> str | None:
    """The number format that a model recommends on GPUs; None: none. folder: for the error. Raises: ValueError."""
    dtype: str | None = index.get("gpu_dtype")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"{folder / 'model_index.json'}: gpu_dtype={dtype!r}: must be float32, bfloat16 or float16")
    return dtype


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The entries of the scheduler's configuration; none where it is missing, which is an error at load."""
    file = folder / "scheduler" / "scheduler_config.json"
    return read_json(file) if file.is_file() else {}


def step_bounds(name: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most denoising steps that a scheduler takes an order for.

    name: of diffusers' class. config: its entries. PNDM begins with four steps of Runge-Kutta, unless it skips them;
    distilled ones (LCM, TCD) make few.
    """
    fewest = 4 if name == "PNDMScheduler" and not config.get("skip_prk_steps", False) else 1
    trained = int(config.get("num_train_timesteps", 1000))
    if name in ("LCMScheduler", "TCDScheduler"):
        return fewest, min(trained, int(config.get("original_inference_steps") or 50))
    return fewest, trained


def require_refadgen(folder: Path, index: dict[str, Any]) -> None:
    """Raises: ValueError unless the index is that of a RefAdGen model whose components are all there."""
    if index.get("_class_name") != "RefAdGenPipeline":
        raise ValueError(f"{folder}: holds a {index.get('_class_name')}, not a RefAdGenPipeline")
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[0] is not None and not (folder / name).is_dir():
            raise ValueError(f"{folder}: the component {name}/ is missing")


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of all files that decide a model's pixels: its first 16 hexadecimal digits.

    folder: or a single file, which is taken with the configurations beside it.
    """
    digest = hashlib.sha256()
    if folder.is_file():
        configs = [folder.parent / name for name in SINGLE_FILE_CONFIGS]
        files = [folder, *configs, *sorted((folder.parent / "tokenizer").glob("*"))]
        folder = folder.parent
    else:
        files = sorted(folder.rglob("*"))
    for file in files:
        if (file.suffix in (".safetensors", ".json", ".txt") or _is_pickled_weights(file)) and file.is_file():
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def _is_pickled_weights(file: Path) -> bool:
    """Whether `file` is what is loaded of its folder in place of safetensors."""
    if file.suffix != ".bin":
        return False
    weights = choose_weights(other.name for other in file.parent.iterdir())
    return weights is not None and file.name in weights.names
