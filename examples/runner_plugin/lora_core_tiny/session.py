"""A bundle opened: one decoder on the foundation, the adapters that were loaded, the keys and values of one text."""

import time

import numpy as np
from safetensors.numpy import load_file

from lora_core.errors import UsageError
from lora_core.runtime.kv_cache import KvCache
from lora_core.runtime.session import Loaded, Session
from lora_core.suggestions import did_you_mean
from lora_core_tiny.decoder import Decoder


class TinySession(Session):
    decoder_class = Decoder

    def __init__(self, bundle):
        self._bundle = bundle
        manifest = bundle.manifest
        self._context_len = manifest.options["max_context_len"]
        (foundation,) = (each for each in manifest.artifacts if each.role == "foundation")
        self._decoder = self.decoder_class(manifest.base.config, load_file(bundle.file(foundation)), self._context_len)
        self._files = {each.adapter: bundle.file(each) for each in manifest.artifacts if each.role == "adapter-data"}
        self._lora = {None: {}}
        self._loads = {}
        self._cache = self._decoder.new_cache()
        self._rule = KvCache(manifest.kv_cache, self._context_len)  # who owns it, and how far it is filled

    @property
    def bundle(self):
        return self._bundle

    @property
    def facts(self):
        return {"runtime": f"NumPy {np.__version__}", "executes": True, "context_len": self._context_len}

    def load(self, adapter):
        if self._decoder is None:
            raise UsageError("The session is closed", remedy="Open the bundle again.")
        if adapter is not None and adapter not in self._files:
            remedy = did_you_mean(adapter, self._files)
            raise UsageError(f"The bundle has no adapter {adapter!r}", where=str(self._bundle.path), remedy=remedy)
        if adapter not in self._loads:
            start = time.perf_counter()
            if adapter is not None:
                self._lora[adapter] = self.read_adapter(adapter)
            self._loads[adapter] = Loaded.measured(adapter, time.perf_counter() - start)
        return self._loads[adapter]

    def read_adapter(self, adapter):
        """Return the parts of an adapter by module."""
        parts = {}
        for key, array in load_file(self._files[adapter]).items():
            module, _, part = key.rpartition(".")
            parts.setdefault(module, {})[part] = array
        return parts

    def reset(self):
        self._rule.reset()

    def step(self, adapter, tokens, position):
        self.load(adapter)
        self._rule.check(adapter, position, len(tokens))
        vocabulary = self._bundle.manifest.base.vocab_size
        if not all(0 <= token < vocabulary for token in tokens):
            raise UsageError(f"A token is not in the vocabulary of {vocabulary}")
        logits = self._decoder.step(tokens, position, self._cache, self._lora[adapter])
        self._rule.wrote(adapter, position, len(tokens))
        return logits

    def close(self):
        self.reset()
        self._decoder, self._cache, self._lora, self._loads = None, None, {}, {}
