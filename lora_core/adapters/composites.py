"""Several adapters as one, a strength each; how updates of one module join is their kind's business."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.slots.kinds import extent_of, kind_of
from lora_core.errors import AdapterError, Problem


def compose(name: str, parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """Return one adapter whose effect is the sum of the parts' effects, each times its strength.

    Parts may differ in rank and targets; a module gets the ranks of the parts that target it, in the order of `parts`.
    Scalings are folded into B, as a link would: a composite of one part has the bytes of that adapter at that
    strength. Unlike PEFT's, the result is right for rsLoRA too (PEFT 0.21.2 keeps `use_rslora` of the first part and so
    scales the sum by the square root of its rank). Raises `AdapterError` if the parts are not of one base.
    """
    if not parts:
        raise AdapterError(f"Composite {name!r} has no parts.")
    scaled = [adapter.scaled(strength) for adapter, strength in parts]
    by_module: dict[tuple[str, str], list[Update]] = {}
    for adapter in scaled:
        for update in adapter.updates:
            by_module.setdefault((update.module, update.kind), []).append(update)
    problems = [problem for updates in by_module.values() for problem in _clashes(name, updates)]
    if problems:
        raise AdapterError(problems)
    return Adapter(
        name=name,
        updates=tuple(
            kind_of(kind).combine(by_module[module, kind])
            for module, kind in sorted(by_module, key=lambda each: (natural_key(each[0]), each[1]))
        ),
        digest=hashlib.sha256("+".join(adapter.digest for adapter in scaled).encode()).hexdigest(),
        source=" + ".join(adapter.source for adapter, _ in parts),
        base_model=next((adapter.base_model for adapter in scaled if adapter.base_model), None),
    )


def _clashes(name: str, updates: Sequence[Update]) -> list[Problem]:
    first = _features(updates[0])
    return [
        Problem(
            what=f"The parts of composite {name!r} differ in the size of {update.module}",
            where=f"{tensor.path}: {tensor.name}",
            remedy="Combine adapters of one base only.",
        )
        for update in updates
        if _features(update) != first
        for tensor in [next(iter(update.tensors.values()))]
    ]


def _features(update: Update) -> tuple[int, int]:
    extent = extent_of(update)
    return extent.in_features, extent.out_features
