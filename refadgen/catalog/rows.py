"""Reads and checks catalogue rows: plain column values in, a `CatalogRow` or a `RowError` out.

`parse_rows` reads many rows, column by column: values that are plain are taken as they are, and a row with any other
value is read by `parse_row`. Both give the same rows.
"""

import decimal
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refadgen.catalog.categories import category_of_list
from refadgen.catalog.columns import COLUMNS, Column, resolve_columns
from refadgen.catalog.links import written_link
from refadgen.catalog.parts import BadText
from refadgen.catalog.placement import Placement, parse_placement
from refadgen.errors import RowError
from refadgen.storage.addresses import redact_address

__all__ = ["COLUMNS", "CatalogRow", "Column", "Placement", "parse_row", "redact_address", "resolve_columns"]

MAX_SKU_CHARS = 256
MAX_PROMPTS = 100
MAX_VARIANTS = 100


class CatalogRow(NamedTuple):
    """One product of the catalogue. A tuple, for a catalogue has millions.

    row: its number in the catalogue, from 0, for messages.
    image, mask: an address as written, or the encoded image itself. mask None: the product is segmented.
    captions, group: only for data sets: descriptions of the ad, and the product that it shares with other rows.
    prompts: the row's own scenes; empty: the category's scene templates are used.
    num_variants, seed, placement: None: the job's own.
    """

    row: int
    sku: str
    image: str | bytes
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    captions: tuple[str, ...] = ()
    group: str | None = None
    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    num_variants: int | None = None
    seed: int | None = None
    placement: Placement | None = None
    mask: str | bytes | None = None


def parse_row(row_number: int, values: Mapping[str, object]) -> CatalogRow:
    """Reads row `row_number` from its values by our column names (see `resolve_columns`).

    Values are Python's, numpy's or pandas's. Null, NaN and a missing column mean the same.
    Raises: RowError (rejected) naming the row and the field.
    """
    reader = _RowReader(row_number, values)
    sku = reader.text("sku")
    if sku is None:
        raise reader.error("sku", "empty_sku", "is empty; every product needs one")
    if len(sku) > MAX_SKU_CHARS:
        raise reader.error("sku", "sku_too_long", f"has {len(sku)} characters; at most {MAX_SKU_CHARS}")
    image = reader.image("image")
    if image is None:
        raise reader.error("image", "missing_image", "is empty; give a path, an address or an encoded image")
    return CatalogRow(
        row=row_number,
        sku=sku,
        image=image,
        title=reader.text("title"),
        category=reader.category(),
        brand=reader.text("brand"),
        captions=reader.captions(),
        group=reader.text("group"),
        prompts=reader.prompts(),
        negative_prompt=reader.text("negative_prompt"),
        num_variants=reader.integer("num_variants", 1, MAX_VARIANTS),
        seed=reader.integer("seed", 0, 2**63 - 1),
        placement=reader.placement(),
        mask=reader.image("mask"),
    )


def parse_rows(numbers: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> list[CatalogRow | RowError]:
    """Reads rows from the lists of their values by our column names, `sku` among them.

    numbers: of the rows in the catalogue. Returns what `parse_row` returns or raises for each of them.
    """
    num_rows = len(numbers)
    unread: set[int] = set()
    parsed: list[Sequence[Any]] = []
    for name, parse in _PLAIN.items():
        given = columns.get(_COLUMN_OF.get(name, name))
        values = [parse(None)] * num_rows if given is None else list(map(parse, given))
        if _ODD in values:
            unread.update(index for index, value in enumerate(values) if value is _ODD)
        parsed.append(values)
    rows: list[CatalogRow | RowError] = list(map(CatalogRow, numbers, *parsed))
    for index in unread:
        try:
            rows[index] = _read(numbers[index], {name: values[index] for name, values in columns.items()})
        except RowError as error:
            rows[index] = error
    return rows


def _read(number: int, values: Mapping[str, Any]) -> CatalogRow:
    for name, value in values.items():
        if isinstance(value, BadText):
            raise RowError("bad_text", f"row {number}: {name}: is not UTF-8 text; write it as UTF-8", field=name)
    return parse_row(number, values)


_ODD = object()
"""Stands for a value that is not plain."""


def _plain_text(value: Any) -> Any:
    if type(value) is str:  # not BadText, nor numpy's
        return value if value.strip() else None
    return None if value is None else _ODD


def _plain_sku(value: Any) -> Any:
    if type(value) is int:
        return str(value)
    return value if type(value) is str and len(value) <= MAX_SKU_CHARS and value.strip() else _ODD


def _plain_address(value: Any) -> Any:
    if type(value) is not str:
        return None if value is None else _ODD
    try:
        return written_link(value) or None
    except ValueError:
        return _ODD


def _plain_image(value: Any) -> Any:
    return _plain_address(value) or _ODD


def _plain_prompts(value: Any) -> Any:
    if type(value) is str:
        return (value,) if value.strip() else () if not value else _ODD
    if type(value) is list and len(value) <= MAX_PROMPTS:
        return tuple(value) if all(type(item) is str and item.strip() for item in value) else _ODD
    return () if value is None else _ODD


def _plain_integer(lowest: int, highest: int) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        return value if value is None or (type(value) is int and lowest <= value <= highest) else _ODD

    return parse


def _only_null(value: Any) -> Any:
    return None if value is None else _ODD


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "sku": _plain_sku,
    "image": _plain_image,
    "title": _plain_text,
    "category": _plain_text,
    "brand": _plain_text,
    "captions": _plain_prompts,
    "group": _plain_text,
    "prompts": _plain_prompts,
    "negative_prompt": _plain_text,
    "num_variants": _plain_integer(1, MAX_VARIANTS),
    "seed": _plain_integer(0, 2**63 - 1),
    "placement": _only_null,
    "mask": _plain_address,
}
"""How the plain values of each field of CatalogRow but `row` are read, in their order."""
_COLUMN_OF = {"prompts": "prompt"}


def row_images(row_number: int, values: Mapping[str, object]) -> tuple[str | bytes | None, str | bytes | None]:
    """Image and mask of a row that `parse_row` has accepted: an address, the encoded image, or None."""
    reader = _RowReader(row_number, values)
    return reader.image("image"), reader.image("mask")


def row_skus(values: Sequence[Any]) -> list[str]:
    """The skus of rows, as `parse_row` reads them, however long; "" where there is none, or it is no text."""
    plain = list(map(_plain_sku, values))
    return [_sku(value) if sku is _ODD else sku for sku, value in zip(plain, values, strict=True)]


def _sku(value: Any) -> str:
    try:
        return "" if isinstance(value, BadText) else _RowReader(0, {"sku": value}).text("sku") or ""
    except RowError:  # refused when it is planned
        return ""


class _RowReader:
    """Reads the fields of one row by name; errors name the row and the field."""

    def __init__(self, row_number: int, values: Mapping[str, object]) -> None:
        self._row = row_number
        self._values = values

    def error(self, field: str, reason: str, rule: str) -> RowError:
        """The rejection of this row. rule: the problem, as a predicate of `field`."""
        return RowError(reason, f"row {self._row}: {field} {rule}", field=field)

    def _wrong_type(self, field: str, value: object, accepted: str) -> RowError:
        return self.error(field, "wrong_type", f"is of type {type(value).__name__}; must be {accepted}")

    def _get(self, field: str) -> object:
        return _plain(self._values.get(field))

    def text(self, field: str) -> str | None:
        """The text as it stands, a whole number or a UUID as text; None for null and blank."""
        value = self._get(field)
        if value is None:
            return None
        if isinstance(value, uuid.UUID):
            return str(value)
        # Shops number their products: the sku column is then an integer, a decimal in exports of databases, or a float
        # where pandas found gaps. Above 2^53, a float may stand for another number than the shop wrote.
        if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
            if value % 1 != 0 or (isinstance(value, float) and abs(value) > 2**53):
                raise self._wrong_type(field, value, "text or a whole number")
            return str(int(value))
        if not isinstance(value, str):
            raise self._wrong_type(field, value, "text or a whole number")
        return value if value.strip() else None

    def category(self) -> str | None:
        """The category as it stands; a list as one text; a number as text, also where a gap made it a float."""
        value = _without_structs(self._get("category"))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return category_of_list([str(item) for item in value if item]) or None
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return self.text("category")

    def image(self, field: str) -> str | bytes | None:
        """An address (see `written_link`) or bytes; from a struct its bytes if it has any, else its path."""
        value = self._get(field)
        if isinstance(value, Mapping):
            parts = {str(key).lower(): _plain(part) for key, part in value.items()}
            value = parts.get("bytes") or parts.get("path")
        if value is None:
            return None
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value) or None
        if not isinstance(value, str):
            raise self._wrong_type(field, value, "text, binary or a struct of bytes and path")
        try:
            return written_link(value) or None
        except ValueError as error:
            raise self.error(field, "bad_address", str(error)) from None

    def prompts(self) -> tuple[str, ...]:
        """The row's own prompts; none for null, an empty text or an empty list. A blank prompt is rejected."""
        value = _without_structs(self._get("prompt"))
        if value is None or value == "":
            return ()
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, Sequence) or isinstance(items, bytes):
            raise self._wrong_type("prompt", value, "text or a list of texts")
        if len(items) > MAX_PROMPTS:
            raise self.error("prompt", "too_many_prompts", f"has {len(items)} scenes; at most {MAX_PROMPTS}")
        prompts = []
        for number, item in enumerate(_plain(item) for item in items):
            if item is None or (isinstance(item, str) and not item.strip()):
                which = f"number {number} of the list " if not isinstance(value, str) else ""
                raise self.error("prompt", "empty_prompt", f"{which}is blank; write a scene, or leave the field null")
            if not isinstance(item, str):
                raise self._wrong_type("prompt", item, "text or a list of texts")
            prompts.append(item)
        return tuple(prompts)

    def captions(self) -> tuple[str, ...]:
        """The captions, without null and blank ones."""
        value = _without_structs(self._get("captions"))
        items = [value] if isinstance(value, str) else value or []
        if not isinstance(items, Sequence) or isinstance(items, bytes):
            raise self._wrong_type("captions", value, "text or a list of texts")
        found = []
        for item in (_plain(item) for item in items):
            if item is not None and not isinstance(item, str):
                raise self._wrong_type("captions", item, "text or a list of texts")
            if item is not None and item.strip():
                found.append(item)
        return tuple(found)

    def integer(self, field: str, lowest: int, highest: int) -> int | None:
        """An integer from `lowest` to `highest`, also written as a float up to 2^53; None for null."""
        value = self._get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
            raise self._wrong_type(field, value, "a whole number")
        # Above 2^53, a float may stand for another integer than the shop wrote.
        exact = value == value // 1 and not (isinstance(value, float) and abs(value) > 2**53)
        if not exact or not lowest <= value <= highest:
            raise self.error(field, f"bad_{field}", f"{value!s}: must be a whole number from {lowest} to {highest}")
        return int(value)

    def placement(self) -> Placement | None:
        """The row's own layout; None for null, a blank text or a struct of nulls."""
        value = self._get("placement")
        if value is None:
            return None
        if isinstance(value, Mapping):
            value = {str(key): _plain(part) for key, part in value.items()}
        elif not isinstance(value, str):
            raise self._wrong_type("placement", value, "text or a struct of size and anchor")
        try:
            return parse_placement(value)
        except ValueError as error:
            raise self.error("placement", "bad_placement", f"{error}") from error


def _without_structs(value: object) -> object:
    """A list of texts from a list of structs of one text each, as some tools write repeated text."""
    if isinstance(value, Mapping) and len(value) == 1:  # BigQuery puts a struct around the list too
        value = next(iter(value.values()))
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value
    return [next(iter(item.values())) if isinstance(item, Mapping) and len(item) == 1 else item for item in value]


def _plain(value: object) -> object:
    """The value as Python's own type; None for NaN and for pandas's NA and NaT."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if type(value).__name__ in ("NAType", "NaTType"):  # by name: importing pandas is slow
        return None
    if isinstance(value, float | decimal.Decimal) and value != value:
        return None
    return value
