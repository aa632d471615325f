"""Whether the weights that a setting names are complete."""

from collections.abc import Mapping
from typing import Any


def require_all_weights(field: str, report: Mapping[str, Any]) -> None:
    """Raises: ValueError naming `field` where transformers' loading report says that weights were made up."""
    # transformers itself only warns: it initialises missing weights at random and goes on.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{field}: {len(missing)} weights are missing, the first is {missing[0]}")
