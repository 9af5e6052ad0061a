"""A federation's own certificate authority, and the certificates that it signs (X.509, elliptic curve P-384)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmap.access.folder import MAKE, AccessFolder, absent, present, private, write_new
from fedmap.errors import ConfigError

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")  # the server's own parts talk to each other under these
_NAME = re.compile(r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_SKEW = timedelta(minutes=5)  # clocks differ


@dataclass(frozen=True)
class CertificateInfo:
    """What people want to know of a certificate.

    Attributes:
        subject: its common name.
        names: the names and addresses that it is good for.
        expires: when it ends to be good.
        fingerprint: SHA-256, in hexadecimal digits.
    """

    subject: str
    names: tuple[str, ...]
    expires: datetime
    fingerprint: str

    @property
    def days_left(self) -> float:
        """Days until it expires; negative afterwards."""
        return (self.expires - datetime.now(UTC)).total_seconds() / 86400


def make_authority(folder: AccessFolder, days: float = AUTHORITY_DAYS) -> None:
    """Make the authority's key and certificate.

    Args:
        folder: where they go.
        days: how long the certificate is good.

    Raises:
        ConfigError: there is one already.
    """
    absent(folder.authority, folder.authority_key)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedMAP federation")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_new(folder.authority_key, _pem(key), 0o600)
    write_new(folder.authority, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def make_certificate(folder: AccessFolder, files: tuple[Path, Path], names: Sequence[str], days: float = CERTIFICATE_DAYS) -> None:
    """Make a key and a certificate for a server, signed by the federation's authority.

    Args:
        folder: of the authority.
        files: the certificate and the private key, which must not exist yet.
        names: host names and IP addresses by which it is reached; those of the machine itself are added.
        days: how long it is good.

    Raises:
        ConfigError: a name is none, a file exists, or the authority is missing, damaged or expired.
    """
    absent(*files)
    entries = [_entry(name) for name in dict.fromkeys([*names, *LOCAL_NAMES])]
    issuer, issuer_key = _authority(folder)
    if issuer.not_valid_after_utc < datetime.now(UTC) + timedelta(days=days):
        raise ConfigError(f"{folder.authority} expires on {issuer.not_valid_after_utc:%Y-%m-%d}, before the new certificate would")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (names[0] if names else LOCAL_NAMES[0])[:64])])
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(entries), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA384())
    )
    write_new(files[1], _pem(key), 0o600)
    write_new(files[0], certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def certificate_info(path: Path) -> CertificateInfo:
    """Read a certificate.

    Raises:
        ConfigError: the file is missing or holds none.
    """
    certificate = _certificate(path)
    names: list[str] = []
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [*extension.get_values_for_type(x509.DNSName), *map(str, extension.get_values_for_type(x509.IPAddress))]
    except x509.ExtensionNotFound:
        pass
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateInfo(
        str(common[0].value) if common else "",
        tuple(names),
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def check_certificate(files: tuple[Path, Path], how: str) -> CertificateInfo:
    """A server's certificate, if it can be used today: it is there, good, and its key belongs to it and is nobody else's.

    Args:
        files: the certificate and the private key.
        how: what makes or renews it, for messages.

    Raises:
        ConfigError: it cannot be used.
    """
    certificate = _certificate(present(files[0], how))
    key = _key(private(files[1], how))
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{files[1]} is not the key of {files[0]}; {how}")
    info = certificate_info(files[0])
    if info.days_left < 0:
        raise ConfigError(f"{files[0]} has expired on {info.expires:%Y-%m-%d}; {how}")
    return info


def _authority(folder: AccessFolder) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    how = f"`{MAKE} init` makes an authority; its key is needed to sign"
    certificate, key = _certificate(present(folder.authority, how)), _key(private(folder.authority_key, how))
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{folder.authority_key} is not the key of {folder.authority}")
    return certificate, key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a certificate (PEM): {error}") from error


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a private key (PEM, without a password): {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds a key of another kind; expected one on an elliptic curve")
    return key


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start = min(now, now + timedelta(days=days)) - _SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(**what: bool) -> x509.KeyUsage:
    kinds = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    )
    return x509.KeyUsage(**{kind: what.get(kind, False) for kind in kinds}, encipher_only=False, decipher_only=False)


def _entry(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        if len(name) > 253 or not _NAME.fullmatch(name):
            raise ConfigError(f"--host {name!r}: expected a host name or an IP address, without a port") from None
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
