"""Where things that plugins imported from 0.1 are now: an old path says so instead of not being found.

For one release: drop this module, and what refers to it, with 0.3.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES: Mapping[str, str] = {
    "lora_core.discovery": "lora_core.plugin.discovery",
    "lora_core.offers": "lora_core.plugin.offers",
    "lora_core.registry": "lora_core.plugin.registry",
    "lora_core.targets": "lora_core.plugin.loading",
    "lora_core.guarded": "lora_core.plugin.guarded",
    "lora_core.blame": "lora_core.plugin.blame",
    "lora_core.options": "lora_core.plugin.options",
    "lora_core.requirements": "lora_core.plugin.requirements",
    "lora_core.hooks": "lora_core.plugin.core",
    "lora_core.adapters.peft_config": "lora_core.adapters.peft.config",
    "lora_core.adapters.peft_fields": "lora_core.adapters.peft.fields",
    "lora_core.adapters.refusals": "lora_core.adapters.peft.refusals",
    "lora_core.adapters.pairing": "lora_core.adapters.peft.pairing",
    "lora_core.adapters.plans": "lora_core.adapters.slots.choice",
    "lora_core.adapters.misfits": "lora_core.adapters.slots.misfits",
    "lora_core.adapters.padding": "lora_core.adapters.slots.kinds (a slot's values: slots.plan.Slot.fold)",
    "lora_core.adapters.reserve": "lora_core.adapters.slots.reserve",
    "lora_core.adapters.references": "lora_core.adapters.reading",
    "lora_core.adapters.tensors": "lora_core.tensors",
    "lora_core.linking.placeholders": "lora_core.adapters.slots.placeholders",
    "lora_core.models.transformer": "lora_core.models.executorch.transformer",
    "lora_core.models.inputs": "lora_core.models.executorch.inputs",
    "lora_core.models.layout": "lora_core.models.hf_names (ExecuTorch's names: lora_core.models.executorch.names)",
    "lora_core.models.lora": "lora_core.models.injection",
    "lora_core.models.tokenizer": "lora_core.models.text.stored",
    "lora_core.verification.limits": "lora_core.limits",
    "lora_core.verification.reference": "lora_core.models.reference_model",
    "lora_core.verification.report": "lora_core.verification.verify_report",
    "lora_core.runtime.report": "lora_core.runtime.bench_report",
    "lora_core.testing.report": "lora_core.testing.conform_report",
    "lora_core.report.page": "lora_core.html.page",
    "lora_core.bundle.layout": "lora_core.bundle.paths",
}
NAMES: Mapping[str, Mapping[str, str]] = {
    "lora_core.adapters.adapter": {"LoraPair": "lora_core.adapters.adapter.Update"},
    "lora_core.adapters.peft": {"PeftFormat": "lora_core.adapters.peft.format.PeftFormat"},
    "lora_core.adapters.slots": {
        "Slot": "lora_core.adapters.slots.plan.Slot",
        "SlotPlan": "lora_core.adapters.slots.plan.SlotPlan",
        "padded_pair": "lora_core.adapters.slots.plan.Slot.fold",
    },
    "lora_core.models.families": {"FAMILIES": "lora_core.models.supported_families.FAMILIES"},
    "lora_core.models.base": {"LayerInfo": "lora_core.layers.LayerInfo"},
}


class Pointer:
    """Asked last, when nothing else finds a module: says where one of `MODULES` went."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise `ModuleNotFoundError` with the new place; return None for any other name."""
        del path, target
        parent = fullname.rpartition(".")[0]
        moved = MODULES.get(fullname)
        if moved is None and any(old.startswith(f"{fullname}.") for old in MODULES) and parent == "lora_core":
            moved = " and ".join(sorted({new for old, new in MODULES.items() if old.startswith(f"{fullname}.")}))
        if moved is None:
            return None
        raise ModuleNotFoundError(f"{fullname} moved in lora-core 0.2; it is now {moved}", name=fullname)


def install() -> None:
    """Let old module paths say where they went; does nothing if that is done."""
    if not any(type(finder).__name__ == Pointer.__name__ for finder in sys.meta_path):
        sys.meta_path.append(Pointer())


def missing(module: str, name: str) -> Exception:
    """Return what a module's `__getattr__` raises for `name`: with the new place, if it had one before."""
    new = NAMES[module].get(name)
    if new is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    return ImportError(f"{module}.{name} moved in lora-core 0.2; it is now {new}", name=module)
