"""Ad images as files: they say that they are generated, and their record survives each format."""

import dataclasses
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from refadgen.config import OutputConfig, SamplingConfig
from refadgen.generation.encoding import SOURCE_TYPES, GenerationRecord, encode_ad, encode_product
from refadgen.generation.scores import FidelityScores
from refadgen.generation.wanted import WantedImage
from refadgen.provenance.record import read_record

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 32, 3), dtype=np.uint8)
RECORD = GenerationRecord.of(
    WantedImage(image_id="3f" * 16, scene="s", variant=1, prompt="]]> </rdf:RDF>", seed=7),
    sku='a<b>&"c"\n\u0000🧴\u2028',
    negative_prompt=None,
    seed=2**62 + 1,
    input_sha256="0" * 64,
    scores=FidelityScores(
        color_similarity=0.123456789, structure_similarity=0.25, local_similarity=0.5, hue_similarity=0.5
    ),
    rung="first",
    fusion_scale=1.0,
    as_photographed=False,
    sampling=SamplingConfig(guidance_scale=2.0),
    fingerprint="f" * 16,
)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_record_and_source_type_are_in_the_file(format: str) -> None:
    data = encode_ad(IMAGE, RECORD, OutputConfig(format=format))
    assert read_record(data) == RECORD.facts()
    assert read_record(data)["color_similarity"] == 0.1235
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format.upper()
        packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    namespace = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
    found = ElementTree.fromstring(packet).iter(f"{namespace}DigitalSourceType")
    assert [element.text for element in found] == [SOURCE_TYPES + "trainedAlgorithmicMedia"]


def test_a_record_names_fast_mode_where_there_is_one_and_is_else_as_it_always_was() -> None:
    fast = dataclasses.replace(RECORD, scheduler="dpm++", guidance_interval=(0.2, 0.9), reuse_steps=2)
    named = {"scheduler": "dpm++", "guidance_interval": [0.2, 0.9], "reuse_steps": 2}
    found = read_record(encode_ad(IMAGE, fast, OutputConfig()))
    assert {name: found.pop(name) for name in named} == named
    assert found == RECORD.facts() == read_record(encode_ad(IMAGE, RECORD, OutputConfig()))
    assert len(found) == 14


def test_an_image_with_the_products_own_pixels_says_so() -> None:
    record = dataclasses.replace(RECORD, rung="product_pixels", fusion_scale=1.3)
    data = encode_ad(IMAGE, record, OutputConfig())
    assert read_record(data) == RECORD.facts() | {"rung": "product_pixels", "fusion_scale": 1.3}
    assert f"{SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia".encode() in data


def test_the_same_image_is_the_same_bytes() -> None:
    assert encode_ad(IMAGE, RECORD, OutputConfig()) == encode_ad(IMAGE, RECORD, OutputConfig())


def test_an_image_of_others_has_no_record() -> None:
    sink = io.BytesIO()
    Image.fromarray(IMAGE).save(sink, "PNG")
    with pytest.raises(ValueError, match="no generation record"):
        read_record(sink.getvalue())


def test_the_placed_product_carries_its_mask() -> None:
    mask = np.zeros((40, 32), np.uint8)
    mask[10:30, 8:24] = 255
    with Image.open(io.BytesIO(encode_product(IMAGE, mask, (32, 40)))) as product:
        assert np.array_equal(np.asarray(product)[..., 3], mask)
