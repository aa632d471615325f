"""Who made a file, and from which ledger row.

    python -m refadgen.provenance ad.jpg --ledger s3://shop/ads

Prints what the file says of itself (XMP), what is signed in it (C2PA), what its watermark says, and the ledger's row.
"""

import argparse
import io
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from refadgen.batch.ledger import Ledger
from refadgen.config.provenance import SPREAD_SPECTRUM, ProvenanceConfig
from refadgen.provenance.content_credentials import MEDIA_TYPES, read_credentials
from refadgen.provenance.record import read_record, read_source_type
from refadgen.provenance.watermarks import id_prefix, load_watermark
from refadgen.storage.store import Storage


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """The columns of the main job's ledger that tell where an image comes from."""

    image_id: str
    run_id: str
    recorded_at: datetime | None
    sku: str
    scene: str
    status: str
    reason: str
    uri: str
    input_sha256: str
    model: str
    unsigned_sha256: str | None = None
    signed_by: str | None = None
    watermark: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; 0: an origin was found, 1: none was."""
    parser = argparse.ArgumentParser(prog="python -m refadgen.provenance", description=__doc__.partition("\n")[0])
    parser.add_argument("file", help="an image file")
    parser.add_argument("--ledger", metavar="OUTPUT", help="output folder of the main job, local or s3://")
    parser.add_argument("--watermark", default=SPREAD_SPECTRUM, help="as provenance.watermark")
    parser.add_argument("--weights", help="as provenance.watermark_weights")
    given = parser.parse_args(arguments)
    try:
        config = ProvenanceConfig(watermark=given.watermark, watermark_weights=given.weights)
        lines, image_id = describe(Path(given.file).read_bytes(), config)
        if given.ledger is not None and image_id:
            lines += ledger_lines(Storage(given.ledger), image_id)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(lines))
    return 0 if image_id else 1


def describe(data: bytes, config: ProvenanceConfig) -> tuple[list[str], str]:
    """What a file's marks say, and the image_id or its beginning; empty: none says it. config: the watermark's.

    A signature that is not valid tells no id, and a signed id counts before the others.
    """
    with Image.open(io.BytesIO(data)) as image:
        format, pixels = (image.format or "").lower(), np.asarray(image.convert("RGB"))
    lines, ids = [], []
    signed = _signed(data, format)
    lines.append(f"signed (C2PA): {signed[0]}")
    ids.append(signed[1])
    try:
        record = read_record(data)
    except ValueError:
        record = {}
    said = ", ".join(f"{name} {record[name]}" for name in ("sku", "scene", "model") if name in record)
    lines.append(f"XMP: {read_source_type(data) or 'nothing'}" + (f"; made by RefAdGen: {said}" if record else ""))
    ids.append(str(record.get("image_id", "")))
    watermark = load_watermark(config)
    payload = None if watermark is None else watermark.read(pixels)
    lines.append(f"watermark ({config.watermark}): " + ("none found" if payload is None else id_prefix(payload)))
    ids.append("" if payload is None else id_prefix(payload))
    told = [each for each in ids if each]
    if len({each[:12] for each in told}) > 1:
        lines.append(f"the marks disagree: {', '.join(told)}")
    image_id = next(iter(told), "")
    lines.append(f"image_id: {image_id or 'not known'}")
    return lines, image_id


def _signed(data: bytes, format: str) -> tuple[str, str]:
    try:
        found = read_credentials(data, format) if format in MEDIA_TYPES else None
    except ValueError as error:  # the extra is missing
        return str(error), ""
    except Exception as error:  # the library's own kinds: a broken manifest
        return f"not readable: {error}", ""
    if found is None:
        return "nothing", ""
    valid = found.state in ("Valid", "Trusted")
    text = f"{found.state}, by {found.signed_by}; {found.source_type}"
    return text, str(found.ad.get("image_id", "")) if valid else ""


def ledger_lines(storage: Storage, image_id: str) -> list[str]:
    """The latest ledger row of each image whose id begins with `image_id`, in lines."""
    ledger = Ledger(storage, LedgerRow)
    # By the beginning of the id, in pieces: a ledger of millions is never whole in memory.
    found = ledger.of_parts(
        ["image_id"], lambda pieces: [t["image_id"].filter(pc.starts_with(t["image_id"], image_id)) for t in pieces]
    )
    ids = {each for part in found for column in part for each in column.to_pylist()}
    if not ids:
        return [f"ledger: {storage.uri} has no image {image_id}"]
    rows: list[dict[str, Any]] = ledger.latest(ids=pa.array(sorted(ids))).to_pylist()
    return [line for row in rows for line in ("ledger:", *(f"  {name}: {value}" for name, value in row.items()))]


if __name__ == "__main__":
    sys.exit(main())
