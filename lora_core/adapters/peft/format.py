"""Adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.format import AdapterFormat, Claim
from lora_core.adapters.pairs import FoundPair, implied_by
from lora_core.adapters.peft.asked import wanted_parts
from lora_core.adapters.peft.config import PeftLoraConfig, load_config
from lora_core.adapters.peft.fitted_mark import fitted_for
from lora_core.adapters.peft.pairing import StoredHalves, updates_of
from lora_core.adapters.peft.refusals import refused_fields
from lora_core.adapters.peft.spelling import Spelling
from lora_core.adapters.peft.trained import BaseWeights, TrainedParts
from lora_core.adapters.strangers import is_foreign_type, stranger
from lora_core.errors import AdapterError, Problem
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.layers import ModelSummary
from lora_core.tensors import StoredTensor, open_tensors, scan

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class PeftFormat(AdapterFormat):
    """A PEFT LoRA adapter, proven equal to peft 0.21.2.

    Every field that changes the mathematics is honoured or refused by name, and every tensor is used or named: all
    problems of an adapter are reported together. Reading it goes over the data once (hash, NaN, infinity); the
    tensors stay on disk until they are asked for. `weights` gives the base's tensors, which DoRA, trained biases and
    whole modules are told against; without it such an adapter is refused, saying so.
    """

    def __init__(self, weights: BaseWeights | None = None) -> None:
        """Read adapters with the base's `weights`, or those that need none."""
        self._weights = weights

    def with_weights(self, weights: BaseWeights) -> PeftFormat:
        """Return a format that reads adapters with the base's `weights`."""
        return PeftFormat(weights)

    def sniff(self, path: Path) -> Claim:
        """Claim a directory whose weights are named as PEFT names them, or whose configuration says so; other tools
        call their configuration `adapter_config.json` too.
        """
        try:
            if any((path / name).is_file() for name in (WEIGHTS, "adapter_model.bin")):
                return Claim.CERTAIN
            if not (path / CONFIG).is_file():
                return Claim.NO
            return _claim(path / CONFIG)
        except OSError:
            return Claim.NO

    def sniff_files(self, weights: Path, config: Path) -> Claim:  # noqa: ARG002 - the configuration says it
        """Claim a safetensors file whose configuration says so."""
        try:
            return _claim(config)
        except OSError:
            return Claim.POSSIBLE

    def read(self, name: str, path: Path, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Read the adapter in directory `path` for `base`; raises `AdapterError` with every problem found."""
        weights = path / WEIGHTS
        if not weights.exists() and (path / "adapter_model.bin").exists():
            weights = path / "adapter_model.bin"
        return _read(name, weights, path / CONFIG, base, strength, self._weights, source=str(path))

    def read_files(
        self, name: str, weights: Path, config: Path, base: ModelSummary, *, strength: float = 1.0
    ) -> Adapter:
        """Read an adapter given as its weights file and its configuration file; raises as `read`."""
        return _read(name, weights, config, base, strength, self._weights, source=str(weights))

    def implied_base(self, path: Path) -> ModelSummary:
        """Return the layers that the adapter in `path` updates; names are without the wrappers that are known."""
        raw, _ = load_config(path / CONFIG)
        tensors = open_tensors(path / WEIGHTS, error=AdapterError)
        stored = StoredHalves.from_tensors(path / WEIGHTS, tensors, Spelling.of(()))
        pairs = [
            FoundPair(
                written=module,
                a=half.get("A"),
                b=half.get("B"),
                scaling=1.0,
                embedding=module in stored.embeddings,
            )
            for module, half in stored.halves.items()
        ]
        return implied_by(pairs, str(raw.get("base_model_name_or_path") or path.name))


def _claim(config: Path) -> Claim:
    """Claim what reads as PEFT's configuration; what cannot be read is refused with its reason when it is read."""
    try:
        return Claim.CERTAIN if b'"peft_type"' in read_regular(config, limits.CONFIG, AdapterError) else Claim.POSSIBLE
    except AdapterError:
        return Claim.POSSIBLE


def _read(
    name: str,
    weights: Path,
    config_path: Path,
    base: ModelSummary,
    strength: float,
    base_weights: BaseWeights | None,
    *,
    source: str,
) -> Adapter:
    problems: list[Problem] = []
    raw, config_bytes, config = _config(config_path, base, problems)
    if is_foreign_type(raw):
        raise AdapterError(_named(name, problems))
    tensors = _tensors(weights, problems)
    strange = None if tensors is None else stranger(weights, tensors)
    if strange is not None:
        raise AdapterError(_named(name, [*problems, strange]))
    updates: tuple[Update, ...] = ()
    weights_hash = ""
    if tensors is not None:
        found = scan(weights, tensors)
        weights_hash = found.sha256
        stored = StoredHalves.from_tensors(weights, tensors, Spelling.of(base.module_names))
        problems += stored.problems
        trained = TrainedParts.of(
            weights,
            stored.unused,
            base,
            dora=bool(raw.get("use_dora")),
            biases=raw.get("bias") in ("all", "lora_only"),
            saved=config.saved if config is not None else (),
            tokens=bool(raw.get("trainable_token_indices")),
        )
        problems += attrs.evolve(stored, unused=trained.unused).unused_problems(
            tuple(refused_fields(raw, base.module_names))
        )
        if config is not None:
            updates, misfits = updates_of(stored, config, base, config_path=config_path)
            problems += misfits
            wanted, misfits = wanted_parts(config, base, trained, stored.halves.keys(), config_path)
            problems += misfits
            if not problems:
                updates, misfits = trained.updates(updates, base, base_weights, wanted, strength=strength)
                problems += misfits
        problems += (_not_finite(weights, tensor) for tensor in found.not_finite)
    if problems or config is None:
        raise AdapterError(_named(name, problems))
    return Adapter(
        name=name,
        updates=updates,
        digest=hashlib.sha256(weights_hash.encode() + hashlib.sha256(config_bytes).hexdigest().encode()).hexdigest(),
        source=source,
        base_model=config.base_model,
        fitted_for=fitted_for(weights),
    ).scaled(strength)


def _config(
    path: Path, base: ModelSummary, problems: list[Problem]
) -> tuple[dict[str, Any], bytes, PeftLoraConfig | None]:
    """Return the configuration as read, its bytes and its meaning (None, with the problems, if it has none)."""
    try:
        raw, data = load_config(path)
    except AdapterError as error:
        problems += error.problems
        return {}, b"", None
    try:
        return raw, data, PeftLoraConfig.from_peft_dict(raw, family=base.family, module_names=base.module_names)
    except AdapterError as error:
        problems += (attrs.evolve(problem, where=f"{path}: {problem.where}") for problem in error.problems)
    return raw, data, None


def _tensors(path: Path, problems: list[Problem]) -> tuple[StoredTensor, ...] | None:
    if path.suffix in PICKLES:
        remedy = "Pickle can run code when it is opened: load the adapter with peft and save it with save_pretrained."
        problems.append(
            Problem(what="This is a pickle checkpoint, which is never opened", where=str(path), remedy=remedy)
        )
        return None
    try:
        return open_tensors(path, error=AdapterError)
    except AdapterError as error:
        problems += error.problems
    return None


def _not_finite(path: Path, tensor: str) -> Problem:
    return Problem(
        what="It holds NaN or infinity", where=f"{path}: {tensor}", remedy="The training went wrong: train it again."
    )


def _named(name: str, problems: Iterable[Problem]) -> list[Problem]:
    """Say in each problem which adapter it is about."""
    return [attrs.evolve(problem, what=f"Adapter {name!r}: {problem.what}") for problem in problems]
