"""What the dataset job remembers: of its first pass over the ads (`screening/`), and of every ad in the end."""

import pyarrow as pa

from refadgen.batch.ledger import Ledger
from refadgen.errors import retried_reasons
from refadgen.storage.store import Storage

SCREENING_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # hash of all that the row says: 32 hexadecimal digits
        ("run_id", pa.string()),
        ("recorded_at", pa.timestamp("us", tz="UTC")),
        ("row", pa.int64()),  # of the input, from 0
        ("ad_id", pa.string()),
        ("group", pa.string()),  # the product; the ad's own id where the input names none
        ("category", pa.string()),
        ("status", pa.string()),  # done: fit for the second pass; failed, rejected
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("image", pa.string()),  # address without signatures; empty: in the input itself
        ("input_sha256", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("perceptual_hash", pa.uint64()),  # null where the ad could not be read
        ("thumbnail", pa.binary()),  # 4×4 RGB
        ("screen_s", pa.float32()),
    ]
)

SCHEMA = pa.schema(
    [
        *(field for field in SCREENING_SCHEMA if field.name not in ("perceptual_hash", "thumbnail")),
        ("duplicate_of", pa.string()),  # ad_id of the ad that stays
        ("split", pa.string()),  # train, test; empty unless done
        ("captions", pa.list_(pa.string())),
        ("mask_source", pa.string()),  # own_mask, plain_background, sam2
        ("mask_score", pa.float32()),
        ("mask_area", pa.float32()),  # share of the ad
        ("variants", pa.string()),  # kinds of the product images, in order
        ("views", pa.string()),  # JSON: angles, holes, stretch and tries of each novel view
        ("file", pa.string()),  # of the triplet, relative to the output; empty unless done
        ("fetch_s", pa.float32()),
        ("extract_s", pa.float32()),
        ("describe_s", pa.float32()),
        ("augment_s", pa.float32()),
    ]
)
"""One row per ad; `status` is done, failed or rejected."""

NEAR_DUPLICATE = "near_duplicate"
REPLACED = "replaced"
"""An ad that was done, and whose row of the input says something else now."""


def screening_ledger(storage: Storage) -> Ledger:
    """Of the first pass."""
    return Ledger(storage, SCREENING_SCHEMA, "screening", retried=retried_reasons(new_files=True))


def dataset_ledger(storage: Storage) -> Ledger:
    """Of every ad."""
    return Ledger(storage, SCHEMA, retried=retried_reasons(new_files=True))
