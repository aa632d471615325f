"""A measure over the runs as SVG: a dot with its interval for each; a line where the runs' names are numbers (λ)."""

from xml.sax.saxutils import escape

from refadgen.evaluation.summary import Cell, Line

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 560, 30, 150, 70, 44
_HEIGHT = 260
_INK, _SOFT, _DOT = "#1b1f24", "#9aa0a6", "#1f55c4"


def plot(line: Line, names: list[str]) -> str | None:
    """The plot of a measure's cells; None where fewer than two runs have a value."""
    points = [(name, cell) for name, cell in zip(names, line.cells, strict=True) if cell is not None]
    if len(points) < 2:
        return None
    arrow = "more is better" if line.measure.better == "more" else "less is better"
    title = f"{line.measure.title} ({arrow}), {min(cell.count for _, cell in points)} images or more a run"
    numbers = [_number(name) for name, _ in points]
    if all(number is not None for number in numbers) and len(points) > 2:
        chart = _curve(sorted((float(number or 0), cell) for number, (_, cell) in zip(numbers, points, strict=True)))
        return _svg(title, chart, _HEIGHT)
    return _svg(title, _rows(points), _TOP + _ROW * len(points) + 12)


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None


def _bounds(cells: list[Cell]) -> tuple[float, float]:
    low = min(cell.value if cell.low is None else cell.low for cell in cells)
    high = max(cell.value if cell.high is None else cell.high for cell in cells)
    return (low, high) if high > low else (low - 1, high + 1)


def _rows(points: list[tuple[str, Cell]]) -> list[str]:
    low, high = _bounds([cell for _, cell in points])

    def place(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for index, (name, cell) in enumerate(points):
        y = _TOP + _ROW * index + _ROW / 2
        parts.append(_text(_LEFT - 14, y + 4, name if len(name) < 22 else f"{name[:20]}…", "end"))
        parts.append(_text(_WIDTH - _RIGHT + 14, y + 4, f"{cell.value:.4g}"))
        if cell.low is not None and cell.high is not None:
            parts.append(_stroke([(place(cell.low), y), (place(cell.high), y)], _SOFT))
        parts.append(f'<circle cx="{place(cell.value):.1f}" cy="{y:.1f}" r="5" fill="{_DOT}"/>')
    return parts


def _curve(points: list[tuple[float, Cell]]) -> list[str]:
    low, high = _bounds([cell for _, cell in points])
    first, last = points[0][0], points[-1][0]
    bottom = _HEIGHT - 36

    def at(x: float, value: float) -> tuple[float, float]:
        across = (x - first) / (last - first or 1)
        return 70 + across * (_WIDTH - 100), bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = [_text(62, at(first, value)[1] + 4, f"{value:.4g}", "end") for value in (low, high)]
    parts.append(_stroke([at(x, cell.value) for x, cell in points], _DOT))
    for x, cell in points:
        center = at(x, cell.value)
        if cell.low is not None and cell.high is not None:
            parts.append(_stroke([at(x, cell.low), at(x, cell.high)], _SOFT))
        parts.append(f'<circle cx="{center[0]:.1f}" cy="{center[1]:.1f}" r="4" fill="{_DOT}"/>')
        parts.append(_text(center[0], _HEIGHT - 14, f"{x:g}", "middle"))
    return parts


def _stroke(points: list[tuple[float, float]], color: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'


def _svg(title: str, parts: list[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    ground = f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    return f'{head} font-family="sans-serif" font-size="12">{ground}{_text(14, 22, title)}{"".join(parts)}</svg>\n'
