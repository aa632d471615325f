"""What a job asks of `ray.init`: the form of its logs."""

import logging
from typing import Any

import pytest
import ray

from refadgen.batch.ray_connection import connect


@pytest.mark.parametrize("address", ["", "ray://head:10001"])
def test_json_logs_are_rays_own_and_nothing_of_the_actors_mixes_with_the_drivers(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options))
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    connect(4, log_format="json")
    connect(4)
    json, text = asked
    assert (json["logging_config"].encoding, json["log_to_driver"]) == ("JSON", False)
    assert text["logging_level"] == logging.WARNING
    assert "logging_config" not in text


def test_addresses_with_signatures_stay_out_of_json_logs() -> None:
    """httpx tells each address that it asks, at the level that JSON logs have."""
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
    assert not logging.getLogger("httpcore.connection").isEnabledFor(logging.INFO)
