"""The reference computed by transformers and peft, which share no code with what is exported."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.reference import AdapterReference
from lora_core.errors import InputError, ModelError, UnsupportedError
from lora_core.intake.limits import CONFIG
from lora_core.intake.plain_json import read_json
from lora_core.models.reference_model import ReferenceModel
from lora_core.models.wrappers import PLACES
from lora_core.temporary import temporary_directory
from lora_core.tensors import open_tensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def open_reference(
    directory: Path,
    references: Sequence[AdapterReference],
    *,
    gguf_file: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> TransformersReference:
    """Return the checkpoint in `directory` with the adapters `references`.

    With `gguf_file` it is read from the GGUF file of that name there, by transformers' own names and de-quantizing; of
    its `config`, transformers reads too little of the file. With `config` alone it is the language model inside another
    that `config` describes: by itself, or with the others around it if the adapters were trained so.

    Raises `UnsupportedError` if transformers (or, with adapters, peft) is not installed, or an adapter is not PEFT's.
    """
    wanted = ("transformers", "peft") if references else ("transformers",)
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"{' and '.join(missing)} is not installed.", remedy="Install it, or use eager.")
    others = sorted({each.name for each in references for part, _ in _parts(each, references) if not _is_peft(part)})
    if others:
        raise UnsupportedError(
            f"peft cannot read {', '.join(others)}, which is of another format.", remedy="Use eager for these adapters."
        )
    if config is not None and gguf_file is None:
        around = {_is_of_the_whole(part) for each in references for part, _ in _parts(each, references)}
        if len(around) > 1:
            what = (
                "Some adapters are of the language model alone, and some of it inside the model that it is a part of."
            )
            raise UnsupportedError(what, remedy="Verify them one after another, or use eager.")
        config = None if around == {True} else config
    return TransformersReference(Opened(directory=directory, gguf_file=gguf_file, config=config), references)


@attrs.frozen(kw_only=True)
class Opened:
    """What transformers is to open; see `open_reference`."""

    directory: Path
    gguf_file: str | None = None
    config: Mapping[str, Any] | None = attrs.field(default=None, repr=False)

    def load(self) -> Any:
        """Return the model in float32; raises what transformers raises."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        told: dict[str, Any] = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        if self.config is not None:
            kept = {name: value for name, value in self.config.items() if name not in ("model_type", "architectures")}
            told["config"] = AutoConfig.for_model(self.config["model_type"], **kept)
        if self.config is not None and self.gguf_file is None:
            told["key_mapping"] = {f"^{re.escape(inside)}": alone for inside, alone in PLACES.items()}
        alone = self.config is not None or self.gguf_file is not None or not self._has_others
        opener = AutoModelForCausalLM if alone else AutoModelForImageTextToText
        return opener.from_pretrained(self.directory, dtype=torch.float32, local_files_only=True, **told).eval()

    @property
    def _has_others(self) -> bool:
        return "text_config" in read_json(self.directory / "config.json", CONFIG, InputError)


class TransformersReference(ReferenceModel):
    """A checkpoint and PEFT adapters read from their own files. A composite is its parts active together."""

    def __init__(self, opened: Opened, references: Sequence[AdapterReference]) -> None:
        """Read `opened` in float32, and every adapter of `references`."""
        parts = {reference.name: _parts(reference, references) for reference in references}
        stored = list(dict.fromkeys(part for each in parts.values() for part, _ in each))
        keys = {part: f"stored{index}" for index, part in enumerate(stored)}
        self._parts = {name: [(keys[part], strength) for part, strength in each] for name, each in parts.items()}
        self._with_peft = bool(stored)
        # What takes the place of the base's parameters has a model of its own: peft wants it so of biases, and wraps
        # layers in what other adapters cannot be loaded into for whole modules and tokens.
        alone = {part: key for part, key in keys.items() if _replaces_parameters(part)}
        with silent():
            self._model = _load(opened, {part: key for part, key in keys.items() if part not in alone})
            self._alone = {key: _load(opened, {part: key}) for part, key in alone.items()}
            self._lacking = {key: _lacking(self._alone.get(key, self._model), part, key) for part, key in keys.items()}
        self._plain = len(alone) == len(keys)

    @property
    def name(self) -> str:
        """Versions of transformers, and of peft where it was needed."""
        peft = f" + peft {version('peft')}" if self._with_peft else ""
        return f"transformers {version('transformers')}{peft}, float32"

    def unloaded(self, adapter: str) -> Sequence[str]:
        """Say how many tensors of the adapter's file peft has not loaded: it only warns of them."""
        return tuple(dict.fromkeys(text for key, _ in self._parts[adapter] if (text := self._lacking[key])))

    def logits(self, adapter: str | None, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Run all tokens in one call, without a cache."""
        import torch

        with torch.no_grad(), self._active(adapter) as model:
            logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        result: npt.NDArray[np.float32] = logits.float().numpy()
        return result

    def continuation(self, adapter: str | None, prompt: Sequence[int], count: int) -> tuple[int, ...]:
        """Choose token after token with transformers' own cache."""
        import torch

        found: list[int] = []
        fed, past = torch.tensor([list(prompt)]), None
        with torch.no_grad(), self._active(adapter) as model:
            while len(found) < count:
                out = model(input_ids=fed, past_key_values=past, use_cache=True)
                found.append(int(out.logits[0, -1].argmax()))
                fed, past = torch.tensor([found[-1:]]), out.past_key_values
        return tuple(found)

    @contextmanager
    def _active(self, adapter: str | None) -> Iterator[Any]:
        """Make an adapter's parts active, each at its strength, for as long as the block runs; yield the model."""
        if adapter is None:
            with nullcontext() if self._plain else self._model.disable_adapter():
                yield self._model
            return
        parts = self._parts[adapter]
        model = self._alone.get(parts[0][0], self._model)
        # Adapters that are active together add up; `add_weighted_adapter` is wrong for rsLoRA in peft 0.21.2.
        model.base_model.set_adapter([key for key, _ in parts], inference_mode=True)
        with ExitStack() as stack:
            for key, strength in parts:
                stack.enter_context(_scaled(model, key, strength))
            yield model


def _parts(reference: AdapterReference, others: Sequence[AdapterReference]) -> list[tuple[AdapterReference, float]]:
    """Return the stored adapters that make up `reference`, without names and strengths, each with its strength."""
    if not reference.parts:
        return [(attrs.evolve(reference, name="stored", strength=1.0), reference.strength)]
    by_name = {each.name: each for each in others}
    found = []
    for part in reference.parts:
        own = by_name[part.of] if not part.is_directory else AdapterReference(name="part", directory=Path(part.of))
        stored = attrs.evolve(own, name="stored", strength=1.0)
        found.append((stored, part.strength * own.strength * reference.strength))
    return found


def _replaces_parameters(part: AdapterReference) -> bool:
    path = part.config if part.directory is None else part.directory / "adapter_config.json"
    assert path is not None
    config = read_json(path, CONFIG, InputError)
    replaced = config.get("modules_to_save") or config.get("trainable_token_indices")
    return bool(replaced) or config.get("bias") in ("all", "lora_only")


def _is_of_the_whole(part: AdapterReference) -> bool:
    """Say whether an adapter's tensors are named as those of a language model inside another."""
    weights = part.weights if part.directory is None else part.directory / "adapter_model.safetensors"
    assert weights is not None
    inside = tuple(f"base_model.model.{place}" for place in PLACES)
    return any(tensor.name.startswith(inside) for tensor in open_tensors(weights))


def _is_peft(part: AdapterReference) -> bool:
    if part.directory is None:
        return part.weights is not None and part.weights.suffix == ".safetensors"
    return all((part.directory / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors"))


def _load(opened: Opened, keys: Mapping[AdapterReference, str]) -> Any:
    try:
        model = opened.load()
    except Exception as error:
        remedy = "Compare with our own module instead: --reference eager."
        raise ModelError(
            f"transformers cannot open the model: {error}", where=str(opened.directory), remedy=remedy
        ) from error
    peft_model: Any = None
    for part, key in keys.items():
        with temporary_directory("verify") as scratch:
            path = part.directory if part.directory is not None else _as_directory(part, scratch)
            if peft_model is None:
                from peft import PeftModel

                peft_model = PeftModel.from_pretrained(model, path, adapter_name=key)
            else:
                peft_model.load_adapter(path, adapter_name=key)
    return model if peft_model is None else peft_model.eval()


def _lacking(model: Any, part: AdapterReference, key: str) -> str:
    """Return what of the stored adapter `part` is not in the model under `key`, in words; nothing if all of it is."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    weights = part.weights if part.directory is None else part.directory / "adapter_model.safetensors"
    stored = load_file(str(weights))
    loaded = get_peft_model_state_dict(model, adapter_name=key, save_embedding_layers=False).values()
    # By value: names are what readers disagree on.
    known = {_fingerprint(tensor) for tensor in loaded}
    missing = [name for name, tensor in stored.items() if _fingerprint(tensor) not in known]
    missing = [name for name in missing if any(word in name for word in ("lora_", "trainable_tokens"))]
    if not missing:
        return ""
    return f"peft has not loaded {len(missing)} of {len(stored)} tensors of {weights} (first: {missing[0]})"


def _fingerprint(tensor: Any) -> tuple[Any, ...]:
    values = tensor.detach().float()
    return tuple(values.shape), float(values.double().sum()), float(values.double().abs().sum())


def _as_directory(part: AdapterReference, scratch: Path) -> Path:
    """Return a directory in which peft finds an adapter given as two files."""
    assert part.weights is not None
    assert part.config is not None
    (scratch / "adapter_model.safetensors").symlink_to(part.weights.resolve())
    (scratch / "adapter_config.json").symlink_to(part.config.resolve())
    return scratch


@contextmanager
def _scaled(model: Any, key: str, strength: float) -> Iterator[None]:
    """Multiply the scaling of one adapter in every layer for as long as the block runs."""
    scalings = [
        layer.scaling
        for layer in model.modules()
        if isinstance(getattr(layer, "scaling", None), dict)
        if key in layer.scaling
    ]
    kept = [scaling[key] for scaling in scalings]
    for scaling, value in zip(scalings, kept, strict=True):
        scaling[key] = value * strength
    try:
        yield
    finally:
        for scaling, value in zip(scalings, kept, strict=True):
            scaling[key] = value


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers from drawing bars and from warning of its own dependencies."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        drawing, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if drawing:
                logging.enable_progress_bar()
