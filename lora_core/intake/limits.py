"""How much is read of what a stranger sent. Every limit is far above what honest files need.

`LORA_CORE_LIMIT_FACTOR=10` in the environment raises all of them tenfold, for files that are honest and larger.
"""

from __future__ import annotations

import os

MB = 1 << 20
RAISE = "If it is honest, set LORA_CORE_LIMIT_FACTOR=10 in the environment."
"""What to do about a limit."""

MANIFEST = 256 * MB
"""`manifest.json`: 10,000 adapters take about 10 MB."""
TABLE = 256 * MB
"""A backend's own tables: relocations, templates, metadata."""
CONFIG = 16 * MB
"""`adapter_config.json`, `config.json` and their like: honest ones have kilobytes."""
TOKENIZER = 256 * MB
"""`tokenizer.json`: 35 MB for 262,000 tokens."""
HEADER = 100 * MB
"""The header of a safetensors file, as the safetensors library itself bounds it."""
TENSORS = 1_000_000
"""Tensors of one file."""
DEPTH = 64
"""JSON inside JSON."""
DIGITS = 20
"""Digits of a whole number: 64 bits have no more."""
LONGEST_TEXT_DIGITS = 40
"""Digits of a whole number in tokenizer files: transformers writes `int(1e30)` for a text of any length."""
LAYERS = 10_000
"""Decoder layers of one model."""


def raised(limit: int) -> int:
    """Return `limit` times the factor that the environment asks for; what is no number there counts as 1."""
    try:
        return limit * max(1, int(os.environ.get("LORA_CORE_LIMIT_FACTOR", "1")))
    except ValueError:
        return limit
