"""Certificates and keys: who may connect, and how each side knows the other."""

from fedmap.access.check import check_client, check_server

__all__ = ["check_client", "check_server"]
