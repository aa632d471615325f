"""What a request says of the canvas: its size, and the channel that decides ratio and size."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping

from refadgen.channels.canvases import ChannelCanvas, canvases_of
from refadgen.channels.rules import ChannelRule, load_rules
from refadgen.config import GenerateConfig, LayoutConfig
from refadgen.generation.channel_files import channel_source_type
from refadgen.generation.encoding import TRAINED, digital_source_type
from refadgen.serving.errors import ApiError
from refadgen.serving.schema import AdFields


def served_channels(config: GenerateConfig) -> Mapping[str, ChannelRule]:
    """The channels that a request may name: those whose ratio has a canvas of about the model's area.

    config: with the model's recommended settings filled in.
    """
    found = {}
    for name, rule in sorted(load_rules().items()):
        with contextlib.suppress(ValueError):
            canvases_of(dataclasses.replace(config, layout=LayoutConfig(), channels=(name,)))
            found[name] = rule
    return found


def requested_channel(fields: AdFields, layout: LayoutConfig, known: Mapping[str, ChannelRule]) -> tuple[str, ...]:
    """The request's channel as `channels`. layout: of the request.

    Raises: ApiError where it is unknown, or another field says the ratio too.
    """
    if fields.channel is None or fields.channel not in known:
        message = f"channel: {fields.channel!r} is not one of {', '.join(known)}"
        raise ApiError(422, "unknown_channel", message, param="channel")
    for name, given in (("size", fields.size is not None), ("layout.as_photographed", layout.as_photographed)):
        if given:
            message = f"channel: {fields.channel} has a ratio and a size of its own; leave out {name}"
            raise ApiError(422, "channel_and_size", message, param="channel")
    return (fields.channel,)


def served_source_type(config: GenerateConfig, rung: str) -> str:
    """IPTC's digital source type, as the file says it."""
    canvas = channel_canvas(config)
    return digital_source_type(rung) if canvas is None else channel_source_type(canvas.rules[0], rung, TRAINED)


def channel_canvas(config: GenerateConfig) -> ChannelCanvas | None:
    """The canvas of the channel that an ad is for; None: for none."""
    return next(iter(canvases_of(config).values()), None)


def canvas_size(config: GenerateConfig) -> tuple[int, int]:
    """Width and height of the canvas in px. config: with the model's recommended settings filled in."""
    if (canvas := channel_canvas(config)) is not None:
        return canvas.width_px, canvas.height_px
    width_px, height_px = config.sampling.width_px, config.sampling.height_px
    assert width_px is not None
    assert height_px is not None
    return width_px, height_px


def canvas_for(size: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
    """The canvas of about the area of `own` that has the ratio of `size`, in whole steps of the autoencoder."""
    scale = math.sqrt(own[0] * own[1] / (size[0] * size[1]))
    width_px, height_px = (max(64, 8 * round(side * scale / 8)) for side in size)
    return width_px, height_px
