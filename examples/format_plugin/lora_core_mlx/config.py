"""`adapter_config.json` as MLX-LM writes it."""

import json

import attrs

from lora_core.errors import AdapterError, Problem


@attrs.frozen(kw_only=True)
class MlxConfig:
    """What of the configuration changes the mathematics: `y = base(x) + scale * (x @ lora_a) @ lora_b`."""

    scale: float
    data: bytes

    @classmethod
    def from_file(cls, path):
        """Read the file at `path`; raises `AdapterError` with everything that is wrong with it."""
        try:
            data = path.read_bytes()
            fields = json.loads(data)
        except FileNotFoundError as error:
            raise AdapterError("There is no such file", where=str(path)) from error
        except ValueError as error:
            raise AdapterError(f"This is not JSON: {error}", where=str(path)) from error
        if not isinstance(fields, dict):
            raise AdapterError("This is no JSON object", where=str(path))
        problems = []
        kind = fields.get("fine_tune_type", "lora")
        if kind != "lora":
            remedy = "Train it with --fine-tune-type lora."
            problems.append(
                Problem(what=f"A fine-tune of type {kind!r} is no LoRA adapter", where=str(path), remedy=remedy)
            )
        parameters = fields.get("lora_parameters")
        scale = parameters.get("scale") if isinstance(parameters, dict) else None
        if not isinstance(scale, int | float) or isinstance(scale, bool):
            problems.append(Problem(what="There is no number `scale`", where=f"{path}: lora_parameters"))
        if problems:
            raise AdapterError(problems)
        return cls(scale=float(scale), data=data)
