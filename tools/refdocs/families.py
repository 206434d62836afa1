"""The page of model families: which bases are read, what each backend says to them, and what was computed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from lora_core.backend import ExportJob
from lora_core.models.architecture import Architecture
from lora_core.models.decoders import architecture_of
from lora_core.models.families import ModelFamily
from lora_core.models.gguf.configuration import ARCHITECTURES
from lora_core.models.hf import HfModel, HfModelSource
from lora_core.models.rope import SUPPORTED_TYPES
from lora_core.models.supported_families import FAMILIES
from lora_core.models.unsupported_families import REASONS
from lora_core.testing.families import EXPORTED, write_tiny_family
from refdocs.markdown import code, page, table
from refdocs.projects import hub

_INTRODUCTION = """
A base is a directory with `config.json` and safetensors, one file or several with an index, or its hub id in the local
Hugging Face cache, or a GGUF file. `config.json` says which family it is of; every field that changes the mathematics
is honoured or refused by name. [A plugin](plugins.md) may add families.
"""
_INSIDE = """
The language model inside another, that also sees or hears, is read where it is of one of these families (`text_config`;
tensors under `language_model.`, `model.language_model.` or `model.text_model.`). The other parts are not exported.
What the inner configuration leaves out is what transformers has as default.
Checkpoints in the formats of bitsandbytes (4 and 8 bits), GPTQ (2, 4, 8, also by layer), AWQ (`gemm`), FP8 and
compressed-tensors (integers and 8-bit floats) are read as the float32 weights that they stand for, tensor by tensor;
the export says so. Scales of inputs and of the cache are left out, as are biases of zeros that AutoGPTQ gave to layers
without. The tests write such files themselves, by each format's definition. Of the tools' own, tiny checkpoints of
bitsandbytes 0.50.2 (nf4, fp4, nested, 8 bits) and compressed-tensors 0.20.0 (4 and 8 bits in groups and by row, 8-bit
floats by row, tensor and block) were read by hand, with the weights that those tools make of them; of GPTQ's, AWQ's and
FP8's, none was.
A head that is the embedding may be stored under either name, or under both.

A tokenizer that is stored for sentencepiece alone (`tokenizer.model` without `tokenizer.json`) becomes a
`tokenizer.json` when the base is exported, by transformers' own converter, where transformers is installed.
"""
_GGUF = """
`--model model.gguf` reads a whole model from the file that llama.cpp runs (`pip install lora-core[gguf]`): the `gguf`
package names its tensors and de-quantizes them, some rows at a time, to float32. The export says so: these are not the
weights that the model was trained with, and an adapter computes on them what it computes on a de-quantized copy. Read
are the architectures below, in every type that the package de-quantizes; every key of the architecture's metadata is
honoured or refused by name. Files of a model in several parts are joined first (`llama-gguf-split --merge`).

The tests write such files with the `gguf` package, arranged as llama.cpp's converter does, and require of each
architecture the configuration and the tensors of the checkpoint that it was made of; of `llama`, `gemma3` and `lfm2`
the logits of transformers reading the same file. No file that llama.cpp wrote was read by a test. `verify` compares
with transformers reading the file (its own names, order of rows and de-quantizing, with our configuration, of which it
reads too little) where it reads the architecture, else with the core's module. The tokenizer inside becomes a
`tokenizer.json` by transformers' own converter.

What the file does not say is as llama.cpp has it: Mistral is converted to `llama`, without windows; scores of Gemma 2
and 3 are scaled by the heads' width but for their 27B.
"""
_BACKENDS = """
What `check` of the backend answers, asked with each of its policies about a tiny model of the family (a few layers,
windows of 48 tokens, no adapters). _Accepted_ says that nothing is known to stand against an export, not that one was
made: see below.
"""
_COMPUTED = """
The tests compute with tiny random models of two layers, Gemma 4's of four, the fewest with all kinds of layer.

- The torch module, before anything is lowered, has the logits of transformers, for every family: of plain operators, of
  those that XNNPACK's programs call, and, but for `qwen3_5`, of CoreML's static attention (up to the shortest window).
- With adapters on all linear layers but the head it has the logits of peft, for every family; of static attention with
  adapters, only Llama's is compared.
- `make test-deep` exports the families below with adapters on all linear layers, requires of a linked adapter the bytes
  of a full export, and has `verify` compare what the bundle computes with transformers and peft (CoreML's programs are
  made with `--dtype fp32` and evaluated, not run by Apple's runtime).
- `make test` does the like with Llama, and compares ONNX models of Mistral, Qwen2 and Qwen3 with transformers and peft.
- The simulator's graph of every family that it takes, with adapters, has the logits of the core's module; its integers
  are those of a plain reference, bit for bit, and near the core's module by `verify`, under `w8a16`.
"""
_NOT_COMPUTED = """
Of the other combinations with XNNPACK and CoreML that are accepted above, Llama's apart, no export is shown to work;
nor of a checkpoint of full size that is no Llama.
"""
_WINDOWS = """
The context of an export is never longer than the base's, and shorter where a backend attends to all that it holds: with
XNNPACK a layer whose sliding window is shorter has a mask, while CoreML's static attention, the ONNX model and the
simulator's graph take contexts up to the shortest window. A longer one is refused, and one that is not given is the
usual or, if that is less, the longest. With LongRoPE a context ends at
`original_max_position_embeddings`: beyond it transformers changes the frequencies of a text while it grows, which a
table of positions cannot.
"""


WINDOW = 48  # more than the tokens of one call, so that it is the family that is asked about


@attrs.frozen(kw_only=True)
class Checked:
    """A tiny model of a family, and what every backend says to it: by backend and policy, nothing or why not."""

    family: ModelFamily
    model: HfModel
    answers: Mapping[str, Mapping[str, str]]


def families_page() -> str:
    """Return docs/reference/families.md."""
    with tempfile.TemporaryDirectory() as scratch:
        checked = [_checked(family, Path(scratch)) for family in FAMILIES]
    reasons: dict[str, int] = {}
    backends = list(hub().backends)
    rows = [[code(each.family.name), *(_cell(each.answers[name], reasons) for name in backends)] for each in checked]
    return page(
        "Bases that are read",
        _INTRODUCTION,
        table(["family", "architectures", "what sets it apart from Llama"], [_described(each) for each in checked]),
        f"Rotary embeddings are read of the types {', '.join(map(code, SUPPORTED_TYPES))}; others are refused by name.",
        _INSIDE,
        "## GGUF files",
        _GGUF,
        table(
            ["architecture", "model type"],
            [[code(name), code(each.model_type)] for name, each in ARCHITECTURES.items()],
        ),
        "## What each backend says to them",
        _BACKENDS,
        table(["family", *backends], rows),
        "\n".join(f"{number}. {reason}" for reason, number in reasons.items()),
        "## What was computed",
        _COMPUTED,
        table(["backend", "policy", "families"], _exported()),
        _NOT_COMPUTED,
        "## Not read",
        "Other families are refused by their `model_type`; of some it is said why.",
        table(["model type", "why"], _unread()),
        "## Context",
        _WINDOWS,
    )


def _exported() -> list[list[str]]:
    return [
        [code(backend), code(policy), ", ".join(map(code, families))]
        for backend, policies in EXPORTED.items()
        for policy, families in policies.items()
    ]


def _unread() -> list[list[str]]:
    named: dict[str, list[str]] = {}
    for model_type, reason in REASONS.items():
        named.setdefault(reason, []).append(code(model_type))
    return [[", ".join(names), reason] for reason, names in named.items()]


def _checked(family: ModelFamily, scratch: Path) -> Checked:
    model = HfModelSource().open(str(write_tiny_family(scratch / family.name, family.name, sliding_window=WINDOW)))
    answers = {
        name: {policy: answer(model, name, policy) for policy in hub().backends[name].policies}
        for name in hub().backends
    }
    return Checked(family=family, model=model, answers=answers)


def answer(model: HfModel, backend: str, policy: str) -> str:
    """Return what `check` of `backend` has against an export of `model` under `policy`, nothing if nothing."""
    job = ExportJob(
        model=model,
        adapters=(),
        plans=(),
        policy=hub().policies[policy],
        options=hub().backend_options(backend)(),
    )
    return "; ".join(problem.what for problem in hub().backend(backend).check(job))


def _cell(answers: Mapping[str, str], reasons: dict[str, int]) -> str:
    if not any(answers.values()):
        return "accepted, with every policy"
    works = [code(policy) for policy, reason in answers.items() if not reason]
    why = dict.fromkeys(reasons.setdefault(reason, len(reasons) + 1) for reason in answers.values() if reason)
    refused = "refused (" + ", ".join(map(str, why)) + ")"
    return f"{', '.join(works)} accepted; others {refused}" if works else refused


def _described(checked: Checked) -> list[str]:
    architecture = architecture_of(checked.model.summary)
    assert architecture is not None, "it has just been opened"
    names = ", ".join(map(code, checked.family.architectures))
    return [code(checked.family.name), names, ", ".join(_apart(checked.family, architecture)) or "-"]


def _apart(family: ModelFamily, architecture: Architecture) -> list[str]:
    found = {
        "biases of q, k and v": family.attention_bias == "qkv",
        "normalized heads": family.qk_norm and not family.qk_norm_whole,
        "sliding windows": family.sliding_window != "never",
        "norms that store one less": family.norm_offset,
    }
    return [words for words, there in found.items() if there] + list(architecture.beyond_llama)
