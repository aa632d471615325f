# ruff: noqa: E501 (rows of exports are long)
"""Exports of Shopify, WooCommerce and Magento, in the columns that their makers publish."""

from pathlib import Path

import pytest
from feed_files import Open, open_here, report_of, rows_of, told

SHOPIFY = """
Handle,Title,Body (HTML),Vendor,Product Category,Type,Published,Option1 Name,Option1 Value,Variant SKU,Variant Inventory Tracker,Variant Inventory Qty,Variant Inventory Policy,Variant Price,Variant Requires Shipping,Image Src,Image Position,Gift Card,Variant Image,Status
pot,Clay &amp; Stone Pot,<p>x</p>,Acme,Home & Garden > Decor > Pots,Pots,true,Size,Small,P-S,shopify,1,deny,9,true,https://h.example/2.jpg,2,false,,active
pot,,,,,,,,Large,,shopify,1,deny,12,true,https://h.example/1.jpg,1,,https://h.example/l.jpg,
pot,,,,,,,,,,,,,,,https://h.example/3.jpg,3,,,
sofa,Cream Sofa,,Acme,,Sofas,true,Title,Default Title,,,0,deny,500,true,https://h.example/4.jpg,1,false,,active
cup,Cup,,Acme,,Cups,true,Title,Default Title,00123,shopify,0,deny,5,true,https://h.example/5.jpg,1,false,,active
mug,Mug,,Acme,,Mugs,true,Title,Default Title,M,shopify,-2,continue,5,true,https://h.example/6.jpg,1,false,,active
card,Gift Card,,Acme,,,true,Title,Default Title,G,,,,10,false,https://h.example/7.jpg,1,true,,active
vase,Vase,,Acme,,Vases,false,Title,Default Title,V,,,,10,true,https://h.example/8.jpg,1,false,,draft
"""
SHOPIFY_2025 = """
Title,URL handle,Description,Vendor,Product category,Type,Status,SKU,Option1 value,Price,Product image URL,Image position,Variant image URL
Clay Pot,clay-pot,,Acme,Home & Garden > Decor > Pots,Pots,Active,,Small,5,https://h.example/1.jpg,1,
,clay-pot,,,,,,,Large,6,https://h.example/2.jpg,2,
,clay-pot,,,,,,,,,https://h.example/3.jpg,3,
"""
WOOCOMMERCE = r"""
ID,Type,SKU,Name,Published,"Is featured?","In stock?",Categories,Images,Parent,Position
13,variation,TEE-RED,Plain Tee - Red,1,0,1,,https://h.example/red.jpg,TEE,1
11,simple,MUG-1,Stone Mug,1,0,1,"Home &amp; Bar &gt; Mugs, Sale","https://h.example/a\,b.jpg, https://h.example/c.jpg",,0
12,variable,TEE,Plain Tee,1,0,1,"Clothing, Clothing > T-Shirts",http://h.example/tee.jpg,,0
14,variation,,,1,0,1,,,id:12,2
15,"simple, virtual",CARD,Voucher,1,0,1,Uncategorized,https://h.example/v.jpg,,0
16,simple,OLD,Old Cup,-1,0,1,Cups,https://h.example/o.jpg,,0
17,simple,GONE,Gone Cup,1,0,0,Cups,https://h.example/g.jpg,,0
18,variable,LONE,Lone Parent,1,0,1,Cups,https://h.example/l.jpg,,0
"""
MAGENTO = """
sku,store_view_code,attribute_set_code,product_type,categories,name,product_online,base_image,is_in_stock,additional_images,configurable_variations
0024,,Bag,simple,"Default Category/Gear,Default Category/Gear/Bags",Duffle,1,/m/b/mb01.jpg,1,"/m/b/mb01.jpg,/m/b/mb02.jpg",
0024,german,Bag,simple,,Sporttasche,,,,,
WS-XS,,Top,simple,,A Jacket-XS,1,no_selection,1,,
WS-S,,Top,simple,Default Category/Women/Jackets,A Jacket-S,1,/w/s.jpg,1,,
WS,,Top,configurable,Default Category/Women/Jackets,A Jacket,1,https://h.example/ws.jpg,1,,"sku=WS-XS,size=XS|sku=WS-S,size=S"
SOLO,,Top,configurable,Default Category/Women/Tops,A Top,1,/s/o.jpg,1,,"sku=NOT-HERE,size=S"
WRAP,,Gift,virtual,Default Category/Gifts,Wrapping,1,,1,,
OFF,,Bag,simple,Default Category/Gear,Off,2,/o/f.jpg,1,,
OUT,,Bag,simple,Default Category/Gear,Out,1,/o/u.jpg,0,,
"""


def test_shopify(opened: Open) -> None:
    catalog = opened("products.csv", SHOPIFY.strip())
    assert "read as Shopify's export of products, separated by commas" in catalog.read_as
    pots = "Home & Garden > Decor > Pots"
    assert told(catalog) == [
        ("P-S", "https://h.example/1.jpg", "Clay & Stone Pot", "Pots"),
        ("pot:Large", "https://h.example/l.jpg", "Clay & Stone Pot", "Pots"),
        ("sofa", "https://h.example/4.jpg", "Cream Sofa", "Sofas"),
        ("M", "https://h.example/6.jpg", "Mug", "Mugs"),
    ]
    assert {row.brand for row in rows_of(catalog)} == {"Acme"}
    assert report_of(catalog).lines() == [
        "rows in the feed: 8, products: 4, left out: 4",
        "        1 a further picture of a product; the first: line 4 (pot)",
        "        1 draft (catalog.leave_out); the first: line 9 (vase)".replace("vase", "V"),
        "        1 out-of-stock (catalog.leave_out); the first: line 6 (00123)",
        "        1 virtual (catalog.leave_out); the first: line 8 (G)",
    ]
    assert "columns not used: Body (HTML), Option1 Name" in catalog.lines()
    everything = opened("products.csv", SHOPIFY.strip(), "catalog.leave_out=[]")
    assert [row.sku for row in rows_of(everything)] == ["P-S", "pot:Large", "sofa", "00123", "M", "G", "V"]
    assert pots not in {row.category for row in rows_of(everything)}


def test_the_newer_export_of_shopify(opened: Open) -> None:
    assert told(opened("products.csv", SHOPIFY_2025.strip())) == [
        ("clay-pot:Small", "https://h.example/1.jpg", "Clay Pot", "Pots"),
        ("clay-pot:Large", "https://h.example/1.jpg", "Clay Pot", "Pots"),
    ]


def test_woocommerce(opened: Open) -> None:
    catalog = opened("products.csv", WOOCOMMERCE.strip())
    assert "read as WooCommerce's export of products" in catalog.read_as
    tees = "Clothing, Clothing > T-Shirts"
    assert told(catalog) == [
        ("MUG-1", "https://h.example/a,b.jpg", "Stone Mug", "Home &amp; Bar &gt; Mugs, Sale"),
        ("id:14", "http://h.example/tee.jpg", "Plain Tee", tees),
        ("TEE-RED", "https://h.example/red.jpg", "Plain Tee - Red", tees),
        ("LONE", "https://h.example/l.jpg", "Lone Parent", "Cups"),
    ]
    assert dict(report_of(catalog).left_out) == {
        "virtual (catalog.leave_out)": 1,
        "draft (catalog.leave_out)": 1,
        "out-of-stock (catalog.leave_out)": 1,
        "the parent of variations": 1,
    }
    assert "columns not used: Is featured?, Position" in catalog.lines()


@pytest.mark.parametrize(
    "header",
    [
        'ID,Typ,Artikelnummer,Name,Veröffentlicht,"Ist hervorgehoben?",Vorrätig?,Kategorien,Bilder,"Übergeordnetes Produkt",Position',
        'ID,Tipo,SKU,Nombre,Publicado,"¿Está destacado?","¿En inventario?",Categorías,Imágenes,Superior,Posición',
        'ID,Type,UGS,Nom,Publié,"Mis en avant ?","En stock ?",Catégories,Images,Parent,Position',
        'ID,Type,UGS,Nom,Publié,"Mis en avant\u00a0?","En stock\u00a0?",Catégories,Images,Parent,Position',
    ],
    ids=["German", "Spanish", "French", "French, no-break spaces"],
)
def test_woocommerce_in_the_shops_language(opened: Open, header: str) -> None:
    first, _, rest = WOOCOMMERCE.strip().partition("\n")
    english = opened("english.csv", f"{first}\n{rest}")
    translated = opened("translated.csv", f"{header}\n{rest}")
    assert "read as WooCommerce's export of products" in translated.read_as
    assert told(translated) == told(english)
    assert report_of(translated).left_out == report_of(english).left_out


def test_a_parent_of_woocommerce_in_another_file_than_its_variation(tmp_path: Path) -> None:
    header, *rows = WOOCOMMERCE.strip().splitlines()
    folder = tmp_path / "shop" / "export"
    folder.mkdir(parents=True)
    (folder / "1.csv").write_text("\n".join([header, rows[0], rows[3]]))  # variations
    (folder / "2.csv").write_text("\n".join([header, rows[2]]))  # their parent
    catalog = open_here(folder)
    tees = "Clothing, Clothing > T-Shirts"
    assert told(catalog) == [
        ("TEE-RED", "https://h.example/red.jpg", "Plain Tee - Red", tees),
        ("id:14", "http://h.example/tee.jpg", "Plain Tee", tees),
    ]
    assert report_of(catalog).lines()[1:] == ["        1 the parent of variations; the first: 2.csv, line 2 (TEE)"]


def test_magento(opened: Open) -> None:
    catalog = opened("products.csv", MAGENTO.strip())
    assert "read as Magento's export of products" in catalog.read_as
    jackets = "Default Category/Women/Jackets"
    assert told(catalog) == [
        ("0024", "m/b/mb01.jpg", "Duffle", "Default Category/Gear,Default Category/Gear/Bags"),
        ("WS-S", "w/s.jpg", "A Jacket-S", jackets),
        ("WS-XS", "https://h.example/ws.jpg", "A Jacket-XS", jackets),
        ("SOLO", "s/o.jpg", "A Top", "Default Category/Women/Tops"),
    ]
    assert dict(report_of(catalog).left_out) == {
        "texts of another store view": 1,
        "the parent of variations": 1,
        "virtual (catalog.leave_out)": 1,
        "draft (catalog.leave_out)": 1,
        "out-of-stock (catalog.leave_out)": 1,
    }


def test_an_export_is_asked_for_that_it_is_not(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"catalog\.format=shopify: .*has not the columns of its export"):
        opened("products.csv", MAGENTO.strip(), "catalog.format=shopify")
    with pytest.raises(ValueError, match=r"catalog\.leave_out='sold': must be some of virtual, draft, out-of-stock"):
        opened("products.csv", MAGENTO.strip(), "catalog.leave_out=[sold]")
