"""Certificates and keys: who may connect, and how each side knows the other."""

from fedmap.access.authority import CertificateInfo, certificate_info, make_authority, make_certificate
from fedmap.access.folder import AccessFolder
from fedmap.access.keys import add_client, allowed_keys, make_client_key, revoke_client

__all__ = [
    "AccessFolder",
    "CertificateInfo",
    "add_client",
    "allowed_keys",
    "certificate_info",
    "make_authority",
    "make_certificate",
    "make_client_key",
    "revoke_client",
]
