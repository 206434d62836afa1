"""Text of strangers on a terminal: what would command it, or turn the order of other text, is shown as escapes."""

from __future__ import annotations

import re

# C0 and C1 controls, marks that reorder text (Unicode's UAX #9), line and paragraph separators, halves of surrogates.
_CONTROLS = "\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
_UNLAID = re.compile(f"(?![\\n\\t])[{_CONTROLS}]")


def shown(text: str) -> str:
    """Return `text` with such characters escaped as JSON escapes them; line breaks and tabs stay."""
    return _UNLAID.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
