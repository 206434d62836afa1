"""What came of asking the vendor's libraries."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class Verdict:
    """What came of asking; `detail` is by whom it was accepted, why it was refused, or why nobody was asked."""

    outcome: Literal["accepted", "refused", "unchecked"]
    detail: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}"
