"""The contents of the vendor's configuration files, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_core_qnn_sim.artifacts import CONTEXT
from lora_core_qnn_sim.artifacts.context_binary import GRAPH
from lora_core_qnn_sim.artifacts.folding import natural_key
from lora_core_qnn_sim.artifacts.section import SectionPart, section_file
from lora_core_qnn_sim.grouping import Group, parts_of
from lora_core_qnn_sim.handover import names
from lora_core_qnn_sim.options import Mode

ALPHA = "lora_alpha"


def importer_config(adapters: Sequence[str]) -> dict[str, Any]:
    """Return the LoRA importer's configuration: one use case per adapter."""
    return {
        "use_case": [
            {
                "name": adapter,
                "model_name": names.MODEL,
                "lora_weights": names.safetensors_file(adapter),
                "quant_overrides": names.encodings_file(adapter),
                "output_path": "./output",
            }
            for adapter in adapters
        ]
    }


def adapter_weight_config(adapters: Sequence[str], groups: Sequence[Group], mode: Mode) -> dict[str, Any]:
    """Return the context-binary step's adapter weight config, all adapters in one `use_case` list.

    A group's leader carries both flags, its other members `weights_only`; every member of a group names the leader's
    encodings, which they share.
    """
    cases = []
    for adapter in adapters:
        parts = parts_of(adapter, groups, mode)
        case: dict[str, Any] = {
            "name": adapter,
            "graph": GRAPH,
            "safetensors": names.safetensors_file(adapter),
            "encodings": names.encodings_file(encodings_owner(adapter, groups)),
        }
        if "combined" not in parts:
            case["weights_only"] = True
        if "encodings" in parts:
            case["encodings_only"] = True
        cases.append(case)
    return {"use_case": cases}


def adaptor_list(adapters: Sequence[str], groups: Sequence[Group]) -> list[dict[str, str]]:
    """Return the list that splitting attention heads needs to keep weights and encodings in step."""
    return [
        {
            "name": adapter,
            "encodings_path": names.encodings_file(encodings_owner(adapter, groups)),
            "safetensor_path": names.safetensors_file(adapter),
        }
        for adapter in adapters
    ]


def genie_config(adapters: Sequence[str], groups: Sequence[Group], mode: Mode) -> dict[str, Any]:
    """Return the part of a Genie dialog configuration that concerns LoRA, for one context binary."""
    lora: dict[str, Any] = {
        "version": 1,
        "adapters": [
            {
                "version": 1,
                "name": adapter,
                "alphas": [ALPHA],
                "bin-sections": [section_file(adapter, applied_part(adapter, groups, mode))],
            }
            for adapter in adapters
        ],
    }
    split = [group for group in groups if parts_of(group.leader, groups, mode) != ("combined",)]
    if split and mode != "none":
        lora["groups"] = [
            {
                "version": 1,
                "name": group.name,
                "members": list(group.members),
                "quant-bin-sections": [section_file(group.leader, "encodings")],
            }
            for group in split
        ]
    binary = {"version": 1, "ctx-bins": [CONTEXT], "lora": lora}
    return {"dialog": {"engine": {"model": {"binary": binary}}}}


def line(adapter: str, groups: Sequence[Group], mode: Mode) -> str:
    """Return the line file of ONNX Runtime's QNN provider: graph and section, separated by a semicolon."""
    return f"{GRAPH};{section_file(adapter, applied_part(adapter, groups, mode))}\n"


def applied_part(adapter: str, groups: Sequence[Group], mode: Mode) -> SectionPart:
    """Return the section that selects an adapter: its combined one, or its weights."""
    return "combined" if parts_of(adapter, groups, mode) == ("combined",) else "weights"


def encodings_owner(adapter: str, groups: Sequence[Group]) -> str:
    """Return the adapter whose encodings file this one uses."""
    return next((group.leader for group in groups if adapter in group.members), adapter)


def weight_list(updatable: Mapping[str, Any]) -> str:
    """Return the list of updatable tensors: one name a line, in natural order."""
    return "".join(f"{name}\n" for name in sorted(updatable, key=natural_key))
