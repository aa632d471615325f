"""Exports of shop systems as they come: what their columns hold that other catalogues' do not."""

from collections.abc import Iterable
from typing import Any

from refadgen.catalog.columns import normalized_column

_SHOPIFY_HANDLES = ("handle", "url_handle")
_SHOPIFY_IMAGES = ("image_src", "product_image_url")
_SHOPIFY_COLUMNS = {
    "title": "title",
    "image_src": "image",
    "product_image_url": "image",
    "vendor": "brand",
    "type": "product_type",
    "product_category": "product_category",
    "google_shopping_/_google_product_category": "google_product_category",
}
"""What the remedy calls Shopify's columns, by their names as `normalized_column`."""


def shopify_handle(names: Iterable[str]) -> str | None:
    """The column that Shopify's export of products is grouped by; None: the columns are not Shopify's."""
    found = {normalized_column(name): name for name in names}
    if not any(name in found for name in _SHOPIFY_IMAGES):
        return None
    return next((found[name] for name in _SHOPIFY_HANDLES if name in found), None)


def several_rows_message(names: Iterable[str], handle: str, repeated: str, shown: str) -> str:
    """Why Shopify's export in the file `shown` is refused, where the product `repeated` has several rows."""
    kept = [
        (name, _SHOPIFY_COLUMNS[normalized_column(name)])
        for name in names
        if normalized_column(name) in _SHOPIFY_COLUMNS
    ]
    title = next((name for name, ours in kept if ours == "title"), handle)
    columns = ", ".join(f'"{name}" AS {ours}' for name, ours in [(handle, "sku"), *kept])
    return (
        f"{shown}: is Shopify's export, in which a product has several rows ({repeated!r} has), one for each variant "
        "and picture, and most of them have no title: keep the first row of each, as in DuckDB: "
        f"COPY (SELECT {columns} FROM '{shown}' WHERE \"{title}\" <> '') TO 'catalog.parquet'"
    )


def images_of(name: str, values: list[Any]) -> list[Any]:
    """The images in the column `name`.

    Magento's `base_image` is a path below its folder of pictures, `/m/b/mb01.jpg`, or `no_selection`: it is read as a
    path below the catalogue's folder.
    """
    return list(map(_magento_image, values)) if normalized_column(name) == "base_image" else values


def _magento_image(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = value.strip()
    return None if path == "no_selection" else path if path.startswith("//") else path.lstrip("/")
