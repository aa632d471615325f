"""A published file read back as its channel would read it: format, bytes, size, ratio, colours, mark."""

import io
import re

from PIL import Image

from refadgen.channels.pictures import is_srgb
from refadgen.channels.rules import ChannelRule, has_ratio, ratio_of

# As an element, as an attribute, or as a reference: tools that rewrite XMP choose among them.
_MARK = re.compile(r"DigitalSourceType(?:>|\s*=\s*[\"']|\s[^>]*?resource\s*=\s*[\"'])\s*([^<\"'\s]+)")


def lint_file(data: bytes, rule: ChannelRule, source_type: str) -> list[str]:
    """What the channel would not take, a short text each; empty: clean.

    data: the file as it is served. source_type: IPTC's digital source type that it must be marked with.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _problems(image, len(data), rule, source_type)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        return [f"unreadable: {type(error).__name__}"]


def _problems(image: Image.Image, num_bytes: int, rule: ChannelRule, source_type: str) -> list[str]:
    found = []
    format = (image.format or "").lower()
    if format not in rule.formats:
        found.append(f"format {format or 'unknown'}, not {' or '.join(rule.formats)}")
    if getattr(image, "is_animated", False):
        found.append("animated")
    if num_bytes > rule.max_bytes:
        found.append(f"{num_bytes} bytes, above {rule.max_bytes}")
    if not has_ratio(image.size, ratio_of(rule.ratio)):
        found.append(f"ratio {image.width}:{image.height}, not {rule.ratio}")
    if image.width < rule.least[0] or image.height < rule.least[1]:
        found.append(f"{image.width}×{image.height} px, below {rule.least[0]}×{rule.least[1]}")
    if image.mode != "RGB":
        found.append(f"colours {image.mode}, not RGB")
    profile = image.info.get("icc_profile")
    if profile and not is_srgb(profile):  # a file without a profile is taken for sRGB
        found.append("a colour profile that is not sRGB")
    mark = read_mark(image)
    if mark != source_type:
        found.append(f"marked {mark}, not {source_type}" if mark else "no DigitalSourceType: the mark is lost")
    return found


def read_mark(image: Image.Image) -> str:
    """IPTC's digital source type in the XMP packet of an opened image; empty: there is none."""
    # Pillow gives bytes for JPEG and WebP, text for PNG, and under another name.
    raw = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    found = _MARK.search(text)
    return found[1].rpartition("/")[2] if found else ""  # its value is the address of the term
