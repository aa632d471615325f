"""The job `jobs/tune_sampling.py`: measures candidates, keeps what was measured, writes what was found."""

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from refadgen.config import GenerateConfig, load_config
from refadgen.config.identity import pixel_identity
from refadgen.evaluation.examples import Examples, studio_examples, triplet_examples
from refadgen.evaluation.tuning import Candidate, Drawer, Search, Tried
from refadgen.generation.model_settings import with_model_settings
from refadgen.model.inference import load_for_inference

_ENOUGH = 24
"""Products of which an interval says something."""


def run(arguments: argparse.Namespace) -> bool:
    """Returns whether settings were found. Raises: ValueError naming an option, a setting or a row."""
    _check(arguments)
    words = [f"model.path={arguments.model}", *arguments.settings]
    config, identity = with_model_settings(load_config(GenerateConfig, None, words))
    pipeline = load_for_inference(config.model, gpu_expected=False)
    examples = _examples(arguments, (pipeline.config.width_px, pipeline.config.height_px))
    full = Candidate("model", arguments.steps)
    drawer = Drawer(pipeline, examples.rows, full)
    if few := _few(examples):
        print(few)
    decides = [pixel_identity(config, identity.fingerprint), pipeline.device.type, arguments.data, arguments.clip]
    measured = _Measured(arguments, decides, drawer, examples)
    search = Search(
        full,
        measured.scores,
        drawer.cost,
        [example.product for example in examples.rows],
        schedulers=drawer.usable(Search.schedulers),
        heard=lambda tried: print(_line(tried), flush=True),
    )
    found = search.run()
    for line in _table(search, full):
        print(line)
    if examples.unmeasured:
        print(f"not measured: {examples.unmeasured}")
    if found is None:
        print("nothing is cheaper than the full run and no worse")
        return False
    arguments.output.write_text(_settings(arguments, identity.fingerprint, found, examples), encoding="utf-8")
    print(f"found: {found.candidate}: {found.cost:.3f} of the operations; use --config {arguments.output}")
    if arguments.sheet:
        _write_sheet(arguments.sheet, drawer, examples, [full, found.candidate])
    return True


def _check(arguments: argparse.Namespace) -> None:
    """Raises: ValueError naming an option, before hours of work."""
    for name in ("products", "seeds", "steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    for word in arguments.settings:
        if not word.startswith("model."):
            raise ValueError(f"{word}: only model.field=value: what is sampled is the model's own, and what is tried")
    for name in ("output", "sheet"):
        file = getattr(arguments, name)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise ValueError(f"--{name} {file}: must be a file in a folder that exists")
    if arguments.sheet and arguments.sheet.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--sheet {arguments.sheet}: must end as pictures do, in .png or .jpg")


def _examples(arguments: argparse.Namespace, size: tuple[int, int]) -> Examples:
    if arguments.data == "studio":
        if arguments.clip:
            raise ValueError("--clip: measures triplets; the studio's scenes have a judge of their own")
        return studio_examples(arguments.products, size, arguments.output.with_suffix(".judge.pt"))
    return triplet_examples(arguments.data, arguments.products, size, arguments.clip)


class _Measured:
    """Scores of candidates, each measured once and kept in a file beside the output, for the same command again."""

    def __init__(self, arguments: argparse.Namespace, decides: list[Any], drawer: Drawer, examples: Examples) -> None:
        """decides: what images and scores depend on besides the examples, as JSON has it."""
        self._file: Path = arguments.output.with_suffix(".measured.jsonl")
        self._drawer = drawer
        self._examples = examples
        self._seeds = range(arguments.seeds)
        what = json.dumps([*decides, arguments.seeds, examples.digest], sort_keys=True)
        self._run = hashlib.sha256(what.encode()).hexdigest()[:16]
        self._kept: dict[str, Mapping[str, list[list[float]]]] = {}
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            if entry["run"] == self._run:
                self._kept[entry["candidate"]] = entry["scores"]

    def scores(self, candidate: Candidate) -> Mapping[str, npt.NDArray[np.float64]]:
        """Seeds × examples by measure. NaN where the images are. Raises: ValueError where those of the full run are."""
        key = str(candidate)
        if key not in self._kept:
            try:
                by_seed = [self._examples.judge(self._drawer.draw(candidate, seed)) for seed in self._seeds]
                self._kept[key] = {name: [one[name].tolist() for one in by_seed] for name in by_seed[0]}
            except ArithmeticError as error:
                if not self._kept:  # the full run comes first
                    raise ValueError(f"{candidate}: {error}") from error
                nothing = [[math.nan] * len(self._examples.rows)] * len(self._seeds)
                self._kept[key] = dict.fromkeys(next(iter(self._kept.values())), nothing)
            entry = {"run": self._run, "candidate": key, "scores": self._kept[key]}
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(entry))  # begun anew, should the last line be cut
        return {name: np.array(values, np.float64) for name, values in self._kept[key].items()}


def _few(examples: Examples) -> str:
    """A warning; empty: there are enough."""
    count = len(examples.rows)
    return "" if count >= _ENOUGH else f"only {count} products: their intervals say little, {_ENOUGH} or more say more"


def _line(tried: Tried) -> str:
    measures = ", ".join(f"{name} {each.mean:.3f}" for name, each in tried.measures.items())
    return f"{tried.candidate}: {tried.cost:.3f} of the operations; {measures}; {_verdict(tried)}"


def _verdict(tried: Tried) -> str:
    worse = [name for name, each in tried.measures.items() if not each.no_worse]
    return "worse in " + ", ".join(worse) if worse else "no worse"


def _table(search: Search, full: Candidate) -> list[str]:
    """All that was tried, as Markdown, the cheapest last."""
    tried = sorted(search.tried.values(), key=lambda one: -one.cost)
    if not tried:
        return []
    names = list(tried[0].measures)
    lines = ["", "| settings | operations | " + " | ".join(names) + " | |", "|---" * (len(names) + 3) + "|"]
    own = [tried[0].measures[name] for name in names]
    cells = [f"{each.full_mean:.3f} [{each.full_interval[0]:.3f}, {each.full_interval[1]:.3f}]" for each in own]
    lines.append(f"| {full} | 1 | " + " | ".join(cells) + " | |")
    for one in tried:
        cells = [
            f"{each.mean:.3f} ({each.difference_interval[0]:+.3f} to {each.difference_interval[1]:+.3f})"
            for each in one.measures.values()
        ]
        lines.append(f"| {one.candidate} | {one.cost:.3f} | " + " | ".join(cells) + f" | {_verdict(one)} |")
    return [*lines, ""]


def _settings(arguments: argparse.Namespace, fingerprint: str, found: Tried, examples: Examples) -> str:
    """The YAML for --config."""
    measures = [
        f"# {name}: {each.mean:.3f}; of the full run {each.full_mean:.3f}, 95 % interval {each.full_interval[0]:.3f} "
        f"to {each.full_interval[1]:.3f}"
        for name, each in found.measures.items()
    ]
    candidate = dataclasses.asdict(found.candidate) | {"guidance_interval": list(found.candidate.guidance_interval)}
    return "\n".join(
        [
            f"# Measured by jobs/tune_sampling.py on {arguments.data}: {len(examples.rows)} products, "
            f"{arguments.seeds} seeds, against {arguments.steps} steps of the model's own scheduler.",
            f"# Operations of an image's steps: {found.cost:.3f} of the full run's.",
            *measures,
            *([f"# {few}."] if (few := _few(examples)) else []),
            *([f"# Not measured: {examples.unmeasured}."] if examples.unmeasured else []),
            yaml.safe_dump({"sampling": candidate | {"tuned_for": fingerprint}}, sort_keys=False),
        ]
    )


def _write_sheet(file: Path, drawer: Drawer, examples: Examples, candidates: list[Candidate]) -> None:
    """One line an example: the product, and its image by each candidate with the first seed; four examples side by
    side."""
    drawn = [drawer.draw(candidate, 0) for candidate in candidates]
    tiles = [
        np.concatenate([example.canvas, *(images[index] for images in drawn)], axis=1)
        for index, example in enumerate(examples.rows)
    ]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    lines = [np.concatenate(tiles[start : start + 4], axis=1) for start in range(0, len(tiles), 4)]
    Image.fromarray(np.concatenate(lines)).save(file)
