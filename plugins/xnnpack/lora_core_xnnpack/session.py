"""A bundle opened on ExecuTorch's runtime: several adapters in one process over one foundation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_core.bundle.bundle import Bundle, Method
from lora_core.errors import BundleError, UsageError
from lora_core.models.context import usual_context
from lora_core.models.executorch.options import KEEPS_STATE
from lora_core.runtime.kv_cache import KvCache
from lora_core.runtime.session import Loaded, Session
from lora_core.runtime.strengths import Strengths
from lora_core_xnnpack.inputs.linking import takes_adapters
from lora_core_xnnpack.options import DEFAULT_CONTEXT
from lora_core_xnnpack.runtime.library import load_runtime
from lora_core_xnnpack.runtime.method_choice import method_choice
from lora_core_xnnpack.runtime.open_program import LoadedMethod
from lora_core_xnnpack.runtime.openmp import openmp_threads
from lora_core_xnnpack.runtime.packed_cache import AUTOMATIC, PackedCache, PackedState, packed_automatically
from lora_core_xnnpack.runtime.shelf import ProgramShelf
from lora_core_xnnpack.runtime.weight_cache import WeightCacheState, switch_weight_cache, workspace_sharing
from lora_core_xnnpack.session_options import XnnpackSessionOptions

if TYPE_CHECKING:
    import numpy.typing as npt


class XnnpackSession(Session):
    """Programs of one bundle in one process. Nothing is loaded before `load` or `step` asks for it.

    With the weight cache on, all programs share the packed foundation, whichever session loaded them.
    """

    def __init__(self, bundle: Bundle, options: XnnpackSessionOptions | None = None) -> None:
        """Open `bundle`; raises `UnsupportedError` where ExecuTorch is not installed."""
        self._options = options or XnnpackSessionOptions()
        self._bundle = bundle
        self._runtime = load_runtime()
        if self._options.threads:
            self._runtime._unsafe_reset_threadpool(self._options.threads)
        self._weight_cache = switch_weight_cache(self._options.weight_cache)
        self._packed, self._unpacked = self._open_packed()
        self._shelf = ProgramShelf(bundle, self._runtime, self._packed, share_arena=self._options.share_arena)
        self._choice = method_choice(bundle)
        self._strengths = Strengths()
        self._opened: dict[str, LoadedMethod] = {}
        self._methods: dict[str | None, LoadedMethod] = {}
        self._loads: dict[str | None, Loaded] = {}
        self._context_len: int | None = None
        self._cache: KvCache | None = None
        self._closed = False

    @property
    def bundle(self) -> Bundle:
        """The bundle that is open."""
        return self._bundle

    @property
    def weight_cache(self) -> WeightCacheState:
        """Whether programs share the packed foundation, as the runtime reads it back."""
        return self._weight_cache

    @property
    def packed(self) -> PackedState | None:
        """What became of the file of packed weights; None if none was asked for."""
        return self._packed.state if self._packed is not None else None

    @property
    def facts(self) -> Mapping[str, Any]:
        """How this runtime runs the bundle; `context_len` is known once a program is loaded."""
        facts: dict[str, Any] = {
            "runtime": f"ExecuTorch {version('executorch')}, XNNPACK",
            "executes": True,
            "weight_cache": str(self._weight_cache),
            "packed_cache": str(self.packed or self._unpacked),
            "workspace_sharing": workspace_sharing(),
            "threads": self._runtime._threadpool_get_thread_count(),
            "openmp_threads": openmp_threads(),
            "kv_cache": self._bundle.manifest.kv_cache,
            "kv_cache_type": self._bundle.manifest.options.get("kv_cache", "fp32"),
        }
        return facts if self._context_len is None else facts | {"context_len": self._context_len}

    @property
    def rewinds(self) -> bool:
        """Whether tokens may be written over; the first load tells."""
        return self._cache is None or self._cache.rewinds

    def load(self, adapter: str | None) -> Loaded:
        """Load the program of `adapter`, or the adapter's file where it is an input of the program, and map the
        foundation; raises `UsageError` or `BundleError`.
        """
        return self._load(self._strengths.applied(adapter))

    def _load(self, adapter: str | None) -> Loaded:
        if self._closed:
            raise UsageError("The session is closed", remedy="Open the bundle again.")
        if adapter in self._loads:
            return self._loads[adapter]
        start = time.perf_counter()
        method = self._choice.method(adapter)
        self._methods[adapter] = self._open(method).taking(self._choice.inputs(adapter))
        seconds = time.perf_counter() - start
        if self._cache is None:
            self._context_len = self._read_context_len(method)
            keeps_state = bool(self._shelf.metadata(method, KEEPS_STATE))
            self._cache = KvCache(self._bundle.manifest.kv_cache, self._context_len, rewinds=not keeps_state)
        self._loads[adapter] = Loaded.measured(adapter, seconds)
        return self._loads[adapter]

    def _open(self, method: Method) -> LoadedMethod:
        if method.name not in self._opened:
            self._switch()
            self._opened[method.name] = self._shelf.load(method)
            if self._packed is not None:
                self._packed.confirm()
        return self._opened[method.name]

    def unload(self, adapter: str | None) -> None:
        """Let go of an adapter: of its file, its own method, and a program of which nothing else is loaded."""
        self._unload(self._strengths.applied(adapter))

    def _unload(self, adapter: str | None) -> None:
        if adapter not in self._loads:
            return
        if self._cache is not None and self._cache.owner == adapter:
            self.reset()
        method = self._choice.method(adapter)
        self._methods.pop(adapter).release()
        del self._loads[adapter]
        self._choice.unload(adapter, self._loads)
        left = [self._choice.method(each) for each in self._loads]
        used = {each.name for each in left}
        if self._choice.shared and left:
            used.add(method.name)  # the next adapter's too: its own memory is little, and loading it most of a load
        self._opened = {name: opened for name, opened in self._opened.items() if name in used}
        self._shelf.unload(method, keep={each.program for each in left})

    def strength(self, adapter: str, strength: float) -> None:
        """Let `adapter` have a strength from now on, where adapters are inputs; one that is loaded stays so."""
        if not takes_adapters(self._bundle):
            self._choice.method(f"{adapter}@{strength!r}")  # refuses it, but for 1
        before = self._strengths.applied(adapter)
        self._strengths.set(adapter, strength, self._bundle.manifest.names, str(self._bundle.path))
        after = self._strengths.applied(adapter)
        if before in self._loads and after != before:
            self._load(after)
            self._unload(before)

    def reset(self) -> None:
        """Forget the KV cache: every adapter starts again at position 0."""
        if self._cache is not None:
            self._cache.reset()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Feed `tokens`, in as few calls as the program allows, and return the logits of the last.

        Raises `UsageError` if the KV cache holds another adapter's positions or fewer than `position`.
        """
        adapter = self._strengths.applied(adapter)
        self._load(adapter)
        cache, method = self._cache, self._methods[adapter]
        assert cache is not None
        cache.check(adapter, position, len(tokens))
        self._check_vocabulary(tokens)
        cache.wrote(adapter, position, 0)  # a call that fails half way leaves nothing behind
        logits = np.empty(0, np.float32)
        for start in range(0, len(tokens), method.longest_step):
            logits = method(tokens[start : start + method.longest_step], position + start)
        cache.wrote(adapter, position, len(tokens))
        return logits

    def call(self, adapter: str | None, inputs: Sequence[Any]) -> Sequence[npt.NDArray[Any]]:
        """Call the method of `adapter` with `inputs` and return its outputs; raises `UsageError` if they do not fit."""
        adapter = self._strengths.applied(adapter)
        self._load(adapter)
        try:
            return self._methods[adapter].call(inputs)
        except RuntimeError as error:
            raise UsageError(f"The inputs are not those of the module: {error}") from error

    def close(self) -> None:
        """Release the programs and their memory."""
        self._closed = True
        self._methods.clear()
        self._opened.clear()
        for adapter in list(self._loads):
            self._choice.unload(adapter, ())
        self._loads.clear()
        self._shelf.close()
        self.reset()
        if self._packed is not None:
            self._packed.close()
            self._packed = None

    def _open_packed(self) -> tuple[PackedCache | None, str]:
        """Return the file of packed weights, or None and why there is none."""
        asked, manifest = self._options.packed_cache, self._bundle.manifest
        if asked is None:
            return None, "off"
        size = sum(artifact.size for artifact in manifest.base_artifacts if artifact.role == "foundation")
        if asked != AUTOMATIC:
            packed: PackedCache | None = PackedCache(Path(asked), manifest.foundation, size)
        elif self._weight_cache.state != "on":
            packed, reason = None, "the weight cache is off"
        else:
            packed, reason = packed_automatically(manifest.foundation, size)
        if packed is None:
            return None, f"off: {reason}"
        if self._weight_cache.state != "on":
            packed.give_up(f"the weight cache is {self._weight_cache.state}")
        return packed, ""

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        size = self._bundle.manifest.base.vocab_size
        wrong = [token for token in tokens if token < 0 or (size is not None and token >= size)]
        if wrong:
            raise UsageError(f"Token {wrong[0]} is not in the vocabulary of {size} tokens")

    def _switch(self) -> None:
        # Another session of this process may have switched the cache since.
        self._weight_cache = switch_weight_cache(self._options.weight_cache)

    def _read_context_len(self, method: Method) -> int:
        length = self._shelf.metadata(method, "get_max_context_len")
        if length is None:
            manifest = self._bundle.manifest
            asked = manifest.options.get("max_context_len")
            length = usual_context(DEFAULT_CONTEXT, manifest.base.context_len) if asked is None else asked
        if not isinstance(length, int):
            raise BundleError("Neither program nor manifest says how many tokens fit", where=method.program)
        return length
