"""Stored tensors and a configuration become updates, or a problem for each thing that does not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.peft.config import PeftLoraConfig
from lora_core.adapters.peft.refusals import BIAS, MAGNITUDE, REFUSED, SAVED_BASE, TOKENS, Refusal
from lora_core.adapters.peft.spelling import PEFT_PREFIX, Spelling
from lora_core.errors import Problem
from lora_core.intake.patterns import TooSlowError
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.tensors import READABLE, LazyTensor, StoredTensor

EMBEDDING_LORA, LINEAR_LORA = "LoRA on an embedding", "LoRA on a linear layer"
_EXPERTS = "The base's experts are no layers of their own and carry no LoRA: train an adapter on other layers."
_TOLD = 100
"""Unknown targets that are named one by one."""
# As PEFT writes it (`lora_A.weight`), or with the adapter's name left in (`lora_A.default.weight`).
_KEY = re.compile(r"(?P<stem>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_EMBEDDING_KEY = re.compile(r"(?P<stem>.+)\.lora_embedding_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?")


@attrs.frozen(kw_only=True)
class StoredHalves:
    """The tensors of a file sorted by module; `unused` are those that are no half of a LoRA pair.

    `written` is what the file calls a module, without PEFT's prefix, where that is not the module's name. `embeddings`
    are the modules whose halves have the names of an embedding's.
    """

    path: Path
    halves: Mapping[str, Mapping[str, StoredTensor]]
    written: Mapping[str, str]
    embeddings: frozenset[str]
    unused: tuple[StoredTensor, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def from_tensors(cls, path: Path, tensors: Sequence[StoredTensor], spelling: Spelling) -> StoredHalves:
        """Sort the tensors of the file at `path` by the modules that `spelling` finds."""
        halves: dict[str, dict[str, StoredTensor]] = {}
        written: dict[str, str] = {}
        embeddings: set[str] = set()
        unused, problems = [], []
        for tensor in tensors:
            linear, embedding = _KEY.fullmatch(tensor.name), _EMBEDDING_KEY.fullmatch(tensor.name)
            match = linear or embedding
            if match is None:
                unused.append(tensor)
                continue
            stem = match["stem"].removeprefix(PEFT_PREFIX)
            module = spelling.module(match["stem"])
            if linear is None:
                embeddings.add(module)
            half = halves.setdefault(module, {})
            if stem != module:
                written[module] = stem
            if match["side"] in half:
                first = half[match["side"]].name
                what = f"This is a second LoRA {match['side']} of {module}, beside {first}"
                remedy = "The file holds several adapters: save each in a directory of its own."
                problems.append(Problem(what=what, where=f"{path}: {tensor.name}", remedy=remedy))
            half.setdefault(match["side"], tensor)
        return cls(
            path=path,
            halves=halves,
            written=written,
            embeddings=frozenset(embeddings),
            unused=tuple(unused),
            problems=tuple(problems),
        )

    def name(self, module: str) -> str:
        """Return what the file, and so its configuration, calls `module`."""
        return self.written.get(module, module)

    def unused_problems(self, refused: Sequence[str]) -> Iterator[Problem]:
        """Yield a problem for each tensor that nothing uses, except those of features named in `refused`: the
        configuration's own problem speaks for them.
        """
        for tensor in self.unused:
            field, refusal = _feature(tensor.name)
            if field in refused:
                continue
            if refusal is None:
                what, remedy = "Nothing uses this tensor", "lora-core reads base_model.model.<module>.lora_A/B.weight."
            else:
                what, remedy = f"This tensor is {refusal.feature}, which is not supported", refusal.remedy
            yield Problem(what=what, where=f"{self.path}: {tensor.name}", remedy=remedy)


def updates_of(
    stored: StoredHalves, config: PeftLoraConfig, base: ModelSummary, *, config_path: Path
) -> tuple[tuple[Update, ...], tuple[Problem, ...]]:
    """Return the updates of an adapter in natural order, and every problem: they hold only if there is none."""
    layers = {layer.name: layer for layer in base.layers}
    try:
        targets = _targets(stored, config, base)
    except TooSlowError as error:
        what, where = f"Its targets cannot be matched: {error}", f"{config_path}: target_modules"
        return (), (Problem(what=what, where=where, remedy="Write the names of the modules as a list."),)
    problems = [*_targeting(stored, config, targets, layers, base, config_path)]
    problems += _disagreements(stored, targets, base, config_path)
    updates = []
    for module in sorted(set(targets) & stored.halves.keys(), key=natural_key):
        layer, half = layers.get(module), stored.halves[module]
        if layer is None or len(half) < 2:
            continue
        if (layer.kind == "embedding") is not (module in stored.embeddings):
            what = (
                f"This tensor is {EMBEDDING_LORA if layer.kind == 'linear' else LINEAR_LORA}, and {module} is not one"
            )
            where = f"{stored.path}: {half['A'].name}"
            problems.append(Problem(what=what, where=where, remedy="Was the adapter trained for another base?"))
            continue
        misfits = [*_misshapen(stored.path, half, layer, config.rank(stored.name(module)), config_path)]
        problems += misfits
        if not misfits:
            updates.append(_update(module, half, layer, config.scaling(stored.name(module))))
    return tuple(updates), tuple(problems)


def _update(module: str, half: Mapping[str, StoredTensor], layer: LayerInfo, scaling: float) -> Update:
    if layer.kind == "embedding":
        from lora_core.adapters.views import TurnedTensor  # most adapters have no LoRA on embeddings

        tensors: dict[str, LazyTensor] = {"table": TurnedTensor(stored=half["A"]), "b": half["B"]}
        return Update(module=module, kind="lookup", tensors=tensors, scaling=scaling)
    return Update(module=module, tensors={"a": half["A"], "b": half["B"]}, scaling=scaling)


def _feature(name: str) -> tuple[str, Refusal | None]:
    for field, refusal in REFUSED.items():
        if any(word in name for word in refusal.tensors):
            return field, refusal
    for refusal in (TOKENS, MAGNITUDE, SAVED_BASE, BIAS):
        if any(word in name for word in refusal.tensors):
            return "", refusal
    return "", None


def _targets(stored: StoredHalves, config: PeftLoraConfig, base: ModelSummary) -> tuple[str, ...]:
    """Return the targeted modules: those that the configuration names as the base does, and as the file does."""
    meant = {stored.name(module): module for module in base.module_names if module in stored.written}
    named = {meant[name] for name in config.targets.select(tuple(meant), base.layers)} if meant else set()
    named.update(config.targets.select(base.module_names, base.layers))
    return tuple(module for module in base.module_names if module in named)


def _targeting(
    stored: StoredHalves,
    config: PeftLoraConfig,
    targets: Sequence[str],
    layers: Mapping[str, LayerInfo],
    base: ModelSummary,
    config_path: Path,
) -> Iterator[Problem]:
    """Yield what is wrong with the targets as such."""
    where = f"{config_path}: target_modules"
    parts = sorted({name.rpartition(".")[2] for name in layers})
    has = f"It has {', '.join(parts)}." if parts else "It has no layers that can carry LoRA."
    unknown = config.targets.unknown((*base.module_names, *stored.written.values()))
    for target in unknown[:_TOLD]:
        yield Problem(
            what=f"It targets {target!r}, which base model {base.name!r} does not have", where=where, remedy=has
        )
    if len(unknown) > _TOLD:
        yield Problem(what=f"It targets {len(unknown) - _TOLD} more modules that the base does not have", where=where)
    if not targets and not unknown:
        yield Problem(what=f"Its targets match no module of base model {base.name!r}", where=where, remedy=has)
    for module in targets:
        layer = layers.get(module)
        if layer is None:
            remedy = "LoRA is supported on linear layers and embeddings: leave this module out of the targets."
            what = f"It targets {module!r}, which is neither a linear layer nor an embedding"
            yield Problem(what=what, where=where, remedy=remedy)
        elif config.ensure_weight_tying and _tied(layer, base):
            what = (
                f"It ties the LoRA of {module!r} to that of the layer with the same weight (ensure_weight_tying), "
                "which is not supported"
            )
            yield Problem(what=what, where=where, remedy="Train with ensure_weight_tying=False.")


def _tied(layer: LayerInfo, base: ModelSummary) -> bool:
    """Say whether the weight of `layer` is that of another one too, or it is the head, which peft ties either way."""
    return layer.is_output or any(other.tied_to == layer.name for other in base.layers)


def _disagreements(
    stored: StoredHalves, targets: Sequence[str], base: ModelSummary, config_path: Path
) -> Iterator[Problem]:
    """Yield where configuration and tensors speak of different modules, and half pairs."""
    modules = set(base.module_names)
    lost = [module for module in targets if module not in stored.halves]
    strange = [module for module in sorted(stored.halves, key=natural_key) if module not in modules]
    if lost and strange:
        yield _misnamed(stored, strange, lost[0], base, config_path)
        lost, strange = [], []
    for module in lost:
        what = f"{config_path.name} targets {module}, but there are no tensors for it"
        where = f"{stored.path}: base_model.model.{module}.lora_A.weight"
        yield Problem(what=what, where=where, remedy="Weights and configuration are not of one adapter.")
    for module, half in sorted(stored.halves.items(), key=lambda item: natural_key(item[0])):
        for tensor in half.values():
            where = f"{stored.path}: {tensor.name}"
            if module in strange:
                what = f"Base model {base.name!r} has no module {module!r}: nothing uses this tensor"
                remedy = _EXPERTS if _is_of_experts(module, modules) else "Was the adapter trained for another base?"
                yield Problem(what=what, where=where, remedy=remedy)
            elif module in modules and module not in targets:
                what = f"{config_path.name} does not target {module!r}: nothing uses this tensor"
                yield Problem(what=what, where=where, remedy="Weights and configuration are not of one adapter.")
        for side in {"A", "B"} - half.keys():
            tensor = next(iter(half.values()))
            what = f"LoRA {side} is missing: this tensor is half a pair"
            yield Problem(what=what, where=f"{stored.path}: {tensor.name}", remedy="Save the adapter again.")


def _is_of_experts(module: str, modules: Collection[str]) -> bool:
    """Say whether `module` is one of the experts that the base has together, in one module."""
    around, experts, _ = module.partition(".experts.")
    return bool(experts) and f"{around}.experts" in modules


def _misnamed(
    stored: StoredHalves, strange: Sequence[str], target: str, base: ModelSummary, config_path: Path
) -> Problem:
    """Return the one problem of a file whose tensors are of other modules than the configuration targets."""
    first = next(iter(stored.halves[strange[0]].values()))
    more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
    of_experts = _is_of_experts(strange[0], base.module_names)
    return Problem(
        what=f"Its tensors are of modules that base model {base.name!r} does not have: {strange[0]!r}{more}, where "
        f"{config_path.name} targets {target!r}",
        where=f"{stored.path}: {first.name}",
        remedy=_EXPERTS if of_experts else "Was the adapter trained for another base, or saved from within a wrapper?",
    )


def _misshapen(
    path: Path, half: Mapping[str, StoredTensor], layer: LayerInfo, rank: int, config_path: Path
) -> Iterator[Problem]:
    """Yield what keeps the two tensors of a pair from fitting layer, rank and each other."""
    expected = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
    for side, tensor in sorted(half.items()):
        where = f"{path}: {tensor.name}"
        if tensor.dtype not in READABLE:
            what = f"Its type is {tensor.dtype}; lora-core reads {', '.join(READABLE)}"
            yield Problem(what=what, where=where, remedy="Save the adapter in one of these types.")
        if tensor.shape == expected[side]:
            continue
        rank_axis = 0 if side == "A" else 1
        if len(tensor.shape) == 2 and tensor.shape[1 - rank_axis] == expected[side][1 - rank_axis]:
            what = f"Its rank is {tensor.shape[rank_axis]}, but {config_path.name} says {rank} for {layer.name}"
            remedy = "Correct r or rank_pattern; alpha / r depends on it."
        else:
            what = f"Its shape {list(tensor.shape)} does not fit {layer.name}, which needs {list(expected[side])}"
            remedy = "Was the adapter trained for another base?"
        yield Problem(what=what, where=where, remedy=remedy)
