"""Products that are in a feed and not for sale: virtual ones, drafts, and those out of stock."""

from collections.abc import Collection
from dataclasses import dataclass

from refadgen.catalog.feeds.report import FeedReport

_OUT_OF_STOCK = frozenset({"out of stock", "outofstock", "sold out"})


@dataclass(frozen=True, kw_only=True)
class State:
    """What a feed says about a product."""

    virtual: bool = False
    """Nothing that is shipped: a download, a gift card, a service."""
    draft: bool = False
    """Not published."""
    out_of_stock: bool = False


@dataclass(frozen=True)
class LeftOut:
    """Which states are left out. names: of `catalog.leave_out`."""

    names: Collection[str]

    def takes(self, state: State, row: str, report: FeedReport) -> bool:
        """Whether a product is wanted; one that is not is counted. row: names it."""
        states = {"virtual": state.virtual, "draft": state.draft, "out-of-stock": state.out_of_stock}
        reason = next((name for name, holds in states.items() if holds and name in self.names), None)
        if reason:
            report.leave_out(f"{reason} (catalog.leave_out)", row)
        return reason is None


def is_out_of_stock(availability: str | None) -> bool:
    """Whether Google's `availability` says so."""
    words = (availability or "").strip().lower().rpartition("/")[2]
    return words.replace("_", " ").replace("-", " ") in _OUT_OF_STOCK
