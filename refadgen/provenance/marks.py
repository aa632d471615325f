"""What an image is marked with at publishing, for job and endpoint alike: first watermark, then signature."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refadgen.config.provenance import ProvenanceConfig
from refadgen.provenance.content_credentials import AdFacts, Signer
from refadgen.provenance.watermarks import load_watermark, payload_of


@dataclass(frozen=True, kw_only=True)
class MarkedFile:
    """A file as it is published, and the ledger's columns about its marks."""

    data: bytes
    unsigned_sha256: str
    """Of the bytes before signing: the same from run to run."""
    signed_by: str
    """Empty: it is not signed."""
    watermark: str
    """`provenance.watermark`; empty: it has none."""


class AdMarks:
    """Marks images as configured. Safe to share between threads."""

    def __init__(self, config: ProvenanceConfig) -> None:
        """config: with absolute paths. Raises: ValueError naming the field of a certificate, key or watermark."""
        self._name = config.watermark or ""
        self._watermark = load_watermark(config)
        self._signer = Signer(config) if config.certificate is not None else None

    def watermarked(self, ad_u8: npt.NDArray[np.uint8], image_id: str) -> npt.NDArray[np.uint8]:
        """The image, uint8 H×W×3, with the watermark; as it is where none is configured."""
        return ad_u8 if self._watermark is None else self._watermark.embed(ad_u8, payload_of(image_id))

    def signed(self, data: bytes, format: str, facts: AdFacts) -> MarkedFile:
        """The file with its manifest; its bytes as they are where no certificate is configured."""
        signer = self._signer
        return MarkedFile(
            data=data if signer is None else signer.sign(data, format, facts),
            unsigned_sha256=hashlib.sha256(data).hexdigest(),
            signed_by="" if signer is None else signer.signed_by,
            watermark=self._name,
        )
