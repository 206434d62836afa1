"""The page of adapters: which formats and PEFT fields are read, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_core.adapters.gguf.container import TYPES
from lora_core.adapters.gguf.names import ARCHITECTURES
from lora_core.adapters.peft.refusals import HARMLESS, HONOURED, REFUSED
from lora_core.adapters.peft.spelling import WRAPPERS
from lora_core.adapters.slots.kinds import KINDS
from lora_core.adapters.strangers import STRANGERS
from lora_core.plugin.core import lora_core_register_adapter_formats
from refdocs.markdown import code, page, table
from refdocs.projects import hub

_FOUND = json.loads(Path(__file__).with_name("found_adapters.json").read_text("utf-8"))
_INTRODUCTION = """
Most adapters are PEFT's. Of {files} {source} {peft} were PEFT's and {mlx} MLX-LM's, which uses that name too; adapters
for llama.cpp are GGUF files. All three are read, by every command and for every backend, and a plugin may bring
[another format](../tutorial/adapter-format.md). `lora-core convert ADAPTER -o DIR` writes any of them as PEFT. The
table says how often which was found; GGUF files have other names, and were not counted.

An adapter is a directory, a file (GGUF), two files, or the hub id of one in the local Hugging Face cache; `--download`
fetches it.
"""
_KINDS = """
On linear layers, the output head (tied or not) among them, and on the embedding. All but LoRA are told against the
base's weights, which an export has and `add` gets by `--model DIR`, where a base of the same shape with other weights
is refused; what is linked then is as independent of the base as A and B. As in PEFT, a strength counts for LoRA alone,
and none of the others can be part of a composite. `bias` on a base without biases is no bias. Whole normalizations are
refused for every backend: a program has no slots on them.
"""
_NOTES = """
With a quantized policy everything is told against the base's weights as the checkpoint has them, as peft sees them, and
not as the policy stores them: an adapter has the same bytes with every policy, and `verify` compares with peft on the
checkpoint. DoRA's gains, which are quotients by the norms of rows, differ from those of the quantized rows by what
quantization changes of the norms.

Trained tokens of a tied embedding are those of the output head too, as in peft. XNNPACK carries LoRA on an embedding
and whole embeddings in the split layout only: kernels find rows of an embedding in the adapter's own program.
"""
_FOUND_TEXT = """
Of the {peft} PEFT configurations of that survey so many had the feature; the fields are those that say so.
"""
_FIELDS = """
Fields of `adapter_config.json`. A field that stands in none of these lists is newer than the PEFT that lora-core was
proven against: it is refused by name unless it is unset.
"""
_KEYS = """
Tensors are found by the names that PEFT gives them, `base_model.model.MODULE.lora_A.weight`, also with the adapter's
name left in (`lora_A.default.weight`), without the prefix, without the leading `model.`, and with the names of wrappers
in between: {wrappers}. A name that could mean several modules is not guessed.
"""


def adapters_page() -> str:
    """Return docs/reference/adapters.md."""
    backends = hub().backends
    kinds = [
        [feature, *(_carried(names, spec.kinds) for spec in backends.values())]
        for feature, names in _features().items()
    ]
    counts = _FOUND["formats"]
    offered = sorted(lora_core_register_adapter_formats(), key=lambda each: -counts.get(each.name, 0))
    formats = [[str(counts.get(each.name, "")), code(each.name), each.summary] for each in offered]
    survey = _INTRODUCTION.format(**_FOUND, mlx=counts["mlx-lm"])
    refused = [[code(field), refusal.feature, refusal.remedy] for field, refusal in REFUSED.items()]
    types = [kind.name for kind in TYPES.values()]
    return page(
        "Adapters that are read",
        survey,
        table([f"of {_FOUND['files']}", "format", "what it is"], formats),
        f"GGUF: architectures {_listed(ARCHITECTURES)}; tensors of type {_listed(types)}.",
        "## Keys",
        _KEYS.format(wrappers=_listed(sorted(WRAPPERS))),
        "## What an adapter may do",
        _KINDS,
        table(["", *backends], kinds),
        _NOTES,
        "## How often what is found",
        _FOUND_TEXT.format(**_FOUND),
        table([f"of {_FOUND['peft']}", "what", "field", *backends], [_found(each, backends) for each in _by_count()]),
        "## Fields of PEFT that are read",
        _FIELDS,
        _listed(sorted(HONOURED)),
        "## Fields that change nothing",
        "They are of training, or say where the adapter comes from.",
        _listed(sorted(HARMLESS)),
        "## Fields that are refused",
        table(["field", "what it is", "what to do"], refused),
        "## Files that are no LoRA adapter",
        "Each is told for what it is, in one line.",
        table(["what it is", "what to do"], [[each.what, each.remedy] for each in STRANGERS]),
    )


def _features() -> dict[str, list[str]]:
    """Return the kinds that each feature needs: trained tokens have one on the embedding and one on the head."""
    found: dict[str, list[str]] = {}
    for kind in KINDS.values():
        found.setdefault(kind.feature, []).append(kind.name)
    return found


def _carried(names: Iterable[str], kinds: Iterable[str]) -> str:
    return "yes" if set(names) <= set(kinds) else "refused"


def _by_count() -> list[Mapping[str, Any]]:
    return sorted(_FOUND["found"], key=lambda each: -int(each["count"]))


def _found(each: Mapping[str, Any], backends: Mapping[str, Any]) -> list[str]:
    """Return a row: whether a feature is read follows from what the code says of its field and its kind."""
    field = each["field"]
    if field in HARMLESS:
        states = ["changes nothing"] * len(backends)
    elif "kind" in each and field in HONOURED:
        states = [_carried([each["kind"]], spec.kinds) for spec in backends.values()]
    else:
        states = ["refused"] * len(backends)
    return [str(each["count"]), each["what"], code(field), *states]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(code(name) for name in names)
