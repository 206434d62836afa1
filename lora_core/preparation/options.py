"""Words of the export options that say how a base is made ready; import-light."""

from __future__ import annotations

ROUNDINGS = ("nearest", "compensated")
ROUNDING_HELP = (
    "How 4-bit weights are rounded: each to the nearest, or compensated: what rounding one costs is made up for in "
    "others (GPTQ), for the inputs that layers have on the calibration prompts. Takes minutes."
)
CALIBRATION_HELP = (
    "Prompts for --rounding compensated: text, one a line, or .json with lists of token ids. "
    "[default: a small built-in set]"
)
