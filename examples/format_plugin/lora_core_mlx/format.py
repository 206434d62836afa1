"""Adapters as MLX-LM saves them: `adapters.safetensors` beside `adapter_config.json`.

`NAME.lora_a` is (in_features, rank) and `NAME.lora_b` (rank, out_features), both the other way round than in PEFT;
modules are called as in the Hugging Face model.
"""

from hashlib import sha256

import attrs

from lora_core.adapters.adapter import LOW_RANK, Adapter, Update
from lora_core.adapters.format import AdapterFormat, Claim
from lora_core.adapters.ordering import natural_key
from lora_core.errors import AdapterError, Problem
from lora_core.tensors import open_tensors, scan
from lora_core_mlx.config import MlxConfig
from lora_core_mlx.transposed import Transposed

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
PARTS = {"lora_a": "a", "lora_b": "b"}


class MlxFormat(AdapterFormat):
    def sniff(self, path):
        """Claim a directory with MLX-LM's name for the weights; `adapter_config.json` alone may be anybody's."""
        return Claim.CERTAIN if (path / WEIGHTS).is_file() and (path / CONFIG).is_file() else Claim.NO

    def sniff_files(self, weights, config):
        try:
            return Claim.CERTAIN if b'"lora_parameters"' in config.read_bytes() else Claim.NO
        except OSError:
            return Claim.NO

    def read(self, name, path, base, *, strength=1.0):
        return self.read_files(name, path / WEIGHTS, path / CONFIG, base, strength=strength)

    def read_files(self, name, weights, config, base, *, strength=1.0):
        problems, scale, data, updates, digest = [], 1.0, b"", (), ""
        try:
            found = MlxConfig.from_file(config)
            scale, data = found.scale, found.data
        except AdapterError as error:
            problems += error.problems
        try:
            tensors = open_tensors(weights, error=AdapterError)
            read = scan(weights, tensors)  # one pass over the data: its hash, and what is not finite
            digest = sha256(read.sha256.encode() + data).hexdigest()
            problems += [Problem(what="It holds NaN or infinity", where=f"{weights}: {key}") for key in read.not_finite]
            updates, wrong = updates_of(tensors, scale, base)
            problems += wrong
        except AdapterError as error:
            problems += error.problems
        if problems:
            raise AdapterError(attrs.evolve(each, what=f"Adapter {name!r}: {each.what}") for each in problems)
        return Adapter(name=name, updates=updates, digest=digest, source=str(weights)).scaled(strength)


def updates_of(tensors, scale, base):
    """Return the updates in natural order, and a problem for everything that does not fit the base."""
    problems, parts = [], {}
    for tensor in tensors:
        module, _, last = tensor.name.rpartition(".")
        if last in PARTS and len(tensor.shape) == 2:
            parts.setdefault(module, {})[PARTS[last]] = Transposed(tensor)
        else:
            problems.append(Problem(what="Nothing uses this tensor", where=f"{tensor.path}: {tensor.name}"))
    layers = {layer.name: layer for layer in base.layers if layer.kind == "linear"}
    for module, found in parts.items():
        problem = objection(module, found, layers.get(module))
        if problem is not None:
            problems.append(Problem(what=problem, where=str(next(iter(found.values())).path)))
    if not parts:
        problems.append(Problem(what="There is no LoRA tensor"))
    updates = [
        Update(module=module, kind=LOW_RANK, tensors=parts[module], scaling=scale)
        for module in sorted(parts, key=natural_key)
    ]
    return tuple(updates), problems


def objection(module, parts, layer):
    """Return why the base cannot carry the `parts` for `module`, None if it can."""
    if layer is None:
        return f"The base has no linear layer {module!r}"
    if parts.keys() != {"a", "b"}:
        return f"{module} has lora_{next(iter(parts))} only"
    (rank, width), (height, other) = parts["a"].shape, parts["b"].shape
    if rank != other or (width, height) != (layer.in_features, layer.out_features):
        size = f"{layer.in_features} x {layer.out_features}"
        return f"{module} is {size}, the update {width} x {rank} and {other} x {height}"
    return None
