"""What a GGUF file of llama.cpp says, as an adapter of a base.

`NAME.weight.lora_a` is (rank, in_features) and `NAME.weight.lora_b` (out_features, rank); their product counts
`alpha / rank` times, or once if alpha is 0 (`llama_adapter_lora_weight::get_scale`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.gguf.container import GgufFile, GgufTensor, open_gguf
from lora_core.adapters.gguf.names import ARCHITECTURES, module_of, rotated_heads, row_order
from lora_core.adapters.pairs import FoundPair, implied_by, updates_from
from lora_core.adapters.views import ReorderedTensor
from lora_core.errors import AdapterError, Problem, UnsupportedError
from lora_core.layers import ModelSummary
from lora_core.tensors import LazyTensor

_ENDINGS = {".weight.lora_a": "a", ".weight.lora_b": "b"}
_SAY_MODEL = "Say for which base: --model DIR."


def read(name: str, file: Path, base: ModelSummary) -> Adapter:
    """Return the adapter in `file`, which is for `base`; raises `AdapterError` with every problem found."""
    opened = open_gguf(file)
    architecture, alpha, wrong = _meaning(opened, base)
    if wrong:
        raise AdapterError(attrs.evolve(each, where=str(file)) for each in wrong)
    pairs, unused = _factors(opened.tensors, alpha)
    problems = [*_unused(unused, file), *_not_finite(opened.tensors)]
    if not pairs:
        remedy = "Is it a whole model? Give the adapter that llama.cpp's convert_lora_to_gguf.py writes."
        raise AdapterError("There is no LoRA tensor in this file", where=str(file), remedy=remedy)
    updates, misfits = updates_from([_in_order(pair, architecture, base.config) for pair in pairs], base, file)
    problems += misfits
    if problems:
        raise AdapterError(problems)
    with file.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    given = opened.metadata.get("general.base_model.0.name")
    return Adapter(
        name=name,
        updates=updates,
        digest=digest,
        source=str(file),
        base_model=given if isinstance(given, str) and given else None,
    )


def implied_base(file: Path) -> ModelSummary:
    """Return the layers that the adapter in `file` updates; raises `UnsupportedError` if its rows need the base's
    heads.
    """
    opened = open_gguf(file)
    architecture, scale, problems = _meaning(opened, None)
    pairs, _ = _factors(opened.tensors, scale)
    if problems:
        raise AdapterError(attrs.evolve(each, where=str(file)) for each in problems)
    if any(rotated_heads(architecture, pair.written) for pair in pairs):
        what = "llama.cpp orders the rows of queries and keys by attention heads, whose number this file does not say"
        raise UnsupportedError(what, where=str(file), remedy=_SAY_MODEL)
    return implied_by(pairs, str(opened.metadata.get("general.base_model.0.name", file.stem)))


def _meaning(opened: GgufFile, base: ModelSummary | None) -> tuple[str, float, list[Problem]]:
    """Return architecture and alpha, and why this is no LoRA adapter for `base`."""
    metadata = opened.metadata
    if metadata.get("general.type") != "adapter":
        what = f"This GGUF file holds a {metadata.get('general.type', 'model')}, not an adapter"
        return "", 0.0, [Problem(what=what, remedy="A base is exported from its Hugging Face checkpoint.")]
    problems = []
    if metadata.get("adapter.type") != "lora":
        what = f"Its adapter.type is {metadata.get('adapter.type')!r}; lora is read"
        problems.append(Problem(what=what))
    if metadata.get("adapter.alora.invocation_tokens"):
        what = "It is an activated LoRA (aLoRA), which is switched on in the middle of a prompt"
        problems.append(Problem(what=what, remedy="Train plain LoRA."))
    architecture = str(metadata.get("general.architecture", ""))
    families = ARCHITECTURES.get(architecture)
    if families is None:
        what = f"Its architecture is {architecture!r}; read are {', '.join(ARCHITECTURES)}"
        problems.append(Problem(what=what))
    elif base is not None and base.family and base.family not in families:
        what = f"It is for models of architecture {architecture!r}, and base model {base.name!r} is {base.family!r}"
        problems.append(Problem(what=what, remedy="Was the adapter trained for another base?"))
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not np.isfinite(alpha):
        what = f"Its adapter.lora.alpha is {alpha!r}, no finite number"
        problems.append(Problem(what=what, remedy="Convert the adapter again."))
        alpha = 0.0
    return architecture, float(alpha), problems


def _factors(tensors: Sequence[GgufTensor], alpha: float) -> tuple[list[FoundPair], list[GgufTensor]]:
    """Return the pairs by the modules' names in a checkpoint, and the tensors that are no factor."""
    found: dict[str, dict[str, LazyTensor]] = {}
    unused = []
    for tensor in tensors:
        for ending, part in _ENDINGS.items():
            if tensor.name.endswith(ending):
                found.setdefault(module_of(tensor.name.removesuffix(ending)), {})[part] = tensor
                break
        else:
            unused.append(tensor)
    pairs = [
        FoundPair(written=module, a=parts.get("a"), b=parts.get("b"), scaling=_scaling(alpha, parts.get("b")))
        for module, parts in found.items()
    ]
    return pairs, unused


def _scaling(alpha: float, b: LazyTensor | None) -> float:
    return alpha / b.shape[-1] if alpha and b is not None and b.shape[-1] else 1.0


def _in_order(pair: FoundPair, architecture: str, config: Mapping[str, Any]) -> FoundPair:
    """Return `pair` with the rows of B as a checkpoint has them."""
    field = rotated_heads(architecture, pair.written)
    if field is None or pair.b is None:
        return pair
    heads = config.get(field) or config.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1 or pair.b.shape[0] % (2 * heads):
        what = f"The {pair.b.shape[0]} rows of {pair.b.name} are no {heads} heads of an even width"
        raise AdapterError(what, where=str(pair.b.path), remedy="Was the adapter trained for another base?")
    return attrs.evolve(pair, b=ReorderedTensor(stored=pair.b, order=row_order(pair.b.shape[0], heads)))


def _unused(tensors: Sequence[GgufTensor], file: Path) -> Iterator[Problem]:
    if tensors:
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        what = f"Nothing uses tensor {tensors[0].name}{more}"
        remedy = "Whole tensors in an adapter (norms, as mergekit-extract-lora leaves them) are not read."
        yield Problem(what=what, where=str(file), remedy=remedy)


def _not_finite(tensors: Sequence[GgufTensor]) -> Iterator[Problem]:
    for tensor in tensors:
        if not np.isfinite(tensor.read()).all():
            remedy = "The training went wrong: train it again."
            yield Problem(what="It holds NaN or infinity", where=f"{tensor.path}: {tensor.name}", remedy=remedy)
