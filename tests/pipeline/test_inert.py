"""An adapter that changes nothing is told when it comes into a bundle, and linked all the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.adapters.reference import AdapterReference
from lora_core.events import Warned


def zeroed(directory, word):
    """Set every tensor whose name has `word` to zero."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: np.zeros_like(each) if word in name else each for name, each in tensors.items()}, path)
    return directory


def told(heard):
    return [event.message for event in heard if isinstance(event, Warned)]


@pytest.mark.parametrize("word", ["lora_B", "lora_A", "lora"])
def test_an_adapter_of_zeros_is_told_by_export_and_add(export, make_adapter, hub, tmp_path, word):
    empty = zeroed(make_adapter("empty"), word)
    heard, more = [], []
    export("b", {"empty": empty, "good": make_adapter("good")}, emit=heard.append)
    bundle = lora_core.add(tmp_path / "b", {"again": empty}, hub=hub, emit=more.append)
    assert {each.name for each in bundle.manifest.adapters} == {"again", "empty", "good"}
    assert "Adapter 'empty' changes nothing: each of its updates has a factor that is zero" in told(heard)[0]
    assert "Adapter 'again' changes nothing" in told(more)[0]
    assert len(told(heard)) == len(told(more)) == 1


def test_one_matrix_that_is_not_zero_is_enough(export, make_adapter):
    directory = zeroed(make_adapter("a"), "lora_B")
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    last = max(name for name in tensors if "lora_B" in name)
    save_file(tensors | {last: tensors[last] + 1}, path)
    heard = []
    export("b", {"a": directory}, emit=heard.append)
    assert told(heard) == []


def test_a_strength_of_zero_is_told_as_one(export, make_adapter):
    heard = []
    export("b", [AdapterReference(name="a", directory=make_adapter("a"), strength=0.0)], emit=heard.append)
    assert "its strength or its alpha is 0" in told(heard)[0]


def test_an_alpha_of_zero_is_told_as_one(export, make_adapter):
    directory = make_adapter("a")
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    heard = []
    export("b", {"a": directory}, emit=heard.append)
    assert "its strength or its alpha is 0" in told(heard)[0]
