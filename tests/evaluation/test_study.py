"""A human study without a browser: what is asked, what is kept, and the table of planted answers."""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs_to_compare import make_run

from jobs import study as job
from refadgen.config import StudyConfig, load_config
from refadgen.evaluation.study.answers import Answer, AnswerBook, Rater, rater_id, read_raters
from refadgen.evaluation.study.app import GivenAnswer, StudyService
from refadgen.evaluation.study.pictures import BlindPictures
from refadgen.evaluation.study.plan import (
    REAL,
    Picture,
    Question,
    Study,
    open_study,
    order_of,
    products_in_turn,
    read_study,
    shown_to,
)
from refadgen.evaluation.study.table import fleiss_kappa, study_table, write_table
from refadgen.storage.store import Storage
from refadgen.triplets import schema as triplets

TINY = Path(triplets.__file__).parent / "tiny" / "triplets.parquet"
METHODS = ("ours", "other", "third")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    shades = dict(zip(METHODS, (1.0, 0.7, 0.4), strict=True))
    return [f"{name}={make_run(folder / name, shade=shade)}" for name, shade in shades.items()]


def photographs(folder: Path, sizes: Sequence[tuple[int, int]]) -> str:
    folder.mkdir()
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return str(folder)


def config(*words: str) -> StudyConfig:
    return load_config(StudyConfig, None, words)


def test_each_product_comes_once_before_any_comes_twice() -> None:
    products = ["a", "a", "a", "b", "b", "c"]
    order = products_in_turn(products, seed=0)
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert sorted(products[row] for row in order[:3]) == ["a", "b", "c"]
    assert [products[row] for row in order[3:5]] in (["a", "b"], ["b", "a"])
    assert products[order[5]] == "a"
    assert order != products_in_turn(products, seed=1)


def test_a_study_is_planned_once_and_kept(runs: list[str], tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "study"))
    real = photographs(tmp_path / "photographs", [(70, 90), (64, 80), (63, 200), (100, 100)])
    study = open_study(config("g2r.images=2"), storage, runs, ["j2b", "g2r"], real)
    assert [len(study.questions[name]) for name in ("j2b", "g2r")] == [6, 9]  # three methods' two images, three real
    assert all([p.method for p in each.pictures] == list(METHODS) for each in study.questions["j2b"])
    assert [each.pictures[0].method for each in study.questions["g2r"]].count(REAL) == 3
    assert study.notes == (
        "G2R: 1 real ads are smaller than the generated ones, and left out",
        "G2R: 3 real ads beside 6 generated; 6 were wanted",
    )
    assert open_study(config("g2r.images=2"), storage, runs, ["j2b", "g2r"], real) == study == read_study(storage)
    other = open_study(config("g2r.images=1"), storage, runs, ["j2b", "g2r"], real)
    assert other != study, "nobody has seen the first yet"
    AnswerBook(storage).enter("Ann")
    with pytest.raises(ValueError, match=r"settings.study.seed=0, now it is 1, .* choose another --output"):
        open_study(config("g2r.images=1", "study.seed=1"), storage, runs, ["j2b", "g2r"], real)


def test_real_ads_of_triplets_are_those_of_the_test_split(runs: list[str], tmp_path: Path) -> None:
    study = open_study(config("g2r.real_images=3"), Storage(str(tmp_path)), runs[:1], ["g2r"], str(TINY))
    real = [question for question in study.questions["g2r"] if question.pictures[0].method == REAL]
    assert len(real) == 3
    shown = [BlindPictures(study)(question.pictures[0], question) for question in real]
    assert len(set(shown)) == 3
    splits = pq.read_table(TINY, columns=["split"])["split"].to_pylist()
    assert {splits[question.pictures[0].row or 0] for question in real} == {"test"}, "the file has one row group"


def test_each_rater_has_an_order_of_their_own(runs: list[str], tmp_path: Path) -> None:
    study = open_study(config(), Storage(str(tmp_path)), runs, ["j2b"], None)
    orders = {rater: [each.id for each in order_of(study, "j2b", rater)] for rater in ("ann", "ben")}
    assert sorted(orders["ann"]) == sorted(orders["ben"]) == sorted(each.id for each in study.questions["j2b"])
    assert orders["ann"] != orders["ben"]
    places = [shown_to(study, each, "ann")[0].method for each in study.questions["j2b"]]
    assert len(set(places)) > 1, "the first place is not always the same method's"


def test_pictures_tell_nothing_but_pixels(runs: list[str], tmp_path: Path) -> None:
    real = photographs(tmp_path / "photographs", [(200, 90)])
    storage = Storage(str(tmp_path / "study"))
    study = open_study(config("g2r.images=1"), storage, runs[:1], ["g2r"], real)
    run = Path(runs[0].partition("=")[2])
    with Image.open(run / "images" / "00.png") as image:
        sink = io.BytesIO()
        image.save(sink, "JPEG", xmp=b"trainedAlgorithmicMedia", exif=b"Exif\0\0MM", comment=b"model")
    pictures = BlindPictures(study)
    shown = [pictures(each.pictures[0], each) for each in study.questions["g2r"]]
    assert len(shown) == 2
    for data in shown:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("JPEG", (64, 80))
            assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    marked = Picture(method="ours", folder=str(tmp_path), key="marked.jpg")
    (tmp_path / "marked.jpg").write_bytes(sink.getvalue())
    assert b"trainedAlgorithmicMedia" in sink.getvalue()
    assert b"trainedAlgorithmicMedia" not in pictures(marked, study.questions["g2r"][0])


def test_answers_are_kept_one_by_one_and_raters_come_back(runs: list[str], tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    study = open_study(config("j2b.questions=3"), storage, runs, ["j2b"], None)
    service = StudyService(study, AnswerBook(storage), BlindPictures(study))
    entered = service.entered("Ann  Ex")
    assert [(p["total"], p["done"], p["next"]) for p in entered["protocols"]] == [(3, 0, 1)]
    ann = entered["rater"]

    question = service.question(ann, "j2b", 1)
    said = json.dumps([entered, question])
    assert not any(name in said for name in (*METHODS, "images/", str(tmp_path))), "no rater learns who made a picture"
    assert (question["pictures"], question["prompt"], question["answer"]) == (3, "a bottle on a table", None)

    given = GivenAnswer(rater=ann, protocol="j2b", number=1, choice=2, seconds=1.5)
    assert service.answer(given)["next"] == 2
    (kept,) = read_raters(storage)  # as a server that was killed now leaves it
    (answer,) = kept.answers.values()
    first = order_of(study, "j2b", ann)[0]
    shown = [picture.method for picture in shown_to(study, first, ann)]
    assert (answer.question, list(answer.shown), answer.choice, answer.place) == (first.id, shown, shown[1], 2)
    assert (answer.rater, answer.seconds) == ("Ann Ex", 1.5)

    again = StudyService(study, AnswerBook(storage), BlindPictures(study))
    back = again.entered(" ann ex ")
    assert (back["rater"], back["name"], back["protocols"][0]["next"]) == (ann, "Ann Ex", 2)
    assert again.question(ann, "j2b", 1)["answer"] == 2
    assert again.answer(GivenAnswer(rater=ann, protocol="j2b", number=1, choice=3))["done"] == 1, (
        "it replaces the first"
    )
    assert [each.choice for each in next(read_raters(storage)).answers.values()] == [shown[2]]
    assert again.entered("Ben")["protocols"][0]["done"] == 0
    assert rater_id("É") == rater_id("É")


def planted(choices: dict[str, str], questions: dict[str, tuple[str, str]], methods: Sequence[str]) -> Study:
    """questions: of each id its product and, in G2R, whose picture it shows."""
    asked = {"runs": [{"name": name, "uri": name} for name in methods]}

    def question(id: str) -> Question:
        product, of = questions[id]
        names = [of] if of else methods
        pictures = tuple(Picture(method=name, folder="", key="") for name in names)
        return Question(
            id=id, product=product, scene="", variant=0, prompt="", width_px=8, height_px=8, pictures=pictures
        )

    return Study(id="s", asked=asked, questions={choices["protocol"]: tuple(map(question, questions))})


def raters_of(study: Study, protocol: str, given: dict[str, str]) -> list[Rater]:
    """given: of each rater a letter a question, the first letter of the choice; - is no answer."""
    raters = []
    for name, letters in given.items():
        answers = {}
        for question, letter in zip(study.questions[protocol], letters, strict=True):
            if letter != "-":
                shown = tuple(picture.method for picture in question.pictures)
                choice = next(each for each in (*shown, "real", "generated") if each[0] == letter)
                answers[protocol, question.id] = Answer(
                    study="s",
                    protocol=protocol,
                    rater=name,
                    question=question.id,
                    product=question.product,
                    scene="",
                    variant=0,
                    shown=shown,
                    choice=choice,
                    place=1 if protocol == "j2b" else None,
                    seconds=None,
                    answered_at=datetime(2026, 11, 1, tzinfo=UTC),
                )
        raters.append(Rater(rater_id(name), name, answers))
    return raters


def test_planted_choices_give_the_expected_table() -> None:
    questions = {"1": ("a", ""), "2": ("a", ""), "3": ("b", ""), "4": ("b", "")}
    study = planted({"protocol": "j2b"}, questions, ("ours", "paste"))
    table = study_table(study, raters_of(study, "j2b", {"Ann": "oooo", "Ben": "oopo", "Cy": "op--", "Di": "----"}))
    (row,) = table.rows
    ours, paste = row.shares["ours"], row.shares["paste"]
    assert ours is not None
    assert paste is not None
    assert (ours.value, paste.value, ours.count) == (0.8, 0.2, 10)  # eight of ten answers
    assert ours.low is not None
    assert ours.high is not None
    assert 0.4 <= ours.low < 0.8 < ours.high <= 1.0
    difference = row.differences["paste"]
    assert difference is not None
    assert difference.value == pytest.approx(-0.6)
    assert (row.chance, row.raters, row.complete, row.answers, row.places) == (0.5, 3, 2, 10, {1: 10})
    # Pairs agree in question 1: 3 of 3, 2: 1 of 3, 3: 0 of 1, 4: 1 of 1; by chance 0.8² + 0.2² = 0.68.
    assert row.kappa == pytest.approx(((1 + 1 / 3 + 0 + 1) / 4 - 0.68) / 0.32)
    assert table.notes == ["J2B: 1 of 3 raters have not finished; what they answered counts"]
    assert "| J2b: chosen as the best | 80.0 [" in table.markdown()
    assert "| 50.0 | 3 (2) | 10 | -0.302 |" in table.markdown()


def test_planted_verdicts_give_the_expected_table() -> None:
    shows = ("ours", "ours", "paste", "paste", "real", "real")
    questions = {str(number): (f"p{number % 2}", of) for number, of in enumerate(shows)}
    study = planted({"protocol": "g2r"}, questions, ("ours", "paste"))
    table = study_table(study, raters_of(study, "g2r", {"Ann": "rrggrr", "Ben": "rgggrg"}))
    (row,) = table.rows
    assert {name: share and share.value for name, share in row.shares.items()} == {
        "ours": 0.75,
        "paste": 0.0,
        "real": 0.75,
    }
    assert row.places == {}
    # They agree on 4 of 6 pictures; real was said 6 of 12 times.
    assert row.kappa == pytest.approx((4 / 6 - 0.5) / 0.5)
    text = table.markdown()
    assert "| | ours | paste | real ads | by chance |" in text
    assert "| G2r" not in text
    assert "| G2R: taken for real | 75.0 [" in text
    assert "| 0.0 [0.0, 0.0] |" in text


def test_one_rater_has_no_agreement_and_says_so() -> None:
    study = planted({"protocol": "j2b"}, {"1": ("a", ""), "2": ("b", "")}, ("ours", "paste"))
    table = study_table(study, raters_of(study, "j2b", {"Ann": "op"}))
    assert table.rows[0].kappa is None
    assert table.notes == ["J2B: one rater: the interval is over products only, not over people"]
    alone = study_table(planted({"protocol": "j2b"}, {"1": ("a", "")}, ("ours", "paste")), [])
    assert "no answer" in alone.markdown()


def test_kappa_is_that_of_the_literature() -> None:
    """Fleiss (1971) as it is worked through in textbooks: ten subjects, fourteen raters, five categories."""
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    kappa = fleiss_kappa(np.array(counts, np.float64))
    assert kappa == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3.0, 0.0], [0.0, 3.0]])) == 1.0
    assert fleiss_kappa(np.array([[3.0, 0.0], [3.0, 0.0]])) is None, "all answers are alike"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ["ours"]}, "--protocol j2b: needs two methods or more"),
        ({"protocol": "g2r"}, "--protocol g2r: needs real ads"),
        ({"protocol": "g2r", "real": "nowhere"}, "--real .*nowhere: does not exist"),
        ({"protocol": "g2r", "real": "empty"}, "holds neither photographs"),
        ({"protocol": "g2r", "real": "tiny"}, "none of its 1 pictures covers 64×80 px"),
        ({"protocol": "g2r", "real": "broken"}, r"broken.*: 0.jpg: not a picture"),
        ({"runs": ["ours", "bare"]}, "bare: no image of this run is done"),
        ({"runs": ["ours", "nothing"]}, "nothing: no run: there is no ledger in it"),
        ({"runs": ["ours", "spoilt"]}, "images/00.png: cannot be shown"),
        ({"runs": ["real", "ours"]}, "real: is the word for real ads"),
        ({"host": "example.org"}, "--host example.org: must be an IPv4 address"),
        ({"port": "99999"}, "--port 99999: must be a number"),
    ],
)
def test_bad_input_is_named_before_anyone_is_asked(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, message: str
) -> None:
    from runs_to_compare import ledger_row

    from refadgen.batch.rows import to_table
    from refadgen.generation.ledger import AdLedger, AdLedgerRow

    (tmp_path / "empty").mkdir()
    photographs(tmp_path / "tiny", [(63, 80)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.jpg").write_bytes(b"no picture")
    (tmp_path / "nothing").mkdir()
    failed = [dataclasses.replace(ledger_row(0), status="failed", uri="")]
    AdLedger(Storage(str(tmp_path / "bare"))).append(to_table(failed, AdLedgerRow))
    make_run(tmp_path / "spoilt")
    (tmp_path / "spoilt" / "images" / "00.png").write_bytes(b"no picture")
    folders = dict(word.split("=") for word in runs) | {"real": runs[1].partition("=")[2]}
    words = ["serve", *(f"{name}={folders.get(name, tmp_path / name)}" for name in change.get("runs", METHODS))]
    words += ["--output", str(tmp_path / "study"), "--protocol", change.get("protocol", "j2b"), "--port", "8299"]
    words += ["--real", str(tmp_path / change["real"])] if "real" in change else []
    words += [f"--{name}={change[name]}" for name in ("host", "port") if name in change]
    assert job.main(words) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_a_table_needs_a_study_and_an_answer(runs: list[str], tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(ValueError, match=r"no study: there is no study.json"):
        write_table(storage)
    open_study(config(), storage, runs, ["j2b"], None)
    with pytest.raises(ValueError, match="nobody has answered yet"):
        write_table(storage)
