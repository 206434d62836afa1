"""Hugging Face checkpoints as base models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import ModelError, Problem, UncoveredModelError, UnsupportedError
from lora_core.intake.parsing import parsing
from lora_core.layers import ModelSummary
from lora_core.models import hf_names, hub_cache
from lora_core.models.architecture import Architecture, read_architecture
from lora_core.models.base import BaseModel, ModelHandle, ModelOptions, ModelSource, TokenizerFiles
from lora_core.models.checkpoint import Checkpoint, open_checkpoint
from lora_core.models.config_file import CONFIG_FILE, read_config
from lora_core.models.derived_tensors import LastIndexTensor, OffsetTensor, StackedTensor, derived_values
from lora_core.models.families import ModelFamily, find_family, supported
from lora_core.models.outline import Outline
from lora_core.models.quantized.reading import dequantized, without_leftovers
from lora_core.models.supported_families import FAMILIES
from lora_core.models.text.converting import SENTENCEPIECE, Conversion, convert
from lora_core.models.text.rules import TextRules, read_rules
from lora_core.models.text.stored import TOKENIZER, VOCABULARIES, StoredText, files_in
from lora_core.models.wrappers import OTHER_PARTS, text_config, text_part, told_tied
from lora_core.tensors import LazyTensor, StoredTensor

if TYPE_CHECKING:
    import torch

    from lora_core.adapters.reference import AdapterReference
    from lora_core.models.reference_model import ReferenceModel, ReferenceText

# Buffers that older versions of transformers saved, which follow from the configuration, and heads that guess more than
# one token ahead (`mtp`), which transformers leaves out.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|^mtp\.")
_TIED_HEAD = re.compile(rf"{_DERIVED.pattern}|^{re.escape(hf_names.OUTPUT)}\.weight$")
_EXPERTS = "Experts are not quantized, whatever the policy, and carry no LoRA: they are no linear layers of their own."
# Fields of config.json that say where it came from, not what it is.
_VOLATILE = ("_name_or_path", "_model_name_or_path", "transformers_version")


class HfModelSource(ModelSource):
    """Directories that `save_pretrained` wrote (config.json and safetensors), and hub ids in the local cache."""

    def __init__(self, families: Sequence[ModelFamily] = FAMILIES) -> None:
        """Open models of `families`."""
        self.families = tuple(families)

    def with_families(self, families: Sequence[ModelFamily]) -> HfModelSource:
        """Return a source that opens models of `families`."""
        return HfModelSource(families)

    def sniff(self, ref: str) -> bool:
        """Say whether `ref` is a directory with a config.json, or no path and spelled like a hub id."""
        path = Path(ref)
        try:
            return (path / "config.json").is_file() or (not path.exists() and hub_cache.is_hub_id(ref))
        except (OSError, ValueError):
            return False

    def open(self, ref: str, *, download: bool = False) -> HfModel:
        """Open a directory or hub id: JSON and tensor headers only. Raises `ModelError` with every problem found."""
        path = Path(ref)
        if path.exists() or not hub_cache.is_hub_id(ref):
            directory = _directory(path, self.families)
            hub_id = hub_cache.id_of_snapshot(directory.absolute())
            return self._open(directory, identities=(hub_id,) if hub_id else ())
        return self._open(hub_cache.resolve(ref, download=download), identities=(ref,))

    def _open(self, directory: Path, identities: tuple[str, ...]) -> HfModel:
        with parsing(directory / "config.json", error=ModelError, remedy="Copy or download the checkpoint again."):
            return self._opened(directory, identities)

    def _opened(self, directory: Path, identities: tuple[str, ...]) -> HfModel:
        where = str(directory / "config.json")
        config: Mapping[str, Any] = _read_config(directory, self.families)
        inner = text_config(config, self.families)
        quantization = config.get("quantization_config") or (inner or {}).get("quantization_config")
        config = {name: value for name, value in (inner or config).items() if name != "quantization_config"}
        architecture = None
        family, problems = find_family(config, self.families, where)
        if family is not None:
            config = config if inner is None else told_tied({**family.sizes, **config}, family, directory)
            config = {**family.defaults, **config}
            architecture, problems = read_architecture(config, family, where)
        tied = architecture is not None and architecture.tied
        ignorable = _ignorable(architecture)
        listed = ignorable if inner is None else _inside(ignorable, tied=tied)
        checkpoint, stored_problems = open_checkpoint(directory, listed)
        if inner is not None:
            checkpoint = text_part(checkpoint)
        stored_as = None
        if quantization and not stored_problems:
            checkpoint, stored_as, stored_problems = dequantized(checkpoint, quantization, where)
            if architecture is not None:
                checkpoint = without_leftovers(checkpoint, hf_names.tensor_shapes(architecture))
        if tied:  # one tensor under either of its names is what transformers loads
            checkpoint = checkpoint.standing_for(f"{hf_names.EMBEDDING}.weight", f"{hf_names.OUTPUT}.weight")
        problems += stored_problems
        if architecture is not None and not stored_problems:
            problems += checkpoint.check(hf_names.tensor_shapes(architecture), ignorable)
        if family is None and not stored_problems:
            raise UncoveredModelError(problems)
        if problems or architecture is None:
            raise ModelError(problems)
        return HfModel(
            directory=directory,
            config=config,
            architecture=architecture,
            checkpoint=checkpoint,
            identities=identities,
            stored_as=stored_as,
            inside=inner is not None,
        )


def _ignorable(architecture: Architecture | None) -> re.Pattern[str]:
    """Return the names of tensors that a checkpoint may hold and none needs."""
    if architecture is None:
        return _DERIVED
    left = [rf"^{re.escape(name)}\." for name in hf_names.leftovers(architecture)]
    return re.compile("|".join([(_TIED_HEAD if architecture.tied else _DERIVED).pattern, *left]))


def _inside(ignorable: re.Pattern[str], *, tied: bool) -> re.Pattern[str]:
    """Return the names that an index may list in vain if it is of a model with others inside."""
    head = rf"{re.escape(hf_names.OUTPUT)}\.weight$"
    return re.compile("|".join([ignorable.pattern, OTHER_PARTS.pattern] + ([head] if tied else [])))


@attrs.frozen(kw_only=True, slots=False)
class HfModel(ModelHandle):
    """A Hugging Face checkpoint, opened. `config` is `config.json` with the family's defaults filled in; `stored_as` is
    the quantized format that its weights are read from, if they are. `inside` says that it is a part of another model.
    """

    directory: Path
    config: Mapping[str, Any]
    architecture: Architecture
    checkpoint: Checkpoint
    identities: tuple[str, ...] = ()
    stored_as: str | None = None
    inside: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever exports it should know."""
        told = self._conversion.told if self._converts else ()
        if self.architecture.experts is not None:
            told = (_EXPERTS, *told)
        if self.stored_as is None:
            return told
        return (
            f"The base is stored quantized ({self.stored_as}): its weights are what those stand for in float32, "
            "not those it was trained with.",
            *told,
        )

    @cached_property
    def summary(self) -> ModelSummary:
        """Facts from headers and configuration; torch is not imported."""
        bos_id, eos_ids = self._text_ids()
        return ModelSummary(
            name=self._name,
            family=self.architecture.family,
            layers=hf_names.layers(self.architecture),
            module_names=hf_names.module_names(self.architecture),
            identities=tuple(dict.fromkeys((*self.identities, *self._aliases))),
            config={name: value for name, value in self.config.items() if name not in _VOLATILE},
            context_len=self.architecture.context_len,
            vocab_size=self.architecture.vocab_size,
            bos_id=bos_id,
            eos_ids=eos_ids,
        )

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        """The files about text of the directory, if it has a tokenizer."""
        files = files_in(self.directory)
        return TokenizerFiles(files=files) if any(path.name in VOCABULARIES for path in files) else None

    def text(self) -> TextRules:
        """Return what the directory's files say about text; raises `ModelError` for files that cannot be read.

        Of a tokenizer that is stored for sentencepiece alone, transformers' own converter makes a `tokenizer.json`.
        """
        return self._conversion.rules if self._converts else self._rules

    @property
    def _converts(self) -> bool:
        names = {path.name for path in files_in(self.directory)}
        return SENTENCEPIECE in names and TOKENIZER not in names

    @cached_property
    def _conversion(self) -> Conversion:
        return convert(self.directory, SENTENCEPIECE, config=self.config)

    @cached_property
    def _rules(self) -> TextRules:
        return read_rules(StoredText.in_directory(self.directory, ModelError), config=self.config)

    def _text_ids(self) -> tuple[int | None, tuple[int, ...]]:
        """Return the ids that begin and end a text; of files that cannot be read an export says it, by `text`."""
        try:
            rules = self._rules
        except ModelError:
            rules = read_rules(StoredText(files={}, error=ModelError), config=self.config)
        return rules.bos_id, rules.eos_ids

    def tensors(self) -> Mapping[str, LazyTensor]:
        """Return the tensors that the architecture uses, by their names in the checkpoint.

        A norm's weight is what the norm multiplies by, whatever the checkpoint stores. Raises `ModelError` for a head
        that is stored although the configuration ties it, and is not the embedding.
        """
        self._check_tied()
        return {name: self._read_as[name] for name in hf_names.tensor_shapes(self.architecture)}

    @cached_property
    def _read_as(self) -> Mapping[str, LazyTensor]:
        stored: dict[str, LazyTensor] = {
            name: self.checkpoint.tensors[name] for name in hf_names.tensor_shapes(self.architecture)
        }
        if self.architecture.norm_offset:
            for norm in hf_names.norms(self.architecture):
                stored[f"{norm}.weight"] = OffsetTensor(stored=stored[f"{norm}.weight"], offset=1.0)
        for name, parts in hf_names.expert_tensors(self.architecture).items():
            # ExecuTorch's definition multiplies by the last layer of an expert from the other side.
            turns = name.endswith("down_proj.weight")
            stored[name] = StackedTensor(name=name, matrices=tuple(stored[part] for part in parts), turns=turns)
        for name in hf_names.mixing_tensors(self.architecture):
            for tap in range(self.architecture.taps) if name.endswith(f".{hf_names.CONVOLUTION}") else ():
                key = hf_names.tap(name, tap)
                stored[key] = LastIndexTensor(stored=stored[name], name=key, index=tap)
        return stored

    def load(self, options: ModelOptions) -> BaseModel:
        """Read the weights and build ExecuTorch's Llama, in the form that `ExecutorchOptions` ask for, else with plain
        torch operators; raises `ModelError`.
        """
        outline = self.outline(options)
        sources = outline.sources.values()
        values = self.checkpoint.read(each.name for each in sources if isinstance(each, StoredTensor))
        return outline.fill(values | derived_values(sources))

    def outline(self, options: ModelOptions) -> Outline:
        """Build what `load` builds, without reading weights; raises `ModelError`."""
        from lora_core.models.executorch import inputs, names, transformer
        from lora_core.models.executorch.options import ExecutorchOptions

        asked = ExecutorchOptions.of(options)
        self._check_tied()
        module = transformer.build_structure(self.architecture, asked)
        block = names.block_names(self.architecture, asked)
        base = BaseModel(
            summary=self.summary,
            module=module,
            paths=names.layer_paths(self.architecture, block),
            example_args=inputs.example_args(module, asked),
            example_kwargs={},
            dynamic_shapes=inputs.dynamic_shapes(asked),
            metadata=inputs.metadata(
                self.summary, self.architecture.layers, asked, keeps_state=self.architecture.keeps_state
            ),
        )
        stored = names.parameter_names(self.architecture, block)
        _tie(module, stored)
        return Outline(base=base, sources={path: self._read_as[name] for path, name in stored.items()})

    def reference(self, references: Sequence[AdapterReference]) -> ReferenceModel:
        """Return transformers (with peft if there are adapters) reading this checkpoint's own directory."""
        from lora_core.models.transformers_reference import open_reference

        if self.stored_as is not None:
            raise UnsupportedError(
                f"transformers computes {self.stored_as} checkpoints with kernels and roundings of their own.",
                remedy="Use eager.",
            )
        return open_reference(self.directory, references, config=self.config if self.inside else None)

    def reference_text(self, adapter: Path | None) -> ReferenceText:
        """Return transformers' own tokenizer of this checkpoint's directory."""
        from lora_core.models.transformers_text import open_text

        return open_text(self.directory, adapter)

    def _check_tied(self) -> None:
        if self.architecture.tied:
            self.checkpoint.check_tied(f"{hf_names.OUTPUT}.weight", f"{hf_names.EMBEDDING}.weight")

    @property
    def _name(self) -> str:
        return self.identities[0].rpartition("/")[2] if self.identities else self.directory.resolve().name

    @property
    def _aliases(self) -> tuple[str, ...]:
        given = self.config.get("_name_or_path")
        return (self._name, *([given] if isinstance(given, str) and given else []))


def _tie(module: torch.nn.Module, stored: Mapping[str, str]) -> None:
    """Let parameters of `module` that one tensor fills be one parameter."""
    first: dict[str, torch.nn.Parameter] = {}
    for path, name in stored.items():
        owner, _, last = path.rpartition(".")
        setattr(module.get_submodule(owner), last, first.setdefault(name, module.get_parameter(path)))


def _directory(path: Path, families: Sequence[ModelFamily]) -> Path:
    if path.is_dir():
        return path
    if not path.exists():
        raise ModelError(f"There is no model directory {str(path)!r}.", remedy=supported(families))
    raise ModelError("A single file is not read as a base model.", where=str(path), remedy=supported(families))


def _read_config(directory: Path, families: Sequence[ModelFamily]) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    if not path.exists():
        what = "The directory has no config.json"
        if (directory / "adapter_config.json").is_file():
            what += "; it is an adapter, not a base model"
        elif any(directory.glob("*.gguf")):
            what += ", only several GGUF files: give one of them"
        raise ModelError(Problem(what=what, where=str(directory), remedy=supported(families)))
    return read_config(path)
