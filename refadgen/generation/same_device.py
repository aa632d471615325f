"""`--same-device`: all images of an output come from one kind of device, since their bytes depend on it."""

from collections.abc import Iterator
from contextlib import contextmanager
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
        self._problem = ""

    def choose(self, kind: str) -> str:
        """What speaks against an actor; empty: nothing. kind: of its device."""
        if self._kind is None:
            self._kind = kind
        if kind != self._kind:
            self._problem = (
                f"--same-device: the images of this output come from {self._kind!r}, and an actor has {kind!r}; choose "
                "its nodes by stages.generate.label_selector, or leave --same-device out"
            )
            return self._problem
        return ""

    def problem(self) -> str:
        """What spoke against the last actor that was refused; empty: none was."""
        return self._problem


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
    if choice is not None and (problem := ray.get(choice.choose.remote(kind))):
        raise MixedDevicesError(problem)


@contextmanager
def mixing_named(choice: Any) -> Iterator[None]:
    """Raises: MixedDevicesError in the place of what Ray makes of an actor that was refused."""
    try:
        yield
    except Exception as error:
        if choice is not None and (problem := ray.get(choice.problem.remote())):
            raise MixedDevicesError(problem) from error
        raise
