"""A brand's wishes for all of its ads, in one file."""

from dataclasses import dataclass

from refadgen.config.marks import Decides, Place, Section, setting


@dataclass(frozen=True, kw_only=True)
class BrandConfig(Section, name="brand"):
    """The brand file (`catalog/brand.py` has its form)."""

    # Not hashed: the fingerprint of the file's content stands in ids instead.
    file: str | None = setting(None, Decides.RUN, place=Place.PATH_OR_URI)
    """YAML of words, light, negative prompt and the logo's rectangle; None: there is none."""
