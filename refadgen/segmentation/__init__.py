"""Product image to product mask: own mask, alpha, plain background, networks; triage of weak masks."""

from refadgen.segmentation.segmenter import ProductMasker, Segmentation
from refadgen.segmentation.triage import Measurements

__all__ = ["Measurements", "ProductMasker", "Segmentation"]
