"""A checkpoint that transformers defines, as a base model: known from its structure, loaded once, held whole."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import ModelError, Problem, UnsupportedError
from lora_core.layers import ModelSummary
from lora_core.models.base import BaseModel, ModelHandle, ModelOptions, TokenizerFiles
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.module import ModuleModel
from lora_core.models.text.rules import TextRules, read_rules
from lora_core.models.text.stored import VOCABULARIES, StoredText, files_in
from lora_core.tensors import LazyTensor
from lora_core_transformers.checkpoint import TransformersCheckpoint

if TYPE_CHECKING:
    import torch

    from lora_core.adapters.reference import AdapterReference
    from lora_core.models.reference_model import ReferenceModel, ReferenceText

_TRIED = 8
"""Tokens on which a definition is compared with itself."""
_SAME = 1e-2
"""Of the logits' spread: float32 in another order is a thousandth of it at most, a wrong mask or position all of it."""
_OTHERWISE = "Export the module itself from Python: lora_core.models.module.ModuleModel."


@attrs.frozen(kw_only=True, slots=False)
class TransformersModel(ModelHandle):
    """A decoder or classifier of transformers. Its layers are its linear layers and embeddings, by their paths."""

    checkpoint: TransformersCheckpoint

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what this way of exporting gives up."""
        start = f"{self.checkpoint.model_type} is exported as transformers {version('transformers')} defines it"
        if self.checkpoint.role == "classifier":
            said = f"{start}, a classifier of whole texts; the base is held whole."
        else:
            said = f"{start}: plain attention over its static cache, not llama::custom_sdpa; the base is held whole."
        return (said, *self._structure.notes)

    @cached_property
    def summary(self) -> ModelSummary:
        """Facts from the configuration and the structure that it describes; no weights are read."""
        checkpoint, structure = self.checkpoint, self._structure.summary
        decodes = checkpoint.role == "decoder"
        return attrs.evolve(
            structure,
            name=checkpoint.names[0].rpartition("/")[2],
            family=f"{checkpoint.model_type} (transformers)",
            identities=checkpoint.names,
            config=checkpoint.lasting,
            context_len=self._context_len,
            vocab_size=structure.vocab_size if decodes else None,
            bos_id=self._rules.bos_id if decodes else None,
            eos_ids=self._rules.eos_ids if decodes else (),
        )

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        """The files about text of the directory, if it has a tokenizer."""
        files = files_in(self.checkpoint.directory)
        return TokenizerFiles(files=files) if any(path.name in VOCABULARIES for path in files) else None

    def text(self) -> TextRules:
        """Return what the directory's files say about text; raises `ModelError` for files that cannot be read."""
        return self._rules

    def sample_calls(self) -> Sequence[Sequence[Any]]:
        """Return tokens of some texts, for a classifier."""
        import torch

        if self.checkpoint.role == "decoder":
            return ()
        rows, chance = self.checkpoint.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
        longest = min(64, self.summary.context_len or 64)
        return [
            (torch.randint(rows, (1, length), generator=chance),) for length in sorted({1, 5, longest // 2, longest})
        ]

    def problems(self, options: ModelOptions) -> Sequence[Problem]:
        """Refuse static attention."""
        if not isinstance(options, ExecutorchOptions) or options.attention != "static":
            return ()
        what = f"{self.checkpoint.model_type!r} is taken as transformers defines it, and that has no static attention"
        return (Problem(what=what, where=str(self.checkpoint.directory), remedy="Use another backend: xnnpack."),)

    def tensors(self) -> Mapping[str, LazyTensor]:
        """Load the model, if it is not loaded yet, and return its parameters by name."""
        return self._loaded.tensors()

    def load(self, options: ModelOptions) -> BaseModel:
        """Read the weights, if they are not read yet, and put them into transformers' own exportable module.

        Raises `ModelError` if transformers cannot make this model exportable, `UnsupportedError` for static attention.
        """
        if problems := self.problems(options):
            raise UnsupportedError(list(problems))
        return self._classifier(options) if self.checkpoint.role == "classifier" else self._decoder(options)

    def reference(self, references: Sequence[AdapterReference]) -> ReferenceModel | None:
        """Return transformers with its dynamic cache, and peft, reading the checkpoint's own directory."""
        from lora_core.models.transformers_reference import open_reference

        return open_reference(self.checkpoint.directory, references) if self.checkpoint.role == "decoder" else None

    def reference_text(self, adapter: Path | None) -> ReferenceText:
        """Return transformers' own tokenizer of the directory."""
        from lora_core.models.transformers_text import open_text

        return open_text(self.checkpoint.directory, adapter)

    @property
    def _context_len(self) -> int | None:
        """How many positions the definition knows, None if nothing says so."""
        config = self.checkpoint.config.get_text_config()
        told = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
        limits = [each for each in told if isinstance(each, int) and each > 0]
        for path, each in self._structure.module.named_modules():
            # RoBERTa and its like number positions from the one after their padding's on.
            if path.endswith("position_embeddings") and getattr(each, "padding_idx", None) is not None:
                table: Any = each
                limits.append(table.num_embeddings - table.padding_idx - 1)
        return min(limits, default=None)

    @cached_property
    def _rules(self) -> TextRules:
        stored = StoredText.in_directory(self.checkpoint.directory, ModelError)
        return read_rules(stored, config=self.checkpoint.lasting)

    @cached_property
    def _structure(self) -> ModuleModel:
        from lora_core_transformers import loading

        module = loading.structure(self.checkpoint)
        return ModuleModel(module=module, example_args=(), output=loading.head_of(module))

    @cached_property
    def _loaded(self) -> ModuleModel:
        from lora_core_transformers import loading

        module = loading.load(self.checkpoint)
        return ModuleModel(module=module, example_args=(), output=loading.head_of(module))

    def _decoder(self, options: ModelOptions) -> BaseModel:
        import torch

        from lora_core.models.executorch.inputs import metadata
        from lora_core_transformers.exportable import ExportableDecoder, apart_from_itself

        model: Any = self._loaded.module
        try:
            whole: Any = ExportableDecoder.of(model, context_len=options.max_context_len)
            apart = apart_from_itself(whole, model, length=min(_TRIED, options.max_context_len))
        except Exception as error:
            what = f"transformers cannot make {self.checkpoint.model_type!r} exportable: {error}"
            raise ModelError(what, where=str(self.checkpoint.directory), remedy=_OTHERWISE) from error
        if not apart < _SAME:
            what = f"{self.checkpoint.model_type!r} computes other numbers with transformers' static cache than without"
            what += f" (logits are {apart:.2g} of their spread apart)"
            raise ModelError(what, where=str(self.checkpoint.directory), remedy=_OTHERWISE)
        told = metadata(self.summary, self.checkpoint.config.get_text_config().num_hidden_layers, _plain(options))
        tokens, shapes = _tokens(options, longest=options.max_seq_len - 1)
        base = self._base(whole, (tokens, torch.tensor([0])), (*shapes, None) if shapes else None, told)
        if not options.full_logits:
            kept: Any = base.module
            kept.keep_last(by_model="logits_to_keep" in inspect.signature(model.forward).parameters)
        return base

    def _classifier(self, options: ModelOptions) -> BaseModel:
        from lora_core_transformers.exportable import ExportableClassifier

        tokens, shapes = _tokens(options, longest=options.max_seq_len)
        return self._base(ExportableClassifier(self._loaded.module), (tokens,), shapes, {})

    def _base(
        self, whole: torch.nn.Module, inputs: tuple[Any, ...], shapes: Any, metadata: Mapping[str, Any]
    ) -> BaseModel:
        """Return the loaded model inside `whole`, which keeps it at its path `INNER`."""
        inner: Any = whole
        wrapped = ModuleModel(
            module=whole, example_args=inputs, dynamic_shapes=shapes, metadata=metadata, prefix=inner.INNER
        )
        return attrs.evolve(wrapped.load(ModelOptions()), summary=self.summary)


def _tokens(options: ModelOptions, *, longest: int) -> tuple[torch.Tensor, Any]:
    """Return example tokens, and their dynamic shapes if their number may change."""
    import torch

    if not options.dynamic_seq_len:
        return torch.zeros(1, 1, dtype=torch.long), None
    return torch.zeros(1, 3, dtype=torch.long), ({1: torch.export.Dim("token_dim", max=longest)},)


def _plain(options: ModelOptions) -> ExecutorchOptions:
    """Return `options` for plain attention: what metadata says of the program."""
    return ExecutorchOptions(
        max_context_len=options.max_context_len,
        max_seq_len=options.max_seq_len,
        full_logits=options.full_logits,
        dynamic_seq_len=options.dynamic_seq_len,
        attention="sdpa",
    )
