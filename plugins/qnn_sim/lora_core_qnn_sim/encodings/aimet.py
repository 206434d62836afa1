"""AIMET's encodings files: 1.0.0 is written, 0.6.1 and 1.0.0 are read.

1.0.0 has lists of entries with arrays of scales and offsets; 0.6.1 maps a name to a list with one entry per channel,
`is_symmetric` being the word True or False. Both put q on an unsigned grid: real = (q + offset) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import Problem
from lora_core.intake.limits import TABLE
from lora_core.intake.parsing import UNREADABLE
from lora_core.intake.plain_json import read_json
from lora_core_qnn_sim.encodings.grid import ChannelWeight, Encoding
from lora_core_qnn_sim.errors import EncodingsFileError

READ = ("0.6.1", "1.0.0")
WRITTEN = "1.0.0"


@attrs.frozen(kw_only=True)
class AimetEntry:
    """One tensor's encoding as a file states it: a scale and an offset, or one of each per channel."""

    name: str
    bits: int
    symmetric: bool
    scales: tuple[float, ...]
    offsets: tuple[int, ...]

    @property
    def per_tensor(self) -> Encoding:
        """The entry as a per-tensor grid; ValueError if it has several channels."""
        if len(self.scales) != 1:
            raise ValueError(f"{self.name} has {len(self.scales)} channels")
        return Encoding(bits=self.bits, scale=self.scales[0], offset=self.offsets[0], symmetric=self.symmetric)


def read_aimet(path: Path) -> dict[str, AimetEntry]:
    """Return the entries of an encodings file by tensor name; raises `EncodingsFileError` with every problem."""
    try:
        data = read_json(path, TABLE, EncodingsFileError)
        version = data.get("version")
    except (OSError, AttributeError) as error:
        raise EncodingsFileError(f"Cannot read the encodings: {error}", where=str(path)) from error
    if version not in READ:
        raise EncodingsFileError(
            f"Encodings of version {version!r} are not read", where=str(path), remedy=f"Write {' or '.join(READ)}."
        )
    entries: dict[str, AimetEntry] = {}
    problems: list[Problem] = []
    for section in ("activation_encodings", "param_encodings"):
        for name, raw in _raw_entries(data.get(section), version):
            try:
                entries[name] = _entry_1(raw) if version == "1.0.0" else _entry_0(name, raw)
            except UNREADABLE as error:
                problems.append(Problem(what=f"The encoding of {name!r} is wrong: {error}", where=f"{path}: {section}"))
    if problems:
        raise EncodingsFileError(problems)
    return entries


def _raw_entries(section: Any, version: str) -> list[tuple[str, Any]]:
    if section is None:
        return []
    if version == "1.0.0" and isinstance(section, list):
        return [(str(raw.get("name")) if isinstance(raw, dict) else "?", raw) for raw in section]
    if version == "0.6.1" and isinstance(section, dict):
        return list(section.items())
    return [("?", section)]


def _entry_1(raw: Mapping[str, Any]) -> AimetEntry:
    if raw["enc_type"] not in ("PER_TENSOR", "PER_CHANNEL"):
        raise ValueError(f"enc_type {raw['enc_type']} is not supported, only PER_TENSOR and PER_CHANNEL")
    if raw["dtype"] != "INT":
        raise ValueError(f"dtype {raw['dtype']} is not an integer grid")
    return _checked(
        AimetEntry(
            name=raw["name"],
            bits=int(raw["bw"]),
            symmetric=bool(raw["is_sym"]),
            scales=tuple(float(scale) for scale in raw["scale"]),
            offsets=tuple(int(offset) for offset in raw["offset"]),
        )
    )


def _entry_0(name: str, raw: Sequence[Mapping[str, Any]]) -> AimetEntry:
    if any(channel["dtype"] != "int" for channel in raw):
        raise ValueError("dtype is not int")
    return _checked(
        AimetEntry(
            name=name,
            bits=int(raw[0]["bitwidth"]),
            symmetric=str(raw[0]["is_symmetric"]) == "True",
            scales=tuple(float(channel["scale"]) for channel in raw),
            offsets=tuple(int(channel["offset"]) for channel in raw),
        )
    )


def _checked(entry: AimetEntry) -> AimetEntry:
    if len(entry.scales) != len(entry.offsets) or not entry.scales:
        raise ValueError(f"{len(entry.scales)} scales and {len(entry.offsets)} offsets")
    if not all(0 < scale < float("inf") for scale in entry.scales):
        raise ValueError("a scale is not positive and finite")
    if entry.bits not in (4, 8, 16) or any(not -(1 << entry.bits) < offset <= 0 for offset in entry.offsets):
        raise ValueError(f"offsets {entry.offsets[:3]} do not fit {entry.bits} bits")
    return entry


def aimet_document(
    activations: Mapping[str, Encoding], params: Mapping[str, Encoding], weights: Mapping[str, ChannelWeight]
) -> dict[str, Any]:
    """Return the 1.0.0 document of some activations, per-tensor parameters and per-channel weights."""
    return {
        "version": WRITTEN,
        "activation_encodings": [_per_tensor(name, grid) for name, grid in activations.items()],
        "param_encodings": [_per_tensor(name, grid) for name, grid in params.items()]
        + [_per_channel(name, weight) for name, weight in weights.items()],
    }


def _per_tensor(name: str, grid: Encoding) -> dict[str, Any]:
    return {
        "name": name,
        "enc_type": "PER_TENSOR",
        "dtype": "INT",
        "bw": grid.bits,
        "is_sym": grid.symmetric,
        "scale": [grid.scale],
        "offset": [grid.offset],
    }


def _per_channel(name: str, weight: ChannelWeight) -> dict[str, Any]:
    channels = len(weight.scales)
    return {
        "name": name,
        "enc_type": "PER_CHANNEL",
        "dtype": "INT",
        "bw": weight.bits,
        "is_sym": True,
        "scale": [float(scale) for scale in weight.scales],
        "offset": [-(1 << (weight.bits - 1))] * channels,
    }
