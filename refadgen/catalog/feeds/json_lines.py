"""JSON Lines: one object a line, one product an object."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from refadgen.catalog.columns import normalized_column
from refadgen.catalog.feeds.batches import AVAILABILITY, Record, batches_of
from refadgen.catalog.feeds.files import FeedFile
from refadgen.catalog.feeds.report import NOT_JSON, FeedReport

_MOST_CHARS = 1 << 24
_MOST_BAD = 0.1


class JsonLinesReader:
    """Reads JSON Lines. Of nested values only `placement` is read."""

    def __init__(self, file: FeedFile) -> None:
        """Raises: ValueError naming a file whose first line is no object."""
        self._file = file
        first = file.head.lstrip("\ufeff \t\r\n").splitlines()[:1]
        if first and first[0].startswith("["):
            raise ValueError(
                f"{file.shown}: is one JSON array: write one object a line, as by jq -c '.[]' FILE > new.jsonl"
            )
        if first and first[0].rstrip() in ("{", "{}"):
            raise ValueError(
                f"{file.shown}: is JSON over several lines: write one object a line, as by jq -c . FILE > new.jsonl"
            )

    @property
    def kind(self) -> str:
        return f"JSON Lines, {self._file.written}"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        report.read = report.read | {AVAILABILITY}
        return batches_of(self._records(report), report)

    def _records(self, report: FeedReport) -> Iterator[Record]:
        number, line, bad = 0, "", 0
        with self._file.text() as text:
            while line := text.readline(_MOST_CHARS):
                number += 1
                if len(line) >= _MOST_CHARS:
                    raise ValueError(f"{self._file.shown}: line {number} has more than {_MOST_CHARS:,} characters")
                if not line.strip():
                    continue
                report.rows += 1
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict):
                    yield _record(found, report)
                    continue
                bad += 1
                if not line.endswith(("\n", "\r")):
                    raise ValueError(f"{self._file.shown}: ends in the middle of line {number}: export it again")
                report.leave_out(NOT_JSON, f"line {number}")
        if bad and (bad == report.rows or (bad > 1 and bad > _MOST_BAD * report.rows)):
            raise ValueError(f"{self._file.shown}: {bad} of {report.rows} lines are no JSON objects")


def _record(found: dict[str, Any], report: FeedReport) -> Record:
    record: dict[str, Any] = {}
    for written, value in found.items():
        name = normalized_column(written)
        report.add_column(name, written)
        if name not in record or name == written:  # a column's own name wins
            record[name] = _plain(value)
    return record


def _plain(value: Any) -> Any:
    """A text, a list of texts, or None; an object as its JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return [each for each in map(_plain, value) if isinstance(each, str) and each]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | bool) else str(value)
