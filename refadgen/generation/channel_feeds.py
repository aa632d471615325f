"""Channels' feeds from a run's ledger, some products at a time: no ledger is too large for memory."""

from refadgen.batch.key_order import in_key_order
from refadgen.channels.feeds import write_feeds
from refadgen.generation.ledger import AdLedger
from refadgen.storage.store import Storage

_TRIES = 5
"""Another driver of the output may fold the ledger's parts meanwhile."""


def write_channel_feeds(storage: Storage, ledger: AdLedger, public_url: str, *, for_channels: bool) -> dict[str, int]:
    """Writes the feeds of an output anew; returns the rows of each. The arguments are as of `write_feeds`."""
    for attempt in range(_TRIES):
        try:
            tables = in_key_order(ledger, ledger.parts(), lambda rows: rows["sku"].combine_chunks(), ["sku"])
            return write_feeds(storage, tables, public_url, for_channels=for_channels)
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError
