"""A category's path, last element and noun: one reading for prompts, captions and the detector."""

import pytest

from refadgen.catalog.categories import as_noun, last_element, normalized, path_elements, singular


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
    ("word", "one"),
    [
        ("mugs", "mug"), ("glasses", "glass"), ("watches", "watch"), ("boxes", "box"), ("batteries", "battery"),
        ("glass", "glass"), ("dress", "dress"), ("bus", "bus"), ("gas", "gas"), ("men's", "men's"),
        ("women’s", "women’s"), ("mug", "mug"), ("", ""),
    ],
)  # fmt: skip
def test_singular(word: str, one: str) -> None:
    assert singular(word) == one


def test_nouns_and_names_to_compare() -> None:
    assert as_noun("Bottle  Openers") == "bottle opener"
    assert normalized("Men's Wine-Glasses, Large") == "men wine glass large"
