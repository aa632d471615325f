"""The RefAdGen networks and their pipeline: torch and diffusers only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refadgen.model.attention_fusion import ReferenceFeatures
    from refadgen.model.pipeline import RefAdGenPipeline

__all__ = ["RefAdGenPipeline", "ReferenceFeatures"]


def __getattr__(name: str) -> Any:
    """Imports torch and diffusers on first use: planning reads `model.folder` and must not wait for them."""
    if name == "RefAdGenPipeline":
        from refadgen.model.pipeline import RefAdGenPipeline

        return RefAdGenPipeline
    if name == "ReferenceFeatures":
        from refadgen.model.attention_fusion import ReferenceFeatures

        return ReferenceFeatures
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
