"""How a check says that its claim does not hold, or that it cannot tell."""

from __future__ import annotations


class Broken(Exception):
    """A claim does not hold; the message says how."""


class Unchecked(Exception):
    """Whether a claim holds cannot be shown on this machine; the message says why."""
