"""One kind of device an output: what the ledger says, what binds a run, who is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from refadgen.config.devices import device_kind
from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.generation.same_device import (
    DeviceChoice,
    MixedDevicesError,
    device_choice,
    mixing_named,
    recorded_devices,
    require_same_device,
)
from refadgen.storage.store import Storage


def ledger_of(folder: Path, *devices: tuple[str, str | None]) -> AdLedger:
    ledger = AdLedger(Storage(str(folder)))
    rows = [
        {"image_id": f"{number:032x}", "status": status, "device": device}
        for number, (status, device) in enumerate(devices)
    ]
    for row in rows:
        ledger.append(pa.Table.from_pylist([row], schema=SCHEMA))
    return ledger


def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor's method as a plain call."""
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(
        ray, "remote", lambda **_: lambda cls: SimpleNamespace(remote=lambda *values: remote(cls(*values)))
    )


def remote(choice: DeviceChoice) -> Any:
    return SimpleNamespace(choose=SimpleNamespace(remote=choice.choose), problem=SimpleNamespace(remote=choice.problem))


def test_devices_of_done_images_are_read(tmp_path: Path) -> None:
    assert recorded_devices(ledger_of(tmp_path / "none")) == []
    rows = [("done", "B"), ("failed", "C"), ("done", None), ("done", "A"), ("done", "B")]
    assert recorded_devices(ledger_of(tmp_path / "some", *rows)) == ["A", "B"]


def test_a_run_is_bound_to_the_kind_of_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch)
    choice = device_choice(ledger_of(tmp_path, ("done", "NVIDIA H100 80GB HBM3")))
    require_same_device(choice, "NVIDIA H100 80GB HBM3")
    with pytest.raises(MixedDevicesError, match=r"come from 'NVIDIA H100 80GB HBM3', and an actor has 'NVIDIA L4'"):
        require_same_device(choice, "NVIDIA L4")


def test_the_first_actor_of_a_new_output_binds_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch)
    choice = device_choice(ledger_of(tmp_path, ("failed", "NVIDIA L4")))
    require_same_device(choice, "NVIDIA A10G")
    require_same_device(choice, "NVIDIA A10G")
    with pytest.raises(MixedDevicesError, match=r"stages\.generate\.label_selector"):
        require_same_device(choice, "NVIDIA L4")


def test_an_output_that_mixes_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--same-device: the output holds images of A and B already"):
        device_choice(ledger_of(tmp_path, ("done", "B"), ("done", "A")))


def test_the_runs_error_says_which_devices_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch)
    choice = device_choice(ledger_of(tmp_path, ("done", "NVIDIA L4")))
    with pytest.raises(RuntimeError, match="another fault"), mixing_named(choice):
        raise RuntimeError("another fault")
    with pytest.raises(MixedDevicesError):
        require_same_device(choice, "cpu x")
    named = r"come from 'NVIDIA L4', and an actor has 'cpu x'"
    with pytest.raises(MixedDevicesError, match=named), mixing_named(choice):
        raise RuntimeError("an actor died")  # which is what Ray tells of it


def test_without_the_option_kinds_may_mix() -> None:
    require_same_device(None, "NVIDIA L4")


def test_the_kind_of_a_cpu_names_its_instructions() -> None:
    kind, capability = device_kind(torch.device("cpu")), torch.backends.cpu.get_cpu_capability()
    assert kind.startswith("cpu ")
    assert kind.endswith(f" {capability}")
