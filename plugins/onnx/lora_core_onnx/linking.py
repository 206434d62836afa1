"""Where export and `add` both end: adapters as files of their own, for a foundation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import Bundle, Method
from lora_core.errors import BundleError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.sharing.proof import require_foundation
from lora_core_onnx.names import ADAPTERS, MODEL, adapter_file, lora_input
from lora_core_onnx.storage.model_file import foundation_of

_STAGE = "Link adapters"


def link(bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write `adapters` for the base of `bundle`; raises `BundleError` if its model takes none."""
    if bundle.manifest.options.get("lora") == "none":
        raise BundleError(
            "The model of this bundle is of the base alone: it was exported with --lora none.",
            where=str(bundle.path),
            remedy="Export it without that option.",
        )
    # The model names the weights that it was written with: reading them to know would take longer than the rest.
    foundation = foundation_of(bundle.file(MODEL))
    require_foundation(bundle, foundation)
    return link_all(foundation, adapters, out, emit)


def link_all(foundation: str, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write a file for each adapter, with the fingerprint of its base."""
    if not adapters:
        return Artifacts(foundation=foundation, files=(), methods=())
    from lora_core_onnx.storage.adapter_file import write_adapter

    (out / ADAPTERS).mkdir(exist_ok=True)
    with stage(emit, _STAGE):
        for done, adapter in enumerate(adapters, 1):
            values = {
                lora_input(slot.module, part): array
                for slot, parts in adapter.values()
                for part, array in parts.items()
            }
            write_adapter(out / adapter_file(adapter.name), foundation, values)
            emit(StageAdvanced(stage=_STAGE, done=done, total=len(adapters)))
    return Artifacts(
        foundation=foundation,
        files=tuple(
            WrittenFile(path=adapter_file(each.name), role="adapter-data", adapter=each.name) for each in adapters
        ),
        methods=tuple(Method(name=each.name, program=MODEL, adapter=each.name) for each in adapters),
    )
