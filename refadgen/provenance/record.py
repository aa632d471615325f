"""The XMP packet of an image as a reader finds it: the generation record, and IPTC's digital source type."""

import io
import json
import re
from typing import Any

from PIL import Image

_RECORD = re.compile(r"<refadgen:GenerationRecord>(.*?)</refadgen:GenerationRecord>", re.DOTALL)
_SOURCE_TYPE = re.compile(r"digitalsourcetype/(\w+)")


def read_record(data: bytes) -> dict[str, Any]:
    """The generation record of an encoded ad image. Raises: ValueError where there is none."""
    found = _RECORD.search(_packet(data))
    if not found:
        raise ValueError("the image carries no generation record")
    record: dict[str, Any] = json.loads(_unescape(found.group(1)))
    return record


def read_source_type(data: bytes) -> str:
    """The digital source type in the XMP packet; empty: none is there."""
    found = _SOURCE_TYPE.search(_packet(data))
    return found.group(1) if found else ""


def _packet(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        # Pillow gives bytes for JPEG and WebP, text for PNG, and under another name.
        raw = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
