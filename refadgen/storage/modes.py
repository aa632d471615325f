"""File modes: files that another library writes get the mode that any new file beside them has."""

import os
import uuid
from pathlib import Path


def follow_umask(place: str | os.PathLike[str]) -> None:
    """Gives a file, or the safetensors files below a folder, the mode of a new file there.

    safetensors writes mode 0600 (since 0.8), so that another user, such as a server's, could not read a model.
    """
    path = Path(place)
    for file in path.rglob("*.safetensors") if path.is_dir() else [path]:
        # Another new file shows the mode: reading the umask would mean setting it, for all threads of the process.
        sample = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
        sample.touch()
        try:
            file.chmod(sample.stat().st_mode & 0o777)
        finally:
            sample.unlink()
