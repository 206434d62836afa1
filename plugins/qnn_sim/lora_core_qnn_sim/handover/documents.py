"""The contents of the vendor's configuration files, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from lora_core.errors import Problem
from lora_core.layers import ModelSummary
from lora_core.models.rope import Rope
from lora_core_qnn_sim.artifacts import CONTEXT
from lora_core_qnn_sim.artifacts.context_binary import GRAPH
from lora_core_qnn_sim.artifacts.folding import natural_key
from lora_core_qnn_sim.artifacts.section import SectionPart, section_file
from lora_core_qnn_sim.graph.base_model import architecture_of
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.grouping import Group, parts_of
from lora_core_qnn_sim.handover import names
from lora_core_qnn_sim.options import Mode

WeightsKey = Literal["safetensors", "weights"]
ALPHA = "lora_alpha"
HOT_SWITCH = "hot_switch"
"""What Genie knows the adapters of a hot-switch graph as, together."""
NO_TOKEN = -1
_SCALINGS = ("default", "linear", "llama3")


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


def adapter_weight_config(
    adapters: Sequence[str], groups: Sequence[Group], mode: Mode, key: WeightsKey = "safetensors"
) -> dict[str, Any]:
    """Return the context-binary step's adapter weight config, all adapters in one `use_case` list.

    `key` is what the file of an adapter's weights stands under.

    A group's leader carries both flags, its other members `weights_only`; every member of a group names the leader's
    encodings, which they share.
    """
    cases = []
    for adapter in adapters:
        parts = parts_of(adapter, groups, mode)
        case: dict[str, Any] = {
            "name": adapter,
            "graph": GRAPH,
            key: names.safetensors_file(adapter),
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


def dialog_problems(summary: ModelSummary) -> list[Problem]:
    """Return why Genie could hold no dialog with a base of the simulator: it makes the rotary tables."""
    architecture = architecture_of(summary)
    kind = architecture.rope.kind
    if architecture.local_rope is not None:
        reason = "layers with a window have a rotary table of their own, and Genie makes one"
    elif architecture.keeps_state:
        reason = "its convolutions keep a state, and Genie keeps keys and values"
    elif kind not in _SCALINGS:
        reason = f"its rotary embedding is of type {kind!r}. Written for Genie are {', '.join(_SCALINGS)}"
    else:
        return []
    what = f"The vendor's files are not written for {summary.family}: {reason}"
    return [Problem(what=what, remedy="Leave --emit-qairt out; the simulator's own runtime has the tables.")]


@attrs.frozen(kw_only=True)
class Dialog:
    """What Genie must know of a base to hold a dialog with it; of ids that nothing names, -1."""

    context_len: int
    vocab_size: int
    head_dim: int
    turned: int
    rope: Rope
    bos_id: int = NO_TOKEN
    eos_ids: tuple[int, ...] = (NO_TOKEN,)

    @classmethod
    def of(cls, spec: GraphSpec, summary: ModelSummary) -> Dialog:
        """Return that of a graph and the model that it was made from."""
        return cls(
            context_len=spec.context_len,
            vocab_size=spec.dims.vocab_size,
            head_dim=spec.dims.head_dim,
            turned=spec.dims.turned,
            rope=architecture_of(summary).rope,
            bos_id=NO_TOKEN if summary.bos_id is None else summary.bos_id,
            eos_ids=summary.eos_ids or (NO_TOKEN,),
        )


def genie_config(adapters: Sequence[str], groups: Sequence[Group], mode: Mode, dialog: Dialog) -> dict[str, Any]:
    """Return a whole Genie dialog configuration, for one context binary with its adapters."""
    lora = _genie_lora(adapters, groups, mode)
    engine = {
        "version": 1,
        "n-threads": 3,
        "backend": {
            "version": 1,
            "type": "QnnHtp",
            "QnnHtp": {
                "version": 1,
                "use-mmap": True,
                "spill-fill-bufsize": 0,
                "mmap-budget": 0,
                "poll": False,
                "cpu-mask": "0x0",
                "kv-dim": dialog.head_dim,
                "allow-async-init": False,
            },
        },
        "model": {
            "version": 1,
            "type": "binary",
            "binary": {"version": 1, "ctx-bins": [CONTEXT]} | ({"lora": lora} if adapters else {}),
            "positional-encoding": _positions(dialog),
        },
    }
    context = {
        "version": 1,
        "size": dialog.context_len,
        "n-vocab": dialog.vocab_size,
        "bos-token": dialog.bos_id,
        "eos-token": list(dialog.eos_ids),
    }
    return {
        "dialog": {
            "version": 1,
            "type": "basic",
            "context": context,
            "sampler": {"version": 1, "temp": 0.0, "top-k": 1, "top-p": 1.0, "seed": 0},
            "tokenizer": {"version": 1, "path": names.TOKENIZER},
            "engine": engine,
        }
    }


def hot_switch_lora(strengths: Sequence[str]) -> dict[str, Any]:
    """Return the LoRA part of a dialog with a graph that has all adapters in it: one adapter with many strengths."""
    adapters = [{"version": 1, "name": HOT_SWITCH, "alphas": list(strengths)}]
    return {"version": 1, "lora-version": 3, "alpha-tensor-name": ALPHA, "adapters": adapters}


def _positions(dialog: Dialog) -> dict[str, Any]:
    """Return how Genie makes the rotary tables, which are inputs of the graph."""
    rope = dialog.rope
    made: dict[str, Any] = {"type": "rope", "rope-dim": dialog.turned // 2, "rope-theta": rope.theta}
    if rope.kind == "linear":
        made["rope-scaling"] = {"rope-type": "linear", "factor": rope.factor}
    if rope.kind == "llama3":
        made["rope-scaling"] = {
            "rope-type": "llama3",
            "factor": rope.factor,
            "low-freq-factor": rope.low_freq_factor,
            "high-freq-factor": rope.high_freq_factor,
            "original-max-position-embeddings": rope.original_context_len,
        }
    return made


def _genie_lora(adapters: Sequence[str], groups: Sequence[Group], mode: Mode) -> dict[str, Any]:
    lora: dict[str, Any] = {
        "version": 1,
        "lora-version": 3,  # what is left out counts as 2
        "alpha-tensor-name": ALPHA,  # without it strengths reach no tensor
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
    return lora


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
