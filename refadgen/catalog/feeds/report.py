"""What was found in a feed: its rows, what is left out of it and why, its columns."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field

MOST_COLUMNS = 10_000
_MOST_SHOWN = 500

OTHER_WIDTH = "another number of cells than the header"
HEADER_AGAIN = "repeats the header"
NOT_TEXT = "not text of the feed's encoding"
NOT_JSON = "not a JSON object"
FURTHER_PICTURE = "a further picture of a product"
PARENT = "the parent of variations"
STORE_VIEW = "texts of another store view"


@dataclass(kw_only=True)
class FeedReport:
    """Filled by a reader while it reads. shown: the feed's address for people. kind: what it was read as."""

    shown: str
    kind: str
    rows: int = 0
    """Rows of a table, items of an XML file, objects of JSON Lines, pictures of a folder."""
    products: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by why they are no product of this catalogue."""
    first: dict[str, str] = field(default_factory=dict)
    """The first row of each such reason."""
    columns: dict[str, str] = field(default_factory=dict)
    """The feed's columns as it writes them, by their names as they are compared (`normalized_column`)."""
    read: Set[str] = frozenset()
    """Columns, as they are compared, that the reader itself reads. The catalogue's own come to it."""

    def leave_out(self, reason: str, row: str) -> None:
        """Counts a row that is no product. row: names it."""
        self.left_out[reason] += 1
        self.first.setdefault(reason, row)

    def add_column(self, name: str, written: str) -> None:
        """Raises: ValueError where there are too many of them."""
        if name in self.columns:
            return
        if len(self.columns) >= MOST_COLUMNS:
            raise ValueError(too_many_columns(self.shown))
        self.columns[name] = written

    def unused(self, used: Set[str]) -> list[str]:
        """The columns, as written, that neither the reader nor the catalogue (used, as compared) reads."""
        return [written for name, written in self.columns.items() if name not in used and name not in self.read]

    def lines(self) -> list[str]:
        """Rows in, products, and what is left out, for people."""
        counted = f"rows in the feed: {self.rows}, products: {self.products}, left out: {self.left_out.total()}"
        shown = sorted(self.left_out.items(), key=lambda each: (-each[1], each[0]))
        return [counted, *(f"  {count:>7} {reason}; the first: {self.first[reason]}" for reason, count in shown)]


def too_many_columns(shown: str) -> str:
    """The message for the feed at `shown`."""
    return f"{shown}: has more than {MOST_COLUMNS:,} columns: another separator, or values in place of names?"


def unused_line(names: list[str]) -> str:
    """One line that names columns that are not used."""
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"columns not used: {', '.join(names[:_MOST_SHOWN]) or 'none'}{more}"
