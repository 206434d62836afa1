"""A base model as a source gives it: a handle to ask, stored tensors, and a module to lower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import ModelError, Problem
from lora_core.layers import ModelSummary
from lora_core.models.text.stored import StoredText
from lora_core.moved import missing

if TYPE_CHECKING:
    import torch

    from lora_core.adapters.reference import AdapterReference
    from lora_core.models.families import ModelFamily
    from lora_core.models.outline import Outline
    from lora_core.models.reference_model import ReferenceModel, ReferenceText
    from lora_core.models.text.rules import TextRules
    from lora_core.tensors import LazyTensor


@attrs.frozen(kw_only=True)
class ModelOptions:
    """What a backend asks of the module it will lower.

    `max_context_len` positions fit into the KV cache, one call takes up to `max_seq_len` tokens (exactly that many
    unless `dynamic_seq_len`). `full_logits` returns logits of every position, else of the last one only. A source that
    builds decoders in several forms has options of its own that derive from these
    (`lora_core.models.executorch.options`); a source takes what it does not know as the plain ones.
    """

    max_context_len: int = 2048
    max_seq_len: int = 2048
    full_logits: bool = False
    dynamic_seq_len: bool = True


@attrs.frozen(kw_only=True)
class TokenizerFiles:
    """Files that travel with the bundle so that text can be generated: all are copied under `tokenizer/`, templates in
    `additional_chat_templates/` with that folder.
    """

    files: tuple[Path, ...]

    @property
    def stored(self) -> StoredText:
        """The files by name; what is wrong with them is a `ModelError`."""
        return StoredText.of(self.files, ModelError)


@attrs.define(kw_only=True)
class BaseModel:
    """A base loaded and ready to lower: float32, eval mode, no updates attached, no gradients.

    `paths` maps the name of each layer of `summary` to its fully qualified name in `module`. `example_args`,
    `example_kwargs` and `dynamic_shapes` are what `torch.export.export` takes. `metadata` are values by name that
    travel with the program for its runner (the context length, the ids that end a text).
    """

    summary: ModelSummary
    module: torch.nn.Module
    paths: Mapping[str, str]
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    dynamic_shapes: Any
    metadata: dict[str, Any]


class ModelHandle(ABC):
    """A base that is known but not yet loaded: what `check` sees, and what `export` loads once.

    A backend that only wants weights takes `tensors`, which needs neither torch nor any runtime's definition of the
    model; one that lowers a module takes `load`, or `outline` and the weights one after another.
    """

    @property
    @abstractmethod
    def summary(self) -> ModelSummary:
        """Facts from headers and configuration only."""

    @property
    @abstractmethod
    def tokenizer(self) -> TokenizerFiles | None:
        """The tokenizer files, if the source has any."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever exports this base should know, a sentence each."""
        return ()

    def problems(self, options: ModelOptions) -> Sequence[Problem]:  # noqa: ARG002 - for sources that know some
        """Return what stands against `load(options)`, as far as it is known without weights."""
        return ()

    @abstractmethod
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Return the stored tensors by name, none of them read yet.

        The weight of a layer is `NAME.weight`, its bias `NAME.bias`; a layer that is `tied_to` another has none of its
        own. Normalizations and whatever else the model has are under the names of the source.
        """

    @abstractmethod
    def load(self, options: ModelOptions) -> BaseModel:
        """Read the weights (memory-mapped, once) and build the module; raises `ModelError`."""

    def outline(self, options: ModelOptions) -> Outline | None:  # noqa: ARG002 - for sources that can
        """Return what `load` returns without its weights, None if this base can only be had whole.

        A backend that gets one can lower stand-ins and read the weights one after another. Raises `ModelError`.
        """
        return None

    def sample_calls(self) -> Sequence[Sequence[Any]]:
        """Return positional inputs of some calls on which a module that continues no text is verified, if no others are
        given; none for one that does.
        """
        return ()

    def text(self) -> TextRules | None:
        """Return what the tokenizer files say about text, as transformers reads them; None if there are none.

        Raises `ModelError` for files that cannot be read.
        """
        from lora_core.models.text.rules import read_rules  # linking has no use for it

        files = self.tokenizer
        return None if files is None else read_rules(files.stored, config=self.summary.config)

    def reference_text(self, adapter: Path | None) -> ReferenceText | None:
        """Return an independent tokenizer, with the files about text beside the adapter in directory `adapter` before
        the model's own (None: the model's alone); None if there is none. Raises `UnsupportedError` as `reference` does.
        """
        del adapter
        return None

    def reference(self, references: Sequence[AdapterReference]) -> ReferenceModel | None:
        """Return an independent implementation of this model with the adapters `references`, by code that exports share
        nothing with; None if there is none. Raises `UnsupportedError` if there is one that cannot be had here, saying
        why and what to do.
        """
        del references
        return None


class ModelSource(ABC):
    """A way to find base models: Hugging Face checkpoints come with the core, plugins add others."""

    @abstractmethod
    def sniff(self, ref: str) -> bool:
        """Say whether `ref` (a path or an id) looks like something this source opens; never raises."""

    @abstractmethod
    def open(self, ref: str, *, download: bool = False) -> ModelHandle:
        """Open `ref` without reading weights; raises `ModelError` with every problem found."""

    def with_families(self, families: Sequence[ModelFamily]) -> ModelSource:  # noqa: ARG002 - for others
        """Return a source that knows `families` (the core's and the plugins'); one that needs none returns itself."""
        return self


def __getattr__(name: str) -> object:
    raise missing(__name__, name)
