"""Certificates for tests, made anew each time."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
Words = list[str]


def name(common: str) -> x509.Name:
    parts = [(NameOID.ORGANIZATION_NAME, "Test shop"), (NameOID.COMMON_NAME, common)]
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[..., Words]:
    """Makes a key and a certificate by an authority of its own; returns the settings that name them."""

    def make(
        last_day: int = 30,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
        usage: str = USAGES[0],
    ) -> Words:
        now = dt.datetime.now(dt.UTC)
        authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        found = []
        for owner, common in ((authority, "Test authority"), (key, "Test signer")):
            is_authority = owner is authority
            granted = ("key_cert_sign",) if is_authority else (usage,)
            last = now + dt.timedelta(days=99 if is_authority else last_day)
            extensions = [
                (x509.BasicConstraints(is_authority, None), True),
                (x509.KeyUsage(**{each: each in granted for each in USAGES}), True),
                (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False),
                (x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), False),
            ]
            if not is_authority:
                extensions.append((x509.ExtendedKeyUsage([purpose]), False))
            builder = x509.CertificateBuilder(name("Test authority"), name(common), owner.public_key())
            builder = builder.serial_number(7).not_valid_before(now - dt.timedelta(days=90)).not_valid_after(last)
            for extension, critical in extensions:
                builder = builder.add_extension(extension, critical)
            found.insert(0, builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        (tmp_path / "chain.pem").write_bytes(b"".join(found))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (tmp_path / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        return [f"provenance.certificate={tmp_path / 'chain.pem'}", f"provenance.key={tmp_path / 'key.pem'}"]

    return make
