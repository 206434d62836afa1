"""A bundle opened: reference evaluation anywhere, the CoreML runtime on macOS if asked for."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.bundle.bundle import Bundle
from lora_core.errors import UnsupportedError, UsageError
from lora_core.intake.parsing import parsing
from lora_core.models.executorch.options import KEEPS_STATE
from lora_core.runtime.kv_cache import KvCache
from lora_core.runtime.session import Loaded, Session
from lora_core.runtime.strengths import Strengths
from lora_core.sharing.proof import require_foundation
from lora_core_coreml.diagnosis import can_execute
from lora_core_coreml.module_session import CoremlModuleSession
from lora_core_coreml.program.naming import FOUNDATION, Kind, kinds, method_name
from lora_core_coreml.runtime.adapters import AdaptersAsInputs, AdaptersAsMethods, CalledAdapters
from lora_core_coreml.runtime.attention import Signature, StaticAttention
from lora_core_coreml.runtime.evaluation.function import Precision
from lora_core_coreml.runtime.evaluation.operators import REASONS
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram
from lora_core_coreml.runtime.execution import EXECUTION, ExecutedProgram
from lora_core_coreml.session_options import CoremlSessionOptions
from lora_core_coreml.sharing import CoremlSharing

EVALUATION = "reference evaluation of the stored CoreML functions; nothing ran on CoreML"


def open_session(bundle: Bundle, options: CoremlSessionOptions) -> Session:
    """Open `bundle` for evaluation, or on CoreML if `options` ask for it.

    At `both` precisions, which is the default but for a float32 program, the strict logits are returned and how far the
    others are is reported. Raises `UnsupportedError` where there is no CoreML to execute on.
    """
    if options.execute and not can_execute():
        raise UnsupportedError(
            "CoreML executes programs on macOS only, and this is another system",
            remedy="Leave --execute out: the stored functions are evaluated then.",
        )
    require_foundation(bundle, CoremlSharing().fingerprint(bundle))
    kind, runtime, precisions = EvaluatedProgram, EVALUATION, _precisions(bundle, options)
    if options.execute:
        kind, runtime, precisions = ExecutedProgram, EXECUTION, ("float16",)
    with parsing(bundle.path / "manifest.json"):
        (path,) = {method.program for method in bundle.manifest.methods}
    with parsing(bundle.file(path)):
        program = kind(bundle.file(path))
    try:
        if program.has_constant("freqs_cos"):
            return CoremlSession(bundle, program, precisions, runtime)
        adapters = _adapters(bundle, program, multifunction=False)
        return CoremlModuleSession(bundle, program, adapters, precision=precisions[0], runtime=runtime)
    except BaseException:
        program.close()
        raise


def _adapters(bundle: Bundle, program: EvaluatedProgram, *, multifunction: bool) -> CalledAdapters:
    if program.has_constant(FOUNDATION):
        return AdaptersAsInputs(bundle, program)
    return AdaptersAsMethods(bundle, multifunction)


def _precisions(bundle: Bundle, options: CoremlSessionOptions) -> tuple[Precision, ...]:
    if options.precision == "both":
        return ("float16", "float32")
    if options.precision is not None:
        return (options.precision,)
    return ("float32",) if bundle.manifest.options.get("dtype") == "fp32" else ("float16", "float32")


@attrs.frozen(kw_only=True)
class Spread:
    """How far two evaluations of one method are apart: the largest difference of logits, and their largest value."""

    largest_difference: float = 0.0
    largest_logit: float = 0.0
    finite: bool = True

    def wider(self, *rows: npt.NDArray[np.float32]) -> Spread:
        """Return this spread widened by one more row of logits of each evaluation."""
        first, last = rows[0], rows[-1]
        return Spread(
            largest_difference=max(self.largest_difference, float(np.abs(first - last).max())),
            largest_logit=max(self.largest_logit, float(np.abs(last).max())),
            finite=self.finite and all(bool(np.isfinite(row).all()) for row in rows),
        )


class CoremlSession(Session):
    """The methods of one program, evaluated with coremltools' own operator semantics or executed by CoreML."""

    def __init__(
        self, bundle: Bundle, program: EvaluatedProgram, precisions: Sequence[Precision], runtime: str
    ) -> None:
        """Evaluate `program` of `bundle` at each of `precisions` and return the logits of the first."""
        self._bundle, self._program = bundle, program
        self._precisions = tuple(precisions)
        self._runtime = runtime
        self._spreads: dict[str, Spread] = {}
        with parsing(program.path):
            self._read_metadata()
            rewinds = not self._program.has_constant(KEEPS_STATE)
            self._cache = KvCache(bundle.manifest.kv_cache, self._context_len, rewinds=rewinds)
            self._attention = self._new_attention()
        self._loaded: dict[str | None, Loaded] = {}
        self._strengths = Strengths()
        self._closed = False

    def _read_metadata(self) -> None:
        self._multifunction = "prefill" in self._program.methods
        self._signatures: dict[Kind, Signature] = {
            kind: _signature(self._program, kind, self._multifunction) for kind in kinds(self._multifunction)
        }
        self._adapters = _adapters(self._bundle, self._program, multifunction=self._multifunction)
        # A call reads `cache_len` positions before its own tokens, so the last one may begin there.
        self._context_len = 1 + min(signature.cache_len for signature in self._signatures.values())

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        """Whether this is evaluation, at which precision, and which operators have references of our own.

        `float32_accumulating` tells for each method how far its logits are from the strict ones, if both were asked.
        """
        return {
            "runtime": self._runtime,
            "evaluates": self._runtime == EVALUATION,
            "precision": " and ".join(self._precisions),
            "float32_accumulating": {name: attrs.asdict(spread) for name, spread in sorted(self._spreads.items())},
            "context_len": self._context_len,
            "platform": platform.system(),
            "own_references": dict(REASONS),
        }

    def load(self, adapter: str | None) -> Loaded:
        """Load the functions of an adapter, and its file if it is an input of them.

        Raises `UsageError` for an unknown name, or if the session is closed.
        """
        return self._load(self._strengths.applied(adapter))

    def _load(self, adapter: str | None) -> Loaded:
        if self._closed:
            raise UsageError("The session is closed", remedy="Open the bundle again.")
        if adapter not in self._loaded:
            start = time.monotonic()
            self._adapters.load(adapter)
            with parsing(self._program.path):
                for kind in self._signatures:
                    self._program.load(self._adapters.method(adapter, kind))
            self._loaded[adapter] = Loaded.measured(adapter, time.monotonic() - start)
        return self._loaded[adapter]

    def unload(self, adapter: str | None) -> None:
        """Let go of the functions of an adapter that no other needs, and of its file."""
        self._unload(self._strengths.applied(adapter))

    def _unload(self, adapter: str | None) -> None:
        if adapter not in self._loaded:
            return
        if self._cache.owner == adapter:
            self.reset()
        del self._loaded[adapter]
        used = {self._adapters.method(each, kind) for each in self._loaded for kind in self._signatures}
        for method in {self._adapters.method(adapter, kind) for kind in self._signatures} - used:
            self._program.unload(method)
        self._adapters.unload(adapter, self._loaded)

    def strength(self, adapter: str, strength: float) -> None:
        """Let `adapter` have a strength from now on, where adapters are inputs; one that is loaded stays so."""
        if isinstance(self._adapters, AdaptersAsMethods):
            self._adapters.load(f"{adapter}@{strength!r}")  # refuses it, but for 1
        before = self._strengths.applied(adapter)
        self._strengths.set(adapter, strength, self._bundle.manifest.names, str(self._bundle.path))
        after = self._strengths.applied(adapter)
        if before in self._loaded and after != before:
            self._load(after)
            self._unload(before)

    def reset(self) -> None:
        """Forget the KV cache."""
        self._cache.reset()
        self._attention = self._new_attention()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Evaluate `tokens` at `position`, in as many calls as the methods' input length takes."""
        adapter = self._strengths.applied(adapter)
        self._load(adapter)
        self._cache.check(adapter, position, len(tokens))
        found: list[npt.NDArray[np.float32]] = []
        done = 0
        while done < len(tokens):
            signature = self._choose(len(tokens) - done)
            some = tokens[done : done + signature.input_len]
            found = [self._call(precision, adapter, signature, some, position + done) for precision in self._precisions]
            method = method_name(adapter, signature.kind, self._multifunction)
            self._spreads[method] = self._spreads.get(method, Spread()).wider(*found)
            done += len(some)
            self._cache.wrote(adapter, position, done)
        return found[0]

    def close(self) -> None:
        """Release the program."""
        self._closed = True
        self._program.close()

    def _call(
        self, precision: Precision, adapter: str | None, signature: Signature, tokens: Sequence[int], position: int
    ) -> npt.NDArray[np.float32]:
        attention, method = self._attention[precision], self._adapters.method(adapter, signature.kind)
        more = self._adapters.inputs(adapter, signature.kind)
        flat = attention.inputs(signature, tokens, position, self._program.input_count(method) - len(more))
        outputs = self._program.run(method, [*flat, *more], precision)
        attention.store(signature, outputs, position, len(tokens))
        # Decode and prefill give the logits of the last token only, a method for both those of every position.
        logits = outputs[0].reshape(-1, outputs[0].shape[-1])
        return np.asarray(logits[len(tokens) - 1 if len(logits) > 1 else 0], dtype=np.float32)

    def _choose(self, count: int) -> Signature:
        """Return the method for `count` tokens: prefill for several, if there is one."""
        signature = self._signatures["forward"]
        if count > 1 and "prefill" in self._signatures:
            signature = self._signatures["prefill"]
        return signature

    def _new_attention(self) -> dict[Precision, StaticAttention]:
        (heads,), (head_dim,) = self._program.constant("n_heads_per_cache"), self._program.constant("head_dim")
        tables = (self._program.constant("freqs_cos")[0], self._program.constant("freqs_sin")[0])
        first = self._signatures["forward"]
        sizes = [(int(heads), int(head_dim))] * len(first.caches)
        if self._program.has_constant("kv_cache_sizes"):
            sizes = [(int(row[0]), int(row[1])) for row in self._program.constant("kv_cache_sizes")[0]]
        # Caches keep what a method gave, unrounded, so that float32 evaluation stays float32 from call to call.
        types = {"float16": tables[0].dtype, "float32": np.dtype(np.float32)}
        shapes = []
        if self._program.has_constant("conv_state_shape"):
            shapes = [tuple(map(int, self._program.constant("conv_state_shape")[0]))] * len(first.states)
        return {
            each: StaticAttention(tables, cache_len=first.cache_len, sizes=sizes, dtype=types[each], states=shapes)
            for each in self._precisions
        }


def _signature(program: EvaluatedProgram, kind: Kind, multifunction: bool) -> Signature:
    prefix = {"forward": "decode_", "prefill": "prefill_"}[kind] if multifunction else ""
    (input_len,) = program.constant(f"{prefix}input_len" if multifunction else "forward_input_len")
    last = f"{prefix}last_valid_token_pos_index"
    states = f"{prefix}conv_state_specs"
    return Signature(
        kind=kind,
        input_len=input_len,
        freqs_cos=int(program.constant(f"{prefix}freqs_cos_input_index")[0][0]),
        freqs_sin=int(program.constant(f"{prefix}freqs_sin_input_index")[0][0]),
        masks=program.constant(f"{prefix}mask_specs")[0],
        caches=program.constant(f"{prefix}kv_cache_specs")[0],
        last_token=int(program.constant(last)[0][0]) if program.has_constant(last) else None,
        states=program.constant(states)[0] if program.has_constant(states) else np.zeros((0, 2), np.int64),
    )
