"""A bundle opened on ONNX Runtime: one model, and adapters that are inputs of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lora_core.bundle.bundle import Bundle
from lora_core.errors import UsageError
from lora_core.runtime.kv_cache import KvCache
from lora_core.runtime.selection import Selection
from lora_core.runtime.session import Loaded, Session
from lora_core.runtime.strengths import Strengths
from lora_core_onnx.genai import context_len_of
from lora_core_onnx.names import GENAI, MODEL
from lora_core_onnx.runtime.adapters import AdapterShelf
from lora_core_onnx.runtime.engine import PROVIDERS, Engine
from lora_core_onnx.session_options import OnnxSessionOptions
from lora_core_onnx.sharing import require_own

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class OnnxSession(Session):
    """The base is loaded once, with the first `load`; an adapter adds its own A and B, and switching is free.

    Adapters can be asked for at any strength and several at once: scaled, and joined along their ranks.
    """

    def __init__(self, bundle: Bundle, options: OnnxSessionOptions | None = None) -> None:
        """Open `bundle`; raises `BundleError` if its base is not the one that was exported, or it is damaged."""
        self._bundle, self._options = bundle, options or OnnxSessionOptions()
        self._context_len = context_len_of(bundle.file(GENAI), require_own(bundle).positions)
        self._rule = KvCache(bundle.manifest.kv_cache, self._context_len)
        self._engine: Engine | None = None
        self._shelf = AdapterShelf(bundle)
        self._strengths = Strengths()
        self._prepared: dict[str | None, Any] = {}
        self._loads: dict[str | None, Loaded] = {}
        self._closed = False

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        """How this runtime runs the bundle."""
        return {
            "runtime": f"ONNX Runtime {version('onnxruntime')}, {', '.join(PROVIDERS)}",
            "executes": True,
            "threads": self._options.threads or "the runtime's choice",
            "prepack": self._options.prepack,
            "kv_cache": self._bundle.manifest.kv_cache,
            "context_len": self._context_len,
        }

    @property
    def engine(self) -> Engine | None:
        """The model, while anything is loaded."""
        return self._engine

    def load(self, adapter: str | None) -> Loaded:
        """Load the base if it is not, and read the adapter; raises `UsageError` or `BundleError`."""
        return self._load(self._strengths.applied(adapter))

    def _load(self, adapter: str | None) -> Loaded:
        if self._closed:
            raise UsageError("The session is closed", remedy="Open the bundle again.")
        if adapter not in self._loads:
            selection = Selection.parse(adapter)
            selection.require_known(self._bundle.manifest.names, str(self._bundle.path))
            start = time.perf_counter()
            engine = self._load_base()
            self._prepared[adapter] = engine.prepared(self._shelf.inputs(selection, engine.slots))
            self._loads[adapter] = Loaded.measured(adapter, time.perf_counter() - start)
        return self._loads[adapter]

    def unload(self, adapter: str | None) -> None:
        """Let go of an adapter, of A and B that no other selection takes part of, and with the last of the base."""
        self._unload(self._strengths.applied(adapter))

    def _unload(self, adapter: str | None) -> None:
        if adapter not in self._loads:
            return
        if self._rule.owner == adapter:
            self.reset()
        del self._prepared[adapter], self._loads[adapter]
        self._shelf.keep(name for loaded in self._loads for name in Selection.parse(loaded).strengths)
        if not self._loads:
            self._engine = None

    def strength(self, adapter: str, strength: float) -> None:
        """Let `adapter` have a strength from now on; one that is loaded stays so, at its new strength."""
        before = self._strengths.applied(adapter)
        self._strengths.set(adapter, strength, self._bundle.manifest.names, str(self._bundle.path))
        after = self._strengths.applied(adapter)
        if before in self._loads and after != before:
            self._load(after)
            self._unload(before)

    def reset(self) -> None:
        """Forget the KV cache."""
        self._rule.reset()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Feed `tokens` in one call and return the logits of the last."""
        adapter = self._strengths.applied(adapter)
        self._load(adapter)
        assert self._engine is not None
        self._rule.check(adapter, position, len(tokens))
        self._check_vocabulary(tokens)
        self._rule.wrote(adapter, position, 0)  # a call that fails half way leaves nothing behind
        logits = self._engine.run(self._prepared[adapter], tokens, position)
        self._rule.wrote(adapter, position, len(tokens))
        return logits

    def close(self) -> None:
        """Release the model, the adapters and the cache."""
        self._closed = True
        self._prepared.clear()
        self._loads.clear()
        self._engine = None
        self._shelf.clear()
        self.reset()

    def _load_base(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._bundle.file(MODEL), self._context_len, self._options)
        return self._engine

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        size = self._bundle.manifest.base.vocab_size
        wrong = [token for token in tokens if token < 0 or (size is not None and token >= size)]
        if wrong:
            raise UsageError(f"Token {wrong[0]} is not in the vocabulary of {size} tokens")
