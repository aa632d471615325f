"""Ad images as files: JPEG, PNG or WebP, with an XMP packet that says that and how they were generated.

The generation record holds no time and no run, so that the same image is the same bytes.
"""

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from refadgen.config import OutputConfig, SamplingConfig
from refadgen.generation.scores import FidelityScores
from refadgen.generation.wanted import WantedImage
from refadgen.provenance.content_credentials import AdFacts

EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""Of these types: generated; and a photograph's pixels in what was generated."""
RECORD_NAMESPACE = "https://refadgen.invalid/ns/1.0/"


def digital_source_type(rung: str, drawn: str = TRAINED) -> str:
    """IPTC's digital source type: the product is generated anew, or its photograph stands in a generated scene.

    rung: of the gate's ladder. drawn: the type of the images that come out of the model or method.
    """
    return COMPOSITE if rung == "product_pixels" and drawn == TRAINED else drawn


def image_key(image_id: str, format: str) -> str:
    """Where an ad image lies in the output: `images/3f/3fa9….jpg`. One folder of millions of files would be slow."""
    return f"images/{image_id[:2]}/{image_id}.{EXTENSIONS[format]}"


def product_key(product: bytes) -> str:
    """Where the picture of a placed product lies in the output, by its content: equal products are one file."""
    name = hashlib.sha256(product).hexdigest()[:32]
    return f"products/{name[:2]}/{name}.webp"


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """How an image was made, for its XMP: nothing that differs between two runs."""

    image_id: str
    sku: str
    scene: str
    variant: int
    prompt: str
    negative_prompt: str
    seed: int
    """Seed of the attempt that is published."""
    input_sha256: str
    model: str
    """Fingerprint; paths differ between machines."""
    num_inference_steps: int
    guidance_scale: float | None
    fusion_scale: float
    color_similarity: float
    structure_similarity: float
    rung: str
    """Of the gate's ladder; records hold it where the product's own pixels were laid in."""
    scheduler: str | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse_steps: int | None = None
    """These three: None where they are as they were before there were such settings; records then leave them out."""
    as_photographed: bool = False
    """Whether the product stands where its photograph has it; records leave it out where not."""
    method: str = ""
    """What made the image in RefAdGen's place; records then hold it, without the settings that are RefAdGen's."""
    source_type: str = TRAINED
    """As of `ModelIdentity`; not in the record, but beside it."""

    def facts(self) -> dict[str, Any]:
        """The record as it stands in a file."""
        facts = dataclasses.asdict(self)
        for name in ("scheduler", "guidance_interval", "reuse_steps"):
            if facts[name] is None:
                del facts[name]
        if self.rung != "product_pixels":
            del facts["rung"]
        if not self.as_photographed:
            del facts["as_photographed"]
        del facts["source_type"]
        for name in ("num_inference_steps", "guidance_scale", "fusion_scale") if self.method else ("method",):
            del facts[name]
        return facts

    @classmethod
    def of(
        cls,
        wanted: WantedImage,
        *,
        sku: str,
        negative_prompt: str | None,
        seed: int,
        input_sha256: str,
        scores: FidelityScores,
        rung: str,
        fusion_scale: float,
        as_photographed: bool,
        sampling: SamplingConfig,
        fingerprint: str,
        method: str = "",
        source_type: str = TRAINED,
    ) -> "GenerationRecord":
        return cls(
            image_id=wanted.image_id,
            sku=sku,
            scene=wanted.scene,
            variant=wanted.variant,
            prompt=wanted.prompt,
            negative_prompt=negative_prompt or "",
            seed=seed,
            input_sha256=input_sha256,
            model=fingerprint,
            num_inference_steps=sampling.num_steps,
            guidance_scale=sampling.guidance_scale,
            fusion_scale=fusion_scale,
            color_similarity=_rounded(scores.color_similarity),
            structure_similarity=_rounded(scores.structure_similarity),
            rung=rung,
            scheduler=None if sampling.scheduler == "model" else sampling.scheduler,
            guidance_interval=None if sampling.guidance_interval == (0, 1) else sampling.guidance_interval,
            reuse_steps=None if sampling.reuse_steps == 1 else sampling.reuse_steps,
            as_photographed=as_photographed,
            method=method,
            source_type=source_type,
        )


def facts_of(record: GenerationRecord) -> AdFacts:
    """What a signed manifest says of the image."""
    return AdFacts(
        image_id=record.image_id,
        source_type=digital_source_type(record.rung, record.source_type),
        input_sha256=record.input_sha256,
        model=record.model,
        prompt=record.prompt,
        negative_prompt=record.negative_prompt,
    )


def _rounded(score: float) -> float:
    """Scores travel between stages as float32; the endpoint rounds likewise, so that both write the same bytes."""
    return round(float(np.float32(score)), 4)


def resized(image_u8: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An image, uint8 H×W, H×W×3 or H×W×4, at another size (width, height; px), by Lanczos; as it is at its own."""
    if image_u8.shape[1::-1] == size:
        return image_u8
    return np.asarray(Image.fromarray(image_u8).resize(size, Image.Resampling.LANCZOS))


def encode_ad(
    image_u8: npt.NDArray[np.uint8],
    record: GenerationRecord,
    config: OutputConfig,
    *,
    icc_profile: bytes | None = None,
    source_type: str | None = None,
) -> bytes:
    """An ad image, uint8 H×W×3, in the configured format, with its XMP packet.

    icc_profile: None: the file has none. source_type: IPTC's that the file says; None: the record's.
    """
    image, xmp, sink = Image.fromarray(image_u8), _xmp(record, source_type), io.BytesIO()
    if config.format == "jpeg":
        # Without chroma subsampling: halved colour resolution smears small print, and the product must stay itself.
        image.save(sink, "JPEG", quality=config.quality, subsampling=0, xmp=xmp, icc_profile=icc_profile)
    elif config.format == "webp":
        image.save(sink, "WEBP", quality=config.quality, method=4, xmp=xmp, icc_profile=icc_profile)
    else:
        info = PngImagePlugin.PngInfo()  # Pillow writes XMP into PNG only as a text chunk of this name
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(sink, "PNG", pnginfo=info, icc_profile=icc_profile)
    return sink.getvalue()


def encode_product(canvas_u8: npt.NDArray[np.uint8], mask_u8: npt.NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """The placed product as a small WebP whose alpha is the mask, for the report. size: of the ad's file, in px."""
    sink = io.BytesIO()
    shown = np.dstack([resized(canvas_u8, size), resized(mask_u8, size)])
    Image.fromarray(shown).save(sink, "WEBP", quality=85, method=4)
    return sink.getvalue()


def _xmp(record: GenerationRecord, source_type: str | None) -> bytes:
    """An XMP packet with IPTC's DigitalSourceType and the record as JSON (ASCII, so that any text is legal XML)."""
    text = escape(json.dumps(record.facts(), sort_keys=True, ensure_ascii=True))
    source_type = SOURCE_TYPES + (source_type or digital_source_type(record.rung, record.source_type))
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:refadgen={quoteattr(RECORD_NAMESPACE)}>'
        f"<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>"
        "<xmp:CreatorTool>RefAdGen</xmp:CreatorTool>"
        f"<refadgen:GenerationRecord>{text}</refadgen:GenerationRecord>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()
