"""On which nodes a pool's actors may run: `stages.*.label_selector` in Ray's form, and which nodes fit."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Selector = Mapping[str, str]
"""Conditions by label, in Ray's words: `H100`, `!H100`, `in(H100, H200)`, `!in(H100, H200)`."""
_LIST = re.compile(r"in\((.*)\)")


def selectors(texts: Sequence[str]) -> list[dict[str, str]]:
    """The selectors of a setting, in the order in which they are tried. texts: as `StageConfig` has checked them."""
    found = []
    for text in texts:
        pairs = (condition.partition("=") for condition in text.split("&"))
        found.append({name.strip(): value.strip() for name, _, value in pairs})
    return found


def placement(texts: Sequence[str]) -> dict[str, Any]:
    """The arguments of Ray Data's transforms: the first selector, the others as what Ray falls back on."""
    found = selectors(texts)
    return {
        "label_selector": found[0] if found else None,
        "fallback_strategy": [{"label_selector": other} for other in found[1:]] or None,
    }


def may_hold(labels: Mapping[str, str] | None, texts: Sequence[str]) -> bool:
    """Whether a node may hold actors of a pool. labels: None, of a node that is yet to come: nobody knows them."""
    return labels is None or not texts or any(_fits(labels, selector) for selector in selectors(texts))


def _fits(labels: Mapping[str, str], selector: Selector) -> bool:
    for name, condition in selector.items():
        wanted = condition.removeprefix("!")
        listed = _LIST.fullmatch(wanted)
        values = [value.strip() for value in listed[1].split(",")] if listed else [wanted]
        if (labels.get(name) in values) == condition.startswith("!"):
            return False
    return True
