"""The files of one ad for the channels of its canvas: made, written, and read back as the channels would read them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refadgen.batch.rows import Int32
from refadgen.channels.canvases import ChannelCanvas, canvases_of
from refadgen.channels.lint import lint_file
from refadgen.channels.pictures import channel_picture, srgb_profile
from refadgen.channels.rules import ChannelRule
from refadgen.config import GenerateConfig, OutputConfig
from refadgen.generation.encoding import (
    COMPOSITE,
    EXTENSIONS,
    TRAINED,
    GenerationRecord,
    digital_source_type,
    encode_ad,
    facts_of,
)
from refadgen.provenance.marks import AdMarks, MarkedFile
from refadgen.storage.store import Storage

_LOWER_QUALITIES = (85, 75, 60, 40)
"""Tried in turn where a file has more bytes than its channel takes."""
CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class ChannelFile:
    """One ad as a file of one channel."""

    channel: str
    uri: str
    """Relative to the output."""
    width_px: Int32
    height_px: Int32
    num_bytes: int
    unsigned_sha256: str
    """Of the file without its signature, which is another in each run."""
    digital_source_type: str
    """IPTC's, as the file says it to this channel."""
    lint: str
    """What the channel would not take of the file as read back; `clean`: nothing."""


def channel_key(channel: str, image_id: str, format: str) -> str:
    """Where a channel's file of an ad lies in the output: `channels/pinterest/3f/3fa9….jpg`."""
    return f"channels/{channel}/{image_id[:2]}/{image_id}.{EXTENSIONS[format]}"


def channel_source_type(rule: ChannelRule, rung: str, drawn: str) -> str:
    """The digital source type that a file says to a channel. rung, drawn: as of `encoding.digital_source_type`."""
    found = digital_source_type(rung, drawn)
    return TRAINED if found == COMPOSITE and not rule.composite_mark else found


def encode_for_channel(
    ad_u8: npt.NDArray[np.uint8], record: GenerationRecord, rule: ChannelRule, output: OutputConfig, marks: AdMarks
) -> tuple[MarkedFile, str]:
    """An ad, uint8 H×W×3 of the canvas, as the channel's file with all its marks, and the file's format."""
    picture = marks.watermarked(channel_picture(ad_u8, rule.size), record.image_id)
    source_type = channel_source_type(rule, record.rung, record.source_type)
    format = rule.format(output.format)
    tries = [(format, output.quality)]
    lossy = next((each for each in (format, *rule.formats) if each != "png"), format)
    tries += [(lossy, quality) for quality in _LOWER_QUALITIES if lossy != "png" and quality < output.quality]
    facts = dataclasses.replace(facts_of(record), source_type=source_type)
    for format, quality in tries:
        chosen = dataclasses.replace(output, format=format, quality=quality)
        data = encode_ad(picture, record, chosen, icc_profile=srgb_profile(), source_type=source_type)
        file = marks.signed(data, format, facts)
        if len(file.data) <= rule.max_bytes:
            break
    return file, format


class ChannelFiles:
    """Writes the channels' files of ads. A retried task writes the same bytes to the same places."""

    def __init__(self, config: GenerateConfig, storage: Storage, marks: AdMarks) -> None:
        self._output, self._storage, self._marks = config.output, storage, marks
        self._canvases: Mapping[str, ChannelCanvas] = canvases_of(config)

    def publish(
        self, ad_u8: npt.NDArray[np.uint8], record: GenerationRecord, ratio: str
    ) -> tuple[ChannelFile, ...] | None:
        """The files of an ad, uint8 H×W×3, on the canvas of a ratio; None: the run has no channels."""
        if not self._canvases:
            return None
        return tuple(self._publish(ad_u8, record, rule) for rule in self._canvases[ratio].rules)

    def _publish(self, ad_u8: npt.NDArray[np.uint8], record: GenerationRecord, rule: ChannelRule) -> ChannelFile:
        file, format = encode_for_channel(ad_u8, record, rule, self._output, self._marks)
        uri = channel_key(rule.name, record.image_id, format)
        self._storage.write(uri, file.data)
        source_type = channel_source_type(rule, record.rung, record.source_type)
        problems = lint_file(self._storage.read(uri), rule, source_type)
        return ChannelFile(
            channel=rule.name,
            uri=uri,
            width_px=rule.size[0],
            height_px=rule.size[1],
            num_bytes=len(file.data),
            unsigned_sha256=file.unsigned_sha256,
            digital_source_type=source_type,
            lint="; ".join(problems) or CLEAN,
        )


def lint_of(files: tuple[ChannelFile, ...] | None) -> str | None:
    """`lint` of the ledger: `clean`, or what is wrong with which file; None: there are no channels' files."""
    if files is None:
        return None
    return "; ".join(f"{file.channel}: {file.lint}" for file in files if file.lint != CLEAN) or CLEAN
