"""Words of the export options that say how a base is made ready; import-light."""

from __future__ import annotations

from typing import Literal, get_args

HowToRound = Literal["nearest", "importance", "compensated"]
ROUNDINGS: tuple[str, ...] = get_args(HowToRound)
ROUNDING_HELP = (
    "How 4-bit weights are rounded. nearest: each by itself. importance: to the nearest, at scales that count every "
    "weight by the squares of its inputs on the calibration prompts. compensated: what rounding one costs is also made "
    "up for in others (GPTQ), which takes minutes."
)
CALIBRATION_HELP = (
    "Prompts for --rounding importance and compensated: text, one a line, or .json with lists of token ids. "
    "[default: a small built-in set]"
)
