"""Exports of shop systems, in the columns that their makers publish: what a row means, what is refused and how."""

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import parsed_rows, scan_catalog
from refadgen.catalog.scenes import load_scenes
from refadgen.errors import RowError

SCENES = load_scenes()

WOOCOMMERCE = r"""
ID,Type,SKU,"GTIN, UPC, EAN, or ISBN",Name,Published,"Is featured?",Categories,Tags,Images,Parent,Position
11,simple,MUG-1,,Stone Mug,1,0,"Home &amp; Bar &gt; Mugs, Sale",tea,"https://h.example/a\,b.jpg, https://h.example/c.jpg",,0
12,variable,TEE,,Plain Tee,1,0,"Clothing, Clothing > T-Shirts",,http://h.example/tee.jpg,,0
13,variation,TEE-RED,,Plain Tee - Red,1,0,,,https://h.example/tee-red.jpg,TEE,1
14,variation,,,Plain Tee - Blue,1,0,,,https://h.example/tee-blue.jpg,TEE,2
15,"simple, virtual",CARD,,Gift Card,1,0,Uncategorized,,,,0
"""
MAGENTO = """
sku,store_view_code,product_type,categories,name,base_image,additional_images,configurable_variations
24-B01,,simple,"Default Category/Gear,Default Category/Gear/Bags",Duffle,/m/b/mb01.jpg,"/m/b/mb01.jpg,/m/b/mb02.jpg",
24-B01,german,simple,"Default Category/Gear,Default Category/Gear/Bags",Sporttasche,,,
WS-1,,configurable,Default Category/Women/Tops/Jackets,A Jacket,https://h.example/media/ws.jpg,,"sku=WS-1-XS,size=XS"
X-1,,virtual,Default Category/Promotions,Gift Wrap Service,no_selection,,
"""
SHOPIFY = """
Handle,Title,Body (HTML),Vendor,Product Category,Type,Variant SKU,Image Src,Image Position,Variant Image
clay-pot,Clay Pot,<p>x</p>,Acme,Home & Garden > Decor > Pots,Outdoor,P-S,https://cdn.example/1.jpg,1,https://cdn.example/s.jpg
clay-pot,,,,,,P-L,https://cdn.example/2.jpg,2,https://cdn.example/l.jpg
clay-pot,,,,,,,https://cdn.example/3.jpg,3,
sofa,Cream Sofa,,Acme,,Sofas,,https://cdn.example/4.jpg,1,
"""
SHOPIFY_2025 = """
Title,URL handle,Description,Vendor,Product category,Type,SKU,Product image URL,Image position,Variant image URL
Clay Pot,clay-pot,,Acme,Home & Garden > Decor > Pots,Outdoor,,https://cdn.example/1.jpg,1,
,clay-pot,,,,,,https://cdn.example/2.jpg,2,
"""


def written(folder: Path, text: str, *, rows: int | None = None) -> str:
    """The export as parquet: empty cells are nulls, as DuckDB and pandas read them."""
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    table = pyarrow.csv.read_csv(io.BytesIO(text.strip().encode()), convert_options=options)
    pq.write_table(table.slice(0, rows), folder / "export.parquet")
    return str(folder / "export.parquet")


def rows_of(uri: str) -> list[CatalogRow | RowError]:
    scan = scan_catalog(uri)
    return [row for part in scan.fragments for _, _, row in parsed_rows(part, scan.first_rows)]


def told(row: CatalogRow | RowError) -> tuple[str, ...]:
    """Sku, image and noun of a row, or why it is refused."""
    if isinstance(row, RowError):
        return (row.reason,)
    return row.sku, str(row.image), SCENES.noun_of(row.category, row.title, row.brand).noun.with_article()


def test_woocommerce(tmp_path: Path) -> None:
    assert [told(row) for row in rows_of(written(tmp_path, WOOCOMMERCE))] == [
        ("MUG-1", "https://h.example/a,b.jpg", "a mug"),
        ("TEE", "http://h.example/tee.jpg", "a t-shirt"),
        ("TEE-RED", "https://h.example/tee-red.jpg", "a tee"),
        ("empty_sku",),
        ("missing_image",),
    ]


def test_magento(tmp_path: Path) -> None:
    assert [told(row) for row in rows_of(written(tmp_path, MAGENTO))] == [
        ("24-B01", "m/b/mb01.jpg", "a bag"),
        ("missing_image",),
        ("WS-1", "https://h.example/media/ws.jpg", "a jacket"),
        ("missing_image",),
    ]


@pytest.mark.parametrize("text", [SHOPIFY, SHOPIFY_2025])
def test_shopify_with_several_rows_a_product_is_refused_with_what_helps(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is Shopify's export.*'clay-pot' has\).* as in DuckDB: COPY") as error:
        scan_catalog(written(tmp_path, text))
    # The statement's columns, done by hand: DuckDB is no package of ours.
    renamed = dict(re.findall(r'"([^"]+)" AS (\w+)', str(error.value)))
    table = pq.read_table(tmp_path / "export.parquet")
    kept = table.filter(table["Title"].is_valid()).select(list(renamed)).rename_columns(list(renamed.values()))
    pq.write_table(kept, tmp_path / "catalog.parquet")
    first, *others = [told(row) for row in rows_of(str(tmp_path / "catalog.parquet"))]
    assert first == ("clay-pot", "https://cdn.example/1.jpg", "a pot")
    assert others == ([("sofa", "https://cdn.example/4.jpg", "a sofa")] if text == SHOPIFY else [])


def test_shopify_with_one_row_a_product(tmp_path: Path) -> None:
    assert told(rows_of(written(tmp_path, SHOPIFY, rows=1))[0]) == ("P-S", "https://cdn.example/1.jpg", "a pot")
    assert told(rows_of(written(tmp_path, SHOPIFY_2025, rows=1))[0])[0] == "clay-pot"


def test_text_files_are_refused_with_what_makes_parquet_of_them(tmp_path: Path) -> None:
    file = tmp_path / "products.csv"
    file.write_text(WOOCOMMERCE.strip(), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"COPY \(FROM read_csv\('{file}', all_varchar=true\)\) TO 'catalog.parquet'"):
        scan_catalog(str(file))
    (tmp_path / "products.parquet").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"products\.parquet: not a readable parquet file \([^)]*\)$"):
        scan_catalog(str(tmp_path / "products.parquet"))


def test_a_list_of_pictures_is_refused_with_the_remedy(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sku": ["a"], "images": [["a.png", "b.png"]]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"'images' \(image\) is of type list.*SQL: images\[1\] AS image"):
        scan_catalog(str(tmp_path))
