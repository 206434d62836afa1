"""The page of adapters: which formats and PEFT fields are read, and which are refused."""

from __future__ import annotations

from collections.abc import Iterable

from lora_core.adapters.gguf.container import TYPES
from lora_core.adapters.gguf.names import ARCHITECTURES
from lora_core.adapters.peft.refusals import HARMLESS, HONOURED, REFUSED
from lora_core.adapters.peft.spelling import WRAPPERS
from lora_core.adapters.slots.kinds import KINDS
from lora_core.adapters.strangers import STRANGERS
from lora_core.plugin.core import lora_core_register_adapter_formats
from refdocs.markdown import code, page, table
from refdocs.projects import hub

_INTRODUCTION = """
Most adapters are PEFT's. Of 80 configurations called `adapter_config.json` in public repositories 16 were MLX-LM's,
which uses that name too; adapters for llama.cpp are GGUF files. All three are read, by every command and for every
backend, and a plugin may bring [another format](../tutorial/adapter-format.md). `lora-core convert ADAPTER -o DIR`
writes any of them as PEFT.

An adapter is a directory, a file (GGUF), two files, or the hub id of one in the local Hugging Face cache; `--download`
fetches it.
"""
_KINDS = """
On linear layers, the output head (tied or not) among them. DoRA, trained biases and whole layers are told against the
base's weights, which an export has and `add` gets by `--model DIR`; what is linked then is as independent of the base
as A and B. As in PEFT, a strength counts for A and B alone, and none of the three can be part of a composite. `bias` on
a base without biases is no bias. A whole embedding, trained tokens, LoRA on an embedding and whole normalizations are
refused for every backend: nothing hangs on those layers yet.
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
        [kind.feature, *("yes" if kind.name in spec.kinds else "refused" for spec in backends.values())]
        for kind in KINDS.values()
    ]
    formats = [[code(each.name), each.summary] for each in lora_core_register_adapter_formats()]
    refused = [[code(field), refusal.feature, refusal.remedy] for field, refusal in REFUSED.items()]
    types = [kind.name for kind in TYPES.values()]
    return page(
        "Adapters that are read",
        _INTRODUCTION,
        table(["format", "what it is"], formats),
        f"GGUF: architectures {_listed(ARCHITECTURES)}; tensors of type {_listed(types)}.",
        "## Keys",
        _KEYS.format(wrappers=_listed(sorted(WRAPPERS))),
        "## What an adapter may do",
        _KINDS,
        table(["", *backends], kinds),
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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(code(name) for name in names)
