"""The page of model families: which bases are read, and what each backend does with them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from lora_core.backend import ExportJob
from lora_core.models.architecture import Architecture, architecture_of
from lora_core.models.families import FAMILIES, ModelFamily
from lora_core.models.hf import HfModel, HfModelSource
from lora_core.models.unsupported_families import REASONS
from lora_core.testing.families import write_tiny_family
from refdocs.markdown import code, page, table
from refdocs.projects import hub

_INTRODUCTION = """
A base is a directory with `config.json` and safetensors, one file or several with an index, or its hub id in the local
Hugging Face cache. `config.json` says which family it is of; every field that changes the mathematics is honoured or
refused by name. [A plugin](plugins.md) may add families.
"""
_INSIDE = """
The language model inside another, that also sees or hears, is read where it is of one of these families (`text_config`;
tensors under `language_model.`, `model.language_model.` or `model.text_model.`). The other parts are not exported.
Checkpoints that bitsandbytes (4 and 8 bits), GPTQ, AWQ (`gemm`), FP8 and compressed-tensors quantized are read as the
float32 weights that they stand for, tensor by tensor; the export says so.
A head that is the embedding may be stored under either name, or under both.
"""
_BACKENDS = """
Each combination is asked of the backend itself, with a tiny model of the family, whether anything stands against it.
The tests compare the module that is lowered with transformers, and adapters on all linear layers with peft, for every
family; `make test-deep` exports, links and verifies some.
"""
_WINDOWS = """
The context of an export is never longer than the base's, and shorter where a backend attends to all that it holds: to
XNNPACK a layer with a sliding window beyond it is exported with a mask, CoreML's static attention and the simulator's
graph take contexts up to the shortest window. More than that is refused. With LongRoPE a context ends at
`original_max_position_embeddings`: beyond it transformers changes the frequencies of a text while it grows, which a
table of positions cannot.
"""


_WINDOW = 48  # more than the tokens of one call, so that it is the family that is asked about


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
        _INSIDE,
        "## What each backend does with them",
        _BACKENDS,
        table(["family", *backends], rows),
        "\n".join(f"{number}. {reason}" for reason, number in reasons.items()),
        "## Not read",
        "Other families are refused by their `model_type`; of some it is said why.",
        table(["model type", "why"], _unread()),
        "## Context",
        _WINDOWS,
    )


def _unread() -> list[list[str]]:
    named: dict[str, list[str]] = {}
    for model_type, reason in REASONS.items():
        named.setdefault(reason, []).append(code(model_type))
    return [[", ".join(names), reason] for reason, names in named.items()]


def _checked(family: ModelFamily, scratch: Path) -> Checked:
    model = HfModelSource().open(str(write_tiny_family(scratch / family.name, family.name, sliding_window=_WINDOW)))
    answers = {
        name: {policy: _answer(model, name, policy) for policy in hub().backends[name].policies}
        for name in hub().backends
    }
    return Checked(family=family, model=model, answers=answers)


def _answer(model: HfModel, backend: str, policy: str) -> str:
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
        return "yes, with every policy"
    works = [code(policy) for policy, reason in answers.items() if not reason]
    why = dict.fromkeys(reasons.setdefault(reason, len(reasons) + 1) for reason in answers.values() if reason)
    refused = "refused (" + ", ".join(map(str, why)) + ")"
    return f"{', '.join(works)}; others {refused}" if works else refused


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
