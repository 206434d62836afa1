"""One cause is told once, however many layers an adapter has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_core.adapters.grouping import grouped
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.reading import AdapterReference, read_adapters
from lora_core.errors import AdapterError, Problem
from lora_core.layers import LayerInfo, ModelSummary

LAYERS = 28
Tensors = dict[str, np.ndarray]


def features(hidden: int) -> Mapping[str, tuple[int, int]]:
    """Return (out, in) of the linear layers of a block."""
    attention = {"q_proj": hidden, "k_proj": hidden // 2, "v_proj": hidden // 2, "o_proj": hidden}
    block = {f"self_attn.{name}": (out, hidden) for name, out in attention.items()}
    return {**block, "mlp.up_proj": (2 * hidden, hidden), "mlp.down_proj": (hidden, 2 * hidden)}


def base() -> ModelSummary:
    layers = tuple(
        LayerInfo(name=f"model.layers.{layer}.{name}", kind="linear", in_features=width, out_features=height)
        for layer in range(LAYERS)
        for name, (height, width) in features(16).items()
    )
    return ModelSummary(name="b", family="llama", layers=layers, module_names=tuple(layer.name for layer in layers))


def written(directory: Path, change: Callable[[Tensors], Tensors], *, hidden: int = 16, **config: Any) -> Path:
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for name, (height, width) in features(hidden).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = np.ones((4, width), np.float32)
            tensors[f"{prefix}.lora_B.weight"] = np.ones((height, 4), np.float32)
    directory.mkdir()
    save_file(change(tensors), directory / "adapter_model.safetensors")
    names = [name.rpartition(".")[2] for name in features(hidden)]
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": names}
    (directory / "adapter_config.json").write_text(json.dumps(fields | config))
    return directory


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def beside(old: str, new: str) -> Callable[[Tensors], Tensors]:
    more = renamed(old, new)
    return lambda tensors: {**tensors, **{name: tensor for name, tensor in more(tensors).items() if new in name}}


CAUSES: Mapping[str, tuple[Callable[[Tensors], Tensors], Mapping[str, Any], str]] = {
    "modules of another model": (renamed("model.layers", "transformer.h"), {}, "modules that base model 'b' does not"),
    "another rank": (dict, {"r": 8}, "Its rank is 4, but adapter_config.json says 8"),
    "another width": (dict, {"hidden": 24}, "does not fit model.layers.0."),
    "not a number": (lambda tensors: {name: each * np.nan for name, each in tensors.items()}, {}, "NaN or infinity"),
    "no B": (lambda tensors: {k: v for k, v in tensors.items() if "lora_A" in k}, {}, "LoRA B is missing"),
    "two adapters": (beside(".weight", ".second.weight"), {}, "a second LoRA"),
    "whole numbers": (lambda tensors: {k: v.astype(np.int8) for k, v in tensors.items()}, {}, "Its type is I8"),
    "targets left out": (dict, {"target_modules": ["q_proj"]}, "does not target 'model.layers.0."),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_one_cause_is_told_once(cause: str, tmp_path: Path) -> None:
    change, config, said = CAUSES[cause]
    directory = written(tmp_path / "x", change, **config)
    with pytest.raises(AdapterError) as caught:
        read_adapters([AdapterReference(name="x", directory=directory)], base(), [PeftFormat()])
    (problem,) = caught.value.problems
    assert said in problem.what
    assert "more" in problem.what
    assert "adapter_model.safetensors: base_model.model." in problem.where


def test_causes_that_differ_are_all_told(tmp_path: Path) -> None:
    directory = written(tmp_path / "x", dict, r=8, use_qalora=True, lora_alpha="much")
    with pytest.raises(AdapterError) as caught:
        read_adapters([AdapterReference(name="x", directory=directory)], base(), [PeftFormat()])
    assert len(caught.value.problems) == 2


def test_problems_of_two_files_are_not_one() -> None:
    problems = [Problem(what="It is bad", where=f"{file}: a.b.c") for file in ("one", "other", "one")]
    assert [each.where for each in grouped(problems)] == ["one: a.b.c", "other: a.b.c"]


def test_a_problem_alone_stays_as_it_is() -> None:
    problem = Problem(what="Layer model.layers.0.q is bad.", where="file: x", remedy="Mend model.layers.0.q")
    assert grouped([problem]) == (problem,)


def test_the_first_of_many_is_shown_with_their_number() -> None:
    problems = [Problem(what=f"Layer model.layers.{index}.q has [{index}].") for index in range(3)]
    assert [each.what for each in grouped(problems)] == ["Layer model.layers.0.q has [0] (and 2 more like this)"]
