"""The `placement` of a row: where this product stands, in place of the job's `layout.size` and `layout.anchor`."""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from refadgen.config import Anchor, LayoutConfig
from refadgen.config.marks import setting_of

_FORM = 'write it as size=0.5 anchor=bottom-left, or as JSON {"size": 0.5, "anchor": "bottom-left"}'
_SIZE = setting_of(LayoutConfig, "size")
_ANCHORS: tuple[Anchor, ...] = typing.get_args(Anchor)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The layout of one row, checked by `parse_placement`. None: as in LayoutConfig."""

    size: float | None = None
    """The product's larger extent relative to the canvas, in the range of `layout.size`."""
    anchor: Anchor | None = None

    def over(self, layout: LayoutConfig) -> LayoutConfig:
        """`layout` with this row's values in place of its own. Raises: ValueError for a value that no layout takes."""
        return dataclasses.replace(
            layout,
            size=layout.size if self.size is None else self.size,
            anchor=layout.anchor if self.anchor is None else self.anchor,
            as_photographed=False,
            long_side_px=None,
        )


def parse_placement(value: str | Mapping[str, object]) -> Placement | None:
    """Reads the placement that a row gives as text, JSON text or struct; None where it is blank.

    Raises: ValueError with the fault and the right form.
    """
    fields = _from_text(value) if isinstance(value, str) else {str(k).lower(): v for k, v in value.items()}
    for name in fields:
        if name not in ("size", "anchor"):
            near = difflib.get_close_matches(name, ("size", "anchor"), n=1, cutoff=0.5)
            raise ValueError(f"unknown {name!r}" + (f", is {near[0]!r} meant?" if near else f"; {_FORM}"))
    size, anchor = fields.get("size"), fields.get("anchor")
    if size is None and anchor is None:
        return None
    # bool is an int to Python: true would otherwise be a size of 1.
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | float)):
        raise ValueError(f"size={size!r} is not a number; {_FORM}")
    if anchor is not None and not isinstance(anchor, str):
        raise ValueError(f"anchor={anchor!r} is not a text; {_FORM}")
    if size is not None and not _SIZE.allows(size):
        # Before float(): an integer of hundreds of digits would overflow.
        raise ValueError(f"size={str(size)[:20]}: must be {_SIZE.text}")
    return Placement(
        size=None if size is None else float(size),
        anchor=None if anchor is None else _known_anchor(anchor),
    )


def _known_anchor(text: str) -> Anchor:
    """Raises: ValueError for any other text."""
    written = text.strip().lower().replace("_", "-")
    for anchor in _ANCHORS:
        if written == anchor:
            return anchor
    raise ValueError(f"anchor={text!r}: must be one of {', '.join(_ANCHORS)}")


def _from_text(text: str) -> dict[str, object]:
    """Reads `size=0.5 anchor=left` (separated by blanks, commas or semicolons) or a JSON object."""
    text = text.strip()
    if text.startswith("{"):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # thousands of nested brackets
            raise ValueError(f"not JSON; {_FORM}") from error
        return {str(key).lower(): value for key, value in fields.items()}
    found: dict[str, object] = {}
    for word in re.split(r"[\s,;]+", re.sub(r"\s*=\s*", "=", text)):
        if not word:
            continue
        name, equals, value = word.partition("=")
        if not equals or name.lower() in found:
            raise ValueError(f"cannot read {word[:80]!r}; {_FORM}")
        found[name.lower()] = _number_or_text(value)
    return found


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
