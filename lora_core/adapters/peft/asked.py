"""Which modules and tokens a configuration says were trained whole, held against the base and the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lora_core.adapters.peft.config import PeftLoraConfig
from lora_core.adapters.peft.refusals import MERGE
from lora_core.adapters.peft.trained import TrainedParts, Wanted
from lora_core.errors import Problem
from lora_core.layers import LayerInfo, ModelSummary

_AGAIN = "Save the adapter again."


def wanted_parts(
    config: PeftLoraConfig, base: ModelSummary, parts: TrainedParts, adapted: Collection[str], path: Path
) -> tuple[Wanted, tuple[Problem, ...]]:
    """Return what `config`, the file at `path`, trained whole, and a problem for each that cannot be had.

    `adapted` are the modules that carry LoRA.
    """
    saved, problems = _saved(config, base, parts, f"{path}: modules_to_save")
    where = f"{path}: trainable_token_indices"
    tokens: dict[str, tuple[int, ...]] = {}
    for name, ids in config.tokens.items():
        layer = _token_layer(name, base)
        if layer is None:
            what = f"It trains tokens of {name or 'an embedding'!r}, which base model {base.name!r} does not have"
            problems.append(Problem(what=what, where=where))
        else:
            tokens[layer.name] = ids
    tied = {layer.name: layer.tied_to for layer in base.layers if layer.tied_to in tokens}
    for head, embedding in tied.items():
        if tokens.pop(head, tokens[embedding]) != tokens[embedding]:
            what = f"It trains other tokens of {head} than of {embedding}, whose weight it shares"
            problems.append(Problem(what=what, where=where, remedy=f"{MERGE}, or train the same tokens of both."))
    taken = {*saved, *adapted}
    for module, ids in tokens.items():
        problems += _misfits(base.layer(module), ids, parts, where)
        if taken & {module, *(head for head, embedding in tied.items() if embedding == module)}:
            what = f"It trains tokens of {module}, and LoRA or the whole of it or of a layer with the same weight"
            problems.append(Problem(what=what, where=where, remedy="Train one of both."))
    return Wanted(saved=saved, tokens=tokens, tied=tied), tuple(problems)


def _saved(
    config: PeftLoraConfig, base: ModelSummary, parts: TrainedParts, where: str
) -> tuple[tuple[str, ...], list[Problem]]:
    found: list[str] = []
    problems: list[Problem] = []
    for name in config.saved:
        # As peft does (`_set_trainable` of peft 0.21.2): of DistilBERT `classifier` saves `pre_classifier` too.
        modules = [each for each in base.module_names if each.endswith(name)]
        layers = [layer for layer in base.layers if layer.name in modules]
        if not modules:
            what = f"It saves module {name!r}, which base model {base.name!r} does not have"
            problems.append(Problem(what=what, where=where))
        elif len(layers) < len(modules):
            what = f"It saves whole modules ({name}) that are neither linear layers nor embeddings: a program has no "
            what += "slots on normalizations and blocks"
            problems.append(Problem(what=what, where=where, remedy=f"{MERGE}, or train without modules_to_save."))
        else:
            found += [layer.name for layer in layers]
            problems += (
                _tying(layer, where) for layer in layers if config.ensure_weight_tying and _shares(layer, base)
            )
    for module in found:
        if module not in parts.weights:
            what = f"It saves module {module!r}, but there is no weight for it"
            problems.append(Problem(what=what, where=where, remedy=_AGAIN))
    return tuple(found), problems


def _shares(layer: LayerInfo, base: ModelSummary) -> bool:
    return layer.tied_to is not None or any(other.tied_to == layer.name for other in base.layers)


def _tying(layer: LayerInfo, where: str) -> Problem:
    what = (
        f"It saves {layer.name} whole for all layers with the same weight (ensure_weight_tying), which is not supported"
    )
    return Problem(what=what, where=where, remedy=f"{MERGE}, or train with ensure_weight_tying=False.")


def _token_layer(name: str, base: ModelSummary) -> LayerInfo | None:
    """Return the embedding or output head called `name`; without a name, the embedding."""
    rows = [layer for layer in base.layers if layer.kind == "embedding" or layer.is_output]
    if not name:
        return next((layer for layer in rows if layer.kind == "embedding"), None)
    return next((layer for layer in rows if layer.name == name or layer.name.endswith(f".{name}")), None)


def _misfits(layer: LayerInfo, ids: tuple[int, ...], parts: TrainedParts, where: str) -> Iterator[Problem]:
    rows, width = layer.in_features, layer.out_features
    if layer.kind == "linear":
        rows, width = width, rows
    if max(ids) >= rows:
        what = f"It trains token {max(ids)} of {layer.name}, which has {rows}"
        yield Problem(what=what, where=where, remedy="Was the vocabulary resized? Resize that of the base too.")
    tensor = parts.tokens.get(layer.name)
    if tensor is None:
        what = f"It trains tokens of {layer.name}, but there are no vectors for them"
        yield Problem(what=what, where=where, remedy=_AGAIN)
    elif tensor.shape != (len(ids), width):
        what = f"Its shape {list(tensor.shape)} does not fit {len(ids)} tokens of {layer.name}, {width} wide"
        yield Problem(what=what, where=f"{parts.path}: {tensor.name}", remedy=_AGAIN)
