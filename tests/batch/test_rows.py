"""Typed rows and their tables: what does not fit is refused by name."""

from dataclasses import dataclass

import pyarrow as pa
import pytest

from refadgen.batch.rows import Float32, Int32, from_table, schema_of, to_table
from refadgen.config import LayoutConfig


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    weight: Float32 | None = None


@dataclass(frozen=True, kw_only=True)
class Product:
    row: int
    sku: str
    picture: bytes = b""
    variant: Int32 = 0
    parts: tuple[Part, ...] = ()
    layout: LayoutConfig
    mask_iou: Float32 | None = None


PRODUCT = Product(row=2**40, sku="ä", parts=(Part(name="lid", weight=0.5), Part(name="cup")), layout=LayoutConfig())


def test_rows_come_back_equal_nested_ones_too() -> None:
    table = to_table([PRODUCT, PRODUCT], Product)
    assert from_table(table, Product) == [PRODUCT, PRODUCT]
    assert table.schema.field("variant").type == pa.int32()
    assert table.schema.field("mask_iou").type == pa.float32()
    assert from_table(to_table([], Product), Product) == []


def test_a_misspelt_column_is_refused_by_name() -> None:
    table = to_table([PRODUCT], Product).rename_columns(
        [name.replace("mask_iou", "mask_iuo") for name in schema_of(Product).names]
    )
    with pytest.raises(TypeError, match=r"Product: the table has no column mask_iou; it has .*mask_iuo"):
        from_table(table, Product)
    with pytest.raises(TypeError, match="mask_iuo"):
        Product(row=0, sku="a", layout=LayoutConfig(), mask_iuo=0.5)  # type: ignore[call-arg]


def test_missing_and_unknown_columns_are_refused_by_name() -> None:
    table = to_table([PRODUCT], Product)
    with pytest.raises(TypeError, match="Product: the table has no column sku"):
        from_table(table.drop_columns(["sku"]), Product)
    with pytest.raises(TypeError, match="Product: the table has the unknown column extra"):
        from_table(table.append_column("extra", pa.array([1])), Product)


def test_a_null_where_none_may_be_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"Product\.sku: None in a column without nulls"):
        to_table([Product(row=0, sku=None, layout=LayoutConfig())], Product)  # type: ignore[arg-type]
    table = to_table([PRODUCT], Product)
    table = table.set_column(1, "sku", pa.array([None], pa.string()))
    with pytest.raises(TypeError, match=r"Product\.sku: null in a column without nulls"):
        from_table(table, Product)
