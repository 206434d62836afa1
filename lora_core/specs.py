"""Import-free descriptors: what plugins hand to the hub. A `target` is `package.module:Name`, imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.capability import Capability
from lora_core.limits import Limits, OptionLimits

if TYPE_CHECKING:
    from lora_core.quant.policy import Scheme

API_VERSION = 2


@attrs.frozen(kw_only=True)
class ReservedNames:
    """What adapters of a backend's bundles cannot be called, because methods or files of the backend's own are called
    so: whole `names`, and names with one of the `beginnings` or `endings`; all in lower case, case does not count.
    """

    names: frozenset[str] = frozenset()
    beginnings: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BackendSpec:
    """A backend.

    `requires` are distributions with the versions it was proven on (`{"executorch": "1.5.1"}`); `policies` are the
    names of the quantization policies it can do, `embeddings` says that it also takes quantized embeddings
    (`--embedding BITS,GROUP`) with them. `options` is an import-light attrs class, every field with a default and with
    metadata `help` (a sentence for `--help`), and where they apply `choices` (a tuple of values), `flag` (the option's
    name on the command line, if it is not the field's own in kebab case) and `omit_if_default` (True: a manifest
    records the option only where it has another value). `session_options` names such a class for what an opened bundle
    can be told, if there is anything; `selection_options` are export options without which bundles refuse the strengths
    and blends that the backend declares. `slot_plans=False` says that adapters are stored as they are: no plans are
    made, nothing is padded, and any adapter can be added at any time. `kinds` are the slot kinds
    (`lora_core.adapters.slots.kinds`) that its programs can carry; an adapter with another is refused by name, with the
    reason in `refused_kinds` if there is one (a clause, by kind). `adapter_dtypes` are the types that `--adapter-dtype`
    can ask for (`fp32`, `fp16`, `int8`), each with what a policy then says of LoRA matrices; another is refused, with
    the reason in `refused_adapter_dtypes` if there is one. `limits` are what its numbers keep to, by policy, where that
    does not follow from the policy's schemes; `option_limits` widen them for values of its options, by option.
    """

    name: str
    summary: str
    target: str
    options: str
    capabilities: frozenset[Capability]
    policies: tuple[str, ...] = ("fp32",)
    embeddings: bool = False
    session_options: str | None = None
    selection_options: Mapping[str, Any] = attrs.field(factory=dict)
    slot_plans: bool = True
    kinds: tuple[str, ...] = ("low_rank",)
    refused_kinds: Mapping[str, str] = attrs.field(factory=dict)
    adapter_dtypes: Mapping[str, Scheme | None] = attrs.field(factory=dict)
    refused_adapter_dtypes: Mapping[str, str] = attrs.field(factory=dict)
    reserved: ReservedNames = attrs.field(factory=ReservedNames)
    requires: Mapping[str, str] = attrs.field(factory=dict)
    install_hint: str = ""
    limits: Mapping[str, Limits] = attrs.field(factory=dict)
    option_limits: OptionLimits = attrs.field(factory=dict)
    api_version: int = API_VERSION


@attrs.frozen(kw_only=True)
class ModelSourceSpec:
    """A source of base models; `target` is a `lora_core.models.base.ModelSource`.

    A `generic` source opens what the others know by its files and have no family for: it is asked after one of them
    has raised `UncoveredModelError`, or by name.
    """

    name: str
    summary: str
    target: str
    generic: bool = False
    api_version: int = API_VERSION


@attrs.frozen(kw_only=True)
class AdapterFormatSpec:
    """A format of adapters; `target` is a `lora_core.adapters.format.AdapterFormat`."""

    name: str
    summary: str
    target: str
    api_version: int = API_VERSION


@attrs.frozen(kw_only=True)
class ExecutorSpec:
    """A way to run many tasks (`lora-core pack-all --executor`); `target` is a `lora_core.executor.TaskExecutor`."""

    name: str
    summary: str
    target: str
    install_hint: str = ""
    api_version: int = API_VERSION


@attrs.frozen(kw_only=True)
class CommandSpec:
    """A command added to the command line; `target` is a `click.Command`."""

    name: str
    summary: str
    target: str
    api_version: int = API_VERSION
