"""Google's numbers: those that ship, those of Google's file, and files that are none."""

from pathlib import Path

import pytest

from refadgen.catalog.scenes import load_scenes
from refadgen.catalog.taxonomy import is_number, load_taxonomy

FILE = """# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
2169 - Home & Garden > Kitchen & Dining > Tableware > Drinkware > Mugs
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "taxonomy-with-ids.en-US.txt"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_shipped_numbers_lead_to_scenes_of_their_own() -> None:
    taxonomy, scenes = load_taxonomy(), load_scenes()
    default = scenes.noun_of(None, None).category
    for number in taxonomy.categories:
        found = scenes.noun_of(str(number), None)
        assert found.category is not default, number
        assert found.source in ("category", "list"), number


def test_numbers_with_and_without_a_file(file: Path) -> None:
    shipped, official = load_scenes(), load_scenes(None, str(file))
    assert shipped.noun_of("187", None).noun.text == "shoe"
    assert official.noun_of("187", None).noun.text == "product"
    for number in ("2169", " 2169 ", "2169.0"):
        assert official.noun_of(number, None).noun.text == "mug"
    assert official.noun_of("1", None).noun.text == "an animal or pet supplies"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no categories"),
        (b"# a comment\n1 - Animals\nAnimals > Cats\n", "line 3 is not `NUMBER - PATH`"),
        (b"1 - Animals\n\xff", "cannot be read"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "taxonomy.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        load_taxonomy(str(path))
    assert "catalog.taxonomy_file=" in str(error.value)


def test_a_missing_file() -> None:
    with pytest.raises(ValueError, match=r"catalog.taxonomy_file='/no/such.txt': cannot be read"):
        load_taxonomy("/no/such.txt")


def test_numbers_as_columns_hold_them() -> None:
    assert all(map(is_number, (187, 187.0, "187", " 2169.0 ")))
    assert not any(map(is_number, (None, True, float("nan"), 1.5, "", "187 - Shoes", "Shoes", ["187"])))
