"""C2PA manifests: signed into an image file at publishing, and read back.

A signature holds a time and a nonce: signed bytes differ from run to run. What stays equal is the unsigned file, whose
hash the ledger keeps.
"""

import functools
import io
import json
import re
from dataclasses import dataclass
from typing import Any

from refadgen.config.provenance import ProvenanceConfig
from refadgen.provenance.certificates import SigningIdentity, load_identity

MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
ASSERTION = "invalid.refadgen.ad"
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
"""A thumbnail would be thirty kilobytes of an image that is there; a reader of ours asks no network."""


@dataclass(frozen=True, kw_only=True)
class AdFacts:
    """What a manifest says of an image. source_type: IPTC's, the last word of its address."""

    image_id: str
    source_type: str
    input_sha256: str
    """Of the product image, the manifest's ingredient."""
    model: str
    """Fingerprint."""
    prompt: str
    negative_prompt: str


class Signer:
    """Signs image files. Safe to share between threads."""

    def __init__(self, config: ProvenanceConfig) -> None:
        """config: with absolute paths. Raises: ValueError as `load_identity`, and where the extra is missing."""
        _require_extra()
        self._config = config
        self.identity: SigningIdentity = load_identity(config)

    @property
    def signed_by(self) -> str:
        """See `SigningIdentity`."""
        return self.identity.signed_by

    def sign(self, data: bytes, format: str, facts: AdFacts) -> bytes:
        """The file with a signed manifest. Raises: c2pa.C2paError where signing or time-stamping fails, KeyError for a
        source type that C2PA does not know.
        """
        import c2pa

        algorithm = c2pa.C2paSigningAlg[self.identity.algorithm]
        source, sink = io.BytesIO(data), io.BytesIO()
        with (
            c2pa.Signer.from_callback(
                self.identity.sign, algorithm, self.identity.chain, self._config.time_stamp_url
            ) as signer,
            c2pa.Builder(json.dumps(self._manifest(facts)), _context()) as builder,
        ):
            # IPTC's trainedAlgorithmicMedia is the library's TRAINED_ALGORITHMIC_MEDIA.
            kind = re.sub(r"(?=[A-Z])", "_", facts.source_type).upper()
            builder.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType[kind])
            builder.sign(signer, MEDIA_TYPES[format], source, sink)
        return sink.getvalue()

    def _manifest(self, facts: AdFacts) -> dict[str, Any]:
        ad = {"image_id": facts.image_id, "model": facts.model, "product_image_sha256": facts.input_sha256}
        if self._config.include_prompt:
            ad |= {"prompt": facts.prompt, "negative_prompt": facts.negative_prompt}
        product = {
            "title": "product image",
            "relationship": "inputTo",
            "instance_id": f"urn:sha256:{facts.input_sha256}",
        }
        return {
            "claim_generator_info": [{"name": "RefAdGen"}],
            "title": facts.image_id,
            "ingredients": [product],
            "assertions": [{"label": ASSERTION, "data": ad}],
        }


def check_signing(config: ProvenanceConfig) -> None:
    """Signs a small image and reads it back, before the first ad. config: with absolute paths.

    Raises: ValueError naming the field.
    """
    if config.certificate is None:
        return
    from PIL import Image

    signer, sink = Signer(config), io.BytesIO()
    Image.new("RGB", (16, 16)).save(sink, "PNG")
    facts = AdFacts(
        image_id="0" * 32,
        source_type="trainedAlgorithmicMedia",
        input_sha256="0" * 64,
        model="",
        prompt="",
        negative_prompt="",
    )
    if not config.key:
        signer.identity.sign(b"a probe")  # the library tells no reason where a command fails
    try:
        found = read_credentials(signer.sign(sink.getvalue(), "png", facts), "png")
    except Exception as error:  # the library's own kinds, each with a sentence
        raise ValueError(
            f"provenance.certificate={config.certificate!r}: signing a small image failed: {error}"
        ) from error
    if found is None or found.state == "Invalid":
        raise ValueError(f"provenance.certificate={config.certificate!r}: what it signs is not valid; see its chain")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A manifest as a reader finds it. state: Valid, Trusted (by a listed certificate) or Invalid."""

    state: str
    signed_by: str
    source_type: str
    ad: dict[str, Any]
    """Our assertion; empty: the manifest is another program's."""


def read_credentials(data: bytes, format: str) -> Credentials | None:
    """The manifest in a file; None where there is none. Raises: ValueError where the extra is missing."""
    _require_extra()
    import c2pa

    reader = c2pa.Reader.try_create(MEDIA_TYPES[format], io.BytesIO(data), context=_context())
    if reader is None:
        return None
    with reader:
        store = json.loads(reader.json())
        state = reader.get_validation_state() or "Invalid"
    manifest = store["manifests"][store["active_manifest"]]
    assertions = {each["label"]: each["data"] for each in manifest.get("assertions", ())}
    actions = assertions.get("c2pa.actions.v2", {}).get("actions", [])
    signature = manifest.get("signature_info", {})
    return Credentials(
        state=state,
        signed_by=", ".join(str(signature[name]) for name in ("common_name", "issuer") if name in signature),
        source_type=str(actions[0].get("digitalSourceType", "")).rpartition("/")[2] if actions else "",
        ad=assertions.get(ASSERTION, {}),
    )


@functools.cache
def _context() -> Any:
    import c2pa

    return c2pa.Context.from_dict(_SETTINGS)


def _require_extra() -> None:
    try:
        import c2pa  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError:
        raise ValueError(
            "provenance.certificate: signing needs the extra provenance: pip install 'refadgen[provenance]'"
        ) from None
