"""The README of a hand-over: what each file is, and what it rests on."""

from __future__ import annotations

from lora_core_qnn_sim.handover import names

TEXT = f"""# Files for the vendor's tools

Written by lora-core's QNN-style simulator. But for the form of `{names.GENIE}`, nothing here was run against the \
vendor's SDK. What each file rests on:

| file | for | rests on |
|---|---|---|
| `NAME.safetensors` | LoRA weights of a use case, float32, padded to the graph's ranks, scaling folded into B; \
written from a stored bundle, values already on their grids | documented; \
tensor names are those of `{names.WEIGHT_LIST}` |
| `{names.MODEL}`, `{names.MODEL_DATA}` | converter: the graph with its LoRA branches (A and B zero), static shapes, \
weights as numbers of their grids, under the names of the encodings; written where `onnx` is installed \
(`pip install lora-core-qnn-sim[handover]`) | computes the simulator's numbers on ONNX Runtime; **not verified**: that \
the vendor's converter keeps every name |
| `{names.WEIGHT_LIST}` | converter, `--lora_weight_list` | documented |
| `{names.BASE_ENCODINGS}`, `*_NAME.encodings` | AIMET 1.0.0 encodings of the base and of each use case | documented |
| `{names.IMPORTER}` | importer, `--lora_config` | documented (open-licensed exporter) |
| `{names.ADAPTER_WEIGHTS}` | context-binary step, adapter weight config | documented by the vendor |
| `{names.ADAPTOR_LIST}` | attention-head splitting, list of adaptors | documented (open-licensed exporter) |
| `{names.GENIE}` | Genie dialog: context, tokenizer, engine, backend, `lora` with groups | its form \
is accepted by the vendor's `GenieDialogConfig_createFromJson` (2.51), for every mode and with groups; \
**not verified**: \
all section file names |
| `NAME_ort_qnn.txt` | ONNX Runtime's QNN provider | line format documented; **not verified**: the section's file name |

`{names.GENIE}` names `{names.TOKENIZER}`, the context binary and its sections by their places in a bundle; ids \
of tokens that the model does not have are -1.

**Not verified against the SDK**: the names of binary sections (nothing public says how the vendor's tools name them; \
these are the simulator's), the graph name, and that the encodings' tensor names match those of the converted graph.

The sections beside the simulator's context binary are the simulator's own format. A device needs sections made by \
the vendor's tools from these files, with base and sections from one SDK version.
"""
