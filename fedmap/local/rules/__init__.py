"""The client halves of the algorithms, one file each; `base` says what a rule is."""

from fedmap.local.rules.base import RULES, LocalRule, Memory, Outcome, Progress, make_rule

__all__ = ["RULES", "LocalRule", "Memory", "Outcome", "Progress", "make_rule"]
