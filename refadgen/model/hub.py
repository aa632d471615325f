"""Models on a hub: which files of a repository are needed, and their download by huggingface_hub, which resumes."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from refadgen.model.weights import FUSION_FILE, choose_weights

_UNUSED = ("safety_checker",)
"""Folders of Stable Diffusion that nothing here loads."""


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


def file_sizes(repository: str) -> tuple[str, dict[str, int]]:
    """The newest commit of `owner/name`, and the bytes of each of its files."""
    from huggingface_hub import HfApi, RepoFile

    api = HfApi()
    commit = str(api.model_info(repository).sha)
    tree = api.list_repo_tree(repository, recursive=True, revision=commit)
    return commit, {file.path: file.size for file in tree if isinstance(file, RepoFile)}


def download(repository: str, folders: Collection[str] | None = None, configs: Collection[str] = ()) -> Path:
    """The local folder with the needed files of `owner/name`; an earlier download where the hub cannot be reached.

    folders, configs: as of `needed_files`. Raises: what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        commit, sizes = file_sizes(repository)
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except Exception as error:  # offline, or the hub is out of order
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except OSError:
            raise error from None
    return download_files(repository, commit, {name: sizes[name] for name in needed_files(sizes, folders, configs)})


def download_files(repository: str, commit: str, sizes: Mapping[str, int]) -> Path:
    """The local folder with these files of `owner/name`. What an earlier download left unfinished is resumed.

    sizes: bytes of each file. Raises: ValueError for a file of another size; what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(sizes)))
    for name, size in sizes.items():
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{folder / name}: {found} bytes, {repository} has {size}; remove it and run again")
    return folder
