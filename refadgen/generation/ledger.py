"""The ledger of the main job: one row per wanted image (see refadgen/batch/ledger.py)."""

import pyarrow as pa

from refadgen.batch.ledger import Ledger
from refadgen.storage.store import Storage

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # hash of all that decides the picture: 32 hexadecimal digits
        ("run_id", pa.string()),
        ("recorded_at", pa.timestamp("us", tz="UTC")),
        ("row", pa.int64()),  # of the catalogue, from 0
        ("sku", pa.string()),
        ("category", pa.string()),
        ("scene", pa.string()),
        ("variant", pa.int32()),  # from 0
        ("status", pa.string()),  # done, failed, rejected
        ("reason", pa.string()),  # a short code; empty when done
        ("detail", pa.string()),  # one sentence for a person; empty when done
        ("attempts", pa.int32()),  # images drawn
        ("uri", pa.string()),  # of the image, relative to the output; empty unless done
        ("product_uri", pa.string()),  # of the placed product (its alpha is the mask), relative; empty if never placed
        ("image", pa.string()),  # the product image's address, without signatures
        ("input_sha256", pa.string()),  # of the product image's bytes
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("mask_source", pa.string()),  # own_mask, alpha, plain_background, sam2
        ("mask_score", pa.float32()),
        ("mask_area", pa.float32()),  # share of the product photograph
        ("color_similarity", pa.float32()),  # in-mask, to the placed product, 0 to 1
        ("structure_similarity", pa.float32()),  # in-mask SSIM to the placed product
        ("mask_iou", pa.float32()),  # of the wanted and the found mask; null without segmentation networks
        ("fetch_s", pa.float32()),
        ("segment_s", pa.float32()),
        ("generate_s", pa.float32()),  # the image's share of its batches
        ("publish_s", pa.float32()),
        ("model", pa.string()),  # path and fingerprint
    ]
)


class AdLedger(Ledger):
    """The ledger of one output folder."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, SCHEMA)
