"""Writes a hand-over directory."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lora_core.errors import StorageError
from lora_core.layers import ModelSummary
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary
from lora_core_qnn_sim.encodings.aimet import aimet_document
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.graph.nodes import lora_weights
from lora_core_qnn_sim.grouping import Group
from lora_core_qnn_sim.handover import documents, names
from lora_core_qnn_sim.handover.model import write_model
from lora_core_qnn_sim.handover.readme import readme

Array = npt.NDArray[Any]
_UNVERIFIED = "# Rests on facts that nobody has verified against the vendor's SDK: see README.md.\n"
_DOCUMENTED = "# Format as documented; not run against the vendor's SDK: see README.md.\n"


def write_handover(
    directory: Path,
    context: ContextBinary,
    foundation: FoundationBinary,
    used: Mapping[str, Mapping[str, Encoding]],
    weights: Callable[[str], Mapping[str, Array]],
    groups: Sequence[Group],
    base: ModelSummary,
    weights_key: documents.WeightsKey = "safetensors",
) -> None:
    """Write every file into `directory`, replacing those of an earlier export; raises `StorageError`.

    Files of adapters that an earlier one had and this one has not are removed.
    `base` is the model that the context was made from. `used` are the encodings of each adapter, `weights` returns an
    adapter's float32 LoRA weights by graph name. `weights_key` is what they stand under in the adapter weight config.
    """
    from safetensors.numpy import save  # `save_file` lets nobody but the owner read what it writes

    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_others(directory, used)
        _write_configs(directory, context, list(used), groups, documents.Dialog.of(context.spec, base), weights_key)
        _write_encodings(directory, context, foundation, used)
        if importlib.util.find_spec("onnx") is not None:
            write_model(directory, context.spec, foundation.base, {})
        for adapter in used:
            (directory / names.safetensors_file(adapter)).write_bytes(save(dict(weights(adapter))))
    except OSError as error:
        raise StorageError(f"Cannot write the hand-over: {error}", where=str(directory)) from error


def _remove_others(directory: Path, adapters: Collection[str]) -> None:
    """Remove the files of adapters other than `adapters`: those that lie there with all the files that one has."""
    there = {file.name for file in directory.iterdir()}
    for adapter in filter(None, map(names.adapter_of_line, sorted(there))):
        if adapter not in adapters and there.issuperset(names.adapter_files(adapter)):
            for file in names.adapter_files(adapter):
                (directory / file).unlink()


def _write_configs(
    directory: Path,
    context: ContextBinary,
    adapters: list[str],
    groups: Sequence[Group],
    dialog: documents.Dialog,
    weights_key: documents.WeightsKey,
) -> None:
    import yaml

    mode = context.mode
    texts = {
        names.WEIGHT_LIST: documents.weight_list(lora_weights(context.spec)),
        names.IMPORTER: _DOCUMENTED + yaml.safe_dump(documents.importer_config(adapters), sort_keys=False),
        names.ADAPTER_WEIGHTS: _DOCUMENTED
        + yaml.safe_dump(documents.adapter_weight_config(adapters, groups, mode, weights_key), sort_keys=False),
        names.ADAPTOR_LIST: _DOCUMENTED + yaml.safe_dump(documents.adaptor_list(adapters, groups), sort_keys=False),
        # JSON has no comments: the README speaks for it.
        names.GENIE: json.dumps(documents.genie_config(adapters, groups, mode, dialog), indent=2) + "\n",
        names.README: readme(mode, weights_key),
    }
    texts |= {names.line_file(adapter): documents.line(adapter, groups, mode) for adapter in adapters}
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")


def _write_encodings(
    directory: Path, context: ContextBinary, foundation: FoundationBinary, used: Mapping[str, Mapping[str, Encoding]]
) -> None:
    updatable = lora_weights(context.spec)
    base = foundation.with_slots(context.spec) | dict(context.branch)
    files = {names.BASE_ENCODINGS: base}
    files |= {names.encodings_file(adapter): base | dict(encodings) for adapter, encodings in used.items()}
    for name, encodings in files.items():
        document = aimet_document(
            {tensor: grid for tensor, grid in encodings.items() if tensor not in updatable},
            {tensor: grid for tensor, grid in encodings.items() if tensor in updatable},
            foundation.base.linears,
        )
        (directory / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
