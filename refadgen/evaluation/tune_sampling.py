"""The job `jobs/tune_sampling.py`: measures candidates, keeps what was measured, writes what was found."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from refadgen.config import GenerateConfig, load_config
from refadgen.evaluation.examples import Examples, studio_examples, triplet_examples
from refadgen.evaluation.tuning import Candidate, Drawer, Search, Tried
from refadgen.generation.model_settings import with_model_settings
from refadgen.model.inference import load_for_inference


def run(arguments: argparse.Namespace) -> bool:
    """Returns whether settings were found. Raises: ValueError naming an option, a setting or a row."""
    for name in ("products", "seeds", "steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    words = [f"model.path={arguments.model}", *arguments.settings]
    config, identity = with_model_settings(load_config(GenerateConfig, None, words))
    pipeline = load_for_inference(config.model, gpu_expected=False)
    examples = _examples(arguments, (pipeline.config.width_px, pipeline.config.height_px))
    full = Candidate("model", arguments.steps)
    drawer = Drawer(pipeline, examples.rows, full)
    measured = _Measured(arguments, identity.fingerprint, drawer, examples)
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


def _examples(arguments: argparse.Namespace, size: tuple[int, int]) -> Examples:
    if arguments.data == "studio":
        if arguments.clip:
            raise ValueError("--clip: measures triplets; the studio's scenes have a judge of their own")
        return studio_examples(arguments.products, arguments.output.with_suffix(".judge.pt"))
    return triplet_examples(arguments.data, arguments.products, size, arguments.clip)


class _Measured:
    """Scores of candidates, each measured once and kept in a file beside the output, for the same command again."""

    def __init__(self, arguments: argparse.Namespace, fingerprint: str, drawer: Drawer, examples: Examples) -> None:
        self._file: Path = arguments.output.with_suffix(".measured.jsonl")
        self._drawer = drawer
        self._examples = examples
        self._seeds = range(arguments.seeds)
        self._run = [fingerprint, arguments.data, arguments.clip, arguments.products, arguments.seeds]
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
        """Seeds × examples by measure."""
        key = str(candidate)
        if key not in self._kept:
            by_seed = [self._examples.judge(self._drawer.draw(candidate, seed)) for seed in self._seeds]
            self._kept[key] = {name: [one[name].tolist() for one in by_seed] for name in by_seed[0]}
            entry = {"run": self._run, "candidate": key, "scores": self._kept[key]}
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(entry))  # begun anew, should the last line be cut
        return {name: np.array(values, np.float64) for name, values in self._kept[key].items()}


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
