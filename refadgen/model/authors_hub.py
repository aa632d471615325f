"""The authors' checkpoint and what completes it, by their ids on a hub: found, weighed, fetched and verified.

`resolve` asks the hub for lists of files only. `fetch` downloads what `resolve` has found. Neither is called unless
the user asks for it (`jobs/import_checkpoint.py --from-hub`).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refadgen.model.folder import part_folders
from refadgen.model.hub import (
    HubFile,
    cache_folder,
    download_files,
    fetched_bytes,
    is_cached,
    needed_files,
    repository_files,
    size_text,
    verify,
)
from refadgen.model.weights import STATES_FILE

COMPONENTS = {
    "checkpoint": "yiyun123/RefAdgen",
    "base": "SG161222/Realistic_Vision_V5.1_noVAE",
    "vae": "stabilityai/sd-vae-ft-mse",
    "image_encoder": "h94/IP-Adapter/models/image_encoder",
}
"""Where each part comes from by default. The authors' published pictures were made with this base's text encoder and
tokenizer; of its U-Net only the configuration is needed."""


@dataclass(frozen=True)
class HubPart:
    """A component and the files that it takes of a repository."""

    name: str
    repository: str
    inside: str
    """The folder or file of the repository that was named; "": its root."""
    commit: str
    files: dict[str, HubFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def missing(self) -> int:
        """Bytes that no earlier download has brought."""
        return sum(
            file.size - fetched_bytes(self.repository, file)
            for path, file in self.files.items()
            if not is_cached(self.repository, self.commit, path, file)
        )


@dataclass(frozen=True)
class LocalPart:
    """A component that the user has as a file or folder already."""

    name: str
    path: Path


Part = HubPart | LocalPart


def resolve(name: str, place: str) -> Part:
    """What the component `name` takes of `place`: a path, or `owner/name[/folder or file][@revision]`.

    Raises: ValueError naming the component, and what to do.
    """
    if Path(place).expanduser().exists():
        return LocalPart(name, Path(place).expanduser())
    address, _, revision = place.partition("@")
    owner, _, rest = address.partition("/")
    repository, _, inside = rest.partition("/")
    if not owner or not repository or owner.startswith((".", "~")):
        raise ValueError(f"{name}={place!r}: no such path, and not of the form owner/name[/folder][@revision]")
    try:
        commit, files = repository_files(f"{owner}/{repository}", revision or None)
    except Exception as error:  # the hub's client raises its own, httpx' and OS errors
        raise hub_fault(f"{name}={place!r}", error) from None
    chosen = _chosen(name, inside.strip("/"), files)
    if not chosen:
        inside = f" below {inside}" if inside else ""
        wanted = STATES_FILE if name == "checkpoint" else f"weights and configuration of the {name}"
        raise ValueError(f"{name}={place!r}: no {wanted} there{inside}; it has {_shown(files)}")
    return HubPart(name, f"{owner}/{repository}", inside.strip("/"), commit, {path: files[path] for path in chosen})


def _chosen(name: str, inside: str, files: dict[str, HubFile]) -> list[str]:
    """The paths of the files that a component needs."""
    if name == "checkpoint":
        if inside in files:
            return [inside]
        below = f"{inside}/" if inside else ""
        found = [path for path in files if path.startswith(below) and path.rpartition("/")[2] == STATES_FILE]
        if len(found) > 1:
            raise ValueError(f"checkpoint: several files {STATES_FILE}: {_shown(found)}; name one as owner/name/PATH")
        return found
    folders, configs = (("", "text_encoder", "tokenizer"), ("unet",)) if name == "base" else (part_folders(name), ())
    paths = [["/".join((inside, folder)).strip("/") for folder in names] for names in (folders, configs)]
    return needed_files(files, *paths)


def _shown(paths: dict[str, HubFile] | list[str]) -> str:
    return ", ".join(sorted(paths)[:8]) or "no files"


def table(parts: list[Part]) -> str:
    """Lines with the place, commit and size of each component, and the sum."""
    rows: list[tuple[str, ...]] = []
    for part in parts:
        if isinstance(part, LocalPart):
            rows.append((part.name, str(part.path), "", "", ""))
        else:
            place = f"{part.repository}/{part.inside}".rstrip("/")
            sizes = (size_text(part.size), size_text(part.missing) if part.missing else "here already")
            rows.append((part.name, place, part.commit[:12], *sizes))
    fetched = [part for part in parts if isinstance(part, HubPart)]
    sums = (sum(part.size for part in fetched), sum(part.missing for part in fetched))
    rows = [("component", "from", "commit", "size", "to fetch"), *rows, ("total", "", "", *map(size_text, sums))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def check_disk(parts: list[Part], output: Path) -> None:
    """Raises: ValueError where the cache or the output's disk has no room for what comes.

    The output is about as large as what it is made of.
    """
    fetched = [part for part in parts if isinstance(part, HubPart)]
    needs = [(_existing(cache_folder()), sum(part.missing for part in fetched), "HF_HOME to a folder on another disk")]
    needs.append((_existing(output), sum(part.size for part in fetched), "--output to another disk"))
    if needs[0][0].stat().st_dev == needs[1][0].stat().st_dev:
        needs = [(needs[0][0], needs[0][1] + needs[1][1], "HF_HOME and --output to folders on other disks")]
    for folder, needed, remedy in needs:
        if (free := shutil.disk_usage(folder).free) < needed:
            raise ValueError(
                f"{folder}: {size_text(needed)} are needed there and {size_text(free)} are free: set {remedy}"
            )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def fetch(part: Part, report: Callable[[str], None]) -> Path:
    """The component's local file or folder, complete and verified. What an earlier run has fetched is used.

    report: called with each line to show. Raises: ValueError naming the component or the file.
    """
    if isinstance(part, LocalPart):
        return part.path
    try:
        folder = download_files(part.repository, part.commit, part.files, report)
    except ValueError:
        raise
    except Exception as error:
        raise hub_fault(f"{part.name}={part.repository!r}", error) from None
    verify(part.repository, folder, part.files)
    return folder / (next(iter(part.files)) if part.name == "checkpoint" else part.inside)


def hub_fault(place: str, error: Exception) -> ValueError:
    """The error for the user, without the client's text, which may hold a signed address.

    place: the component and its value.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    log_in = "log in by `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):  # before its base class: a gate answers 401 or 403
        words = f"its owner asks for consent first: give it on the model's page on {hub}, then {log_in}"
    elif isinstance(error, RevisionNotFoundError):
        words = f"{hub} has no such revision of it"
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        words = f"{hub} has no model of that name, or it is private (status {status}): check the id, or {log_in}"
    elif isinstance(error, HFValidationError):
        words = "no id of a model: owner/name[/folder][@revision]"
    elif isinstance(error, OfflineModeIsEnabled):
        words = "HF_HUB_OFFLINE is set, and forbids downloads"
    elif status:
        words = f"{hub} answers status {status}; run the same command again later: what was fetched is kept"
    elif isinstance(error, OSError) and error.errno is not None:
        words = f"{error.strerror} in {cache_folder()}"
    else:
        words = (
            f"{hub} does not answer, or stopped to ({type(error).__name__}); check HF_ENDPOINT and the network, and "
            "run the same command again: what was fetched is kept"
        )
    return ValueError(f"{place}: {words}")
