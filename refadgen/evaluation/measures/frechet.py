"""FID from statistics that are merged from parts: the Fréchet distance of two normal distributions of features."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """Number, mean and scatter of features. Merged statistics equal those of all features at once."""

    count: int
    mean: Floats
    """d."""
    scatter: Floats
    """d×d, the sum of (x − mean)(x − mean)ᵀ."""

    @classmethod
    def of(cls, features: npt.NDArray[np.float32]) -> "FeatureStatistics":
        """The statistics of features n×d, n at least 1."""
        values = features.astype(np.float64)
        mean = values.mean(0)
        centered = values - mean
        return cls(len(values), mean, centered.T @ centered)

    def merged(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both (Chan et al. 1983)."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, scatter)

    @property
    def covariance(self) -> Floats:
        """d×d, of a sample. Needs two features at least."""
        assert self.count > 1
        return self.scatter / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), 0 for equal statistics."""
    sigma, other = first.covariance, second.covariance
    # Σ₁Σ₂ has the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric: faster, and they are real and not negative.
    values, vectors = np.linalg.eigh(sigma)
    half = vectors * np.sqrt(np.maximum(values, 0))
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(half.T @ other @ half), 0))
    step = first.mean - second.mean
    return float(step @ step + np.trace(sigma) + np.trace(other) - 2 * roots.sum())
