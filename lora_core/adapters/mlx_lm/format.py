"""Adapters as MLX-LM saves them: `adapter_config.json` beside `adapters.safetensors`.

Format: mlx_lm/tuner/lora.py and `load_adapters` of mlx_lm/tuner/utils.py (https://github.com/ml-explore/mlx-lm):
`NAME.lora_a` is (in_features, rank) and `NAME.lora_b` (rank, out_features), both turned against PEFT's; modules are
called as in the Hugging Face model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat, Claim
from lora_core.adapters.mlx_lm.config import MlxLmConfig
from lora_core.adapters.pairs import FoundPair, implied_by, updates_from
from lora_core.adapters.peft.config import load_config
from lora_core.adapters.views import TurnedTensor
from lora_core.errors import AdapterError, Problem
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.layers import ModelSummary
from lora_core.tensors import StoredTensor, open_tensors, scan

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
OLD_WEIGHTS = "adapters.npz"
_FIELDS = (b'"lora_parameters"', b'"fine_tune_type"')


class MlxLmFormat(AdapterFormat):
    """A LoRA adapter of MLX-LM. Every tensor is used or named."""

    def sniff(self, path: Path) -> Claim:
        """Claim a directory whose weights are named as MLX-LM names them; its configuration is named as PEFT's is."""
        try:
            if not any((path / name).is_file() for name in (WEIGHTS, OLD_WEIGHTS)):
                return Claim.NO
            return Claim.CERTAIN if (path / CONFIG).is_file() else Claim.POSSIBLE
        except OSError:
            return Claim.NO

    def sniff_files(self, weights: Path, config: Path) -> Claim:  # noqa: ARG002 - the configuration says it
        """Claim a file whose configuration has fields of MLX-LM."""
        try:
            data = read_regular(config, limits.CONFIG, AdapterError)
        except (OSError, AdapterError):
            return Claim.NO
        return Claim.CERTAIN if any(field in data for field in _FIELDS) and b'"peft_type"' not in data else Claim.NO

    def read(self, name: str, path: Path, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Read the adapter in directory `path` for `base`; raises `AdapterError` with every problem found."""
        adapter = self.read_files(name, path / WEIGHTS, path / CONFIG, base, strength=strength)
        return attrs.evolve(adapter, source=str(path))

    def read_files(
        self, name: str, weights: Path, config: Path, base: ModelSummary, *, strength: float = 1.0
    ) -> Adapter:
        """Read an adapter given as its weights file and its configuration file; raises as `read`."""
        try:
            return _read(name, weights, config, base).scaled(strength)
        except AdapterError as error:
            raise AdapterError(
                attrs.evolve(each, what=f"Adapter {name!r}: {each.what}") for each in error.problems
            ) from error

    def implied_base(self, path: Path) -> ModelSummary:
        """Return the layers that the adapter in `path` updates."""
        config, _ = _config(path / CONFIG)
        tensors = open_tensors(path / WEIGHTS, error=AdapterError)
        return implied_by(_pairs(tensors, config.scale), config.base_model or path.name)


def _read(name: str, weights: Path, config_path: Path, base: ModelSummary) -> Adapter:
    problems: list[Problem] = []
    config, config_bytes = _config(config_path)
    if not weights.exists() and (weights.parent / OLD_WEIGHTS).exists():
        remedy = f"Convert it to {WEIGHTS}: mlx.core.save_safetensors(..., mlx.core.load(...))."
        raise AdapterError(f"{OLD_WEIGHTS} of an older MLX-LM is not read", where=str(weights.parent), remedy=remedy)
    tensors = open_tensors(weights, error=AdapterError)
    unused = [tensor for tensor in tensors if not tensor.name.endswith((".lora_a", ".lora_b"))]
    if len(unused) == len(tensors):
        what = "There is no LoRA tensor in this file"
        raise AdapterError(what, where=str(weights), remedy="Is it a full fine-tune? That is exported with --model.")
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        problems.append(Problem(what=f"Nothing uses tensor {unused[0].name}{more}", where=str(weights)))
    found = scan(weights, tensors)
    for tensor in found.not_finite:
        remedy = "The training went wrong: train it again."
        problems.append(Problem(what="It holds NaN or infinity", where=f"{weights}: {tensor}", remedy=remedy))
    updates, misfits = updates_from(_pairs(tensors, config.scale), base, weights)
    problems += misfits
    if problems:
        raise AdapterError(problems)
    return Adapter(
        name=name,
        updates=updates,
        digest=hashlib.sha256(found.sha256.encode() + hashlib.sha256(config_bytes).hexdigest().encode()).hexdigest(),
        source=str(weights),
        base_model=config.base_model,
    )


def _config(path: Path) -> tuple[MlxLmConfig, bytes]:
    raw, data = load_config(path)
    try:
        return MlxLmConfig.from_mlx_dict(raw), data
    except AdapterError as error:
        raise AdapterError(attrs.evolve(each, where=f"{path}: {each.where}") for each in error.problems) from error


def _pairs(tensors: Sequence[StoredTensor], scale: float) -> list[FoundPair]:
    factors: dict[str, dict[str, TurnedTensor]] = {}
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        if part in ("lora_a", "lora_b"):
            factors.setdefault(module, {})[part] = TurnedTensor(stored=tensor)
    return [
        FoundPair(written=module, a=found.get("lora_a"), b=found.get("lora_b"), scaling=scale)
        for module, found in factors.items()
    ]
