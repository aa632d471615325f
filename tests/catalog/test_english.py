"""English words: singulars that a dictionary knows or not, and articles by sound."""

import pytest

from refadgen.catalog.english import Noun, article, singular


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("mugs", "mug"), ("glasses", "glass"), ("watches", "watch"), ("boxes", "box"), ("batteries", "battery"),
        ("glass", "glass"), ("dress", "dress"), ("bus", "bus"), ("gas", "gas"), ("men's", "men's"),
        ("women’s", "women’s"), ("mug", "mug"), ("", ""),
        ("cookies", "cookie"), ("hoodies", "hoodie"), ("movies", "movie"), ("neckties", "necktie"), ("knives", "knife"),
        ("scarves", "scarf"), ("shelves", "shelf"), ("lenses", "lens"), ("lens", "lens"), ("canvas", "canvas"),
        ("tennis", "tennis"), ("skis", "ski"), ("tomatoes", "tomato"), ("mice", "mouse"), ("thermoses", "thermos"),
        ("trellises", "trellis"), ("t-shirts", "t-shirt"), ("scissors", "scissors"),
        # No dictionary has these.
        ("cooktops", "cooktop"), ("softboxes", "softbox"), ("dvds", "dvd"), ("tvs", "tv"),
    ],
)  # fmt: skip
def test_singular(word: str, one: str) -> None:
    assert singular(word) == one


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("mug", "a"), ("apron", "an"), ("hour glass", "an"), ("heirloom ring", "an"), ("unicorn", "a"),
        ("uniform", "a"), ("utensil", "a"), ("utility knife", "a"), ("ukulele", "a"), ("euro coin", "a"),
        ("one-piece", "a"), ("umbrella", "an"), ("undershirt", "an"), ("uninsulated jug", "an"), ("8 inch pan", "an"),
        ("SD card", "an"), ("LED lamp", "an"), ("USB cable", "a"), ("MP3 player", "an"), ("X-ray film", "an"),
        ("TV stand", "a"), ("SLR camera", "an"), ("LAN cable", "a"), ("Sofa", "a"),
        ("Xbox", "an"), ("xbox game", "an"), ("x-ray film", "an"), ("xylophone", "a"),
    ],
)  # fmt: skip
def test_article(words: str, first: str) -> None:
    assert article(words) == first


def test_a_noun_with_its_article() -> None:
    assert Noun(text="sd card", spelling="SD Card").with_article() == "an sd card"
    assert Noun(text="furniture", bare=True).with_article() == "furniture"
    assert Noun(text="apron").with_article(capital=True) == "An apron"
