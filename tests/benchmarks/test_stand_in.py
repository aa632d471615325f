"""The stand-in for a device keeps up with the engine: the product's own generator runs on it."""

import device_busy
import pytest

import refadgen.model.inference


def test_the_actor_makes_every_image_on_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refadgen.model.inference, "load_for_inference", None)  # so that the stand-in leaves again
    photos = device_busy.PROJECT / "catalogs" / "images"
    figures = device_busy._measure("mixed", 12, 5.0, photos)
    assert figures["busy"] > 0
    assert 0 <= figures["padding"] < 1
