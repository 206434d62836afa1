"""Embeddings, and heads of trained tokens, with one slot's parts acting on them, as torch modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch  # noqa: TID253 - the module defines an nn.Module; nothing imports it before weights are loaded

from lora_core.adapters.slots.modules import SlotModule, linear


class LoraEmbedding(SlotModule):
    """`out = base(tokens) + b(table[tokens])`."""

    PARTS: Mapping[str, str] = {"table": "table.weight", "b": "lora_b.weight"}

    def __init__(self, base: torch.nn.Module, table: torch.Tensor, b: torch.Tensor) -> None:
        """Wrap `base` with the rows `table` and the matrix `b`."""
        super().__init__()
        self.base = base
        self.table = _embedding(table)
        self.lora_b = linear(b)
        self.train(base.training)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the base's rows plus the low-rank update of each."""
        out: torch.Tensor = self.base(tokens) + self.lora_b(self.table(tokens))
        return out


class WidenedEmbedding(SlotModule):
    """`out = base(tokens) + delta[tokens]`: an embedding with another of the same size beside it."""

    PARTS: Mapping[str, str] = {"delta": "delta.weight"}

    def __init__(self, base: torch.nn.Module, delta: torch.Tensor) -> None:
        """Put an embedding with the rows `delta` beside `base`."""
        super().__init__()
        self.base = base
        self.delta = _embedding(delta)
        self.train(base.training)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the sum of both rows."""
        out: torch.Tensor = self.base(tokens) + self.delta(tokens)
        return out


class TokenEmbedding(SlotModule):
    """`out = base(tokens)`, with a vector added where a token is one of a few.

    Which one it is is told by arithmetic, 1 where numbers are equal and 0 where they differ, so that numbers and
    vectors are weights of linear layers, which backends keep beside the program.
    """

    PARTS: Mapping[str, str] = {"ids": "ids.weight", "vectors": "vectors.weight"}

    def __init__(self, base: torch.nn.Module, ids: torch.Tensor, vectors: torch.Tensor) -> None:
        """Wrap `base` with the tokens' numbers `ids` and their `vectors`."""
        super().__init__()
        self.base = base
        self.ids = linear(ids)
        self.vectors = linear(vectors)
        self.train(base.training)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the base's rows, those of the tokens changed."""
        out: torch.Tensor = self.base(tokens)
        given = tokens.to(out.dtype).unsqueeze(-1)
        one = torch.clamp(given - given, 1.0, 2.0)
        equal = torch.clamp(one - torch.abs(given - self.ids(one)), 0.0, 1.0)
        changed: torch.Tensor = out + self.vectors(equal)
        return changed


class TokenHead(SlotModule):
    """`out = base(x) + places(vectors(x))`: an output head with a few rows changed."""

    PARTS: Mapping[str, str] = {"vectors": "vectors.weight", "places": "places.weight"}

    def __init__(self, base: torch.nn.Module, vectors: torch.Tensor, places: torch.Tensor) -> None:
        """Wrap `base` with what is added to the rows, `vectors`, and which rows these are, `places`."""
        super().__init__()
        self.base = base
        self.vectors = linear(vectors)
        self.places = linear(places)
        self.train(base.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's logits, those of the tokens changed."""
        out: torch.Tensor = self.base(x) + self.places(self.vectors(x))
        return out


def _embedding(weight: torch.Tensor) -> torch.nn.Embedding:
    with torch.device("meta"):
        embedding = torch.nn.Embedding(weight.shape[0], weight.shape[1])
    embedding.weight = torch.nn.Parameter(weight, requires_grad=False)
    return embedding
