"""What a person decided about doubtful masks: the file that the review page makes, checked and ready for a run.

A decision is final: its mask is used without triage, or the product is refused. The mask's hash is part of the ids of
the product's images, as that of an own mask is. So ads of another mask of a decided product never stand in the ledger
as `done`: they become `rejected`, `replaced_by_review` or `refused_by_review`.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from refadgen.batch.ledger import Ledger, now, short_keys
from refadgen.batch.rows import Int32, to_table
from refadgen.errors import RowError
from refadgen.generation.doubtful import bounded_size
from refadgen.storage.addresses import image_identity
from refadgen.storage.store import STORE_ERRORS, split_uri

FORMAT = "refadgen-decisions"
VERSION = 1
REFUSED, REPLACED = "refused_by_review", "replaced_by_review"
_PNG_MODES = ("L", "RGB", "RGBA")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision about one product."""

    sku: str
    decision: str
    """accept (the proposed mask), paint (one that the person changed) or refuse."""
    digest: str
    """Hash of the mask; empty: refused."""
    mask: bytes
    """PNG of the photograph's size or of `bounded_size`; grey or equal RGB, 255 is product. Empty: refused."""
    input_sha256: str
    """Hash of the photograph that the person saw."""
    photo_width_px: Int32
    photo_height_px: Int32
    by: str
    at: str

    @property
    def words(self) -> str:
        """Who decided and when, as far as it is known, for messages."""
        return "".join([f" by {self.by}" if self.by else "", f" on {self.at[:10]}" if self.at else ""])


@dataclass(frozen=True)
class Decided:
    """What planning needs to know of a decision. digest: of the mask; empty: refused. words: who and when."""

    digest: str
    words: str


class Decisions:
    """The decisions of a run by sku."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        self._by_sku = {decision.sku: decision for decision in decisions}
        self.decided: Mapping[str, Decided] = {
            sku: Decided(decision.digest, decision.words) for sku, decision in self._by_sku.items()
        }

    def __len__(self) -> int:
        return len(self._by_sku)

    def masks(self) -> pa.Table:
        """The decisions with a mask, a table for Ray's object store: actors of one node share its memory."""
        return to_table([each for each in self._by_sku.values() if each.mask], Decision)


def load_decisions(files: Sequence[str], catalog: str) -> Decisions:
    """Reads decisions files. catalog: the catalogue's address as run.json and the pages have it.

    Raises: ValueError naming the file and what is wrong with it.
    """
    found: dict[str, Decision] = {}
    for file in files:
        for decision in _read(file, catalog):
            known = found.setdefault(decision.sku, decision)
            if known.digest != decision.digest or known.input_sha256 != decision.input_sha256:
                raise ValueError(
                    f"--review {file}: sku {decision.sku!r} has two different decisions "
                    f"({known.decision}{known.words}; {decision.decision}{decision.words}); remove one of them"
                )
    return Decisions(found.values())


def _read(file: str, catalog: str) -> list[Decision]:
    try:
        storage, name = split_uri(file)
        data = storage.read(name)
    except STORE_ERRORS as error:
        raise ValueError(f"--review {file}: cannot be read: {type(error).__name__}: {error}") from error
    try:
        document = json.loads(data)
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"--review {file}: not JSON ({error}); give the file that review.html downloads") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"--review {file}: not a decisions file ({FORMAT}); give the file that review.html downloads")
    if document.get("version") != VERSION:
        raise ValueError(
            f"--review {file}: version {document.get('version')!r} of the format; this job reads version {VERSION}"
        )
    if document.get("catalog") != catalog:
        raise ValueError(
            f"--review {file}: decides about the catalogue {document.get('catalog')!r}, this run's is {catalog!r}; "
            "if it is the same catalogue at another place, change `catalog` in the file"
        )
    entries = document.get("decisions")
    if not isinstance(entries, list):
        raise ValueError(f"--review {file}: `decisions` must be a list")
    return [_decision(file, number, entry) for number, entry in enumerate(entries)]


def _decision(file: str, number: int, entry: Any) -> Decision:
    where = f"--review {file}: decision {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("sku"), str) or not entry["sku"]:
        raise ValueError(f"{where}: has no sku")
    where += f" (sku {entry['sku']!r})"
    kind = entry.get("decision")
    if kind not in ("accept", "paint", "refuse"):
        raise ValueError(f"{where}: decision is {kind!r}: must be accept, paint or refuse")
    texts = {name: entry.get(name, "") for name in ("input_sha256", "by", "at")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {name} is {text!r}: must be a text")
    photo = _size(where, entry, "photo")
    mask = b"" if kind == "refuse" else _mask(where, entry, photo)
    return Decision(
        sku=entry["sku"],
        decision=kind,
        digest=image_identity(mask) if mask else "",
        mask=mask,
        photo_width_px=photo[0],
        photo_height_px=photo[1],
        **texts,
    )


def _size(where: str, entry: Mapping[str, Any], subject: str) -> tuple[int, int]:
    names = (f"{subject}_width_px", f"{subject}_height_px")
    width, height = (entry.get(name) for name in names)
    if type(width) is not int or type(height) is not int or not (0 < width < 2**31 and 0 < height < 2**31):
        raise ValueError(f"{where}: {names[0]} × {names[1]} is {width!r} × {height!r}: must be two sizes in pixels")
    return width, height


def _mask(where: str, entry: Mapping[str, Any], photo: tuple[int, int]) -> bytes:
    """The checked PNG of a decision."""
    recorded = _size(where, entry, "mask")
    if recorded not in (photo, bounded_size(photo)):
        raise ValueError(
            f"{where}: its mask is {recorded[0]}×{recorded[1]} px, the photograph {photo[0]}×{photo[1]}: "
            "must be of one size"
        )
    try:
        data = base64.b64decode(entry.get("mask_png") or "", validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            size, mode = image.size, image.mode
            image.verify()  # checksums, without decoding: a file may hold thousands
    except Exception as error:  # base64's and Pillow's raise many kinds
        raise ValueError(f"{where}: mask_png is no whole PNG in base64 ({type(error).__name__})") from error
    if size != recorded:
        raise ValueError(f"{where}: its mask is {size[0]}×{size[1]} px, but the file says {recorded[0]}×{recorded[1]}")
    if mode not in _PNG_MODES:
        raise ValueError(f"{where}: mask_png has the mode {mode}; must be one of {', '.join(_PNG_MODES)}")
    return data


class DecidedMasks:
    """The decided masks of a run, in an actor that uses them."""

    def __init__(self, table: pa.Table) -> None:
        """table: of `Decisions.masks`; kept as it is, so that its bytes stay in shared memory."""
        self._table = table
        self._rows = {sku: row for row, sku in enumerate(table["sku"].to_pylist())}

    def mask(self, sku: str, input_sha256: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """The mask of a product: uint8 HW, of the photograph's shape, but perhaps smaller.

        input_sha256, size: of the photograph at hand. Raises: RowError (rejected) where it is not the one that the
        person saw.
        """
        row = self._table.slice(self._rows[sku], 1).to_pylist()[0]
        if row["input_sha256"] != input_sha256:
            raise RowError(
                "decision_of_another_photo", "the photograph is not the one that was decided on: decide again"
            )
        seen = (row["photo_width_px"], row["photo_height_px"])
        if seen != size:
            raise RowError(
                "mask_size_mismatch",
                f"mask: was decided on a photograph of {seen[0]}×{seen[1]} px, this one has {size[0]}×{size[1]}",
            )
        with Image.open(io.BytesIO(row["mask"])) as image:
            return np.asarray(image.convert("RGB").getchannel("R"))


# The ledger of an output in which products were decided.

_NEEDED = ("sku", "scene", "reason", "decision")


def _of_decided(ledger: Ledger, decided: Mapping[str, Decided]) -> list[dict[str, Any]]:
    """The latest rows of decided products; not those of catalogue rows that could not be read, which have no scene."""
    rows: list[dict[str, Any]] = ledger.latest(_NEEDED, of=("sku", pa.array(decided, pa.string()))).to_pylist()
    return [row for row in rows if row["scene"]]


def overrule(ledger: Ledger, decided: Mapping[str, Decided], run_id: str) -> int:
    """Marks images that were made, or refused, with another mask than the decided one. Returns their number."""
    changes: dict[str, tuple[str, str]] = {}
    for row in _of_decided(ledger, decided) if decided else []:
        by = decided[row["sku"]]
        if not by.digest and row["reason"] != REFUSED:
            changes[row["image_id"]] = (REFUSED, refusal(by))
        if by.digest and (row["decision"] or "") != by.digest and row["reason"] not in (REFUSED, REPLACED):
            changes[row["image_id"]] = (
                REPLACED,
                f"a person decided on another mask{by.words}: its images have other ids",
            )
    if not changes:
        return 0
    table = ledger.latest(ids=pa.array(changes, pa.string()))
    ids = table["image_id"].to_pylist()
    values = {
        "run_id": [run_id] * len(table),
        "recorded_at": [now()] * len(table),
        "status": ["rejected"] * len(table),
        "reason": [changes[image_id][0] for image_id in ids],
        "detail": [changes[image_id][1] for image_id in ids],
        "uri": [""] * len(table),
    }
    for name, column in values.items():
        field = ledger.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(column, field.type))
    ledger.append(table)
    return len(table)


def reopened(ledger: Ledger, decided: Mapping[str, Decided]) -> npt.NDArray[np.uint64]:
    """Short keys of images that were overruled, and whose mask is the decided one again."""
    again = [
        row["image_id"]
        for row in (_of_decided(ledger, decided) if decided else [])
        if row["reason"] in (REFUSED, REPLACED) and row["decision"] and row["decision"] == decided[row["sku"]].digest
    ]
    return short_keys(pa.chunked_array([pa.array(again, pa.string())]))


def refusal(decided: Decided) -> str:
    """The ledger's detail of a refused product."""
    return f"a person refused the product's mask{decided.words}: give a better photograph or a mask of its own"
