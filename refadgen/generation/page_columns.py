"""Columns of the ledger as the report's pages hold them: compact JSON values, texts bounded, addresses relative."""

from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.generation.ledger import SCHEMA

_LEFT_OUT = ("input_sha256",)  # long, and of no use to the eye
_UNIQUE = ("image_id", "uri")  # all different: a table of distinct values would only add to them
_ADDRESSES = ("uri", "product_uri")
_MAX_TEXT = 600  # characters; a sku of 300 is shown in full
_PLAIN_LINK = r"^[\w./-]*$"
"""Links that need no percent-encoding."""

Column = list[Any] | dict[str, list[Any]]


def page_columns(rows: pa.Table, root: str) -> dict[str, Column]:
    """SCHEMA's columns of the rows, each as a list of values, or as `{values, index}` where texts are repeated.

    Numbers are rounded, times are seconds since 1970. root: the output's address.
    """
    return {name: _column(rows[name].combine_chunks(), name, root) for name in SCHEMA.names if name not in _LEFT_OUT}


def _column(values: pa.Array, name: str, root: str) -> Column:
    kind = values.type
    if name == "seed":  # beyond what a browser's numbers hold exactly
        return _listed(values.cast(pa.string()))
    if pa.types.is_floating(kind):
        numbers = values.cast(pa.float64())
        finite = pc.fill_null(pc.is_finite(numbers), False)
        rounded = pc.round(pc.if_else(finite, numbers, 0.0), 4)
        return _listed(pc.if_else(finite, rounded, None))
    if pa.types.is_timestamp(kind):
        return _listed(pc.floor_temporal(values, unit="second").cast(pa.timestamp("s", kind.tz)).cast(pa.int64()))
    if not pa.types.is_string(kind):
        return _listed(values)
    if name in _UNIQUE:
        return _texts(values, name, root)
    encoded = values.dictionary_encode()
    return {"values": _texts(encoded.dictionary, name, root), "index": _listed(encoded.indices)}


def _listed(values: pa.Array) -> list[Any]:
    """As `to_pylist`, much faster."""
    if not values.null_count:
        listed: list[Any] = values.to_numpy(zero_copy_only=False).tolist()
        return listed
    found = values.drop_null().to_numpy(zero_copy_only=False)
    listed_with_nulls = np.full(len(values), None, dtype=object)
    listed_with_nulls[values.is_valid().to_numpy(zero_copy_only=False)] = found.tolist()
    listed = listed_with_nulls.tolist()
    return listed


def _texts(values: pa.Array, name: str, root: str) -> list[Any]:
    if name not in _ADDRESSES:
        is_long = pc.greater(pc.utf8_length(values), _MAX_TEXT)
        cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(values, 0, _MAX_TEXT), "…", "")
        return _listed(pc.if_else(is_long, cut, values))
    is_plain = pc.and_(pc.match_substring_regex(values, _PLAIN_LINK), pc.invert(pc.match_substring(values, "..")))
    is_inside = pc.invert(pc.or_(pc.starts_with(values, "/"), pc.starts_with(values, root)))
    if pc.all(pc.and_(is_plain, is_inside)).as_py():
        return _listed(values)
    return [None if value is None else relative_link(value, root) for value in values.to_pylist()]


def relative_link(uri: str, root: str) -> str:
    """`uri` as a percent-encoded link relative to the folder `root`; empty when it leads out of it."""
    path = uri.removeprefix(f"{root}/").lstrip("/")
    return "" if ".." in path.split("/") else quote(path, safe="/")
