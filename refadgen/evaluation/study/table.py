"""The table of a study, as the paper's Table 5 counts: shares of answers, with intervals and agreement.

J2b: how often a method's picture was chosen as the best. G2R: how often a method's picture was taken for real.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refadgen.evaluation.study.answers import Answer, Rater, read_raters
from refadgen.evaluation.study.plan import GENERATED, KEY, REAL, Study, read_study
from refadgen.storage.store import Storage

Floats = npt.NDArray[np.float64]
_DRAWS = 2000
_BLOCK = 4_000_000
"""Numbers of a block of draws in memory."""


@dataclass(frozen=True)
class Share:
    """A share of answers, 0 to 1, with its 95 % interval; None: of one rater and one product there is none."""

    value: float
    low: float | None
    high: float | None
    count: int
    """Answers that it is of."""


@dataclass(frozen=True)
class ProtocolTable:
    """One row of the table."""

    protocol: str
    shares: dict[str, Share | None]
    """By method; G2R has `real` besides. None: no answer yet."""
    differences: dict[str, Share | None]
    """Of each further method to the first, from the same draws."""
    chance: float
    """The share that a rater reaches who does not look."""
    kappa: float | None
    """Fleiss' κ; None: no question has two answers, or all answers are alike."""
    raters: int
    complete: int
    """Raters who answered every question."""
    answers: int
    places: dict[int, int]
    """J2b: answers by the chosen place, from 1. Equal but for chance, where raters looked at all pictures."""


@dataclass(frozen=True)
class StudyTable:
    """All numbers of a study."""

    study: Study
    rows: list[ProtocolTable]
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """All of it for JSON."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"study": self.study.id, "asked": self.study.asked, "protocols": rows, "notes": self.notes}

    def markdown(self) -> str:
        """The table for people."""
        names = self.study.methods + [REAL] * any(row.protocol == "g2r" for row in self.rows)
        titles = [_cell(name) if name != REAL else "real ads" for name in names]
        text = [
            "Shares of answers in %, in brackets the 95 % interval over raters and products.",
            "",
            f"| | {' | '.join(titles)} | by chance | raters (complete) | answers | agreement (Fleiss' κ) |",
            "|---" * (len(names) + 5) + "|",
        ]
        for row in self.rows:
            title = "J2b: chosen as the best" if row.protocol == "j2b" else "G2R: taken for real"
            cells = " | ".join(_shown(row.shares.get(name)) if name in row.shares else "" for name in names)
            kappa = "–" if row.kappa is None else f"{row.kappa:.3f}"
            people = f"{row.raters} ({row.complete})"
            text.append(f"| {title} | {cells} | {100 * row.chance:.1f} | {people} | {row.answers} | {kappa} |")
        text += self._differences()
        text += [
            "",
            "Fleiss' κ: 1 where raters always agree, 0 where they agree as often as answers drawn from the same shares "
            "would, below 0 where less often. – : no question has answers of two raters, or all answers are alike.",
        ]
        text += ["", *(f"* {note}." for note in self.notes)] if self.notes else []
        return "\n".join(text) + "\n"

    def _differences(self) -> list[str]:
        names = self.study.methods
        if len(names) < 2:
            return []
        text = ["", f"Differences to {names[0]}, in points:", "", f"| | {' | '.join(map(_cell, names[1:]))} |"]
        text.append("|---" * len(names) + "|")
        for row in self.rows:
            cells = " | ".join(_shown(row.differences.get(name), "+") for name in names[1:])
            text.append(f"| {row.protocol.upper()} | {cells} |")
        return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(share: Share | None, sign: str = "") -> str:
    if share is None:
        return "no answer"
    if share.low is None or share.high is None:
        return f"{100 * share.value:{sign}.1f}"
    return f"{100 * share.value:{sign}.1f} [{100 * share.low:{sign}.1f}, {100 * share.high:{sign}.1f}]"


def write_table(storage: Storage) -> str:
    """Counts a study's answers and writes `table.md` and `table.json`; returns the Markdown.

    Raises: ValueError where there is no study, or no answer.
    """
    study = read_study(storage)
    if study is None:
        raise ValueError(f"{storage.uri}: no study: there is no {KEY}; give the --output of `jobs/study.py serve`")
    raters = list(read_raters(storage))
    if not any(rater.answers for rater in raters):
        raise ValueError(f"{storage.uri}: nobody has answered yet; ask people with `jobs/study.py serve`")
    table = study_table(study, raters)
    text = table.markdown()
    storage.write("table.md", text.encode())
    storage.write("table.json", json.dumps(table.facts(), indent=2, ensure_ascii=False).encode())
    return text


def study_table(study: Study, raters: Sequence[Rater]) -> StudyTable:
    """The table of all answers, those of raters who have not finished too: their questions are a random choice."""
    rows, notes = [], list(study.notes)
    for protocol, questions in study.questions.items():
        ids = {question.id for question in questions}
        answers = [
            [each for each in rater.answers.values() if each.protocol == protocol and each.question in ids]
            for rater in raters
        ]
        there = [each for each in answers if each]
        complete = sum(len(each) == len(questions) for each in there)
        flat = [(number, answer) for number, each in enumerate(there) for answer in each]
        rows.append(_row(study, protocol, flat, len(there), complete))
        if len(there) == 1:
            notes.append(f"{protocol.upper()}: one rater: the interval is over products only, not over people")
        if complete < len(there):
            notes.append(
                f"{protocol.upper()}: {len(there) - complete} of {len(there)} raters have not finished; what they "
                "answered counts"
            )
    return StudyTable(study, rows, notes)


def _row(
    study: Study, protocol: str, answers: Sequence[tuple[int, Answer]], raters: int, complete: int
) -> ProtocolTable:
    """answers: each with its rater's number."""
    names = study.methods if protocol == "j2b" else [*study.methods, REAL]
    values = np.full((len(answers), len(names)), np.nan)
    for row, (_, answer) in enumerate(answers):
        if protocol == "j2b":
            values[row] = [answer.choice == name for name in names]
        else:
            values[row, names.index(answer.shown[0])] = answer.choice == REAL
    shares, differences = _shares(
        values,
        np.array([number for number, _ in answers], np.int64),
        np.unique([answer.product for _, answer in answers], return_inverse=True)[1],
    )
    choices = study.methods if protocol == "j2b" else [REAL, GENERATED]
    counts: dict[str, list[int]] = {}
    for _, answer in answers:
        counts.setdefault(answer.question, [0] * len(choices))[choices.index(answer.choice)] += 1
    places = Counter(answer.place for _, answer in answers if answer.place is not None)
    return ProtocolTable(
        protocol,
        dict(zip(names, shares, strict=True)),
        dict(zip(names[1 : len(study.methods)], differences[: len(study.methods) - 1], strict=True)),
        1 / len(choices),
        fleiss_kappa(np.array(list(counts.values()), np.float64).reshape(-1, len(choices))),
        raters,
        complete,
        len(answers),
        {place: places[place] for place in sorted(places)},
    )


def _shares(
    values: Floats, raters: npt.NDArray[np.int64], products: npt.NDArray[np.int64]
) -> tuple[list[Share | None], list[Share | None]]:
    """The share of each column, and its difference to the first. values: answers × methods, NaN: not about it."""
    there = np.isfinite(values)
    counts = there.sum(0)
    if not len(values):
        return [None] * values.shape[1], [None] * (values.shape[1] - 1)
    means = np.nan_to_num(values).sum(0) / np.maximum(counts, 1)
    draws = _bootstrap(np.nan_to_num(values), there.astype(np.float64), raters, products)
    shares = [
        Share(float(mean), *_interval(column), int(count)) if count else None
        for mean, column, count in zip(means, draws.T, counts, strict=True)
    ]
    differences = [
        Share(float(mean - means[0]), *_interval(column - draws[:, 0]), int(count)) if count and counts[0] else None
        for mean, column, count in zip(means[1:], draws.T[1:], counts[1:], strict=True)
    ]
    return shares, differences


def _interval(draws: Floats) -> tuple[float | None, float | None]:
    found = draws[np.isfinite(draws)]
    if len(found) < len(draws) / 2:
        return None, None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _bootstrap(values: Floats, there: Floats, raters: npt.NDArray[np.int64], products: npt.NDArray[np.int64]) -> Floats:
    """Shares in draws of raters and, independently, of products: draws × methods.

    An answer counts as often as its rater was drawn times as often as its product was (the pigeonhole bootstrap, Owen
    2007), since neither the answers of one rater nor those about one product are independent of each other. All NaN:
    there is one rater and one product.
    """
    rng = np.random.default_rng(0)
    num_raters, num_products = raters.max() + 1, products.max() + 1
    if num_raters == num_products == 1:
        return np.full((_DRAWS, values.shape[1]), np.nan)
    parts, size = [], max(1, _BLOCK // len(values))
    for start in range(0, _DRAWS, size):
        count = min(size, _DRAWS - start)
        of_raters = rng.multinomial(num_raters, np.full(num_raters, 1 / num_raters), count)
        of_products = rng.multinomial(num_products, np.full(num_products, 1 / num_products), count)
        weights = of_raters[:, raters] * of_products[:, products]
        with np.errstate(invalid="ignore"):  # a draw without any answer about a method
            parts.append((weights @ values) / (weights @ there))
    return np.concatenate(parts)


def fleiss_kappa(counts: Floats) -> float | None:
    """Fleiss' κ of questions × choices, how often each was given (Fleiss 1971).

    Questions may have different numbers of answers, as raters leave; those with one say nothing about agreement and are
    left out. None: no question has two answers, or all answers are alike, so that agreement by chance is complete.
    """
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return None
    answers = counts.sum(1)
    agreed = float((((counts**2).sum(1) - answers) / (answers * (answers - 1))).mean())
    by_chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return None if by_chance >= 1 else (agreed - by_chance) / (1 - by_chance)
