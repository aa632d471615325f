"""Signed manifests: read back by the library's own reader; bad certificates are refused by the field's name."""

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from refadgen.config import GenerateConfig, load_config
from refadgen.config.provenance import ProvenanceConfig
from refadgen.provenance.content_credentials import AdFacts, check_signing, read_credentials
from refadgen.provenance.marks import AdMarks

c2pa = pytest.importorskip("c2pa", reason="needs the extra refadgen[provenance]")
FACTS = AdFacts(
    image_id="3f" * 16,
    source_type="compositeWithTrainedAlgorithmicMedia",
    input_sha256="ab" * 32,
    model="c" * 16,
    prompt="a secret scene",
    negative_prompt="blur",
)
Certificate = Callable[..., list[str]]


def config(*words: str) -> ProvenanceConfig:
    return load_config(GenerateConfig, None, words).provenance


def picture(format: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (48, 64), (90, 120, 30)).save(sink, format)
    return sink.getvalue()


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_a_signed_file_is_read_back(certificate: Certificate, format: str) -> None:
    data = picture(format)
    marked = AdMarks(config(*certificate())).signed(data, format, FACTS)
    assert marked.unsigned_sha256 == hashlib.sha256(data).hexdigest()
    assert marked.signed_by == "CN=Test signer,O=Test shop, serial 7"
    with c2pa.Reader(f"image/{format}", io.BytesIO(marked.data)) as reader:
        assert reader.get_validation_state() == "Valid"
        text = reader.json()
    manifest = json.loads(text)
    (only,) = manifest["manifests"].values()
    (ingredient,) = only["ingredients"]
    assert (ingredient["relationship"], ingredient["instance_id"]) == ("inputTo", "urn:sha256:" + "ab" * 32)
    found = read_credentials(marked.data, format)
    assert found is not None
    assert (found.state, found.source_type) == ("Valid", "compositeWithTrainedAlgorithmicMedia")
    assert found.ad == {"image_id": "3f" * 16, "model": "c" * 16, "product_image_sha256": "ab" * 32}
    assert "secret" not in text


def test_a_changed_file_is_not_valid(certificate: Certificate) -> None:
    data = bytearray(AdMarks(config(*certificate())).signed(picture("jpeg"), "jpeg", FACTS).data)
    data[-20] ^= 1
    found = read_credentials(bytes(data), "jpeg")
    assert found is not None
    assert found.state == "Invalid"


def test_the_prompt_is_there_where_it_is_asked_for(certificate: Certificate) -> None:
    marks = AdMarks(config(*certificate(), "provenance.include_prompt=true"))
    found = read_credentials(marks.signed(picture("png"), "png", FACTS).data, "png")
    assert found is not None
    assert (found.ad["prompt"], found.ad["negative_prompt"]) == ("a secret scene", "blur")


def test_without_a_certificate_the_bytes_stay() -> None:
    data = picture("png")
    marked = AdMarks(ProvenanceConfig()).signed(data, "png", FACTS)
    assert (marked.data, marked.signed_by, marked.watermark) == (data, "", "")
    assert read_credentials(data, "png") is None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_command_signs(certificate: Certificate, tmp_path: Path) -> None:
    certificate_words, key = certificate(), str(tmp_path / "key.pem")
    command = json.dumps(["openssl", "dgst", "-sha256", "-sign", key])
    signing = config(certificate_words[0], f"provenance.sign_command={command}")
    check_signing(signing)
    found = read_credentials(AdMarks(signing).signed(picture("webp"), "webp", FACTS).data, "webp")
    assert found is not None
    assert found.state == "Valid"
    with pytest.raises(ValueError, match=r"provenance.sign_command: ended with 1 and no signature"):
        check_signing(dataclasses.replace(signing, sign_command=("false",)))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"last_day": -1}, "expired on"),
        ({"purpose": ExtendedKeyUsageOID.SERVER_AUTH}, "extended key usage"),
        ({"usage": "key_encipherment"}, "lacks digitalSignature"),
    ],
)
def test_a_certificate_that_cannot_sign_is_refused(certificate: Certificate, settings: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^provenance.certificate=.*{problem}"):
        check_signing(config(*certificate(**settings)))


def test_files_that_are_none_are_refused_without_their_text(certificate: Certificate, tmp_path: Path) -> None:
    words = certificate()
    check_signing(config(*words))
    other = tmp_path / "other.pem"
    other.write_text("TOP SECRET")
    with pytest.raises(ValueError, match=r"^provenance.key=.*no PEM private key") as found:
        check_signing(config(words[0], f"provenance.key={other}"))
    assert "TOP SECRET" not in str(found.value)
    with pytest.raises(ValueError, match=r"^provenance.certificate=.*no PEM certificate"):
        check_signing(config(f"provenance.certificate={other}", words[1]))
    shutil.copy(tmp_path / "key.pem", tmp_path / "first.pem")
    certificate()  # another pair in the same files
    with pytest.raises(ValueError, match=r"^provenance.key=.*does not belong"):
        check_signing(config(words[0], f"provenance.key={tmp_path / 'first.pem'}"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["provenance.key=k"], "provenance.certificate: not set"),
        (["provenance.certificate=c"], "beside provenance.key"),
        (["provenance.certificate=c", "provenance.key=k", "provenance.sign_command=[s]"], "beside provenance.key"),
        (["provenance.watermark=other"], "spread-spectrum or module:Class"),
        (["provenance.watermark_weights=w"], "of the form module:Class"),
    ],
)
def test_settings_that_do_not_fit_together(words: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(*words)
