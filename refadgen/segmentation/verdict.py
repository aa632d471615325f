"""The verdict: how probable it is that a mask is right, from what was measured where two opinions met.

Right means an IoU of at least 0.95 with the true mask. A small network (one hidden layer) weighs the measurements; its
answer is calibrated on scenes of product families that neither network was trained on
(`refadgen.mask_training.calibrate`).
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VERDICT = Path(__file__).with_name("weights") / "verdict.json"
RIGHT_IOU = 0.95


@dataclass(frozen=True)
class Verdict:
    """names [F]: of the measurements. mean, scale [F]: their standardisation. layers: weights [out, in] and biases
    [out] of each layer, tanh between. knots, values: raw answers and what they mean, for linear interpolation."""

    names: tuple[str, ...]
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    layers: tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]
    knots: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]

    def probability(self, features: Mapping[str, float]) -> float:
        """The probability that the mask is right, 0 to 1. features: as `agreement` gives them."""
        values = np.array([features[name] for name in self.names], np.float64)
        return float(np.interp(self.raw(values[None])[0], self.knots, self.values))

    def raw(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The uncalibrated log-odds of N rows of measurements. values: float64 [N, F]."""
        hidden = np.clip((values - self.mean) / self.scale, -6, 6)
        for index, (weights, biases) in enumerate(self.layers):
            hidden = hidden @ weights.T + biases
            if index + 1 < len(self.layers):
                hidden = np.tanh(hidden)
        return np.asarray(hidden[:, 0])

    def to_json(self) -> dict[str, Any]:
        """What `load_verdict` reads."""
        return {
            "names": list(self.names),
            "mean": _rounded(self.mean),
            "scale": _rounded(self.scale),
            "layers": [[_rounded(weights), _rounded(biases)] for weights, biases in self.layers],
            "knots": _rounded(self.knots),
            "values": _rounded(self.values),
        }


def _rounded(values: npt.NDArray[np.float64]) -> list[Any]:
    return list(np.round(values, 6).tolist())


@functools.lru_cache(maxsize=2)
def load_verdict(path: Path = VERDICT) -> Verdict:
    """Reads a verdict that `refadgen.mask_training.calibrate` wrote."""
    kept = json.loads(path.read_text())
    return Verdict(
        names=tuple(kept["names"]),
        mean=np.array(kept["mean"]),
        scale=np.array(kept["scale"]),
        layers=tuple((np.array(weights), np.array(biases)) for weights, biases in kept["layers"]),
        knots=np.array(kept["knots"]),
        values=np.array(kept["values"]),
    )
