"""A reference that does not load an adapter is no reference for it, and says so."""

from __future__ import annotations

import attrs
import numpy as np
from safetensors.numpy import load_file, save_file

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.bundle import Bundle, Manifest, Method
from lora_core.layers import ModelSummary
from lora_core.limits import FLOAT32
from lora_core.models.reference_model import ReferenceModel
from lora_core.models.transformers_reference import open_reference
from lora_core.runtime.session import Loaded, Session
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from lora_core.verification.measuring import Bench


def test_peft_that_loads_nothing_of_an_adapter_is_noticed(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model")
    good = write_tiny_adapter(tmp_path / "good", seed=1)
    strange = write_tiny_adapter(tmp_path / "strange", seed=2)
    weights = strange / "adapter_model.safetensors"
    renamed = {name.replace(".weight", ".old.weight"): tensor for name, tensor in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    references = [
        AdapterReference(name="good", directory=good),
        AdapterReference(name="strange", directory=strange),
        AdapterReference.from_text("both=good:1+strange:1"),
    ]
    reference = open_reference(model, references)
    assert reference.unloaded("good") == ()
    assert "peft has not loaded 8 of 8 tensors" in reference.unloaded("strange")[0]
    assert reference.unloaded("both") == reference.unloaded("strange")


class Constant(Session):
    """A session whose logits say nothing but which adapter it is."""

    def __init__(self, bundle):
        self._bundle = bundle

    @property
    def bundle(self):
        return self._bundle

    @property
    def facts(self):
        return {"context_len": 32}

    def load(self, adapter):
        return Loaded.measured(adapter, 0.0)

    def reset(self):
        pass

    def step(self, adapter, tokens, position):
        return np.arange(8, dtype=np.float32) * (1 if adapter is None else 2)

    def close(self):
        pass


class Lacking(ReferenceModel):
    """A reference without the adapter."""

    name = "lacking"

    def logits(self, adapter, tokens):
        return np.tile(np.arange(8, dtype=np.float32), (len(tokens), 1))

    def unloaded(self, adapter):
        return (f"{adapter} is not here",)


def test_numbers_are_not_compared_with_a_reference_that_lacks_the_adapter(tmp_path):
    methods = (Method(name="forward", program="p"), Method(name="a", program="p", adapter="a"))
    manifest = Manifest(
        backend="none",
        base=ModelSummary(name="m", family="module", layers=(), module_names=(), vocab_size=8),
        policy={},
        foundation="",
        plans=(),
        options={},
        versions={},
        artifacts=(),
        adapters=(),
        methods=methods,
    )
    bench = Bench(
        session=Constant(Bundle(path=tmp_path, manifest=manifest)),
        reference=Lacking(),
        prompts=[(1, 2)],
        tokens=2,
        limits=attrs.evolve(FLOAT32),
        adapters={"a": Adapter(name="a", updates=(), digest="", source="")},
        emit=lambda event: None,
    )
    measured = bench.measure()
    checks = {each.check: each for each in measured.findings if each.subject == "a"}
    assert checks["reference"].failed
    assert checks["reference"].detail == "a is not here"
    assert "logits" not in checks
    assert {each.method: each.numbers is None for each in measured.methods} == {"forward": False, "a": True}
