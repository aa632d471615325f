"""Modes of safetensors files: whoever may read a new file in a folder may read a model in it."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refadgen.storage.modes import follow_umask

NOBODY = 65534


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    inside, beside, other = (tmp_path / name for name in ("model/unet/a.safetensors", "b.safetensors", "model/c.txt"))
    inside.parent.mkdir(parents=True)
    for file in (inside, beside):
        save_file({"weight": torch.zeros(1)}, file)
    other.touch(0o600)
    before = os.umask(umask)
    try:
        follow_umask(tmp_path / "model")
        follow_umask(beside)
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in (inside, beside, other)] == [mode, mode, 0o600]
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == sorted(
        file.name for file in (inside, beside, other)
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may be another user")
def test_another_user_reads_the_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own folders are closed to others
        file = Path(folder) / "a.safetensors"
        save_file({"weight": torch.zeros(1)}, file)
        follow_umask(folder)
        assert subprocess.run(["cat", file], user=NOBODY, capture_output=True, check=True).stdout == file.read_bytes()
