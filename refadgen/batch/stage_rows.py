"""Rows as they travel between the stages of a job: tables of a schema, and what went wrong with one in its `error`."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from refadgen.errors import RowError


def to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of just the schema's columns; absent ones are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def error_json(error: RowError) -> str:
    """A RowError as it travels in a column."""
    return json.dumps({"status": error.status, "reason": error.reason, "detail": error.detail})


def guarded(step: Callable[[dict[str, Any]], dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """`step(row)`, or {"error": …} for whatever it raises: a row never takes its block down."""
    try:
        return step(row)
    except RowError as error:
        return {"error": error_json(error)}
    except Exception as error:  # a fault of ours or of a library: the row may work with the next version
        detail = f"row {row['row']}: {type(error).__name__}: {str(error)[:200]}"
        return {"error": error_json(RowError("internal_error", detail))}
