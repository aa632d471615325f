"""The marks that published images carry beside their XMP: a signed C2PA manifest, and a watermark."""

from dataclasses import dataclass

from refadgen.config.marks import Decides, Place, Section, require, setting

SPREAD_SPECTRUM = "spread-spectrum"


@dataclass(frozen=True, kw_only=True)
class ProvenanceConfig(Section, name="provenance"):
    """How images say that a machine made them. The XMP packet is always there; all of this is off by default."""

    # Signed bytes differ from run to run, so signing decides no id: the same unsigned bytes are signed again.
    certificate: str | None = setting(None, Decides.RUN, place=Place.PATH)
    """PEM file of the signing certificate, then its chain: images are signed (C2PA). None: they are not."""
    key: str | None = setting(None, Decides.RUN, place=Place.PATH)
    """PEM file of the certificate's private key, without a password. It is read where images are published."""
    sign_command: tuple[str, ...] = setting((), Decides.RUN)
    """In place of `key`: a program and its arguments, which gets the bytes to sign on its input and writes their
    signature to its output. The words stand in run.json: no place for secrets."""
    time_stamp_url: str | None = setting(None, Decides.RUN, pattern=r"https?://\S+", rule="an http(s) address")
    """A time-stamping authority (RFC 3161), asked for each image; None: signatures are not time-stamped."""
    include_prompt: bool = setting(False, Decides.RUN)
    """Whether the manifest holds prompt and negative prompt."""
    watermark: str | None = setting(
        None, Decides.PIXELS, pattern=rf"{SPREAD_SPECTRUM}|\w+(\.\w+)*:\w+", rule=f"{SPREAD_SPECTRUM} or module:Class"
    )
    """The imperceptible watermark: `spread-spectrum`, for images from about 512×640 px on, or a `Watermark` of yours
    (`provenance/watermarks.py`)."""
    # The identity holds the path as the user wrote it, as it does those of segmentation networks.
    watermark_weights: str | None = setting(None, Decides.PIXELS, place=Place.PATH)
    """File or folder that a `module:Class` is made with; None: it needs none."""

    def check(self) -> None:
        ways = (self.key is not None) + bool(self.sign_command)
        if self.certificate is not None:
            require(ways == 1, "provenance.certificate", self.certificate, "beside provenance.key or .sign_command")
        elif ways or self.time_stamp_url is not None:
            raise ValueError("provenance.certificate: not set; signing needs it beside key, command or time stamps")
        if self.watermark_weights is not None and self.watermark in (None, SPREAD_SPECTRUM):
            raise ValueError("provenance.watermark_weights: are for a provenance.watermark of the form module:Class")
