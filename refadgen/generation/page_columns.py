"""Columns of the ledger as the report's pages hold them: compact JSON values, texts bounded, addresses relative."""

from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from refadgen.generation.ledger import SCHEMA
from refadgen.generation.pages import plain_json

_LEFT_OUT = ("input_sha256", "channel_files")  # long, and of no use to the eye
_UNIQUE = ("image_id", "uri")  # all different: a table of distinct values would only add to them
_ADDRESSES = ("uri", "product_uri")
_MAX_TEXT = 600  # characters; a sku of 300 is shown in full
_PLAIN_LINK = r"^[\w./-]*$"
"""Links that need no percent-encoding."""

_PLAIN_TEXT = r'^[^"\\<>&\x00-\x1f\x{2028}\x{2029}]*$'
"""Texts that stand in JSON, and in a script, as they are."""


def page_columns(rows: pa.Table, root: str) -> bytes:
    """SCHEMA's columns of the rows as a JSON object, safe inside a script.

    Each is a list of values, or `{values, index}` where texts are repeated. Numbers are rounded, times are seconds
    since 1970. root: the output's address. Arrow writes nearly all of it: of ten million rows Python would make 400
    million objects.
    """
    names = [name for name in SCHEMA.names if name not in _LEFT_OUT]
    return b"{%b}" % b",".join(b'"%b":%b' % (n.encode(), _column(rows[n].combine_chunks(), n, root)) for n in names)


def _column(values: pa.Array, name: str, root: str) -> bytes:
    kind = values.type
    if name == "seed":  # beyond what a browser's numbers hold exactly
        return _texts(values.cast(pa.string()))
    if pa.types.is_floating(kind):
        numbers = values.cast(pa.float64())
        finite = pc.fill_null(pc.is_finite(numbers), False)
        return _numbers(pc.if_else(finite, pc.round(pc.if_else(finite, numbers, 0.0), 4), None))
    if pa.types.is_timestamp(kind):
        return _numbers(pc.floor_temporal(values, unit="second").cast(pa.timestamp("s", kind.tz)).cast(pa.int64()))
    if not pa.types.is_string(kind):
        return _numbers(values)
    if name in _UNIQUE:
        return _texts(_bounded(values, name, root))
    encoded = values.dictionary_encode()
    found = _texts(_bounded(encoded.dictionary, name, root))
    return b'{"values":%b,"index":%b}' % (found, _numbers(encoded.indices))


def _numbers(values: pa.Array) -> bytes:
    """Numbers or truth values as a JSON list."""
    return b"[%b]" % _joined(pc.fill_null(values.cast(pa.string()), "null"), ",")


def _texts(values: pa.Array) -> bytes:
    """Texts as a JSON list."""
    if len(values) and not values.null_count and pc.all(pc.match_substring_regex(values, _PLAIN_TEXT)).as_py():
        return b'["%b"]' % _joined(values, '","')
    return plain_json(values.to_pylist())


def _joined(texts: pa.Array, between: str) -> bytes:
    whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    joined: bytes = pc.binary_join(whole, between).cast(pa.binary())[0].as_py()
    return joined


def _bounded(values: pa.Array, name: str, root: str) -> pa.Array:
    """Texts of at most 600 characters; addresses as links that stay in the output."""
    if name not in _ADDRESSES:
        is_long = pc.greater(pc.utf8_length(values), _MAX_TEXT)
        cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(values, 0, _MAX_TEXT), "…", "")
        return pc.if_else(is_long, cut, values)
    is_plain = pc.and_(pc.match_substring_regex(values, _PLAIN_LINK), pc.invert(pc.match_substring(values, "..")))
    is_inside = pc.invert(pc.or_(pc.starts_with(values, "/"), pc.starts_with(values, root)))
    if pc.all(pc.and_(is_plain, is_inside)).as_py():
        return values
    return pa.array(
        [None if value is None else relative_link(value, root) for value in values.to_pylist()], pa.string()
    )


def relative_link(uri: str, root: str) -> str:
    """`uri` as a percent-encoded link relative to the folder `root`; empty when it leads out of it."""
    path = uri.removeprefix(f"{root}/").lstrip("/")
    return "" if ".." in path.split("/") else quote(path, safe="/")
