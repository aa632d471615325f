"""A category's path, last element and noun: one reading for prompts, captions and the detector."""

import pytest

from refadgen.catalog.categories import category_of_list, last_element, names_thing, normalized_category, path_elements


@pytest.mark.parametrize(
    ("category", "elements"),
    [
        # Google's taxonomy and feeds written after it: a slash stays inside a name.
        ("Home & Garden > Kitchen & Dining > Mugs", ["Home & Garden", "Kitchen & Dining", "Mugs"]),
        ("Media > DVDs & Videos", ["Media", "DVDs & Videos"]),
        ("Computer Components > I/O Cards & Adapters", ["Computer Components", "I/O Cards & Adapters"]),
        ("Clothing>Tops/T-Shirts", ["Clothing", "Tops/T-Shirts"]),
        ("Home » Travel Mugs", ["Home", "Travel Mugs"]),
        ("Home › Mugs", ["Home", "Mugs"]),
        ("Home | Mugs |", ["Home", "Mugs"]),
        # Magento's paths.
        ("Home/Mugs", ["Home", "Mugs"]),
        ("Default Category/Home & Garden/Mugs", ["Default Category", "Home & Garden", "Mugs"]),
        ("/Home//Mugs/", ["Home", "Mugs"]),
        ("Home / Kitchen / TV", ["Home", "Kitchen", "TV"]),
        ("HOME/MUGS", ["HOME", "MUGS"]),
        ("MEN/Shirts", ["MEN", "Shirts"]),
        ("Women's/Tops", ["Women's", "Tops"]),
        ("T-Shirts/Tops", ["T-Shirts", "Tops"]),
        ("家居/杯子", ["家居", "杯子"]),
        # Slashes that belong to a word.
        ("TV/Audio", ["TV/Audio"]),
        ("Electronics/TV/Audio", ["Electronics", "TV/Audio"]),
        ("CD/DVD Cases", ["CD/DVD Cases"]),
        ("DVD/Blu-ray Players", ["DVD/Blu-ray Players"]),
        ("TVs/Monitors", ["TVs/Monitors"]),
        ("Bottle w/ lid", ["Bottle w/ lid"]),
        ("Mugs w/o handle", ["Mugs w/o handle"]),
        ("Cups and/or Mugs", ["Cups and/or Mugs"]),
        ("1/2 Zip Sweaters", ["1/2 Zip Sweaters"]),
        # WooCommerce's entities.
        ("Home &amp; Garden &gt; Mugs", ["Home & Garden", "Mugs"]),
        ("Men&#39;s Shoes", ["Men's Shoes"]),
        ("Pots&notes", ["Pots&notes"]),
        # Elements without a letter name nothing.
        ("Mugs > 4711", ["Mugs"]),
        ("4711", []),
        (" > ", []),
        ("", []),
        (None, []),
    ],
)
def test_elements_of_a_path(category: str | None, elements: list[str]) -> None:
    assert path_elements(category) == elements
    assert last_element(category) == (elements[-1] if elements else None)


@pytest.mark.parametrize(
    ("cell", "last"),
    [
        # WooCommerce and Magento write all categories of a product into one cell.
        ("Clothing > Hats, Sale", "Hats"),
        ("Clothing > Tshirts, Clothing > Sale", "Tshirts"),
        ("Sale, Clothing > Tshirts", "Tshirts"),
        ("Sale; Bags", "Bags"),
        ("Default Category/Sale,Default Category/Gear/Bags", "Bags"),
        ("Default Category/Gear/Bags|Default Category/Sale", "Bags"),
        ("Default Category/Gear,Default Category/Gear/Bags", "Bags"),
        ("Clothing, Clothing > Hats, Clothing > Hats > Sale", "Hats"),
        ("Clothing > Hats, Shoes, Shoes > Boots", "Hats"),
        ("Home > Pots | Home > Sale", "Pots"),
        (r"Home > Mugs\, Cups", "Mugs, Cups"),
        # Google's own names hold commas.
        ("Food, Beverages & Tobacco > Food Items > Bread", "Bread"),
        ("Electronics > Print, Copy, Scan & Fax", "Print, Copy, Scan & Fax"),
        ("Animals > Pet Bowls, Feeders & Waterers", "Pet Bowls, Feeders & Waterers"),
        ("187 - Apparel & Accessories > Shoes", "Shoes"),
        # What names no thing.
        ("Men | Shoes | Sale", "Shoes"),
        ('["Home","Mugs"]', "Mugs"),
        ("['Shoes', 'Boots']", "Boots"),
        ('["Clothing >> Shorts >> Cycling Shorts"]', "Cycling Shorts"),
        ("[]", None),
        ("Shirts > Size L", "Shirts"),
        ("Shirts > Navy Blue", "Shirts"),
        ("Wine > Red Wine > 75cl", "Red Wine"),
        ("Puzzles > 1000 Pieces", "Puzzles"),
        ("Toys & Games > Board Games > Ages 8+", "Board Games"),
        ("Shirts > SS24", "Shirts"),
        ("Shirts > AW23 Collection", "Shirts"),
        ("frontpage", None),
        ("Home page", None),
        ("Home > Kitchen > Mugs > Gift Ideas", "Mugs"),
        ("coffee_mugs", "coffee mugs"),
        ("mens-shoes", "mens shoes"),
        ("t-shirts", "t-shirts"),
        ("Home → Kitchen → Mugs", "Mugs"),
        ("Home::Kitchen::Mugs", "Mugs"),
        ("Home\\Kitchen\\Mugs", "Mugs"),
        ("Mugs™", "Mugs"),
        ("🎁 Mugs", "Mugs"),
        ("Clothing > Women's > New Arrivals", "Clothing"),
        ("Gifts > Under $20", None),
        ("Default Category/Home/Christmas", None),
        ("simple", None),
        ("configurable", None),
        ("Uncategorized", None),
        ("gid://shopify/TaxonomyCategory/sg-4-17-2-17", None),
    ],
)
def test_the_last_element_that_names_a_thing(cell: str, last: str | None) -> None:
    assert last_element(cell) == last


def test_a_brand_names_no_thing() -> None:
    assert not names_thing("ACME", "Acme")
    assert names_thing("Acme Shoes", "Acme")


def test_names_to_compare() -> None:
    assert normalized_category("Men's Wine-Glasses, Large") == "men wine glass large"
    assert normalized_category("Headphones") == normalized_category("headphone")


@pytest.mark.parametrize(
    ("items", "element"),
    [
        (["Home & Kitchen", "Dining", "Mugs"], "Mugs"),
        (["Toys, Games", "Puzzles; Boards", "Jigsaws", "Sale"], "Jigsaws"),
        (["Arts, Crafts"], "Arts, Crafts"),
        (["Home > Mugs", "Sale"], "Mugs"),
        (["Home &gt; Mugs", "Hats"], "Mugs"),
        (["Default Category/Home/Mugs", "Default Category/Hats"], "Mugs"),
        (["gid://shopify/Collection/1", "Mugs"], "Mugs"),
        ([], None),
    ],
)
def test_a_list_of_plain_names_is_a_path_and_of_paths_several_categories(items: list[str], element: str | None) -> None:
    assert last_element(category_of_list(items)) == element


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "<NA>", "null", "N/A"])
def test_what_tools_write_for_an_empty_cell_names_nothing(cell: str) -> None:
    assert last_element(cell) is None
