"""A dialog that the vendor's Genie holds with a cut base, in emulation, beside the simulator's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from lora_core_qnn_sim.handover.documents import Dialog, genie_config
from lora_core_qnn_sim.handover.quantized import QuantizedGraph
from lora_core_qnn_sim.handover.stored import StoredAdapters
from lora_core_qnn_sim.runtime.executor import Executor
from lora_core_qnn_sim.runtime.kernels import ALPHA
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache
from lora_core_qnn_sim.vendor.compiling import CONTEXT, compile_into, context_binary
from lora_core_qnn_sim.vendor.genie import hold_dialog
from lora_core_qnn_sim.vendor.socs import Soc
from lora_core_qnn_sim.vendor.trials import cut, first_tokens
from lora_core_qnn_sim.vendor.verdict import Verdict

PROMPT, ANSWER = 4, 4
"""Tokens of the query, and of the answer."""


@attrs.frozen(kw_only=True)
class Dialogue:
    """What Genie answered, and how many steps of the logits' grid each token is below the simulator's best: 0 is it."""

    verdict: Verdict
    answer: tuple[int, ...] = ()
    below: tuple[int, ...] = ()


def dialogue(stored: StoredAdapters, tokenizer: Path, layers: int, soc: Soc) -> Dialogue:
    """Compile the first `layers` layers of the base without LoRA, and have Genie answer a few tokens."""
    spec = cut(stored.context.spec, layers, lora=False)
    graph = QuantizedGraph(spec=spec, base=stored.foundation.base, encodings=stored.foundation.encodings, lora={})
    tokens = first_tokens(stored.foundation, spec)[:PROMPT].tolist()
    with tempfile.TemporaryDirectory(prefix="lora-core-") as place:
        directory = Path(place)
        verdict = compile_into(directory, graph.model()[0], soc)
        if verdict.outcome != "accepted":
            return Dialogue(verdict=verdict)
        config = genie_config([], [], "none", Dialog.of(spec, stored.bundle.manifest.base))
        config["dialog"]["engine"]["model"]["binary"]["ctx-bins"] = [str(context_binary(directory / CONTEXT))]
        config["dialog"]["tokenizer"]["path"] = str(tokenizer)
        (directory / "genie.json").write_text(json.dumps(config), encoding="utf-8")
        answer = hold_dialog(directory / "genie.json", tokens, ANSWER)
    return Dialogue(verdict=answer.verdict, answer=answer.tokens, below=_steps_below(graph, tokens, answer.tokens))


def _steps_below(graph: QuantizedGraph, tokens: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """Return how far below the simulator's best logit each token of `answer` is, after `tokens` and those before it."""
    executor = Executor(spec=graph.spec, base=graph.base, encodings=graph.encodings, lora={})
    cache, alphas = QuantizedKvCache.empty(graph.spec), ALPHA.quantize(np.ones(1))
    position, given, found = 0, list(tokens), list[int]()
    for token in answer:
        logits = executor.run(np.array(given), position, cache, alphas, last_only=True)[-1]
        found.append(int(logits.max() - logits[token]))
        position, given = position + len(given), [token]
    return tuple(found)
