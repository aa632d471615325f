"""`--same-device`: all images of an output come from one kind of device, since their bytes depend on it."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from refadgen.batch.ledger import Ledger


class MixedDevicesError(ValueError):
    """An actor has another kind of device than the images of the output."""


class DeviceChoice:
    """The kind that a run is bound to: that of its output's images, or else of the actor that asks first."""

    def __init__(self, kind: str | None) -> None:
        self._kind = kind

    def choose(self, kind: str) -> str:
        """The run's kind. kind: of the actor that asks."""
        if self._kind is None:
            self._kind = kind
        return self._kind


def device_choice(ledger: Ledger) -> Any:
    """A Ray actor of DeviceChoice for a run. Raises: ValueError where the output mixes kinds already."""
    kinds = recorded_devices(ledger)
    if len(kinds) > 1:
        raise ValueError(f"--same-device: the output holds images of {' and '.join(kinds)} already; choose another")
    return ray.remote(num_cpus=0)(DeviceChoice).remote(kinds[0] if kinds else None)


def recorded_devices(ledger: Ledger) -> list[str]:
    """The kinds of device that made the images of a ledger, sorted; those of earlier versions do not say theirs."""

    def kinds(pieces: Iterator[pa.Table]) -> list[str]:
        done = (piece.filter(pc.equal(piece["status"], "done"))["device"] for piece in pieces)
        return [kind for devices in done for kind in pc.unique(devices.drop_null()).to_pylist()]

    return sorted({kind for part in ledger.of_parts(["status", "device"], kinds) for kind in part if kind})


def require_same_device(choice: Any, kind: str) -> None:
    """choice: as `device_choice` made it; None: kinds may mix. Raises: MixedDevicesError."""
    wanted = kind if choice is None else ray.get(choice.choose.remote(kind))
    if wanted != kind:
        raise MixedDevicesError(
            f"--same-device: the images of this output come from {wanted!r}, and an actor has {kind!r}; choose its "
            "nodes by stages.generate.label_selector, or leave --same-device out"
        )
