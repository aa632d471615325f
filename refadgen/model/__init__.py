"""The RefAdGen networks and their pipeline: torch and diffusers only."""

from refadgen.model.attention_fusion import ReferenceFeatures
from refadgen.model.pipeline import RefAdGenPipeline

__all__ = ["RefAdGenPipeline", "ReferenceFeatures"]
