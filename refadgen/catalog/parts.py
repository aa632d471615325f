"""One parquet file of a catalogue as rows by our column names: its schema, its row groups, its values.

Names of folders give columns too (`category=Bottle/`), and the numbers of a Hugging Face ClassLabel are read as its
names.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.catalog.categories import first_that_names
from refadgen.catalog.columns import (
    Column,
    Holds,
    category_columns,
    holds_google_numbers,
    normalized_column,
    resolve_columns,
    unwrapped,
)
from refadgen.catalog.exports import images_of, several_rows_message, shopify_handle
from refadgen.catalog.files import Staged
from refadgen.catalog.taxonomy import is_number
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import split_uri

_IMAGE_ROWS, _TEXT_ROWS, _SKU_ROWS = 64, 1024, 8192
"""Rows decoded at once: where they may hold the encoded images themselves, of texts, and of skus alone."""


_NUMBERS = frozenset({"num_variants", "seed"})
_WHOLE = re.compile(r"\s*-?[0-9]{1,40}\s*")


class BadText(str):
    """The readable part of a text that is not UTF-8. Arrow does not check the texts of a parquet file."""

    __hash__ = None  # type: ignore[assignment]  # never taken for a good text of the same letters


class Part:
    """An opened parquet file. partitions: columns that its folders' names give, each with its text or None."""

    def __init__(
        self, uri: str, partitions: tuple[tuple[str, str | None], ...] = (), staged: Staged | None = None
    ) -> None:
        """staged: None: the file is a catalogue's own. Raises: ValueError naming a file that cannot be read."""
        self._shown = redact_address(uri) if staged is None else staged.shown
        self._filled = None if staged is None else staged.columns
        storage, name = split_uri(uri)
        try:
            self._parquet = pq.ParquetFile(storage.arrow().open_input_file(storage.path(name)))
        except Exception as error:  # of Arrow, the operating system, s3fs or botocore
            raise ValueError(f"{self._shown}: not a readable parquet file ({error}){_remedy(self._shown)}") from error
        schema = self._parquet.schema_arrow
        own = {normalized_column(name) for name in schema.names}
        # DuckDB and polars can write such a column into the file too; there it has its type.
        self._partitions = {name: value for name, value in partitions if normalized_column(name) not in own}
        self._labels = _class_labels(schema)

    @property
    def rows_of_groups(self) -> list[int]:
        """The number of rows of each row group."""
        metadata = self._parquet.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    @property
    def names(self) -> list[str]:
        """The names of the file's own columns."""
        return [name for name in self._parquet.schema_arrow.names if self._filled is None or name in self._filled]

    @cached_property
    def schema(self) -> pa.Schema:
        """The types of all columns as they are read."""
        fields = [
            pa.field(field.name, pa.string()) if field.name in self._labels else field
            for field in self._parquet.schema_arrow
            if self._filled is None or field.name in self._filled
        ]
        return pa.schema([*fields, *(pa.field(name, pa.string()) for name in self._partitions)])

    def columns(self, columns: tuple[Column, ...]) -> dict[str, str]:
        """Our column names, with those of the file. Raises: ValueError naming the file and its wrong column."""
        try:
            category_columns(self.schema)  # refuses a name that occurs twice here, not in a worker
            return resolve_columns(self.schema, columns, self._holds)
        except (ValueError, OSError) as error:  # an ArrowInvalid is a ValueError
            raise ValueError(f"{self._shown}: {error}") from error

    def require_row_a_product(self) -> None:
        """Raises: ValueError where several rows tell of one product, as in Shopify's export, or the file is damaged."""
        handle = shopify_handle(self.names)
        if handle is None:
            return
        before, repeated = None, None
        try:
            for batch in self._parquet.iter_batches(batch_size=8192, columns=[handle]):
                handles = _values_of(batch.column(0))
                pairs = zip([before, *handles], handles, strict=False)
                repeated = repeated or next((value for last, value in pairs if value == last and value), None)
                before = handles[-1]
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self._shown}: its column {handle!r} is damaged ({error})") from error
        if repeated:
            raise ValueError(several_rows_message(self.names, handle, str(repeated), self._shown))

    def holds_images(self, found: Mapping[str, str]) -> bool:
        """Whether `image` or `mask` is a column of bytes, or of structs, which may hold bytes. found: of `columns`."""
        kinds = [unwrapped(self.schema.field(found[name]).type) for name in ("image", "mask") if name in found]
        return not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)

    def batches(
        self, group: int, columns: tuple[Column, ...], only: tuple[str, ...] = ()
    ) -> Iterator[dict[str, list[Any]]]:
        """Yields the rows of a row group, some at a time: for each of our column names the list of their values.

        only: read these columns, where they exist; empty: all. Raises: ValueError naming the file if it is damaged.
        """
        found = self.columns(columns)
        if only:
            found = {name: found[name] for name in only if name in found}
        kinds = category_columns(self.schema) if "category" in found else []
        wanted = dict.fromkeys([*found.values(), *kinds])
        rows_of_texts = _SKU_ROWS if only == ("sku",) else _TEXT_ROWS
        batches = self._parquet.iter_batches(
            batch_size=_IMAGE_ROWS if self.holds_images(found) else rows_of_texts,
            row_groups=[group],
            columns=[name for name in wanted if name not in self._partitions],
        )
        try:
            for batch in batches:
                lists = dict(zip(batch.schema.names, map(_values_of, batch.columns), strict=True))
                lists |= {name: [value] * batch.num_rows for name, value in self._partitions.items()}
                for name, labels in self._labels.items():
                    if name in lists:
                        lists[name] = [_label(labels, value) for value in lists[name]]
                values = {ours: lists[theirs] for ours, theirs in found.items()}
                if "image" in values:
                    values["image"] = images_of(found["image"], values["image"])
                if self._filled is not None:
                    values |= {name: [_number(value) for value in values[name]] for name in _NUMBERS & values.keys()}
                if kinds:
                    values["category"] = _categories({name: lists[name] for name in kinds})
                yield values
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self._shown}: damaged in row group {group} ({error})") from error

    def _holds(self, name: str) -> Holds:
        """What a column of an unfit type really holds. Reads it whole: it is numbers, or hardly ever needed."""
        if name in self._partitions:  # text that a folder's name gives, where only numbers fit
            return Holds.OTHER
        if self._filled is not None:  # numbers of a feed are text, and checked row by row
            return Holds.WHOLE_NUMBERS
        nothing, whole = True, True
        kind = unwrapped(self.schema.field(name).type)
        numbers = pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        for batch in self._parquet.iter_batches(batch_size=8192, columns=[name]):
            for value in batch.column(0).to_pylist():
                if value is None or value != value:
                    continue
                nothing = False
                whole = whole and numbers and value % 1 == 0
            if not (nothing or whole):
                return Holds.OTHER
        return Holds.NOTHING if nothing else Holds.WHOLE_NUMBERS


def _number(text: Any) -> Any:
    """A whole number that a feed gives as text; any other text as it is, to be refused with its row."""
    if not isinstance(text, str):
        return text
    return int(text) if _WHOLE.fullmatch(text) else text if text.strip() else None


def _remedy(shown: str) -> str:
    """What to do with a file that is no parquet."""
    if not shown.lower().endswith((".csv", ".tsv", ".txt", ".csv.gz")):
        return ""
    # As text: else DuckDB reads a sku of 007 as 7.
    return f": write it as one, as in DuckDB: COPY (FROM read_csv('{shown}', all_varchar=true)) TO 'catalog.parquet'"


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names that a column's numbers stand for, as Hugging Face's datasets writes them into a file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: each for name, each in labels.items() if name in schema.names and _is_integer(schema, name)}


def _is_integer(schema: pa.Schema, name: str) -> bool:
    return bool(pa.types.is_integer(schema.field(name).type))


def _label(labels: list[str], value: Any) -> Any:
    """The name that a number of a ClassLabel stands for; -1 is its "no label"."""
    return None if value is None or not 0 <= value < len(labels) else labels[value]


def _categories(columns: Mapping[str, list[Any]]) -> list[Any]:
    """The category of each row, from its values in all columns that hold one."""

    def chosen(values: tuple[Any, ...]) -> Any:
        named = zip(columns, values, strict=True)
        return first_that_names([None if is_number(v) and not holds_google_numbers(name) else v for name, v in named])

    rows = list(zip(*columns.values(), strict=True))
    try:
        # Most rows share their categories with others.
        by_values = {values: chosen(values) for values in set(rows)}
    except TypeError:  # lists have no hash
        return [chosen(values) for values in rows]
    return [by_values[values] for values in rows]


def _values_of(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # one bad text fails the column: value by value, only its own row is lost
        values = [_readable(item) for item in column]
    return values


def _readable(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        plain = pa.types.is_string(item.type) or pa.types.is_large_string(item.type)
        return BadText(item.as_buffer().to_pybytes().decode(errors="replace") if plain else "")
