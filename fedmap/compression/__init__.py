"""Fewer bytes for what travels: `settings` says how, `codes` and `planes` turn numbers into bytes, `parcels` whole messages. Pure NumPy."""

from fedmap.compression.settings import Compression

__all__ = ["Compression"]
