"""CSV and TSV: separator, quoting and header found; all cells are text."""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import TextIO

import pyarrow as pa

from refadgen.catalog.columns import Holds, category_columns, normalized_column, resolve_columns
from refadgen.catalog.feeds.batches import AVAILABILITY, KNOWN, ROWS_AT_ONCE, text_batch
from refadgen.catalog.feeds.files import FeedFile
from refadgen.catalog.feeds.report import HEADER_AGAIN, MOST_COLUMNS, OTHER_WIDTH, FeedReport, too_many_columns

_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
_MOST_CHARS = 1 << 20
_MOST_BAD = 0.1
"""Share of the rows that may have another number of cells than the header."""
csv.field_size_limit(_MOST_CHARS)  # of the process: Python's own bound is below what descriptions have


class DelimitedFile:
    """A file of lines with separated cells, whose first line names the columns."""

    def __init__(self, file: FeedFile, separator: str | None = None) -> None:
        """separator: None: found in the header. Raises: ValueError naming the file where it has no header."""
        self._file = file
        lines = [line for line in file.head.splitlines()[:50] if line.strip()]
        if not lines:
            raise ValueError(f"{file.shown}: holds no rows, and no header either")
        self._separator = separator or max(_SEPARATORS, key=lambda each: _promise(_cells(lines[0], each)))
        if len(lines) > 1 and not _num_known(_cells(lines[0], self._separator)):
            second = max(_SEPARATORS, key=lambda each: _promise(_cells(lines[1], each)))
            if _num_known(_cells(lines[1], second)) >= 2:
                raise ValueError(
                    f"{file.shown}: its first line names no column, its second one does "
                    f"({lines[1][:80]!r}): remove the first line"
                )
        with file.text() as text:
            self.header = self._read_header(_Lines(text, file.shown))
        if len(self.header) > MOST_COLUMNS:
            raise ValueError(too_many_columns(file.shown))

    @property
    def names(self) -> list[str]:
        """The header's names as they are compared."""
        return [normalized_column(name) for name in self.header]

    @property
    def shown(self) -> str:
        """The file's address, for people."""
        return self._file.shown

    @property
    def written(self) -> str:
        """How it is written, for people."""
        return f"separated by {_SEPARATORS.get(self._separator, repr(self._separator))}, {self._file.written}"

    def rows(self, report: FeedReport) -> Iterator[tuple[int, list[str]]]:
        """Yields (line, cells) of each row that has as many cells as the header.

        A cell that begins with a quote which is no quoting would swallow the lines after it; where that gives a row of
        another width, its first line is read without quoting and the others again.
        Raises: ValueError where the file ends within a row, or too many rows do not fit the header.
        """
        for name, written in zip(self.names, self.header, strict=True):
            report.add_column(name, written)
        width, bad, short_at = len(self.header), 0, 0
        with self._file.text() as text:
            lines = _Lines(text, self._file.shown)
            self._read_header(lines)
            reader = self._strict(lines)
            while True:
                line, broken = lines.next_number(), False
                try:
                    cells = next(reader, None)
                except csv.Error:
                    cells, broken = [], True
                if cells is None:
                    break
                if not broken and (not cells or (cells == [cells[0]] and not cells[0].strip())):
                    continue  # a blank line
                report.rows += 1
                if broken or (len(cells) != width and len(lines.row) > 1):
                    if lines.at_end and not lines.ended_whole:
                        raise self._cut(line)
                    cells = next(csv.reader(lines.row[:1], delimiter=self._separator, quoting=csv.QUOTE_NONE))
                    lines.read_again(lines.row[1:])
                    reader = self._strict(lines)
                if len(cells) != width:
                    bad, short_at = bad + 1, line if len(cells) < width else 0
                    report.leave_out(OTHER_WIDTH, f"line {line} ({len(cells)} cells, the header has {width})")
                elif cells == self.header:
                    report.leave_out(HEADER_AGAIN, f"line {line}")
                else:
                    short_at = 0
                    yield line, cells
            if short_at and not lines.ended_whole:
                raise self._cut(short_at)
        self._require_few(report, bad)

    def _read_header(self, lines: "_Lines") -> list[str]:
        """The first row that is not blank."""
        return next(row for row in csv.reader(lines, delimiter=self._separator) if any(map(str.strip, row)))

    def _strict(self, lines: "_Lines") -> Iterator[list[str]]:
        """A reader that raises where a quote is none."""
        return csv.reader(lines, delimiter=self._separator, strict=True)

    def _cut(self, line: int) -> ValueError:
        return ValueError(f"{self._file.shown}: ends in the middle of the row at line {line}: export it again")

    def _require_few(self, report: FeedReport, bad: int) -> None:
        if bad and (bad == report.rows or (bad > 1 and bad > _MOST_BAD * report.rows)):
            raise ValueError(
                f"{self._file.shown}: {bad} of {report.rows} rows have another number of cells than the header's "
                f"{len(self.header)}, first {report.first[OTHER_WIDTH]}: is it {self.written}, and are cells that hold "
                'a separator in double quotes ("…")?'
            )


class _Lines:
    """The lines of a text, of bounded length; they can be read again."""

    def __init__(self, text: TextIO, shown: str) -> None:
        self._text, self._shown = text, shown
        self._again: list[str] = []
        self._number = 0
        self.row: list[str] = []
        """The lines since `next_number`."""
        self.ended_whole = True
        """Whether the last line that was read had its line end."""
        self.at_end = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._text.readline(_MOST_CHARS)
        if not line:
            self.at_end = True
            raise StopIteration
        self._number += 1
        self.ended_whole = line[-1] in "\r\n"
        if len(line) >= _MOST_CHARS and not self.ended_whole:
            raise ValueError(f"{self._shown}: line {self._number} has more than {_MOST_CHARS:,} characters")
        self.row.append(line)
        return line

    def next_number(self) -> int:
        """The number of the next line, which begins a row."""
        self.row = []
        return self._number + 1

    def read_again(self, lines: Sequence[str]) -> None:
        """Puts lines back that were read last."""
        self._again.extend(reversed(lines))
        self._number -= len(lines)
        self.at_end = False


class DelimitedReader:
    """A CSV or TSV of one product a row, in columns that a catalogue knows; Google Merchant's text feeds too."""

    def __init__(self, file: DelimitedFile, shown: str) -> None:
        """Raises: ValueError naming a column that is missing or occurs twice."""
        self._file = file
        schema = pa.schema([(name, pa.string()) for name in file.header])
        try:
            resolve_columns(schema, holds=lambda _: Holds.WHOLE_NUMBERS)  # numbers are text here
            category_columns(schema)
        except ValueError as error:
            raise ValueError(f"{shown}: {error} It is read as {file.written}.") from error
        self._places: dict[str, int] = {}
        for place, (name, written) in enumerate(zip(file.names, file.header, strict=True)):
            if name in (*KNOWN, AVAILABILITY) and (name not in self._places or written == name):
                self._places[name] = place

    @property
    def kind(self) -> str:
        merchant = {"id", "image_link", "title"} <= self._places.keys()
        return f"{'Google Merchant text feed' if merchant else 'table of text'}, {self._file.written}"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        report.read = report.read | {AVAILABILITY}
        chosen = itemgetter(*self._places.values())
        rows = self._file.rows(report)
        while block := [chosen(cells) for _, cells in islice(rows, ROWS_AT_ONCE)]:
            yield text_batch(dict(zip(self._places, zip(*block, strict=True), strict=True)), len(block), report)


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _num_known(cells: Sequence[str]) -> int:
    return sum(normalized_column(cell) in KNOWN for cell in cells)


def _promise(cells: Sequence[str]) -> tuple[int, int]:
    """How well a separator explains a header."""
    return _num_known(cells), len(cells)
