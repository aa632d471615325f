"""Models on a hub: which files of a repository are needed, and their download, which resumes and is verified.

huggingface_hub does the talking and keeps the cache, but begins a large file anew in each run. Those are fetched here,
into the place of the cache where it looks for them.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refadgen.model.weights import FUSION_FILE, choose_weights

_UNUSED = ("safety_checker",)
"""Folders of Stable Diffusion that nothing here loads."""
_TRIES = 5
"""Connections in a row that bring not one byte, before a download is given up."""
_WAIT_S = 1.0
"""Before the next connection."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository as the hub lists it."""

    size: int
    git_id: str
    """SHA-1 of git's blob."""
    sha256: str | None = None
    """Of files in large file storage (LFS); None: of others."""

    def matches(self, file: Path) -> bool:
        """Whether `file` has these bytes."""
        if file.stat().st_size != self.size:
            return False
        with file.open("rb") as handle:
            if self.sha256 is not None:
                return hashlib.file_digest(handle, "sha256").hexdigest() == self.sha256
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            digest.update(handle.read())
        return digest.hexdigest() == self.git_id


def needed_files(
    names: Iterable[str], folders: Collection[str] | None = None, configs: Collection[str] = ()
) -> list[str]:
    """Of a repository's files, those that a model is loaded from: configurations, and each component's weights once.

    folders: of the repository, "" is its root; None: all. configs: folders of which only configurations are needed.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder in configs or (folder not in _UNUSED if folders is None else folder in folders):
            by_folder.setdefault(folder, []).append(file)
    chosen = []
    for folder, files in by_folder.items():
        kept = [file for file in files if file.endswith((".json", ".txt")) or file == FUSION_FILE]
        # A pipeline's root holds its weights once more, as single files.
        if folder not in configs and not (folder == "" and "model_index.json" in files):
            weights = choose_weights(files)
            kept += weights.names if weights else ()
        chosen += [f"{folder}/{file}".removeprefix("/") for file in kept]
    return sorted(chosen)


def repository_files(repository: str, revision: str | None = None) -> tuple[str, dict[str, HubFile]]:
    """The commit of `owner/name` at `revision` (None: its newest), and its files by path.

    Raises: what huggingface_hub raises.
    """
    from huggingface_hub import HfApi, RepoFile

    api = HfApi()
    commit = str(api.model_info(repository, revision=revision).sha)
    tree = api.list_repo_tree(repository, recursive=True, revision=commit)
    return commit, {
        file.path: HubFile(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
        for file in tree
        if isinstance(file, RepoFile)
    }


def download(repository: str, folders: Collection[str] | None = None, configs: Collection[str] = ()) -> Path:
    """The local folder with the needed files of `owner/name`; an earlier download where the hub cannot be reached.

    folders, configs: as of `needed_files`. Raises: what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        commit, files = repository_files(repository)
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except Exception as error:  # offline, or the hub is out of order
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except OSError:
            raise error from None
    return download_files(repository, commit, {name: files[name] for name in needed_files(files, folders, configs)})


def download_files(
    repository: str, commit: str, files: Mapping[str, HubFile], report: Callable[[str], None] = lambda _: None
) -> Path:
    """The local folder with these files of `owner/name`. What an earlier download left unfinished is resumed.

    report: called with each line to show. Raises: ValueError for a file of other bytes; what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    for name, file in files.items():
        if file.sha256 is not None and not is_cached(repository, commit, name, file):
            report(f"fetching {repository}: {name}, {size_text(file.size - fetched_bytes(repository, file))}")
            _fetch(repository, commit, name, file)
    folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(files)))
    for name, file in files.items():
        if (found := (folder / name).stat().st_size) != file.size:
            _remove(folder / name)
            raise _other_bytes(repository, name, f"{found} bytes, not the {file.size} that the hub lists")
    return folder


def verify(repository: str, folder: Path, files: Mapping[str, HubFile]) -> None:
    """Reads each file of a download. Raises: ValueError for one of other bytes than the hub lists; it is removed."""
    for name, file in files.items():
        if not file.matches(folder / name):
            _remove(folder / name)
            raise _other_bytes(repository, name, "its hash is not the one that the hub lists")


def is_cached(repository: str, commit: str, name: str, file: HubFile) -> bool:
    """Whether an earlier download has the complete file."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=commit)
    return isinstance(found, str) or (_blobs(repository) / (file.sha256 or file.git_id)).is_file()


def fetched_bytes(repository: str, file: HubFile) -> int:
    """Bytes of an unfinished file that an earlier download has left."""
    part = _part(repository, file)
    return part.stat().st_size if part.is_file() else 0


def size_text(size: int) -> str:
    """`size` in bytes for people: 1.23 GB, 45.6 MB, 789 B."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"
    return f"{size} B"


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _blobs(repository: str) -> Path:
    """The cache's folder of a repository's contents; each file there is named by its hash."""
    return cache_folder() / f"models--{repository.replace('/', '--')}" / "blobs"


def _part(repository: str, file: HubFile) -> Path:
    return _blobs(repository) / f"{file.sha256}.part"


def _fetch(repository: str, commit: str, name: str, file: HubFile) -> None:
    """Puts a large file into the cache. Raises: ValueError for other bytes; what huggingface_hub raises."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, and not marked as such

    part = _part(repository, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{part}.lock"):  # another process may want the same
        if is_cached(repository, commit, name, file):
            return
        _complete(repository, commit, name, file.size, part)
        if (found := part.stat().st_size) != file.size or not file.matches(part):
            part.unlink()
            problem = f"{found} bytes, not the {file.size}" if found != file.size else "its sha256 is not the one"
            raise _other_bytes(repository, name, f"{problem} that the hub lists")
        os.replace(part, part.with_suffix(""))
    with contextlib.suppress(OSError):
        os.unlink(f"{part}.lock")


def _complete(repository: str, commit: str, name: str, size: int, part: Path) -> None:
    """Appends to `part` until it has `size` bytes, or all that the host has: with a new connection where one breaks."""
    from httpx2 import TransportError
    from huggingface_hub import hf_hub_url

    url, tries = hf_hub_url(repository, name, revision=commit), 0
    part.touch()
    while (had := part.stat().st_size) < size:
        problem: Exception = ConnectionError("the hub ended it early")
        try:
            if _append(url, part, size):
                return
        except TransportError as error:
            problem = error
        tries = 0 if part.stat().st_size > had else tries + 1
        if tries >= _TRIES:
            raise problem
        time.sleep(_WAIT_S)


def _append(url: str, part: Path, size: int) -> bool:
    """One request for what `part` lacks. Whether that is now all that the host has, be it enough or too much."""
    from huggingface_hub import hf_raise_for_status
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, http_stream_backoff  # type: ignore[attr-defined]  # the same

    had = part.stat().st_size
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    request = http_stream_backoff(
        "GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True, retry_on_exceptions=()
    )
    with request as response:
        if response.status_code == 416:  # its file ends before this place
            return True
        hf_raise_for_status(response)
        # A host that does not know ranges sends the file from its beginning.
        with part.open("ab" if response.status_code == 206 else "wb", buffering=0) as sink:
            for chunk in response.iter_bytes():
                sink.write(chunk)
                if sink.tell() > size:
                    return True
        # Without a declared length, a connection that broke looks like an end.
        return "Content-Length" in response.headers


def _remove(file: Path) -> None:
    """Removes a file of the cache, its contents included."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _other_bytes(repository: str, name: str, problem: str) -> ValueError:
    return ValueError(f"{repository}: {name}: {problem}; it was removed, run the same command again")
