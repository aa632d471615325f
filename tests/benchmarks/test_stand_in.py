"""The stand-in for a device keeps up with the engine: the product's own generator runs on it."""

import device_busy
import pytest

from refadgen.engine import denoiser
from refadgen.model import inference


def test_the_actor_makes_every_image_on_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "load_for_inference", None)  # so that the stand-in leaves again
    monkeypatch.setattr(
        denoiser, "load_for_inference", lambda *given, **named: inference.load_for_inference(*given, **named)
    )
    figures = device_busy._measure("mixed", 12, 5.0, device_busy.PROJECT / "catalogs" / "images")
    assert figures["busy"] > 0
    assert 0 <= figures["padding"] < 1
