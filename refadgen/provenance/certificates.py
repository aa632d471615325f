"""The signing certificate and its key, checked before the first image: dates, purpose, and that they fit."""

import datetime
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refadgen.config.provenance import ProvenanceConfig

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

_CURVES = {"secp256r1": ("ES256", 32), "secp384r1": ("ES384", 48), "secp521r1": ("ES512", 66)}
_COMMAND_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SigningIdentity:
    """Who signs. sign: bytes to a COSE signature. algorithm: its name in C2PA, such as ES256."""

    chain: str
    """PEM, the signer's certificate first."""
    algorithm: str
    signed_by: str
    """Name and serial number of the certificate, for the ledger."""
    sign: Callable[[bytes], bytes]


def load_identity(config: ProvenanceConfig) -> SigningIdentity:
    """The certificate of `config` and the way to sign with it. config: with absolute paths, `certificate` set.

    Raises: ValueError naming the field whose file cannot be used, never with what a key file holds.
    """
    from cryptography import x509

    assert config.certificate is not None
    text = _read("provenance.certificate", config.certificate)
    try:
        chain = x509.load_pem_x509_certificates(text)
    except ValueError:
        raise _problem(config, "is no PEM certificate") from None
    _check_chain(config, chain)
    leaf = chain[0]
    algorithm, size = _algorithm(config, leaf.public_key())
    name = leaf.subject.rfc4514_string()
    return SigningIdentity(
        chain=text.decode(),
        algorithm=algorithm,
        signed_by=f"{name}, serial {leaf.serial_number:x}",
        sign=_with_key(config, leaf.public_key(), size) if config.key is not None else _with_command(config, size),
    )


def _check_chain(config: ProvenanceConfig, chain: list["x509.Certificate"]) -> None:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    for each in chain:
        if now > each.not_valid_after_utc:
            raise _problem(config, f"expired on {each.not_valid_after_utc:%Y-%m-%d} ({each.subject.rfc4514_string()})")
        if now < each.not_valid_before_utc:
            raise _problem(config, f"is not valid before {each.not_valid_before_utc:%Y-%m-%d}")
    extensions = chain[0].extensions
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        signs = usage.digital_signature and not usage.key_cert_sign
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound as error:
        raise _problem(config, f"is not for signing: it has no {error.oid._name}") from None
    if not signs:
        raise _problem(config, "is not for signing: its key usage lacks digitalSignature, or it signs certificates")
    # C2PA's own purpose and those that its specification allows besides; a web server's certificate is none of them.
    allowed = {"1.3.6.1.4.1.62558.2.1", "1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36"}
    if not {purpose.dotted_string for purpose in purposes} & allowed:
        raise _problem(config, "is not for signing: its extended key usage is none that C2PA takes, as emailProtection")


def _algorithm(config: ProvenanceConfig, key: "CertificatePublicKeyTypes") -> tuple[str, int]:
    """C2PA's name of the algorithm, and the bytes of one of the signature's two numbers; 0: it is one piece."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ED25519", 0
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return "PS256", 0
    raise _problem(config, "has a key that C2PA does not take: P-256, P-384, P-521, Ed25519 or RSA of 2048 bits")


def _with_key(config: ProvenanceConfig, public: "CertificatePublicKeyTypes", size: int) -> Callable[[bytes], bytes]:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    assert config.key is not None
    try:
        key = serialization.load_pem_private_key(_read("provenance.key", config.key), None)
    except (ValueError, TypeError):
        raise ValueError(f"provenance.key={config.key!r}: is no PEM private key without a password") from None
    if key.public_key() != public:
        raise ValueError(f"provenance.key={config.key!r}: does not belong to provenance.certificate")

    def sign(data: bytes) -> bytes:
        if isinstance(key, ec.EllipticCurvePrivateKey):
            digest = {32: hashes.SHA256(), 48: hashes.SHA384(), 66: hashes.SHA512()}[size]
            return _as_cose(key.sign(data, ec.ECDSA(digest)), size)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return key.sign(data)

    return sign


def _with_command(config: ProvenanceConfig, size: int) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        # Its error output goes nowhere: it may name what it was told in secret.
        done = subprocess.run(config.sign_command, input=data, capture_output=True, timeout=_COMMAND_S, check=False)
        if done.returncode or not done.stdout:
            raise ValueError(f"provenance.sign_command: ended with {done.returncode} and no signature")
        return _as_cose(done.stdout, size)

    return sign


def _as_cose(signature: bytes, size: int) -> bytes:
    """An ECDSA signature as its two numbers in turn, as COSE has it; openssl and libraries give them in DER."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    if size == 0 or len(signature) == 2 * size:
        return signature
    return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{field}={path!r}: cannot be read ({error.strerror})") from None


def _problem(config: ProvenanceConfig, what: str) -> ValueError:
    return ValueError(f"provenance.certificate={config.certificate!r}: {what}")
