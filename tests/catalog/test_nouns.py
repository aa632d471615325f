"""Nouns of shops' categories and titles, as a person would write them."""

import pytest

from refadgen.catalog.nouns import element_noun, member_in_title, things_in, title_noun


@pytest.mark.parametrize(
    ("element", "noun"),
    [
        ("Bottle  Openers", "a bottle opener"),
        ("Bottles (500 ml)", "a bottle"),
        ("Cookies", "a cookie"),
        ("SD Cards", "an sd card"),
        ("CD/DVD Cases", "a cd/dvd case"),
        ("xbox games", "an Xbox game"),
        ("IPHONES", "an iPhone"),
        # Stuff, and things of two parts.
        ("Dog Food", "dog food"),
        ("Women's Clothing", "women's clothing"),
        ("Dog Leads", "a dog lead"),
        ("Pet Supplies", "pet supplies"),
        ("Jeans", "a pair of jeans"),
        ("Earrings", "a pair of earrings"),
        ("Reading Glasses", "a pair of reading glasses"),
        ("Wine Glasses", "a wine glass"),
        # Lists of things.
        ("Coats & Jackets", "a coat or jacket"),
        ("Tops/T-Shirts", "a top or t-shirt"),
        ("Hats and Caps", "a hat or cap"),
        ("Pet Bowls, Feeders & Waterers", "a pet bowl, feeder or waterer"),
        ("Meat & Eggs", "meat or an egg"),
        ("Bicycle Shorts & Briefs", "a pair of bicycle shorts or a pair of briefs"),
        # One thing, described by a list.
        ("Coffee & Tea Cups", "a coffee or tea cup"),
        ("Baseball & Softball Bases & Plates", "a baseball or softball base or plate"),
        ("Fishing & Hunting Waders", "a pair of fishing or hunting waders"),
        ("Hook and Loop Fasteners", "a hook and loop fastener"),
        ("Sports & Energy Drinks", "a sports or energy drink"),
        # Activities and fields.
        ("Camping & Hiking", "camping and hiking equipment"),
        ("Golf", "golf equipment"),
        ("Skin Care", "a skin care product"),
        ("Health & Beauty", "a health and beauty product"),
    ],
)
def test_the_noun_of_an_element(element: str, noun: str) -> None:
    found = element_noun(element)
    assert found is not None
    assert found.with_article() == noun


def test_things_of_a_list() -> None:
    assert things_in("Coats & Jackets") == ["Coats", "Jackets"]
    assert things_in("Coffee & Tea Cups") == ["Coffee or Tea Cups"]
    assert things_in("4711 & 12") == ["4711 or 12"]
    assert element_noun("4711") is None


@pytest.mark.parametrize(
    ("title", "noun"),
    [
        ("Ocean Blue Shirt", "a shirt"),
        ("7 Shakra Bracelet", "a bracelet"),
        ("Anchor Bracelet Mens", "a bracelet"),
        ("Blue Denim Jacket - Size M", "a jacket"),
        ("Stainless Steel Bottle 500 ml", "a bottle"),
        ("Mug for coffee lovers, blue", "a mug"),
        ("Set of 4 Mugs", "a mug"),
        ("Copper Light", "a light"),
        ("Bottle of Olive Oil", "a bottle"),
        ("Levi's 501 Jeans", "a pair of jeans"),
        ("Best Mug Ever", "a mug"),
        ("Yoga Mat Extra Thick and Soft", "a mat"),
        ("Backpack Waterproof", "a backpack"),
        ("Yellow Watering Can", "a watering can"),
        ("Blue Swimming Goggles", "a pair of swimming goggles"),
        ("King Chair", "a chair"),
        # It cannot be told.
        ("Apple iPhone 15 Pro", None),
        ("Galaxy S21", None),
        ("Sony WH-1000XM4", None),
        ("Xqzzt", None),
        ("家居杯子", None),
        ("Summer Sale", None),
        ("Large", None),
        ("", None),
        (None, None),
    ],
)
def test_the_head_noun_of_a_title(title: str | None, noun: str | None) -> None:
    found = title_noun(title)
    assert (found and found.with_article()) == noun


@pytest.mark.parametrize(
    ("element", "noun"),
    [
        ("MUGS & CUPS", "a mug or cup"),
        ("MUG", "a mug"),
        ("SD CARDS", "an sd card"),
        ("UPS", "a ups"),
        ("LED Bulbs", "an LED bulb"),
        ("STEM Toys", "a stem toy"),
        ("Chest of Drawers", "a chest of drawers"),
        ("Bottles of Wine", "a bottle of wine"),
        ("Womens Tops", "a women's top"),
        ("Tshirts", "a t-shirt"),
        ("Chess", "chess equipment"),
    ],
)
def test_shops_capitals_and_spellings(element: str, noun: str) -> None:
    found = element_noun(element)
    assert found is not None
    assert found.with_article() == noun


def test_a_brand_is_no_head_noun() -> None:
    assert title_noun("Blue Bell", "Bell") is None
    assert title_noun("Sterling Mug", "Sterling") == title_noun("Mug")


def test_the_member_of_a_list_that_a_title_names() -> None:
    found = member_in_title("Coats & Jackets", "Blue denim JACKETS, size M")
    assert found is not None
    assert found.text == "jacket"
    assert member_in_title("Coats & Jackets", "Raincoat") is None
