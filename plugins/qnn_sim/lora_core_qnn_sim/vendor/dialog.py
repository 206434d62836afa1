"""A dialog that the vendor's Genie holds with a cut base and its adapters, in emulation, beside the simulator's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from lora_core.temporary import temporary_directory
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.handover.documents import HOT_SWITCH, NO_TOKEN, Dialog, genie_config, hot_switch_lora
from lora_core_qnn_sim.handover.quantized import QuantizedGraph
from lora_core_qnn_sim.handover.stored import StoredAdapters
from lora_core_qnn_sim.runtime.executor import Executor
from lora_core_qnn_sim.runtime.kernels import ALPHA
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache
from lora_core_qnn_sim.vendor.compiling import CONTEXT, compile_into, context_binary
from lora_core_qnn_sim.vendor.genie import hold_dialog
from lora_core_qnn_sim.vendor.socs import Soc
from lora_core_qnn_sim.vendor.trials import first_tokens, side_by_side
from lora_core_qnn_sim.vendor.verdict import Verdict

PROMPT, ANSWER, CALL = 4, 2, 8
"""Tokens of the query, of the answer, and of one call: each call goes through the output head, emulated."""
BASE = "the base"


@attrs.frozen(kw_only=True)
class Reply:
    """What a query was answered with, and how many steps each token is below the simulator's best logit: 0 is it."""

    who: str
    tokens: tuple[int, ...]
    below: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Dialogue:
    """The replies of the base and of each adapter.

    `tensors` counts the inputs and outputs of the context binary as Genie reads them; `otherwise` names those that have
    another width, scale or offset there.
    """

    verdict: Verdict
    replies: tuple[Reply, ...] = ()
    tensors: int = 0
    otherwise: tuple[str, ...] = ()


def dialogue(stored: StoredAdapters, adapters: Sequence[str], tokenizer: Path, layers: int, soc: Soc) -> Dialogue:
    """Compile the first `layers` layers with all `adapters` in them, and have Genie answer as the base and as each."""
    graph = side_by_side(stored, adapters, layers, head=True)
    graph = attrs.evolve(graph, spec=attrs.evolve(graph.spec, input_len=min(CALL, graph.spec.input_len)))
    model, grids = graph.model()
    tokens = first_tokens(stored.foundation, graph.spec)[:PROMPT].tolist()
    strengths = _strengths(adapters)
    about = Dialog.of(graph.spec, stored.bundle.manifest.base)
    with temporary_directory() as directory:
        verdict = compile_into(directory, model, soc)
        if verdict.outcome != "accepted":
            return Dialogue(verdict=verdict)
        config = _config(about, adapters, context_binary(directory / CONTEXT), tokenizer, directory)
        (directory / "genie.json").write_text(json.dumps(config), encoding="utf-8")
        answers = hold_dialog(directory / "genie.json", tokens, ANSWER, HOT_SWITCH, list(strengths.values()))
        described = _described(directory)
    # Genie begins a text by itself.
    prompt = tokens if about.bos_id == NO_TOKEN else [about.bos_id, *tokens]
    replies = [
        Reply(who=who, tokens=answer, below=_steps_below(graph, list(alphas.values()), prompt, answer))
        for (who, alphas), answer in zip(strengths.items(), answers.tokens, strict=False)
    ]
    return Dialogue(
        verdict=answers.verdict,
        replies=tuple(replies),
        tensors=len(described),
        otherwise=tuple(name for name, grid in grids.items() if described and described.get(name) != _grid(grid)),
    )


def _strengths(adapters: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the strength of each adapter, for the base and for each of them."""
    return {who: {name: float(name == who) for name in adapters} for who in (BASE, *adapters)}


def _config(about: Dialog, adapters: Sequence[str], context: Path, tokenizer: Path, dump: Path) -> dict[str, Any]:
    config = genie_config([], [], "none", about)
    binary = config["dialog"]["engine"]["model"]["binary"]
    binary |= {"ctx-bins": [str(context)], "lora": hot_switch_lora(adapters)}
    config["dialog"]["tokenizer"]["path"] = str(tokenizer)
    config["dialog"]["debug"] = {"path": str(dump / "dump"), "dump-specs": True}
    (dump / "dump").mkdir()
    return config


def _described(directory: Path) -> dict[str, tuple[int, float, int]]:
    """Return bits, scale and offset of inputs and outputs, as Genie read them from the context binary."""
    found = {}
    for path in (directory / "dump").rglob("spec.*.json"):
        spec = json.loads(path.read_text("utf-8"))
        for tensor in (*spec["inputs"], *spec["outputs"]):
            found[tensor["name"]] = (8 * tensor["bitwidth"], float(np.float32(tensor["scale"][0])), tensor["offset"][0])
    return found


def _grid(encoding: Encoding) -> tuple[int, float, int]:
    return encoding.bits, float(np.float32(encoding.scale)), encoding.offset


def _steps_below(
    graph: QuantizedGraph, strengths: Sequence[float], prompt: Sequence[int], answer: Sequence[int]
) -> tuple[int, ...]:
    """Return how far below the simulator's best logit each token of `answer` is, after `prompt` and those before it."""
    lora: Mapping[str, Any] = graph.lora or {}
    executor = Executor(spec=graph.spec, base=graph.base, encodings=graph.encodings, lora=lora)
    cache, alphas = QuantizedKvCache.empty(graph.spec), ALPHA.quantize(np.array(strengths))
    position, given, found = 0, list(prompt), list[int]()
    for token in answer:
        logits = executor.run(np.array(given), position, cache, alphas, last_only=True)[-1]
        found.append(int(logits.max() - logits[token]))
        position, given = position + len(given), [token]
    return tuple(found)
