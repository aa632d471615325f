"""The answers of a study: one parquet file a rater, complete after each answer.

A rater is a name. Whoever comes back under it, in capitals or not, goes on where they left; removing the file removes
all that the study knows of that rater.
"""

import hashlib
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.batch.rows import Float32, Int32, from_table, schema_of, to_table
from refadgen.evaluation.study.plan import ANSWERS
from refadgen.storage.store import Storage

_NAME = b"rater"
"""The file's metadata that holds the name: whoever came and gave no answer has a file too."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer. The latest to a question replaces earlier ones."""

    study: str
    protocol: str
    """j2b or g2r."""
    rater: str
    question: str
    product: str
    scene: str
    variant: Int32
    shown: tuple[str, ...]
    """The methods in the order in which the rater saw them; `real` is a real ad."""
    choice: str
    """J2b: the method whose picture was chosen. G2R: real or generated."""
    place: Int32 | None
    """J2b: the chosen place among those shown, from 1."""
    seconds: Float32 | None
    """From seeing the question to answering it, as the browser says."""
    answered_at: datetime


def rater_id(name: str) -> str:
    """Stands for a rater: equal for names that differ in capitals, spaces or their Unicode form."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


@dataclass
class Rater:
    """A rater and what they answered, by protocol and question."""

    id: str
    name: str
    answers: dict[tuple[str, str], Answer]


class AnswerBook:
    """The answers of an output. One process writes them; its threads may."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._raters: dict[str, Rater] = {}
        self._lock = threading.Lock()

    def enter(self, name: str) -> Rater:
        """The rater of a name, with earlier answers. Raises: OSError, ValueError for a damaged file."""
        with self._lock:
            rater = self._found(rater_id(name))
            if rater is None:
                rater = Rater(rater_id(name), " ".join(name.split()), {})
                self._write(rater)
                self._raters[rater.id] = rater
            return rater

    def rater(self, id: str) -> Rater | None:
        """The rater of an id; None: nobody with it has entered. Raises: as `enter`."""
        with self._lock:
            return self._found(id)

    def _found(self, id: str) -> Rater | None:
        if id not in self._raters:
            key = f"{ANSWERS}/{id}.parquet"
            if not self._storage.exists(key):
                return None
            self._raters[id] = _read(self._storage, key)
        return self._raters[id]

    def add(self, id: str, answer: Answer) -> int:
        """Writes an answer of an entered rater; returns how many they have given to its protocol. Raises: OSError.

        Where it cannot be written, nothing has changed.
        """
        with self._lock:
            rater = self._raters[id]
            answers = {**rater.answers, (answer.protocol, answer.question): answer}
            self._write(Rater(id, rater.name, answers))
            rater.answers = answers
            return sum(protocol == answer.protocol for protocol, _ in answers)

    def _write(self, rater: Rater) -> None:
        table = to_table(list(rater.answers.values()), Answer)
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_NAME: rater.name.encode()}), sink, compression="zstd")
        self._storage.write(f"{ANSWERS}/{rater.id}.parquet", sink.getvalue().to_pybytes())


def read_raters(storage: Storage) -> Iterator[Rater]:
    """All raters of an output, in the order of their files. Raises: ValueError naming a damaged file."""
    for key in storage.keys(ANSWERS, ".parquet"):
        yield _read(storage, key)


def _read(storage: Storage, key: str) -> Rater:
    try:
        table = pq.read_table(pa.BufferReader(storage.read(key)))
        name = cast(dict[bytes, bytes], table.schema.metadata)[_NAME].decode()
        answers = from_table(table.select(schema_of(Answer).names), Answer)
    except (pa.ArrowException, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{storage.uri_of(key)}: not a file of answers: {error!r}") from error
    id = key.rpartition("/")[2].removesuffix(".parquet")
    return Rater(id, name, {(answer.protocol, answer.question): answer for answer in answers})
