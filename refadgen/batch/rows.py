"""Typed rows of a batch job, and the Arrow tables they travel in between stages.

A row type is a frozen dataclass. Its annotations are the table's schema, so a column is named once:

    str, bytes, int (64 bits), float (64 bits), bool, datetime   `Int32`, `Float32`, `UInt64`: narrower columns
    X | None    a column with nulls; without it a null is an error
    tuple[X, ...]    a list column        a dataclass    a struct column

`to_table` and `from_table` refuse by name: a missing column, an unknown one, a null where none may be.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa

Int32 = Annotated[int, pa.int32()]
Float32 = Annotated[float, pa.float32()]
UInt64 = Annotated[int, pa.uint64()]

R = TypeVar("R")
_PLAIN_TYPES: dict[type, pa.DataType] = {
    str: pa.string(),
    bytes: pa.binary(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    datetime: pa.timestamp("us", tz="UTC"),
}


@dataclasses.dataclass(frozen=True)
class _Column:
    """One field of a row type."""

    name: str
    kind: pa.DataType
    optional: bool
    build: Callable[[Any], Any]
    """Makes the field's value from an item of Arrow's `to_pylist`."""


def _columns(row_type: type) -> tuple[_Column, ...]:
    return _cached_columns(row_type)


@functools.cache
def _cached_columns(row_type: type) -> tuple[_Column, ...]:
    hints = typing.get_type_hints(row_type, include_extras=True)
    assert dataclasses.is_dataclass(row_type), f"{row_type.__name__} is not a dataclass"
    return tuple(_column(field.name, hints[field.name]) for field in dataclasses.fields(row_type))


def _column(name: str, hint: Any) -> _Column:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = [option for option in options if option is not type(None)]
    assert len(kinds) == 1, f"{name}: {hint} is not one type of column"
    kind, build = _arrow_type(kinds[0])
    return _Column(name, kind, len(options) > 1, build)


def _arrow_type(hint: Any) -> tuple[pa.DataType, Callable[[Any], Any]]:
    """The column's type for an annotation, and the function that turns Arrow's value back into the annotation's."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:  # Int32 and the like: the annotation brings its Arrow type
        return arguments[1], _unchanged
    if origin is Literal:
        return pa.string(), _unchanged
    if origin is tuple:
        kind, build = _arrow_type(arguments[0])
        return pa.list_(kind), lambda values: tuple(map(build, values))
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        struct = pa.struct([(column.name, column.kind) for column in _columns(hint)])
        return struct, functools.partial(_build, hint)
    return _PLAIN_TYPES[hint], _unchanged


def _unchanged(value: Any) -> Any:
    return value


def field_names(row_type: type) -> list[str]:
    """The fields of a row type, in order. A row that never becomes a table may have fields that no column holds."""
    assert dataclasses.is_dataclass(row_type), f"{row_type.__name__} is not a dataclass"
    return [field.name for field in dataclasses.fields(row_type)]


def schema_of(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type, its fields in order.

    All columns are nullable to Arrow: ledgers of earlier versions were written so, and tables of both are joined.
    """
    return pa.schema([(column.name, column.kind) for column in _columns(row_type)])


def optional_columns(row_type: type) -> frozenset[str]:
    """The columns that may hold nulls."""
    return frozenset(column.name for column in _columns(row_type) if column.optional)


def to_table(rows: Sequence[R], row_type: type[R]) -> pa.Table:
    """The rows as a table of `row_type`'s schema. Raises: TypeError naming a column with a null that may have none."""
    arrays = []
    for column in _columns(row_type):
        array = pa.array([_plain(getattr(row, column.name)) for row in rows], column.kind)
        if array.null_count and not column.optional:
            raise TypeError(f"{row_type.__name__}.{column.name}: None in a column without nulls")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema_of(row_type))


def repeated_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow column of values of which many are one and the same object, each converted once."""
    places: dict[int, int] = {}
    indices = [places.setdefault(id(value), len(places)) for value in values]
    distinct = {id(value): value for value in values}
    return pa.array([_plain(value) for value in distinct.values()], kind).take(pa.array(indices, pa.int32()))


def from_table(table: pa.Table, row_type: type[R]) -> list[R]:
    """The rows of a table. Raises: TypeError naming a missing or unknown column, or a null where none may be."""
    return list(iter_rows(table, row_type))


def iter_rows(table: pa.Table, row_type: type[R]) -> Iterator[R]:
    """The rows of a table as `from_table` gives them, a thousand at a time in memory."""
    require_columns(table.schema, row_type)
    for batch in table.to_batches(max_chunksize=1024):
        for values in batch.to_pylist():
            yield _build(row_type, values)


def require_columns(schema: pa.Schema, row_type: type) -> None:
    """Raises: TypeError naming the columns in which `schema` and `row_type` differ."""
    expected, found = set(field_names(row_type)), set(schema.names)
    if missing := sorted(expected - found):
        raise TypeError(f"{row_type.__name__}: the table has no column {', '.join(missing)}; it has {sorted(found)}")
    if unknown := sorted(found - expected):
        raise TypeError(f"{row_type.__name__}: the table has the unknown column {', '.join(unknown)}")


def _build(row_type: type[R], values: dict[str, Any]) -> R:
    arguments = {}
    for column in _columns(row_type):
        value = values[column.name]
        if value is None and not column.optional:
            raise TypeError(f"{row_type.__name__}.{column.name}: null in a column without nulls")
        arguments[column.name] = None if value is None else column.build(value)
    return row_type(**arguments)


def _plain(value: Any) -> Any:
    """`value` as Arrow takes it: dataclasses as mappings, at any depth."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
