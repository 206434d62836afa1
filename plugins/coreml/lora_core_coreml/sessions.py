"""A bundle opened: reference evaluation anywhere, the CoreML runtime on macOS."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from lora_core.bundle.bundle import Bundle
from lora_core.errors import UnsupportedError, UsageError
from lora_core.runtime.kv_cache import KvCache
from lora_core.runtime.memory import measure
from lora_core.runtime.session import Loaded, Session
from lora_core_coreml import metadata
from lora_core_coreml.attention import Signature, StaticAttention
from lora_core_coreml.evaluation.function import Precision
from lora_core_coreml.evaluation.operators import REASONS
from lora_core_coreml.evaluation.program import EvaluatedProgram
from lora_core_coreml.naming import Kind, kinds, method_name

EVALUATION = "reference evaluation of the stored CoreML functions; nothing ran on CoreML"


def open_session(bundle: Bundle, options: Mapping[str, Any]) -> Session:
    """Open `bundle`; `options["precision"]` is `float16` (strict) or `float32` (accumulating), by default the
    program's own. Raises `UsageError` for anything else.
    """
    unknown = sorted(set(options) - {"precision"})
    if unknown:
        raise UsageError(f"Unknown option {unknown[0]!r} of a CoreML session", remedy="There is: precision.")
    precision = options.get("precision", "float32" if bundle.manifest.options.get("dtype") == "fp32" else "float16")
    if precision not in get_args(Precision):
        raise UsageError(f"Unknown precision {precision!r}", remedy=f"Choose {' or '.join(get_args(Precision))}.")
    return EvaluationSession(bundle, precision)


class EvaluationSession(Session):
    """Methods evaluated with coremltools' own operator semantics: slow, and exact about what is stored."""

    def __init__(self, bundle: Bundle, precision: Precision) -> None:
        """Open the program of `bundle`; raises `UnsupportedError` if it is no language model."""
        self._bundle = bundle
        self._precision: Precision = precision
        (path,) = {method.program for method in bundle.manifest.methods}
        self._program = EvaluatedProgram(bundle.file(path))
        self._adapters = frozenset(self._program.constant(metadata.ADAPTERS))
        self._multifunction = "prefill" in self._program.methods
        if not self._program.has_constant("freqs_cos"):
            raise UnsupportedError("This bundle is no language model with static attention, so no tokens can be fed.")
        self._signatures: dict[Kind, Signature] = {
            kind: _signature(self._program, kind, self._multifunction) for kind in kinds(self._multifunction)
        }
        (self._context_len,) = self._program.constant("max_context_len")
        self._cache = KvCache(bundle.manifest.kv_cache, self._context_len)
        self._attention = self._new_attention()
        self._loaded: dict[str | None, Loaded] = {}

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        """That this is evaluation, at which precision, and which operators have references of our own."""
        return {
            "runtime": EVALUATION,
            "evaluates": True,
            "precision": self._precision,
            "context_len": self._context_len,
            "platform": platform.system(),
            "own_references": dict(REASONS),
        }

    def load(self, adapter: str | None) -> Loaded:
        """Load the functions of an adapter; raises `UsageError` for an unknown name."""
        if adapter is not None and adapter not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise UsageError(f"The bundle has no adapter {adapter!r}", remedy=f"It has: {known}.")
        if adapter not in self._loaded:
            start = time.monotonic()
            for kind in self._signatures:
                self._program.load(method_name(adapter, kind, self._multifunction))
            memory = measure()
            self._loaded[adapter] = Loaded(
                adapter=adapter,
                seconds=time.monotonic() - start,
                resident=memory.resident,
                anonymous=memory.anonymous,
                file_backed=memory.file_backed,
            )
        return self._loaded[adapter]

    def reset(self) -> None:
        """Forget the KV cache."""
        self._cache.reset()
        self._attention = self._new_attention()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Evaluate `tokens` at `position`, in as many calls as the methods' input length takes."""
        self._cache.check(adapter, position, len(tokens))
        self.load(adapter)
        logits: npt.NDArray[Any] | None = None
        done = 0
        while done < len(tokens):
            signature = self._attention.choose(len(tokens) - done)
            some = tokens[done : done + min(signature.input_len, self._room(signature, position + done))]
            logits = self._call(adapter, signature, some, position + done)
            done += len(some)
            self._cache.wrote(adapter, position, done)
        assert logits is not None
        return logits.astype(np.float32)

    def close(self) -> None:
        """Release the program."""
        self._program.close()

    def _call(
        self, adapter: str | None, signature: Signature, tokens: Sequence[int], position: int
    ) -> npt.NDArray[Any]:
        method = method_name(adapter, signature.kind, self._multifunction)
        flat = self._attention.inputs(signature, tokens, position, self._program.input_count(method))
        outputs = self._program.run(method, flat, self._precision)
        self._attention.store(signature, outputs, position, len(tokens))
        # Decode and prefill give the logits of the last token only, a method for both those of every position.
        logits = outputs[0].reshape(-1, outputs[0].shape[-1])
        row: npt.NDArray[Any] = logits[len(tokens) - 1 if len(logits) > 1 else 0]
        return row

    def _room(self, signature: Signature, position: int) -> int:
        """Return how many tokens one call can take at `position` without reading past the caches."""
        if position > signature.cache_len:
            raise UsageError(
                f"Position {position} lies behind the {signature.cache_len} cached tokens of this program",
                remedy="Export with a larger --max-context-len or a smaller --input-len.",
            )
        return signature.input_len

    def _new_attention(self) -> StaticAttention:
        (heads,), (head_dim,) = self._program.constant("n_heads_per_cache"), self._program.constant("head_dim")
        tables = (self._program.constant("freqs_cos")[0], self._program.constant("freqs_sin")[0])
        return StaticAttention(self._signatures, tables, heads, head_dim)


def _signature(program: EvaluatedProgram, kind: Kind, multifunction: bool) -> Signature:
    prefix = {"forward": "decode_", "prefill": "prefill_"}[kind] if multifunction else ""
    (input_len,) = program.constant(f"{prefix}input_len" if multifunction else "forward_input_len")
    last = f"{prefix}last_valid_token_pos_index"
    return Signature(
        kind=kind,
        input_len=input_len,
        freqs_cos=int(program.constant(f"{prefix}freqs_cos_input_index")[0][0]),
        freqs_sin=int(program.constant(f"{prefix}freqs_sin_input_index")[0][0]),
        masks=program.constant(f"{prefix}mask_specs")[0],
        caches=program.constant(f"{prefix}kv_cache_specs")[0],
        last_token=int(program.constant(last)[0][0]) if program.has_constant(last) else None,
    )
