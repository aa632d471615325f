"""Google's product taxonomy: the category that a number of `google_product_category` stands for."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from refadgen.storage.store import split_uri

_SHIPPED = Path(__file__).with_name("google_ids.yaml")
_NUMBER = re.compile(r"\s*(\d+)(?:\.0+)?\s*")
_LINE = re.compile(r"(\d+) +- +(\S.*)")


def is_number(category: object) -> bool:
    """Whether a category is a bare number, also as text or with the decimals that a gap in its column brings."""
    return not isinstance(category, bool) and _NUMBER.fullmatch(str(category)) is not None


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Categories by Google's number."""

    categories: Mapping[int, str]

    def category(self, text: str | None) -> str | None:
        """The category of a row: for a number the category that it stands for, where it is known; else as it is."""
        number = _NUMBER.fullmatch(text or "")
        return self.categories.get(int(number[1]), text) if number else text


def load_taxonomy(file: str | None = None) -> Taxonomy:
    """Loads Google's file `taxonomy-with-ids.LANGUAGE.txt`, from a path or s3:// address.

    None: the numbers of the categories of the shipped scenes, in our words. Raises: ValueError naming file and line.
    """
    return _shipped() if file is None else Taxonomy(categories=_read(file))


@functools.lru_cache(maxsize=1)
def _shipped() -> Taxonomy:
    return Taxonomy(categories=yaml.safe_load(_SHIPPED.read_text(encoding="utf-8")))


def _read(uri: str) -> dict[int, str]:
    try:
        folder, name = split_uri(uri)
        lines = folder.read(name).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"catalog.taxonomy_file={uri!r}: cannot be read: {error}") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise ValueError(
                f"catalog.taxonomy_file={uri!r}: line {number} is not `NUMBER - PATH`; give Google's file with ids, "
                "taxonomy-with-ids.en-US.txt"
            )
        found[int(match[1])] = match[2]
    if not found:
        raise ValueError(f"catalog.taxonomy_file={uri!r}: holds no categories")
    return found
