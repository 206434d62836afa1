"""What can hang on an embedding, and what trained tokens do to the output head.

Of an embedding a slot's `in_features` are the rows, its `out_features` the width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_core.adapters.adapter import Update
from lora_core.adapters.slots.kind import Alone, Extent, Part, SlotKind, Values, concatenated, scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NO_TOKEN = -1.0


class Lookup(SlotKind):
    """LoRA: `out = base(token) + table[token] @ B.T`, with a row of `table` (rows, rank) for each token."""

    name = "lookup"
    feature = "LoRA on an embedding"
    layer = "embedding"
    unties = True

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the table and B."""
        return (
            Part(name="table", shape=(extent.in_features, extent.rank), table=True),
            Part(name="b", shape=(extent.out_features, extent.rank)),
        )

    def extent(self, update: Update) -> Extent:
        """Return the rank (columns of the table), the rows and the width."""
        (rows, rank), (width, _) = update.tensors["table"].shape, update.tensors["b"].shape
        return Extent(in_features=rows, out_features=width, rank=rank)

    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return table and B zero-padded to the slot's rank, which is exact; B carries the scaling."""
        import numpy as np

        table = np.zeros((extent.in_features, extent.rank), dtype=np.float32)
        b = np.zeros((extent.out_features, extent.rank), dtype=np.float32)
        if update is not None:
            rank = self.extent(update).rank
            table[:, :rank] = update.tensors["table"].read()
            b[:, :rank] = scaled(update.tensors["b"], update.scaling)
        return {"table": table, "b": b}

    def combine(self, updates: Sequence[Update]) -> Update:
        """Return the concatenation of all ranks, scalings folded into B."""
        return concatenated(updates, "table", axis=1)

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `LoraEmbedding` around `module`."""
        from lora_core.adapters.slots.embedding_modules import LoraEmbedding  # heavy: torch

        return LoraEmbedding(module, values["table"], values["b"])


class Rows(Alone):
    """`out = base(token) + delta[token]`: a whole trained embedding, as what it adds to the base's."""

    name = "rows"
    part = "delta"
    feature = "whole trained embeddings"
    layer = "embedding"
    unties = True

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the difference of the embeddings."""
        return (Part(name=self.part, shape=(extent.in_features, extent.out_features), table=True),)

    def extent(self, update: Update) -> Extent:
        """Return the rows and the width."""
        rows, width = update.tensors[self.part].shape
        return Extent(in_features=rows, out_features=width, rank=1)

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `WidenedEmbedding` around `module`."""
        from lora_core.adapters.slots.embedding_modules import WidenedEmbedding  # heavy: torch

        return WidenedEmbedding(module, values[self.part])


class _OfTokens(Alone):
    """Vectors of trained tokens; the rank is how many there are, and what is beyond it is of no token."""

    part = "vectors"
    feature = "trained tokens"

    def does_nothing(self, values: Values) -> bool:
        """Say whether all vectors are zero."""
        return not values["vectors"].any()


class Tokens(_OfTokens):
    """`out = base(token) + vectors[:, i]` where `token` is `ids[i]`: what is added to the rows of a few tokens.

    `ids` are (rank, 1) and stand for numbers that float32 holds exactly; `vectors` are (width, rank).
    """

    name = "tokens"
    layer = "embedding"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the tokens' numbers and what is added to their rows, as columns."""
        return (
            Part(name="ids", shape=(extent.rank, 1)),
            Part(name="vectors", shape=(extent.out_features, extent.rank)),
        )

    def extent(self, update: Update) -> Extent:
        """Return the number of tokens and the width; any number of rows."""
        width, count = update.tensors["vectors"].shape
        return Extent(in_features=0, out_features=width, rank=_room(count))

    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return numbers and vectors; where there is no token the number is of none."""
        import numpy as np

        ids = np.full((extent.rank, 1), _NO_TOKEN, dtype=np.float32)
        vectors = np.zeros((extent.out_features, extent.rank), dtype=np.float32)
        if update is not None:
            count = update.tensors["vectors"].shape[1]
            ids[:count] = update.tensors["ids"].read()
            vectors[:, :count] = update.tensors["vectors"].read()
        return {"ids": ids, "vectors": vectors}

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `TokenEmbedding` around `module`."""
        from lora_core.adapters.slots.embedding_modules import TokenEmbedding  # heavy: torch

        return TokenEmbedding(module, values["ids"], values["vectors"])


class TokenLogits(_OfTokens):
    """`out[t] = base(x)[t] + vectors[i] @ x` for each token `t` that `places[t, i]` marks: trained rows of the head.

    `vectors` are (rank, in_features), `places` (out_features, rank) with a 1 for each token.
    """

    name = "token_logits"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return what is added to the rows of the tokens, and which rows these are."""
        return (
            Part(name="vectors", shape=(extent.rank, extent.in_features)),
            Part(name="places", shape=(extent.out_features, extent.rank)),
        )

    def extent(self, update: Update) -> Extent:
        """Return the number of tokens and the width of the input; any number of outputs."""
        count, width = update.tensors["vectors"].shape
        rows = update.tensors["places"].shape[0]
        return Extent(in_features=width, out_features=rows, rank=_room(count))

    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return vectors and places, padded with zeros."""
        import numpy as np

        vectors = np.zeros((extent.rank, extent.in_features), dtype=np.float32)
        places = np.zeros((extent.out_features, extent.rank), dtype=np.float32)
        if update is None:
            vectors[:] = 1.0  # see `_room`: no two parts of tokens have the same bytes
        else:
            count = update.tensors["vectors"].shape[0]
            vectors[:count] = update.tensors["vectors"].read()
            places[:, :count] = update.tensors["places"].read()
        return {"vectors": vectors, "places": places}

    def does_nothing(self, values: Values) -> bool:
        """Say whether no row is marked, or all vectors are zero."""
        return not (values["places"].any() and values["vectors"].any())

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `TokenHead` around `module`."""
        from lora_core.adapters.slots.embedding_modules import TokenHead  # heavy: torch

        return TokenHead(module, values["vectors"], values["places"])


def _room(count: int) -> int:
    """Return how many tokens a slot for `count` has room for.

    Two at least: a single vector of an embedding (width, 1) and of its head (1, width) would be the same bytes in other
    shapes, which XNNPACK's weight cache (ExecuTorch 1.5.1) takes for one.
    """
    return max(2, count)


def places(ids: Sequence[int], rows: int) -> npt.NDArray[np.float32]:
    """Return the part `places` that marks the rows `ids` of `rows`."""
    import numpy as np

    marked = np.zeros((rows, len(ids)), dtype=np.float32)
    marked[list(ids), range(len(ids))] = 1.0
    return marked
