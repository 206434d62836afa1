"""What a PEFT configuration may hold that lora-core does not do: each by name, with what to do instead.

Fields of peft 0.21.2 (`peft/tuners/lora/config.py`). A field in none of the tables is newer than what was proven here
and is refused unless it is unset.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from lora_core.errors import Problem

HONOURED = frozenset(
    (
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "base_model_name_or_path",
        "init_lora_weights",
        "task_type",
        "ensure_weight_tying",
        "use_dora",
        "bias",
        "modules_to_save",
        "trainable_token_indices",
    )
)

# Training, provenance, or another initialization's own settings: none changes what trained weights compute.
# `loftq_config` and its kin count only if `init_lora_weights` names them, and that is refused below.
# `merge_weights` is of PEFT before 0.3; `runtime_config` is ignored by PEFT too.
HARMLESS = frozenset(
    (
        "auto_mapping",
        "revision",
        "inference_mode",
        "peft_version",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "merge_weights",
    )
)

MERGE = "Merge the adapter into its base with peft (merge_and_unload) and export the result as a base of its own"


@attrs.frozen(kw_only=True)
class Refusal:
    """A field that changes the mathematics. `allowed` are the values that leave it off; `tensors` are words in the
    names of tensors that only this feature stores.
    """

    feature: str
    remedy: str
    allowed: tuple[Any, ...] = (None, False)
    tensors: tuple[str, ...] = ()


REFUSED: Mapping[str, Refusal] = {
    "lora_bias": Refusal(
        feature="a bias on LoRA B",
        remedy="Train with lora_bias=False.",
        tensors=("lora_B.bias", "lora_A.bias"),
    ),
    "target_parameters": Refusal(
        feature="LoRA on bare parameters",
        remedy="Target linear layers with target_modules instead.",
        allowed=(None, []),
    ),
    "layer_replication": Refusal(
        feature="replicated layers",
        remedy=f"{MERGE}: the replicated model is another base.",
        allowed=(None, []),
    ),
    "alora_invocation_tokens": Refusal(
        feature="activated LoRA (aLoRA), which is switched on in the middle of a prompt",
        remedy="Train plain LoRA, without alora_invocation_tokens.",
        allowed=(None,),
    ),
    "use_qalora": Refusal(feature="QA-LoRA, which pools the input", remedy="Train with use_qalora=False."),
    "use_bdlora": Refusal(
        feature="BD-LoRA, whose matrices are stored in blocks", remedy="Train plain LoRA, with use_bdlora=None."
    ),
    "arrow_config": Refusal(
        feature="Arrow routing between adapters",
        remedy="Give the routed adapters one by one, or as a composite: --adapter mix=a:0.5+b:0.5.",
        tensors=("lora_arrow",),
    ),
    "velora_config": Refusal(
        feature="VeLoRA", remedy="Train plain LoRA, without velora_config.", tensors=("lora_velora",)
    ),
    "monteclora_config": Refusal(
        feature="MonteCLoRA, which samples its weights",
        remedy="Train plain LoRA, without monteclora_config.",
        tensors=("lora_monteclora", "monteclora"),
    ),
    "kasa_config": Refusal(
        feature="KaSA, which truncates the base weights",
        remedy=f"{MERGE}, or train without kasa_config.",
        tensors=("lora_diag",),
    ),
    "megatron_config": Refusal(
        feature="LoRA of Megatron's parallel layers", remedy="Convert the adapter to the Hugging Face layout first."
    ),
}

TOKENS = Refusal(
    feature="the vectors of trained tokens, and the configuration does not say trainable_token_indices",
    remedy="Weights and configuration are not of one adapter.",
    tensors=("trainable_tokens",),
)

MAGNITUDE = Refusal(
    feature="a magnitude of DoRA, and the configuration does not say use_dora",
    remedy="Weights and configuration are not of one adapter.",
    tensors=("lora_magnitude_vector",),
)

BIAS = Refusal(
    feature="a trained bias, and the configuration does not say bias",
    remedy="Weights and configuration are not of one adapter.",
    tensors=(".bias",),
)

SAVED_BASE = Refusal(
    feature="a copy of base weights",
    remedy="Save the adapter again with save_pretrained(..., save_embedding_layers=False).",
    tensors=(".base_layer.",),
)

# Initializations that subtract their starting point from the base: the stored A and B fit that changed base only.
_CHANGES_BASE = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}
# Initializations whose stored A and B are plain LoRA for the unchanged base.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")

_TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM")
_HEADED_TASKS = ("SEQ_CLS", "TOKEN_CLS")
_HEADS = ("classifier", "score")


def refused_fields(config: Mapping[str, Any], module_names: Collection[str] = ()) -> dict[str, Problem]:
    """Return a problem for each field of a LoRA configuration that cannot be honoured on a base with the modules
    `module_names`, by field; `where` is the field alone, for the caller to complete with the file.
    """
    problems = {
        field: Problem(
            what=f"It uses {refusal.feature} ({field}={config[field]!r}), which lora-core does not support",
            where=field,
            remedy=refusal.remedy,
        )
        for field, refusal in REFUSED.items()
        if field in config and not _among(config[field], refusal.allowed)
    }
    for field, value in config.items():
        if field not in HONOURED | HARMLESS | REFUSED.keys() and not _unset(value):
            problems[field] = Problem(
                what=f"Its field {field}={value!r} is unknown to lora-core, which was proven on peft 0.21.2",
                where=field,
                remedy="If it does not change what the trained weights compute, remove it from the file; "
                "otherwise train without it.",
            )
    for problem in (_refused_init(config), _refused_task(config, module_names)):
        if problem is not None:
            problems[problem.where] = problem
    return problems


def refused_type(peft_type: object) -> Problem | None:
    """Return a problem if a configuration is not of plain LoRA."""
    if peft_type == "LORA":
        return None
    return Problem(
        what=f"It is a PEFT adapter of type {peft_type!r}; lora-core supports only LORA",
        where="peft_type",
        remedy="Train a LoRA adapter, or convert it to one (peft's convert_to_lora), or merge it into the base and "
        "export that.",
    )


def _refused_init(config: Mapping[str, Any]) -> Problem | None:
    init = config.get("init_lora_weights")
    if init is None or isinstance(init, bool) or init in _PLAIN_INITS:
        return None
    for prefix, name in _CHANGES_BASE.items():
        if isinstance(init, str) and init.lower().startswith(prefix):
            return Problem(
                what=f"It was initialized with {name} (init_lora_weights={init!r}), which changes the base weights: "
                "its A and B do not fit the base that all adapters share",
                where="init_lora_weights",
                remedy="Save it as plain LoRA with save_pretrained(..., path_initial_model_for_weight_conversion=...) "
                "of peft, or merge it and export the result as a base of its own.",
            )
    return Problem(
        what=f"Its initialization init_lora_weights={init!r} is unknown to lora-core",
        where="init_lora_weights",
        remedy=f"If it leaves the base weights alone, set it to true. Known: true, false, {', '.join(_PLAIN_INITS)}.",
    )


def absent_heads(config: Mapping[str, Any], module_names: Collection[str]) -> tuple[str, ...]:
    """Return the heads that a base with the modules `module_names` does not have, and that peft 0.21.2 only lists: it
    saves `classifier` and `score` of every classifier, and each has one of them.
    """
    headed = config.get("task_type") in _HEADED_TASKS and any(name in module_names for name in _HEADS)
    return tuple(name for name in _HEADS if name not in module_names) if headed else ()


def _refused_task(config: Mapping[str, Any], module_names: Collection[str]) -> Problem | None:
    task = config.get("task_type")
    if task in _TASKS or (task in _HEADED_TASKS and any(name in module_names for name in _HEADS)):
        return None
    return Problem(
        what=f"It was trained for task_type={task!r}, which puts a head of its own on the base",
        where="task_type",
        remedy="Export a base that has that head, or train with task_type='CAUSAL_LM'.",
    )


def _among(value: object, allowed: tuple[Any, ...]) -> bool:
    """Compare without Python's `False == 0`."""
    return any(value == candidate and type(value) is type(candidate) for candidate in allowed)


def _unset(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})
