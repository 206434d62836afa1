"""Processors that graphs are compiled for, by the names that ExecuTorch's `QcomChipset` gives them."""

from __future__ import annotations

import attrs

DEFAULT_SOC = "SM8650"


@attrs.frozen(kw_only=True)
class Soc:
    """A system on a chip: the vendor's number of it, and the architecture of its tensor processor."""

    model: int
    arch: int


# executorch 1.5.1, backends/qualcomm/serialization/qc_schema.py.
SOCS = {
    "SM8350": Soc(model=30, arch=68),
    "SM8450": Soc(model=36, arch=69),
    "SM8475": Soc(model=42, arch=69),
    "SM8550": Soc(model=43, arch=73),
    "SM8650": Soc(model=57, arch=75),
    "SM8750": Soc(model=69, arch=79),
    "SM8845": Soc(model=97, arch=81),
    "SM8850": Soc(model=87, arch=81),
}
