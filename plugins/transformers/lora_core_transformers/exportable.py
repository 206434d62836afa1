# ruff: noqa: TID253  this module is imported only while a model is loaded, with transformers already loaded
"""transformers' models called as lora-core's programs are: tokens and a position in, logits out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM


class ExportableDecoder(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A decoder on transformers' own exportable module, with its static cache of `context_len` positions.

    `forward` takes tokens (1, length) and the position of the first of them (1,), and returns logits
    (1, length, vocabulary); `keep_last` makes them (1, 1, vocabulary).
    """

    INNER = "cached.model"

    def __init__(self, model: Any, *, context_len: int) -> None:
        """Wrap `model`; raises what transformers raises for one that it cannot make exportable."""
        super().__init__()
        # Its `forward` drops the position (transformers 5.23.0), and what it exports is the module inside.
        self.cached = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=context_len).model
        self._slices = False

    @classmethod
    def of(cls, model: Any, *, context_len: int) -> ExportableDecoder:
        """Wrap `model` after telling it, as transformers wants it told, that its cache is static."""
        model.generation_config.use_cache, model.generation_config.cache_implementation = True, "static"
        model.config.get_text_config().use_cache = True  # MPT's configuration does not say (transformers 5.23.0)
        return cls(model, context_len=context_len)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Write the tokens into the cache and return their logits."""
        with _in_buffers(self.cached), _positioned(self.cached.model, tokens, position):
            logits: torch.Tensor = self.cached(input_ids=tokens, cache_position=position)
        return logits[:, -1:] if self._slices else logits

    def keep_last(self, *, by_model: bool) -> None:
        """Return the logits of the last token alone; `by_model` says that the model takes `logits_to_keep`."""
        self._slices = not by_model
        if by_model:
            self.cached.model.register_forward_pre_hook(_keep_last, with_kwargs=True)


class ExportableClassifier(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A classifier of whole texts: tokens (1, length) in, logits (1, labels) out."""

    INNER = "model"

    def __init__(self, model: Any) -> None:
        """Wrap `model`."""
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the labels."""
        logits: torch.Tensor = self.model(input_ids=tokens).logits
        return logits


def apart_from_itself(decoder: ExportableDecoder, model: Any, *, length: int) -> float:
    """Return how far the logits of `decoder` for `length` tokens, given in parts, are from those of `model` without a
    cache, in units of their spread.
    """
    tokens, last = torch.arange(length)[None] % model.config.get_text_config().vocab_size, max(1, length - 2)
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits[0]
        parts = [slice(0, last), *(slice(each, each + 1) for each in range(last, length))]
        found = [decoder(tokens[:, part], torch.tensor([part.start]))[0] for part in parts]
    _cache(decoder.cached).reset()
    return float((torch.cat(found) - expected).abs().max() / expected.std())


def _cache(cached: Any) -> Any:
    """Return the static cache of transformers' module."""
    return cached.static_cache if hasattr(cached, "static_cache") else cached.cache


@contextmanager
def _in_buffers(cached: Any) -> Iterator[None]:
    """Let the static cache of transformers' module write into that module's buffers while the block runs.

    It registers the tensors of its cache as buffers; tracing without dynamo puts others in the buffers' place, and
    would take what the cache still holds for constants.
    """
    layers = _cache(cached).layers
    buffers = {"keys": "key_cache", "values": "value_cache", "cumulative_length": "cumulative_length"}
    held = [{name: getattr(layer, name) for name in buffers} for layer in layers]
    for index, layer in enumerate(layers):
        for name, buffer in buffers.items():
            setattr(layer, name, getattr(cached, f"{buffer}_{index}"))
    try:
        yield
    finally:
        for layer, values in zip(layers, held, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)


@contextmanager
def _positioned(model: Any, tokens: torch.Tensor, position: torch.Tensor) -> Iterator[None]:
    """Give `model` the positions of `tokens`, if it takes any, while the block runs.

    Some definitions (OPT's) take them from a tensor as long as what the cache holds, which is no size that is known
    when a program is lowered.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        yield
        return
    told = {"position_ids": (position + torch.arange(tokens.shape[1]))[None]}
    handle = model.register_forward_pre_hook(lambda _, args, given: (args, {**given, **told}), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _keep_last(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001 - torch's
    return args, {**kwargs, "logits_to_keep": 1}
