"""The README of a hand-over: what each file is, and what it rests on."""

from __future__ import annotations

from lora_core_qnn_sim.handover import names
from lora_core_qnn_sim.handover.documents import WeightsKey
from lora_core_qnn_sim.options import Mode

_SAME_QUANT = {
    "none": "all adapters share encodings, so `assume_same_quant` is left out: with it a device answered 1002",
    "adapter_only": "adapters have encodings of their own: set `assume_same_quant: true`",
    "all": "adapters have encodings of their own: set `assume_same_quant: true`",
}


def readme(mode: Mode, weights_key: WeightsKey) -> str:
    """Return the text for a context of `mode`."""
    return _TEXT.format(mode=mode, weights_key=weights_key, same_quant=_SAME_QUANT[mode])


_TEXT = f"""# Files for the vendor's tools

Written by lora-core's QNN-style simulator. What each file rests on; *2.51* stands for what the vendor's own libraries \
of that version did with such a file, in emulation (`lora-core qairt --check`):

| file | for | rests on |
|---|---|---|
| `NAME.safetensors` | LoRA weights of a use case, float32, padded to the graph's ranks, scaling folded into B; \
written from a stored bundle, values already on their grids | documented; \
tensor names are those of `{names.WEIGHT_LIST}` |
| `{names.MODEL}`, `{names.MODEL_DATA}` | converter: the graph with its LoRA branches (A and B zero), static shapes, \
weights as numbers of their grids, under the names of the encodings; written where `onnx` is installed \
(`pip install lora-core-qnn-sim[handover]`) | \
computes the simulator's numbers on ONNX Runtime. 2.51: the same graph, quantized with these encodings, is \
compiled with A and B as inputs and for hot switch by alpha. **Not verified**: that the vendor's converter keeps \
every name |
| `{names.WEIGHT_LIST}` | converter, `--lora_weight_list` | documented |
| `{names.BASE_ENCODINGS}`, `*_NAME.encodings` | AIMET 1.0.0 encodings of the base and of each use case | documented |
| `{names.IMPORTER}` | importer, `--lora_config` | documented (open-licensed exporter) |
| `{names.ADAPTER_WEIGHTS}` | context-binary step, adapter weight config | documented by the vendor, with \
`safetensors` for the weights' file; the vendor's package qairt-dev 0.13 writes `weights`. Here it is \
`{{weights_key}}` (`--weights-key`) |
| `{names.ADAPTOR_LIST}` | attention-head splitting, list of adaptors | documented (open-licensed exporter) |
| `{names.GENIE}` | Genie dialog: context, tokenizer, engine, backend, `lora` with groups | 2.51: \
`GenieDialogConfig_createFromJson` takes it for every mode and with groups; `GenieDialog_create` takes the like \
of it, with a context binary that has all adapters in it for hot switch, applies them and answers what the simulator \
would. **Not verified**: all section file names |
| `NAME_ort_qnn.txt` | ONNX Runtime's QNN provider | line format documented; **not verified**: the section's file name |

`{names.GENIE}` names `{names.TOKENIZER}`, the context binary and its sections by their places in a bundle; ids \
of tokens that the model does not have are -1. Genie begins a text with `bos-token` by itself.

**Sections' names.** Genie reads them in `{names.GENIE}`. qairt-dev 0.13 looks for a file whose stem ends in `_NAME` \
or `-NAME`, and for the base's in `default_adapter`: combined sections and the zero section are named so. Those of \
groups end in `_encodings`, as in the vendor's example of groups, and in `_weights`: that package does not find them.

**Same encodings.** qairt-dev's loader has a switch `assume_same_quant`. In this context's mode `{{mode}}` \
{{same_quant}} (read in that package and second-hand; **not verified**).

**Not verified against the SDK**: the names of binary sections (nothing public says how the vendor's tools name them; \
these are the simulator's), the graph name, and that the encodings' tensor names match those of the converted graph.

The sections beside the simulator's context binary are the simulator's own format. A device needs sections made by \
the vendor's tools from these files, with base and sections from one SDK version.
"""
