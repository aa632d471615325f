"""What a study asks: chosen once, kept in `study.json`, and the same for every rater.

J2b: of one wanted image the pictures of all runs. G2R: one picture, of a run or a real ad. A rater's own order of
questions, and of the pictures in one, follows from the rater's name.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from refadgen.config import StudyConfig, as_dict, dotted
from refadgen.config.identity import differences
from refadgen.evaluation.runs import Run, compare_runs, parse_runs, read_run
from refadgen.evaluation.study.real_ads import find_real_ads
from refadgen.storage.store import Storage

KEY = "study.json"
ANSWERS = "answers"
"""The folder of answers in an output."""
REAL = "real"
"""The method of a real ad, and a rater's word for one."""
GENERATED = "generated"
Protocol = Literal["j2b", "g2r"]
PROTOCOLS: tuple[Protocol, ...] = ("j2b", "g2r")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture and where it lies."""

    method: str
    """Name of its run, or REAL."""
    folder: str
    """Address of the run, or of the real ads."""
    key: str
    """The file in that folder."""
    row_group: int | None = None
    row: int | None = None
    """Place of a real ad in a file of triplets; None: the file is the picture."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. G2R has one picture, J2b one of each run."""

    id: str
    product: str
    """Answers about one product are not independent of each other. Of a real ad: its file."""
    scene: str
    variant: int
    prompt: str
    width_px: int
    height_px: int
    pictures: tuple[Picture, ...]
    product_picture: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it is kept."""

    id: str
    asked: dict[str, Any]
    """What the command named: runs, protocols, real ads, settings."""
    questions: dict[str, tuple[Question, ...]]
    """Of each protocol."""
    notes: tuple[str, ...] = ()
    """What is left out, for people."""

    @property
    def methods(self) -> list[str]:
        """The names of the runs."""
        return [run["name"] for run in self.asked["runs"]]


def open_study(
    config: StudyConfig, storage: Storage, runs: Sequence[str], protocols: Sequence[Protocol], real: str | None
) -> Study:
    """The study of an output: the one that lies there, or a new one, which is then written.

    runs: folders, or NAME=FOLDER. real: folder of real ads, or triplets. Raises: ValueError naming what is wrong, also
    where another study lies in the output.
    """
    parsed = parse_runs(runs)
    asked = {
        "runs": [dataclasses.asdict(run) for run in parsed],
        "protocols": list(protocols),
        "real": None if real is None else Storage(real).uri,
        "settings": as_dict(config),
    }
    if (kept := read_study(storage)) is not None:
        changed = differences(dict(dotted(kept.asked)), dict(dotted(asked)))
        if not changed:
            return kept
        if any(storage.keys(ANSWERS, ".parquet")):  # else nobody has seen it yet
            name, before, now = changed[0]
            raise ValueError(
                f"--output {storage.uri}: holds a study with {name}={before!r}, now it is {now!r}, and answers to both "
                "would not compare; choose another --output, or ask the same again"
            )
    study = _planned(config, parsed, protocols, asked)
    storage.write(KEY, json.dumps(dataclasses.asdict(study), indent=1, ensure_ascii=False).encode())
    return study


def read_study(storage: Storage) -> Study | None:
    """The study that lies in an output; None: there is none. Raises: ValueError where it is damaged."""
    try:
        found = json.loads(storage.read(KEY))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{storage.uri_of(KEY)}: not a study: {error}") from error
    try:
        questions = {name: tuple(map(_question, each)) for name, each in found["questions"].items()}
        return Study(id=found["id"], asked=found["asked"], questions=questions, notes=tuple(found["notes"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{storage.uri_of(KEY)}: not a study ({error!r})") from error


def _question(found: dict[str, Any]) -> Question:
    product = found.pop("product_picture")
    pictures = tuple(Picture(**each) for each in found.pop("pictures"))
    return Question(pictures=pictures, product_picture=product and Picture(**product), **found)


def _planned(config: StudyConfig, runs: Sequence[Run], protocols: Sequence[Protocol], asked: dict[str, Any]) -> Study:
    if any(run.name == REAL for run in runs):
        raise ValueError(f"{REAL}: is the word for real ads; give the run another name: NAME=FOLDER")
    if "j2b" in protocols and len(runs) < 2:
        raise ValueError(
            f"--protocol j2b: needs two methods or more to choose from, and there is one run, {runs[0].name}; give "
            "more runs, or ask --protocol g2r"
        )
    if "g2r" in protocols and asked["real"] is None:
        raise ValueError(
            "--protocol g2r: needs real ads among the generated ones; name a folder of photographs, or triplets, with "
            "--real"
        )
    comparison = compare_runs(runs, [read_run(run, "") for run in runs])
    notes, questions = list(comparison.notes), {}
    order = products_in_turn(comparison.tables[0]["sku"].to_pylist(), config.study.seed)
    if "j2b" in protocols:
        chosen = order[: config.j2b.questions]
        rows = [table.take(chosen).to_pylist() for table in comparison.tables]
        questions["j2b"] = tuple(
            _asked_about(runs, list(of_runs), with_product=True) for of_runs in zip(*rows, strict=True)
        )
    if "g2r" in protocols:
        questions["g2r"], more = _one_at_a_time(config, runs, comparison.tables, order, asked["real"])
        notes += more
    return Study(id=_digest([asked["runs"], questions]), asked=asked, questions=questions, notes=tuple(notes))


def products_in_turn(products: Sequence[str], seed: int) -> list[int]:
    """Row numbers in a random order in which every product comes once before any comes twice."""
    shuffled = np.random.default_rng(seed).permutation(len(products)).tolist()
    seen: dict[str, int] = {}
    turns = []
    for row in shuffled:
        turn = seen.get(products[row], 0)
        seen[products[row]] = turn + 1
        turns.append((turn, row))
    return [row for _, row in sorted(turns, key=lambda each: each[0])]


def _asked_about(runs: Sequence[Run], rows: Sequence[dict[str, Any]], *, with_product: bool) -> Question:
    """A question about one wanted image. rows: of ImageToScore, one of each run."""
    first = rows[0]
    pictures = tuple(
        Picture(method=run.name, folder=run.uri, key=row["uri"]) for run, row in zip(runs, rows, strict=True)
    )
    place = {"sku": first["sku"], "scene": first["scene"], "variant": first["variant"]}
    size = {} if first["width_px"] is None else {"width_px": first["width_px"], "height_px": first["height_px"]}
    if not size:
        raise ValueError(f"{runs[0].uri}: the ledger has no size for {first['uri']}; make the run anew")
    return Question(
        id=_digest([place, [dataclasses.asdict(each) for each in pictures]]),
        product=first["sku"],
        scene=first["scene"],
        variant=first["variant"],
        prompt=first["prompt"],
        pictures=pictures,
        product_picture=Picture(method="", folder=runs[0].uri, key=first["product_uri"]) if with_product else None,
        **size,
    )


def _one_at_a_time(
    config: StudyConfig, runs: Sequence[Run], tables: Sequence[pa.Table], order: Sequence[int], real: str
) -> tuple[tuple[Question, ...], list[str]]:
    """The questions of G2R, and notes."""
    chosen = list(order[: config.g2r.images])
    generated = [
        _asked_about([run], [row], with_product=False)
        for run, table in zip(runs, tables, strict=True)
        for row in table.take(chosen).to_pylist()
    ]
    wanted = config.g2r.real_images or len(generated)
    # Real ads get the sizes of the generated ones: a picture of another shape would give itself away.
    sizes = [(each.width_px, each.height_px) for each in generated]
    found = find_real_ads(real, [sizes[place % len(sizes)] for place in range(wanted)], config.study.seed)
    notes = [f"G2R: {found.too_small} real ads are smaller than the generated ones, and left out"]
    if len(found.ads) < wanted:
        notes.append(f"G2R: {len(found.ads)} real ads beside {len(generated)} generated; {wanted} were wanted")
    questions = [
        Question(
            id=_digest([real, dataclasses.astuple(ad)]),
            product=f"{ad.key} {ad.row_group} {ad.row}" if ad.row is not None else ad.key,
            scene="",
            variant=0,
            prompt="",
            width_px=width,
            height_px=height,
            pictures=(Picture(method=REAL, folder=ad.folder, key=ad.key, row_group=ad.row_group, row=ad.row),),
        )
        for ad, (width, height) in zip(found.ads, sizes * (len(found.ads) // len(sizes) + 1), strict=False)
    ]
    return (*generated, *questions), notes if found.too_small else notes[1:]


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def order_of(study: Study, protocol: str, rater: str) -> list[Question]:
    """The questions in a rater's order. rater: the rater's id."""
    questions = study.questions[protocol]
    return [questions[place] for place in _permutation(len(questions), study.id, protocol, rater)]


def shown_to(study: Study, question: Question, rater: str) -> list[Picture]:
    """A question's pictures in the order in which a rater sees them."""
    return [question.pictures[place] for place in _permutation(len(question.pictures), study.id, question.id, rater)]


def _permutation(count: int, *names: str) -> list[int]:
    seed = int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8])
    return [int(place) for place in np.random.default_rng(seed).permutation(count)]
