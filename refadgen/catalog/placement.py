"""The `placement` of a row: where this product stands, over what `layout` says for all."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refadgen.config import Anchor, LayoutConfig

_FORM = 'write it as size=0.5 anchor=bottom-left, or as JSON {"size": 0.5, "anchor": "bottom-left"}'


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What one row says about its layout; `None`: as in LayoutConfig. Ranges are LayoutConfig's."""

    size: float | None = None
    anchor: Anchor | None = None

    def __post_init__(self) -> None:
        self.over(LayoutConfig())

    def over(self, layout: LayoutConfig) -> LayoutConfig:
        """`layout` with this row's values in place of its own. Raises: ValueError for a value out of range."""
        own: dict[str, Any] = {key: value for key, value in vars(self).items() if value is not None}
        return dataclasses.replace(layout, **own)


def parse_placement(value: str | Mapping[str, object]) -> Placement | None:
    """The placement a row gives as text, JSON text or struct; `None` where it says nothing.

    Raises: ValueError saying what is wrong and how it is written.
    """
    fields = _from_text(value) if isinstance(value, str) else {str(k).lower(): v for k, v in value.items()}
    for name in fields:
        if name not in ("size", "anchor"):
            near = difflib.get_close_matches(name, ("size", "anchor"), n=1, cutoff=0.5)
            raise ValueError(f"unknown {name!r}" + (f", is {near[0]!r} meant?" if near else f"; {_FORM}"))
    size, anchor = fields.get("size"), fields.get("anchor")
    if size is None and anchor is None:
        return None
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | float)):
        raise ValueError(f"size={size!r} is not a number; {_FORM}")
    if anchor is not None and not isinstance(anchor, str):
        raise ValueError(f"anchor={anchor!r} is not a text; {_FORM}")
    try:
        return Placement(
            size=None if size is None else float(size),
            anchor=None if anchor is None else anchor.strip().lower().replace("_", "-"),  # type: ignore[arg-type]
        )
    except OverflowError as error:
        raise ValueError("size is out of any range; must be 0.05 to 1.0") from error
    except ValueError as error:
        raise ValueError(str(error).replace("layout.", "")) from error


def _from_text(text: str) -> dict[str, object]:
    """The fields of `size=0.5 anchor=left` (blanks, commas or semicolons between) or of a JSON object."""
    text = text.strip()
    if text.startswith("{"):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
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
