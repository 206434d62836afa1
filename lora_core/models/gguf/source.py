"""GGUF models as bases: what llama.cpp runs, read as the float32 weights that it stands for."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.gguf.container import GgufFile, GgufTensor, open_gguf
from lora_core.errors import ModelError, UnsupportedError
from lora_core.intake.parsing import parsing
from lora_core.models import hf_names
from lora_core.models.architecture import Architecture, read_architecture
from lora_core.models.base import ModelHandle, ModelSource, TokenizerFiles
from lora_core.models.checkpoint import Checkpoint
from lora_core.models.derived_tensors import OffsetTensor
from lora_core.models.families import ModelFamily, find_family
from lora_core.models.gguf.configuration import ARCHITECTURES, GgufArchitecture, read_configuration
from lora_core.models.gguf.weights import GgufWeight, readable_types
from lora_core.models.hf import HfModel
from lora_core.models.supported_families import FAMILIES
from lora_core.models.text.converting import Conversion, convert
from lora_core.models.text.rules import TextRules
from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    from lora_core.adapters.reference import AdapterReference
    from lora_core.models.reference_model import ReferenceModel, ReferenceText

SUFFIX = ".gguf"
# Factors of rotary embeddings, which the configuration is made of.
_DERIVED = re.compile(r"^rope_(freqs|factors_long|factors_short)\.weight$")
# What quantizers put behind a model's name.
_QUANTIZATION = re.compile(r"[-._](i?q\d\w*|tq\d\w*|mxfp4\w*|b?f16|f32)$", re.IGNORECASE)

# transformers 5.23: `GGUF_CONFIG_MAPPING` (integrations/ggml.py) and `GGUF_ARCHS` (integrations/gguf).
_OF_TRANSFORMERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "lfm2")


class GgufModelSource(ModelSource):
    """GGUF files of whole models, and directories that hold one and no config.json."""

    def __init__(self, families: Sequence[ModelFamily] = FAMILIES) -> None:
        """Open models of `families`."""
        self.families = tuple(families)

    def with_families(self, families: Sequence[ModelFamily]) -> GgufModelSource:
        """Return a source that opens models of `families`."""
        return GgufModelSource(families)

    def sniff(self, ref: str) -> bool:
        """Say whether `ref` is a file that ends in .gguf, or a directory with a single one and no config.json."""
        try:
            return _file(Path(ref)) is not None
        except (OSError, ValueError):
            return False

    def open(self, ref: str, *, download: bool = False) -> ModelHandle:
        """Open a GGUF file: metadata and tensor headers only. Raises `ModelError` with every problem found."""
        del download
        file = _file(Path(ref))
        if file is None:
            raise ModelError(f"{ref!r} is no GGUF file, and no directory with a single one.", remedy="Give the file.")
        if importlib.util.find_spec("gguf") is None:
            remedy = "Install it with `pip install lora-core[gguf]`."
            raise ModelError("A base in GGUF is read with the gguf package, which is not installed.", remedy=remedy)
        with parsing(file, error=ModelError, remedy="Copy or download the file again."):
            return self._open(file)

    def _open(self, file: Path) -> GgufModel:
        where = str(file)
        opened = open_gguf(file, types=readable_types(), error=ModelError)
        _check_kind(opened, where)
        config, problems = read_configuration(opened, where)
        architecture = None
        if not problems:
            family, problems = find_family(config, self.families, where)
            if family is not None:
                config = {**family.defaults, **{key: value for key, value in config.items() if value is not None}}
                architecture, problems = read_architecture(config, family, where)
        if architecture is None:
            raise ModelError(problems)
        kind = ARCHITECTURES[str(opened.metadata["general.architecture"])]
        checkpoint = Checkpoint(directory=file, tensors=dict(_tensors(opened, architecture, kind)))
        problems = checkpoint.check(hf_names.tensor_shapes(architecture), _DERIVED)
        if problems:
            raise ModelError(problems)
        types = sorted({each.dtype for each in opened.tensors})
        return GgufModel(
            directory=file.parent,
            file=file,
            metadata=opened.metadata,
            config=config,
            architecture=architecture,
            checkpoint=checkpoint,
            stored_as=", ".join(types),
        )


@attrs.frozen(kw_only=True, slots=False)
class GgufModel(HfModel):
    """A GGUF model, opened. `config` is what its `metadata` stands for."""

    file: Path
    metadata: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever exports it should know."""
        weights = (
            f"The base is read from a GGUF file ({self.stored_as}): its weights are what the gguf package de-quantizes "
            "them to, in float32, not those it was trained with."
        )
        return (weights, *self._conversion.told)

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        """None: the tokenizer is inside the file, and `text` makes one of it."""
        return None

    def text(self) -> TextRules:
        """Return what the metadata says about text, in the form that transformers gives it."""
        return self._conversion.rules

    @cached_property
    def _conversion(self) -> Conversion:
        what = f"the tokenizer inside {self.file.name}"
        return convert(self.directory, what, config=self.config, gguf_file=self.file.name)

    def _text_ids(self) -> tuple[int | None, tuple[int, ...]]:
        bos, eos = self.config.get("bos_token_id"), self.config.get("eos_token_id")
        return bos, tuple(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def reference(self, references: Sequence[AdapterReference]) -> ReferenceModel:
        """Return transformers reading this file: its own names, order of rows and de-quantizing."""
        from lora_core.models.transformers_reference import open_reference

        architecture = self.metadata["general.architecture"]
        if architecture not in _OF_TRANSFORMERS:
            raise UnsupportedError(f"transformers reads no GGUF files of {architecture}.", remedy="Use eager.")
        return open_reference(self.directory, references, gguf_file=self.file.name, config=self.config)

    def reference_text(self, adapter: Path | None) -> ReferenceText:
        """Return transformers' own tokenizer of this file; raises `UnsupportedError` for an adapter's own files."""
        from lora_core.models.text.stored import files_in
        from lora_core.models.transformers_text import open_gguf_text

        if adapter is not None and files_in(adapter):
            raise UnsupportedError("transformers does not join an adapter's tokenizer files with a GGUF file.")
        return open_gguf_text(self.file)

    @property
    def _name(self) -> str:
        return self.file.stem

    @property
    def _aliases(self) -> tuple[str, ...]:
        given = self.metadata.get("general.name")
        plain = _QUANTIZATION.sub("", self.file.stem)
        return (self.file.stem, plain, *([given] if isinstance(given, str) and given else []))


def _file(path: Path) -> Path | None:
    """Return the one GGUF file that `path` is, or holds without a config.json."""
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    return found[0] if len(found) == 1 else None


def _check_kind(opened: GgufFile, where: str) -> None:
    """Raise `ModelError` for a GGUF file that is no whole decoder."""
    metadata = opened.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"This GGUF file holds a {kind}, not a model", where=where)
    if metadata.get("split.count", 1) not in (0, 1):
        remedy = "Join them with llama.cpp's llama-gguf-split --merge."
        raise ModelError(f"This is one of {metadata['split.count']} files of a model", where=where, remedy=remedy)
    name = metadata.get("general.architecture")
    if metadata.get(f"{name}.expert_count"):
        what = "Experts are not read from GGUF files"
        raise ModelError(what, where=f"{where}: {name}.expert_count")


def _tensors(opened: GgufFile, architecture: Architecture, kind: GgufArchitecture) -> Sequence[tuple[str, LazyTensor]]:
    """Return the tensors by the names of the checkpoint; those that it has none for under their own."""
    stored = {tensor.name: tensor for tensor in opened.tensors}
    shapes, named = hf_names.tensor_shapes(architecture), _stored_names(architecture, str(_name(opened)))
    found: list[tuple[str, LazyTensor]] = []
    for name, shape in shapes.items():
        tensor = stored.pop(named[name], None)
        if tensor is None:
            continue
        # llama.cpp drops the axis of a convolution that has one place.
        same = tuple(each for each in shape if each != 1) == tuple(each for each in tensor.shape if each != 1)
        heads = _heads(architecture, name) if kind.interleaved else 0
        whole = heads == 0 or tensor.shape[0] % (2 * heads) == 0
        weight = GgufWeight(
            name=name, shape=shape if same else tensor.shape, stored=tensor, heads=heads if whole else 0
        )
        norm = kind.offset and name.endswith("norm.weight")
        # Stored with the one that the checkpoint leaves out.
        found.append((name, OffsetTensor(stored=weight, offset=-1.0) if norm else weight))
    return [*found, *((name, _plain(tensor)) for name, tensor in stored.items())]


def _plain(tensor: GgufTensor) -> GgufWeight:
    return GgufWeight(name=tensor.name, shape=tensor.shape, stored=tensor)


def _name(opened: GgufFile) -> object:
    return opened.metadata["general.architecture"]


def _heads(architecture: Architecture, name: str) -> int:
    """Return of how many heads the rows of a tensor are that llama.cpp rotates."""
    module = name.rpartition(".")[0]
    if module.endswith(".q_proj"):
        return architecture.heads
    return architecture.kv_heads if module.endswith(".k_proj") else 0


def _stored_names(architecture: Architecture, name: str) -> dict[str, str]:
    """Return what the `gguf` package calls each tensor of the checkpoint."""
    import gguf

    kinds = {known: kind for kind, known in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[name], architecture.layers)
    outside = {hf_names.OUTPUT: "output", hf_names.final_norm(architecture): "output_norm"}
    found: dict[str, str] = {}
    for tensor in hf_names.tensor_shapes(architecture):
        module, _, last = tensor.rpartition(".")
        found[tensor] = f"{names.get_name(module) or outside.get(module, module)}.{last}"
    return found
