"""A session that computes its logits by rule, and a small tokenizer, for tests of what runs on top of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Manifest, Method
from lora_core.layers import ModelSummary
from lora_core.prompting import Prompting
from lora_core.runtime.kv_cache import RESET_ON_ADAPTER_CHANGE, KvCache
from lora_core.runtime.selection import Selection
from lora_core.runtime.session import Loaded, Session

TEXT = """The quick brown fox jumps over the lazy dog, twice. Ärger mit Öl, naïve café, 東京 and 🙂🙃 too.
Numbers 0123456789 and code: `for x in range(10): print(x)`."""


class CountingSession(Session):
    """The next token is the last one plus a step: 1 for the base, the length of its name for an adapter."""

    def __init__(self, bundle: Bundle, *, context_len: int = 32, vocabulary: int = 64) -> None:
        self._bundle = bundle
        self._cache = KvCache(bundle.manifest.kv_cache, context_len)
        self._context_len = context_len
        self._vocabulary = vocabulary
        self.loaded: dict[str | None, Loaded] = {}
        self.calls: list[tuple[str | None, tuple[int, ...], int]] = []

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"runtime": "counting", "context_len": self._context_len}

    def load(self, adapter: str | None) -> Loaded:
        names = {method.adapter for method in self._bundle.manifest.methods if method.adapter is not None}
        Selection.parse(adapter).require_known(names)
        if adapter not in self.loaded:
            self.loaded[adapter] = Loaded.measured(adapter, 0.0)
        return self.loaded[adapter]

    def reset(self) -> None:
        self._cache.reset()

    def step(self, adapter: str | None, tokens: Sequence[int], position: int) -> np.ndarray:
        self._cache.check(adapter, position, len(tokens))
        self._cache.wrote(adapter, position, len(tokens))
        self.calls.append((adapter, tuple(tokens), position))
        logits = np.zeros(self._vocabulary, np.float32)
        logits[(tokens[-1] + (1 if adapter is None else len(adapter))) % self._vocabulary] = 5.0
        return logits

    def close(self) -> None:
        self.loaded.clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    methods = (
        Method(name="forward", program="base.pte"),
        Method(name="ab", program="ab.pte", adapter="ab"),
        Method(name="abc", program="abc.pte", adapter="abc"),
    )
    manifest = Manifest(
        backend="counting",
        base=ModelSummary(name="tiny", family="module", layers=(), module_names=(), vocab_size=64, eos_ids=(60,)),
        policy={},
        foundation="f" * 64,
        plans=(),
        options={},
        versions={},
        artifacts=(),
        adapters=(),
        methods=methods,
        kv_cache=RESET_ON_ADAPTER_CHANGE,
    )
    return Bundle(path=tmp_path, manifest=manifest)


@pytest.fixture
def session(bundle: Bundle) -> CountingSession:
    return CountingSession(bundle)


@pytest.fixture
def own_prompting(bundle: Bundle) -> CountingSession:
    """A session whose base is prompted with `[` before a message, and its adapter `ab` with `]` behind."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "x": 23, "[": 40, "]": 41}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    (bundle.path / "tokenizer").mkdir()
    tokenizer.save(str(bundle.path / "tokenizer/tokenizer.json"))
    (bundle.path / "base.jinja").write_text("[{{ messages[0].content }}")
    (bundle.path / "own.jinja").write_text("{{ messages[0].content }}]")
    base = Prompting(tokenizer="tokenizer/tokenizer.json", chat_templates={"default": "base.jinja"}, eos_ids=(60,))
    own = Prompting(tokenizer="tokenizer/tokenizer.json", chat_templates={"default": "own.jinja"}, eos_ids=(43,))
    adapter = BundledAdapter(name="ab", digest="", foundation="", rank=1, modules=1, prompting=own)
    listed = tuple(Artifact(path=path, role="tokenizer", sha256="", size=0) for path in {*base.files, *own.files})
    manifest = attrs.evolve(bundle.manifest, prompting=base, adapters=(adapter,), artifacts=listed)
    return CountingSession(Bundle(path=bundle.path, manifest=manifest))


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer, in which a character may take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def spaced_tokenizer() -> Tokenizer:
    """A tokenizer in SentencePiece's manner, which drops the space at the start of a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator([TEXT[:60]], trainer)
    return tokenizer
