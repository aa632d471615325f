"""The columns of a catalogue: our names, the names that shops export them under, and the types they may have.

`resolve_columns` reads a schema once, before the job starts, and maps our names to the columns that are there.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the catalogue.

    meaning: one sentence for the column reference. aliases: other names for it, as Google Merchant and common exports
    write them; the first one that is there is taken. accepts: whether the column may have this arrow type, unwrapped.
    accepted: the same in words. required: whether a catalogue without it is refused.
    """

    name: str
    meaning: str
    accepts: Callable[[pa.DataType], bool]
    accepted: str
    aliases: tuple[str, ...] = ()
    required: bool = False
    of_many_kinds: frozenset[str] = frozenset()
    """Aliases under which others keep columns of other types too: those are no such column."""


class Holds(Enum):
    """What a column holds whose type does not fit, as its values tell."""

    NOTHING = auto()
    """Nulls and NaN: pandas writes an empty column as floats."""
    WHOLE_NUMBERS = auto()
    """Whole numbers and nulls, as floats or decimals: pandas' integers beside gaps, a NUMERIC(38, 9)."""
    OTHER = auto()


def _unknown(_: str) -> Holds:
    return Holds.OTHER


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def _is_number(kind: pa.DataType) -> bool:
    return bool(_is_integer(kind) or pa.types.is_floating(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text_or_integer(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_integer(kind) or isinstance(kind, pa.UuidType)


def _is_prompt(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    kind = _single_field(kind)  # BigQuery: struct<list: list<struct<element: string>>>
    if any(test(kind) for test in tests):
        item = _single_field(unwrapped(kind.value_type))
        return _is_text(item) or bool(pa.types.is_null(item))
    return _is_text(kind)


def _single_field(kind: pa.DataType) -> pa.DataType:
    """The type of a struct's only field; any other type as it is."""
    return unwrapped(kind.field(0).type) if pa.types.is_struct(kind) and kind.num_fields == 1 else kind


def _is_category(kind: pa.DataType) -> bool:
    return bool(_is_prompt(kind) or _is_number(kind) or pa.types.is_decimal(kind))


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_text(kind) or _is_bytes(kind)
    fields = {field.name.lower(): unwrapped(field.type) for field in kind}
    data, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
    fits = (_is_bytes(data) or pa.types.is_null(data)) and (_is_text(path) or pa.types.is_null(path))
    return bool(fits and not (pa.types.is_null(data) and pa.types.is_null(path)))


def _is_placement(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_text(kind)
    fields = {field.name.lower(): unwrapped(field.type) for field in kind}
    size, anchor = fields.pop("size", pa.null()), fields.pop("anchor", pa.null())
    fits = (_is_number(size) or pa.types.is_null(size)) and (_is_text(anchor) or pa.types.is_null(anchor))
    return bool(fits and not fields)


_TEXT = "text"
_TEXT_OR_INTEGER = "text or integers"
# pandas turns an integer column with nulls into floats.
_INTEGER = "integers (or integers as floats, as pandas writes them beside nulls)"
_IMAGE = "text (a path or address), binary (an encoded image) or struct<bytes: binary, path: string>"

_GOOGLE_CATEGORIES = ("google_product_category", "google_shopping_/_google_product_category")

COLUMNS: tuple[Column, ...] = (
    Column(
        name="sku",
        meaning="The shop's own name of the product, up to 256 characters of any kind.",
        accepts=_is_text_or_integer,
        accepted=_TEXT_OR_INTEGER,
        aliases=("id", "product_id", "item_id", "offer_id", "variant_sku", "handle", "url_handle"),
        required=True,
    ),
    Column(
        name="image",
        meaning="The photograph of the product: path, address or the encoded image itself.",
        accepts=_is_image,
        accepted=_IMAGE,
        aliases=(
            "image_link",
            "image_url",
            "image_uri",
            "image_path",
            "image_src",
            "product_image",
            "product_image_url",
            "base_image",
            "images",
        ),
        required=True,
    ),
    Column(
        name="title",
        meaning="The product's name, for scene templates that use {product}.",
        accepts=_is_text_or_integer,
        accepted=_TEXT_OR_INTEGER,
        aliases=("name", "product_name", "product_title"),
    ),
    Column(
        name="category",
        meaning="The kind of product; the last element of a path such as `Kitchen > Cups` counts.",
        accepts=_is_category,
        accepted="text, list<text> or numbers",
        aliases=("product_type", *_GOOGLE_CATEGORIES, "product_category", "categories"),
        of_many_kinds=frozenset({"categories"}),
    ),
    Column(
        name="brand",
        meaning="The maker's name.",
        accepts=_is_text_or_integer,
        accepted=_TEXT_OR_INTEGER,
        aliases=("manufacturer", "vendor"),
    ),
    Column(
        name="prompt",
        meaning="The scene in words, or a list of scenes; without one, the category's scene templates are used.",
        accepts=_is_prompt,
        accepted="text or list<text>",
        aliases=("prompts",),
    ),
    Column(
        name="negative_prompt",
        meaning="Things that the images should not show.",
        accepts=_is_text,
        accepted=_TEXT,
    ),
    Column(
        name="num_variants",
        meaning="Images of each scene, 1 to 100.",
        accepts=_is_number,
        accepted=_INTEGER,
    ),
    Column(
        name="seed",
        meaning="Seed of the product's images, 0 to 2^63 - 1.",
        accepts=_is_number,
        accepted=_INTEGER,
    ),
    Column(
        name="placement",
        meaning="Where the product stands: `size=0.5 anchor=bottom-left`, the same as JSON, or a struct.",
        accepts=_is_placement,
        accepted="text or struct<size: float, anchor: string>",
    ),
    Column(
        name="mask",
        meaning="The product's mask, white on black and as large as the image; given like `image`.",
        accepts=_is_image,
        accepted=_IMAGE,
        aliases=("mask_link", "mask_url", "mask_path", "product_mask"),
    ),
)


DATASET_COLUMNS: tuple[Column, ...] = (
    *COLUMNS,
    Column(
        name="captions",
        meaning="Descriptions of the image, one text or several: only for data sets, where the image is an ad.",
        accepts=_is_prompt,
        accepted="text or list<text>",
        aliases=("caption",),
    ),
    Column(
        name="group",
        meaning="The product that several rows show: a data set keeps them in one split.",
        accepts=_is_text_or_integer,
        accepted=_TEXT_OR_INTEGER,
        aliases=("item_group_id", "parent_id"),
    ),
)
"""The columns that a data set reads: those of a catalogue, and two more."""


def resolve_columns(
    schema: pa.Schema, columns: tuple[Column, ...] = COLUMNS, holds: Callable[[str], Holds] = _unknown
) -> dict[str, str]:
    """Maps our names to the catalogue's columns, without those that are missing or hold only nulls.

    holds: reads what a column holds whose type does not fit; whole numbers are then taken as integers.

    Names match without case, with `-` and spaces as `_`, and with or without Google's `g:`. A column under its own name
    wins over one under an alias. Unknown columns are ignored.
    Raises: ValueError when `sku` or `image` is missing or holds only nulls, when a name occurs twice, or when a column
    is of a type that is not accepted. The message names the column, its type and the accepted types.
    """
    found: dict[str, str] = {}
    for column in columns:
        only_null = []
        for field in _candidates(schema, column):
            kind = unwrapped(field.type)
            if pa.types.is_null(kind):
                only_null.append(field.name)
                continue
            if not column.accepts(kind):
                found_values = holds(field.name)
                if found_values is Holds.NOTHING:
                    only_null.append(field.name)
                    continue
                if normalized_column(field.name) in column.of_many_kinds:
                    continue
                if found_values is Holds.OTHER or not column.accepts(pa.int64()):
                    raise ValueError(
                        f"the catalogue's column {field.name!r} ({column.name}) is of type {field.type}: "
                        f"must be {column.accepted}; {_remedy(field.name, kind, column)}"
                    )
            found[column.name] = field.name
            break
        else:
            if only_null and column.required:
                raise ValueError(f"the catalogue's column {only_null[0]!r} ({column.name}) holds nothing but nulls")
            if column.required:
                raise ValueError(_missing(schema, column))
    return found


def _remedy(name: str, kind: pa.DataType, column: Column) -> str:
    """What to do about a column of an unfit type."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"take one, as in SQL: {name}[1] AS {column.name}; or give it a name that is not read"
    target = "VARCHAR" if column.accepts(pa.string()) else "BIGINT"
    return f"cast it, as in SQL: CAST({name} AS {target}); or give it a name that is not read"


def category_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold a category, the best first: a row whose first one names nothing is read from the next."""
    column = next(column for column in COLUMNS if column.name == "category")
    return [field.name for field in _candidates(schema, column) if column.accepts(unwrapped(field.type))]


def holds_google_numbers(name: str) -> bool:
    """Whether numbers in this column of categories are Google's; in any other they are the shop's own, and unknown."""
    return normalized_column(name) in _GOOGLE_CATEGORIES


def unwrapped(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values: without dictionary or run-end encoding; for an extension type, its storage.

    A UUID stays one: its values are read as text, those of its storage would be bytes.
    """
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
            kind = kind.storage_type
        else:
            return kind


def normalized_column(name: str) -> str:
    """A column's name in the form in which names are compared: `g:Image-Link` → `image_link`."""
    return name.strip().lower().removeprefix("g:").strip().replace("-", "_").replace(" ", "_")


def _candidates(schema: pa.Schema, column: Column) -> Iterator[pa.Field]:
    """Yields the schema's fields that match `column`, the best match first."""
    for name in (column.name, *column.aliases):
        exact = [field for field in schema if field.name == name]
        fields = exact or [field for field in schema if normalized_column(field.name) == name]
        if len(fields) > 1:
            names = ", ".join(repr(field.name) for field in fields)
            raise ValueError(f"the catalogue has {column.name} more than once ({names}): rename or drop all but one")
        yield from fields


def _missing(schema: pa.Schema, column: Column) -> str:
    """The message for a required column that is missing."""
    if not len(schema):
        return f"the catalogue has no columns at all; it needs {column.name}"
    accepted = (column.name, *column.aliases)
    near = max(schema.names, key=lambda name: _likeness(name, accepted))
    guess = f" Is {near!r} meant? Rename it." if _likeness(near, accepted) >= 0.6 else ""
    names = ", ".join(repr(name) for name in schema.names[:30])
    more = f" and {len(schema) - 30} more" if len(schema) > 30 else ""
    return (
        f"the catalogue has no column {column.name!r} (also accepted: {', '.join(column.aliases)}); "
        f"it has {names}{more}.{guess}"
    )


def _likeness(name: str, accepted: tuple[str, ...]) -> float:
    """How much a column's name is like the nearest accepted one, 0 to 1."""
    return max(difflib.SequenceMatcher(None, normalized_column(name), each).ratio() for each in accepted)
