"""Which words are English, and which an English prompt should not have."""

import pytest

from refadgen.catalog.language import is_foreign


@pytest.mark.parametrize(
    "text",
    [
        "Shoes", "Coats & Jackets", "Cooktops", "Smartwatch", "Power Banks", "Bralettes", "Hakama Trousers",
        "Crêpe & Blini Pans", "Jalapeño Peppers", "USB Adapters", "DJ CD Players", "POS Terminals", "MP3 Players",
        "Bandanas", "Teller", "Xqzzt", "4711", "",
    ],
)  # fmt: skip
def test_english_and_what_no_dictionary_knows(text: str) -> None:
    assert not is_foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "Schuhe", "SCHUHE", "Küche Teller", "Kaffeetassen", "Damen Blusen", "Chaussures femme", "Sac à main",
        "Vêtements Robes", "Zapatos", "Scarpe", "Schoenen", "Обувь", "杯子", "PiГ±atas",
    ],
)  # fmt: skip
def test_other_languages_and_scripts(text: str) -> None:
    assert is_foreign(text)
