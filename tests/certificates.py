"""Certificates for the tests, with any fault that one may have.

ca = issue("CA", ca=True)
pacs = issue("pacs.test", ca, first=-9, last=-2)  # expired
context = server_context(folder, pacs)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ipaddress
import ssl
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
LOCAL = ("localhost", "127.0.0.1")


@functools.cache
def new_key(kind: str = "P-256", number: int = 0) -> Any:
    """A private key, `P-256` or the bits of one for RSA; the same for the same arguments, as they take their time."""
    return ec.generate_private_key(ec.SECP256R1()) if kind == "P-256" else rsa.generate_private_key(65537, int(kind))


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None, *, traditional: bool = False) -> bytes:
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        form = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
        pem: bytes = self.key.private_bytes(serialization.Encoding.PEM, form, encryption)
        return pem

    def write(self, folder: Path, *chain: Issued) -> Path:
        """A file with the key, the certificate and further certificates."""
        file = folder / f"{uuid.uuid4().hex}.pem"
        file.write_bytes(self.key_pem() + b"".join(each.pem for each in (self, *chain)))
        return file


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    ca: bool = False,
    names: Sequence[str] | bytes = LOCAL,
    first: int = -1,
    last: int = 30,
    key: Any = None,
    sha1: bool = False,
    purpose: ObjectIdentifier | None = None,
    critical: bool = True,
    path_length: int | None = None,
    permitted: str | None = None,
    version: int = 3,
) -> Issued:
    """Issue a certificate, valid from the day `first` from today to the day `last`; self-signed without an issuer."""
    key = key or new_key()
    parts = {NameOID.ORGANIZATION_NAME: "Hôpital", NameOID.COMMON_NAME: name}
    subject = x509.Name([x509.NameAttribute(*part) for part in parts.items()])
    today, signer = datetime.now(timezone.utc), issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today + timedelta(first))
        .not_valid_after(today + timedelta(last))
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical)
    )
    if isinstance(names, bytes):  # as no builder would encode them
        unchecked = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, names)
        builder = builder.add_extension(unchecked, False)
    elif names and not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(general_name, names))), False)
    if purpose:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), False)
    if permitted:
        builder = builder.add_extension(x509.NameConstraints([x509.DNSName(permitted)], None), True)
    certificate = builder.sign(signer, hashes.SHA256())
    if sha1 or version != 3:
        certificate = forge(certificate, signer, sha1=sha1, version=version)
    return Issued(certificate, key)


def general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def forge(
    certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey, *, sha1: bool, version: int
) -> x509.Certificate:
    """The same certificate signed anew as no builder would do it: with SHA-1, or without version and extensions."""
    [(_, whole)] = elements_of(certificate.public_bytes(serialization.Encoding.DER))
    (_, signed), algorithm, _ = elements_of(whole)
    weak = 0x30, bytes.fromhex("06072a8648ce3d0401")  # ecdsa-with-SHA1
    parts = [weak if sha1 and part == algorithm else part for part in elements_of(signed)]
    to_be_signed = der(0x30, *(der(*part) for part in parts if version != 1 or part[0] not in (0xA0, 0xA3)))
    if sha1:  # as if its digest were one of SHA-256
        digest = hashlib.sha1(to_be_signed, usedforsecurity=False).digest()
        signature = signer.sign(digest.rjust(32, b"\0"), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    else:
        signature = signer.sign(to_be_signed, ec.ECDSA(hashes.SHA256()))
    algorithm = weak if sha1 else algorithm
    return x509.load_der_x509_certificate(der(0x30, to_be_signed, der(*algorithm), der(0x03, b"\0" + signature)))


def elements_of(data: bytes) -> list[tuple[int, bytes]]:
    """Split DER (X.690) into its elements: tag and content of each."""
    elements = []
    while data:
        length, start = data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start], "big")
        elements.append((data[0], data[start : start + length]))
        data = data[start + length :]
    return elements


def der(tag: int, *contents: bytes) -> bytes:
    """An element of DER."""
    size = sum(map(len, contents))
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, size] if size < 0x80 else [tag, 0x80 | len(digits), *digits]) + b"".join(contents)


def server_context(folder: Path, server: Issued, *chain: Issued, clients: Issued | None = None) -> ssl.SSLContext:
    """A TLS server with this certificate, however weak, that wants clients to have one of an authority's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(server.write(folder, *chain))
    if clients:
        context.load_verify_locations(cadata=clients.pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context
