"""Differential privacy of what clients send: `settings` says which, `mechanism` does it, `accounting` says what it is worth."""

from fedmap.privacy.settings import NO_PRIVACY, Privacy

__all__ = ["NO_PRIVACY", "Privacy"]
