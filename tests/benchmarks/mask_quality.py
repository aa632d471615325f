"""How good masks are, kind by kind: held-out scenes with true masks, any number of checkouts side by side in one run.

    python tests/benchmarks/mask_quality.py --root BEFORE --root . --scenes 100

Product families and seeds of these scenes were never trained or calibrated on. Beside the kinds of scenes, there are
masks and alpha channels as shops give them, each with a fault (`GIVEN`). Silently wrong: accepted, but the IoU is under
0.9. This checkout makes the scenes; each `--root` judges them in processes of its own, on one core each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from refadgen.mask_training.bank import Bank
    from refadgen.mask_training.scenes import Scene

# `refadgen` is imported in functions only: a judging process runs this file with an older checkout's.
GIVEN = ("given_specks", "given_inverted", "alpha_specks", "alpha_shadow", "alpha_crop")
WRONG_IOU = 0.9
LONGEST_PX = (300, 3000)
"""Sizes of the photographs: the longer side, uniform in its logarithm; a quarter are 500 to 800."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, action="append", help="a checkout to measure; default: this one")
    parser.add_argument("--scenes", type=int, default=100, help="of each kind")
    parser.add_argument("--kinds", nargs="+", help="kinds of scenes and of given masks; default: all")
    parser.add_argument(
        "--renders", type=Path, nargs="*", default=[], help="held-out renders, for more kinds of products"
    )
    parser.add_argument("--first-seed", type=int, default=5_000_000)
    parser.add_argument("--processes", type=int, default=1, help="that make and judge scenes side by side")
    parser.add_argument("--rows", type=Path, help="writes the judged scenes of each checkout there, as JSON")
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.judge:
        _judge(arguments.judge, arguments.part, arguments.processes)
        return
    from refadgen.mask_training.bank import Bank
    from refadgen.mask_training.scenes import KINDS

    kinds = arguments.kinds or [*KINDS, *GIVEN]
    unknown = sorted({*kinds} - {*KINDS, *GIVEN})
    if unknown:
        parser.error(f"--kinds: {', '.join(unknown)} is none of {', '.join([*KINDS, *GIVEN])}")
    bank = Bank(arguments.renders) if arguments.renders else None
    roots = [root.resolve() for root in arguments.root or [Path(__file__).parents[2]]]
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(arguments.processes) as pool:
            make = partial(_make, Path(folder), count=arguments.scenes, first=arguments.first_seed, bank=bank)
            listed = [scene for scenes in pool.map(make, kinds) for scene in scenes]
        (Path(folder) / "scenes.json").write_text(json.dumps(listed))
        judged = {}
        for root in roots:
            judged[str(root)] = rows = _judged(root, folder, arguments.processes)
            print(f"\n## {root.name}\n{_table(rows, kinds)}", flush=True)
    if arguments.rows:
        arguments.rows.write_text(json.dumps(judged))


def _judged(root: Path, folder: str, processes: int) -> list[dict[str, Any]]:
    """The rows of `_judge` by the checkout `root`, from processes that each take a part of the scenes."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--judge", folder, "--processes", str(processes), "--part"]
    running = [
        subprocess.Popen([*command, str(part)], env=environment, text=True, stdout=subprocess.PIPE)
        for part in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"--root {root}: judging failed, see above")
    return [row for output in outputs for row in json.loads(output.splitlines()[-1])]


def _make(folder: Path, kind: str, *, count: int, first: int, bank: "Bank | None") -> list[dict[str, str]]:
    """Writes `count` scenes of a kind as PNGs, each with its true mask. Returns: kind, name and family of each.

    first: the seed of the first scene. bank: renders to draw from as well; None: drawn products only.
    """
    from refadgen.mask_training.scenes import make_scene

    cv2.setNumThreads(1)
    listed = []
    for index in range(count):
        rng = np.random.default_rng([first + index, len(kind), ord(kind[0]), ord(kind[-1])])
        longest = int(np.exp(rng.uniform(*np.log(LONGEST_PX)))) if index % 4 else int(rng.uniform(500, 800))
        scene = make_scene(rng, "white" if kind in GIVEN else kind, "test", longest, bank)
        name = f"{kind}-{index}"
        given = _given(rng, kind, scene) if kind in GIVEN else None
        image = Image.fromarray(scene.image)
        if given is not None and kind.startswith("alpha"):
            image.putalpha(Image.fromarray(given))
        elif given is not None:
            Image.fromarray(given).save(folder / f"{name}.given.png", compress_level=1)
        image.save(folder / f"{name}.png", compress_level=1)
        truth = np.where(scene.coverage >= 0.5, 255, 0).astype(np.uint8)
        Image.fromarray(truth).save(folder / f"{name}.truth.png", compress_level=1)
        listed.append({"kind": kind, "name": name, "family": scene.family})
    return listed


def _given(rng: np.random.Generator, kind: str, scene: "Scene") -> np.ndarray:
    """A mask or an alpha channel as shops give them, with the fault of its kind: uint8 HW.

    Changes the scene where the fault does: under a transparent shadow the image is black, and a crop cuts the product.
    """
    mask = np.round(255 * scene.coverage).astype(np.uint8)
    if kind == "given_inverted":
        return np.where(mask > 127, 0, 255).astype(np.uint8)
    if kind in ("given_specks", "alpha_specks"):
        for _ in range(rng.integers(1, 6)):
            y, x = rng.integers(0, mask.shape[0] - 2), rng.integers(0, mask.shape[1] - 2)
            mask[y : y + rng.integers(1, 3), x : x + rng.integers(1, 3)] = 255
        return np.where(mask > 127, 255, 0).astype(np.uint8) if kind == "given_specks" else mask
    if kind == "alpha_shadow":
        height = mask.shape[0]
        x, y, w, h = cv2.boundingRect(mask)
        shadow = np.zeros(mask.shape, np.float32)
        center = (int(x + w / 2), min(height - 1, int(y + h)))
        cv2.ellipse(shadow, center, (max(2, int(0.6 * w)), max(2, int(0.08 * h))), 0, 0, 360, 1.0, -1)
        shadow = cv2.GaussianBlur(shadow, (0, 0), max(1.0, 0.02 * h)) * rng.uniform(60, 190)
        scene.image[scene.coverage < 0.5] = 0
        return np.maximum(mask, shadow.astype(np.uint8))
    margin = max(2, int(0.03 * min(mask.shape)))
    crop = np.zeros_like(mask)
    if rng.random() < 0.5:
        crop[margin:-margin, margin:-margin] = 255
    else:
        half = (mask.shape[1] // 2, mask.shape[0] // 2)
        cv2.ellipse(crop, half, (half[0] - margin, half[1] - margin), 0, 0, 360, 255, -1, cv2.LINE_AA)
    scene.coverage[crop < 128] = 0
    return crop


def _judge(folder: Path, part: int, parts: int) -> None:
    """Runs this process's `refadgen` over every `parts`-th scene; prints one line of JSON, a list with a row for each.

    A row has the kind, the family, the IoU and score of an accepted mask, or the reason of its refusal, and seconds.
    """
    from refadgen.config import SegmentationConfig
    from refadgen.errors import RowError
    from refadgen.segmentation import ProductMasker

    cv2.setNumThreads(1)
    masker, rows = ProductMasker(SegmentationConfig()), []
    for each in json.loads((folder / "scenes.json").read_text())[part::parts]:
        image = Image.open(folder / f"{each['name']}.png")
        image.load()
        given = folder / f"{each['name']}.given.png"
        own = np.asarray(Image.open(given)) if given.exists() else None
        truth = np.asarray(Image.open(folder / f"{each['name']}.truth.png")) > 127
        row: dict[str, Any] = {
            "kind": each["kind"],
            "family": each["family"],
            "name": each["name"],
            "iou": None,
            "reason": "",
        }
        started = time.perf_counter()
        try:
            found = masker.segment(image, None, own)
        except RowError as error:
            row["reason"] = error.reason
        else:
            mask = found.mask > 127
            row |= {"iou": float((mask & truth).sum() / max(1, (mask | truth).sum())), "score": float(found.score)}
        row["seconds"] = time.perf_counter() - started
        rows.append(row)
    print(json.dumps(rows))


def _table(rows: list[dict[str, Any]], kinds: list[str]) -> str:
    """The rows of `_judge` as a Markdown table: a line for each kind, for the plain backdrops and for all."""
    from refadgen.mask_training.scenes import PLAIN_KINDS

    lines = ["| kind | accepted | IoU of the accepted | silently wrong | refused as |", "|---|---|---|---|---|"]
    for kind, chosen in [
        *((kind, [r for r in rows if r["kind"] == kind]) for kind in kinds),
        ("plain backdrops", [r for r in rows if r["kind"] in PLAIN_KINDS]),
        ("all", rows),
    ]:
        if not chosen:
            continue
        accepted = [r["iou"] for r in chosen if r["iou"] is not None]
        wrong = sum(iou < WRONG_IOU for iou in accepted)
        reasons = [r["reason"] for r in chosen if r["reason"]]
        counts = sorted({(-reasons.count(reason), reason) for reason in reasons})
        named = ", ".join(f"{reason} {-count}" for count, reason in counts[:3])
        mean = f"{np.mean(accepted):.3f}" if accepted else "–"
        lines.append(f"| {kind} | {len(accepted)} of {len(chosen)} | {mean} | {wrong} | {named} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
