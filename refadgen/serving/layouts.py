"""A request's layout over the server's own."""

import dataclasses
from typing import TypeVar

from refadgen.config import LayoutConfig
from refadgen.serving.errors import ApiError
from refadgen.serving.schema import Layout

T = TypeVar("T")


def requested_layout(given: Layout, own: LayoutConfig) -> LayoutConfig:
    """The server's own layout with a request's over it. Raises: ApiError naming the field."""
    placed = (given.size, given.anchor, given.margin) != (None, None, None)
    if placed and given.as_photographed:
        message = "layout: as_photographed keeps the photograph's place; leave out size, anchor and margin"
        raise ApiError(422, "placed_and_as_photographed", message, param="layout")
    # Who says where the product stands wants it placed, as a catalogue row's placement does.
    as_photographed = over(given.as_photographed, own.as_photographed and not placed)
    if given.long_side_px is not None and not as_photographed:
        message = "layout.long_side_px: is for as_photographed"
        raise ApiError(422, "long_side_of_placed", message, param="layout")
    return dataclasses.replace(
        own,
        size=over(given.size, own.size),
        anchor=over(given.anchor, own.anchor),
        margin=over(given.margin, own.margin),
        as_photographed=as_photographed,
        long_side_px=over(given.long_side_px, own.long_side_px) if as_photographed else None,
    )


def over(given: T | None, default: T) -> T:
    """What a request gives, or else the server's own."""
    return default if given is None else given
