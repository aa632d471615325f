"""The table of the proof, printed from its JSON: figures, measured ratios beside counted ones, goals, what misses."""

from collections.abc import Sequence
from typing import Any

from proof_record import Values

_VARIANTS = ("eager", "blocks", "whole", "graphs")
_COMPILED = _VARIANTS[1:]
_COLUMNS = (
    ("loop_images_s", "loop img/s"),
    ("whole_images_s", "whole img/s"),
    ("step_ms", "step ms"),
    ("share", "matrix share"),
    ("busy_ms", "busy ms"),
    ("idle_ms", "idle ms"),
    ("launches", "launches"),
    ("kernels", "kernels"),
    ("host_gaps", "gaps"),
    ("waits", "waits"),
    ("warned_waits", "warned"),
    ("peak_gb", "peak GB"),
    ("compile_s", "compile s"),
)


class Figures:
    """Look-ups in the results."""

    def __init__(self, results: dict[str, Values]) -> None:
        self._results = results

    def values(self, name: str) -> Values | None:
        """The values of a case that is done."""
        entry = self._results.get(name, {})
        return entry.get("values") if entry.get("status") == "done" else None

    def speed(self, dtype: str, variant: str, batch: int, system: str) -> Values | None:
        """A speed case with its `share` of the matrix rate, where ceilings and operations are known."""
        values = self.values(f"speed/{dtype}/{variant}/batch-{batch}/{system}")
        if values is None:
            return None
        operations, rate = self._operations(system), self.values(f"speed/{dtype}/ceilings")
        if operations is None or not rate or not rate["matrix_tflops"]:
            return values
        achieved = operations * batch / values["step_ms"] * 1000
        return values | {"share": round(achieved / rate["matrix_tflops"], 4)}

    def _operations(self, system: str) -> float | None:
        for dtype in ("float16", "bfloat16"):  # operations don't depend on the number format
            values = self.values(f"speed/{dtype}/operations/{system}")
            if values is not None:
                return float(values["step_tflop"])
        return None

    def counted(self, system: str, other: str) -> float | None:
        """Operations of a step of `system` over those of `other`."""
        mine, theirs = self._operations(system), self._operations(other)
        return mine / theirs if mine and theirs else None


def table(data: dict[str, Any]) -> str:
    """All that the file holds, as text."""
    results: dict[str, Values] = data["results"]
    figures = Figures(results)
    facts = ", ".join(f"{name} {value}" for name, value in data["machine"].items())
    lines = ["", facts]
    for dtype in ("float16", "bfloat16"):
        lines += _speed_lines(figures, results, dtype)
    for part in ("correctness", "training", "engine", "networks"):
        lines += _part_lines(results, part)
    lines += ["", "goals", *_goals(figures, results)]
    missing = [f"  {name}: {e['status']}: {e['reason']}" for name, e in sorted(results.items()) if "reason" in e]
    if missing:
        lines += ["", "not measured", *missing]
    return "\n".join(lines)


def _speed_lines(figures: Figures, results: dict[str, Values], dtype: str) -> list[str]:
    rows = [["case", *(title for _, title in _COLUMNS)]]
    for variant in _VARIANTS:
        for batch in _batches(results, dtype):
            for system in ("ours", "authors", "plain"):
                values = figures.speed(dtype, variant, batch, system)
                if values is not None:
                    cells = [_shown(values.get(key)) for key, _ in _COLUMNS]
                    rows.append([f"{variant} batch {batch} {system}", *cells])
    if len(rows) == 1:
        return []
    ceilings = figures.values(f"speed/{dtype}/ceilings") or {}
    return ["", f"speed, {dtype}; a step's figures; measured ceilings {ceilings}", *_aligned(rows)]


def _batches(results: dict[str, Values], dtype: str) -> list[int]:
    found = {name.split("/")[3] for name in results if name.startswith(f"speed/{dtype}/") and "/batch-" in name}
    return sorted(int(text.removeprefix("batch-")) for text in found)


def _part_lines(results: dict[str, Values], part: str) -> list[str]:
    done = {n: e["values"] for n, e in sorted(results.items()) if n.startswith(f"{part}/") and e["status"] == "done"}
    rows = [
        [name.removeprefix(f"{part}/"), "  ".join(f"{key} {_shown(value)}" for key, value in values.items())]
        for name, values in done.items()
    ]
    return ["", part, *_aligned(rows)] if rows else []


def _goals(figures: Figures, results: dict[str, Values]) -> list[str]:
    """Each goal with the figure beside it: reached, not reached, or not measured."""
    lines = []
    for dtype in ("float16", "bfloat16"):
        for batch in [batch for batch in _batches(results, dtype) if batch in (1, 8)]:
            lines += _against_eager(figures, dtype, batch, 1.5 if batch == 1 else 1.3)
            for variant in _COMPILED:
                lines += _same_way(figures, dtype, variant, batch)
    busy = figures.values("engine/compiled") or figures.values("engine/eager")
    share = None if busy is None else busy.get("busy_share")
    lines.append(_goal("engine: busy share of the card", share, 0.97))
    return lines


def _against_eager(figures: Figures, dtype: str, batch: int, least: float) -> list[str]:
    """Ours, compiled in the best way, against the authors' loop as they ship it."""
    theirs = figures.speed(dtype, "eager", batch, "authors")
    found = [(figures.speed(dtype, variant, batch, "ours"), variant) for variant in _COMPILED]
    compiled = [(values, variant) for values, variant in found if values is not None]
    lines = []
    for key, what in (("loop_images_s", "loop"), ("whole_images_s", "whole image")):
        best = max(((values[key], variant) for values, variant in compiled), default=None)
        title = f"{dtype} batch {batch}, {what}: ours compiled ({best[1] if best else '-'}) / authors eager, images/s"
        lines.append(_goal(title, best[0] / theirs[key] if best and theirs else None, least))
    return lines


def _same_way(figures: Figures, dtype: str, variant: str, batch: int) -> list[str]:
    """Ours against both others, compiled in the same way."""
    ours, authors, plain = (figures.speed(dtype, variant, batch, name) for name in ("ours", "authors", "plain"))
    if ours is None:
        return []
    where = f"{dtype} batch {batch} {variant}"
    over, time = figures.counted("authors", "ours"), figures.counted("ours", "plain")
    faster = ours["loop_images_s"] / authors["loop_images_s"] if authors else None
    longer = plain["loop_images_s"] / ours["loop_images_s"] if plain else None
    mine, theirs = ours.get("share"), (plain or {}).get("share")
    held = mine / theirs if mine and theirs else None
    return [
        _goal(f"{where}: ours / authors, images/s (counted {_shown(over)})", faster, 1.04),
        _goal(f"{where}: time over plain SD (counted {_shown(time)})", longer, 1.20, most=True),
        _goal(f"{where}: matrix share over plain SD's", held, 0.95),
        _goal(f"{where}: host waits a step, of the runtime", ours.get("waits"), 0, most=True),
    ]


def _goal(title: str, value: float | None, bound: float, *, most: bool = False) -> str:
    sign = "≤" if most else "≥"
    if value is None:
        return f"  not measured  {title}: goal {sign} {bound}"
    reached = value <= bound if most else value >= bound
    return f"  {'reached     ' if reached else 'NOT REACHED '}  {title}: {_shown(value)}, goal {sign} {bound}"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 0.001 else f"{value:.4g}"
    return str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    first = [f"  {row[0]:<{widths[0]}}" for row in rows]
    rest = ["".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)) for row in rows]
    if len(rows[0]) == 2:
        rest = [f"  {row[1]}" for row in rows]
    return [left + right for left, right in zip(first, rest, strict=True)]
