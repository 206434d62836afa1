"""A checkpoint's configuration: what of transformers' definitions it asks for, and what of them can be exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from lora_core.errors import ModelError
from lora_core.intake.limits import LAYERS, raised
from lora_core.intake.parsing import parsing
from lora_core.models.config_file import CONFIG_FILE, read_config
from lora_core.models.transformers_reference import silent

# Fields of config.json that say where it came from, not what it is.
_VOLATILE = ("_name_or_path", "_model_name_or_path", "transformers_version")
# Classifiers, and what is trained to become one: encoders as they were pretrained.
_CLASSIFIABLE = ("ForSequenceClassification", "ForMaskedLM", "ForPreTraining")

Role = Literal["decoder", "classifier"]
"""A `decoder` continues a text, a `classifier` says how a whole text is to be labelled."""


@attrs.frozen(kw_only=True)
class TransformersCheckpoint:
    """A directory whose configuration has been read: `told` as it stands there, `config` as transformers takes it."""

    directory: Path
    told: Mapping[str, Any]
    config: Any
    role: Role
    hub_ids: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The name of the definition."""
        return str(self.config.model_type)

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which adapters may call this base; the first is its own."""
        own = self.hub_ids[0].rpartition("/")[2] if self.hub_ids else self.directory.resolve().name
        given = self.told.get("_name_or_path")
        return tuple(dict.fromkeys((*self.hub_ids, own, *([given] if isinstance(given, str) and given else []))))

    @property
    def lasting(self) -> dict[str, Any]:
        """The configuration without what says where it came from."""
        return {name: value for name, value in self.told.items() if name not in _VOLATILE}


def open_checkpoint(directory: Path, hub_ids: tuple[str, ...]) -> TransformersCheckpoint:
    """Read the configuration in `directory`; raises `ModelError` for one that cannot be exported."""
    path = directory / CONFIG_FILE
    with parsing(path, error=ModelError, remedy="Copy or download the checkpoint again."):
        told = read_config(path)
        if told.get("quantization_config"):
            raise ModelError(
                "transformers' export path is taken with float weights alone; these are stored quantized.",
                where=f"{path}: quantization_config",
                remedy="Save the model in float with save_pretrained.",
            )
        _require_few(told, path)
        config = _config(directory, path)
        return TransformersCheckpoint(
            directory=directory, told=told, config=config, role=_role(config, str(path)), hub_ids=hub_ids
        )


def _require_few(told: Mapping[str, Any], path: Path) -> None:
    """Refuse more layers or experts than any model has: transformers makes modules of all before it reads weights."""
    limit = raised(LAYERS)
    for part in (told, *(each for each in told.values() if isinstance(each, dict))):
        for name, value in part.items():
            if isinstance(value, int) and value > limit and ("layer" in name or "expert" in name):
                what = f"{name} is {value}, and no model has more than {limit}"
                raise ModelError(what, where=f"{path}: {name}", remedy="Copy or download the checkpoint again.")


def _config(directory: Path, path: Path) -> Any:
    from transformers import AutoConfig  # heavy

    try:
        with silent():
            return AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        raise ModelError(f"transformers does not know this configuration: {error}", where=str(path)) from error


def _role(config: Any, where: str) -> Role:
    """Return what the model is for; raises `ModelError` for what is neither."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING  # heavy

    architectures = tuple(map(str, config.architectures or ()))
    if getattr(config, "is_encoder_decoder", False):
        what = f"{config.model_type!r} has an encoder beside its decoder: more than one method."
        raise ModelError(what, where=f"{where}: is_encoder_decoder", remedy="Use a decoder or a classifier.")
    decodes = _classes(MODEL_FOR_CAUSAL_LM_MAPPING, config)
    if decodes and (not architectures or decodes & set(architectures)):
        return "decoder"
    if _classes(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config) and any(
        each.endswith(_CLASSIFIABLE) for each in architectures
    ):
        return "classifier"
    raise ModelError(
        f"{', '.join(architectures) or repr(config.model_type)} is neither a decoder (AutoModelForCausalLM) nor a "
        "classifier (AutoModelForSequenceClassification).",
        where=f"{where}: architectures",
        remedy="Export the module itself from Python: lora_core.models.module.ModuleModel.",
    )


def _classes(mapping: Any, config: Any) -> set[str]:
    """Return the names of the classes that `mapping` has for `config`."""
    found = mapping.get(type(config), ())
    return {each.__name__ for each in (found if isinstance(found, tuple) else (found,))}
