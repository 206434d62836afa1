"""Classifiers of texts with LoRA and a trained head, as bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from lora_core_transformers.source import TransformersSource

import lora_core
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import place_alone
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError
from lora_core.hub import PluginHub
from lora_core.models.base import ModelOptions
from lora_core.models.injection import inject
from tests.numeric import apart, decoder_tolerance

SIZES: Mapping[str, Mapping[str, Any]] = {
    "BertForSequenceClassification": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
    "DistilBertForSequenceClassification": {"dim": 32, "hidden_dim": 48, "n_heads": 4},
}
LAYERS = {"BertForSequenceClassification": "num_hidden_layers", "DistilBertForSequenceClassification": "n_layers"}
TEXTS = (list(b"Hello"), list(b"a longer text of bytes"), [7])
LIMIT = decoder_tolerance(layers=2, hidden=32, inner=48, context=32, rank=3)


@attrs.frozen(kw_only=True)
class Labelled:
    """A classifier, an adapter of it that was exported with it, and one that was linked."""

    base: Path
    adapters: Mapping[str, Path]
    bundle: Bundle


def written(directory: Path, name: str, *, layers: int) -> Path:
    """Write a classifier of class `name`."""
    sizes = {**SIZES[name], LAYERS[name]: layers, "vocab_size": tiny_models.VOCABULARY, "num_labels": 3}
    return tiny_models.write_classifier(directory, name, max_position_embeddings=32, **sizes)


def theirs(base: Path, adapter: Path | None) -> torch.Tensor:
    """Return the logits of transformers, and peft if there is an adapter, for `TEXTS`."""
    import peft

    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return torch.stack([model.eval()(input_ids=torch.tensor([text])).logits[0] for text in TEXTS])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, hub: PluginHub) -> Labelled:
    work = tmp_path_factory.mktemp("bert")
    base = written(work / "model", "BertForSequenceClassification", layers=1)
    adapters = {
        name: tiny_models.write_adapter(work / name, base, seed=seed, task_type="SEQ_CLS")
        for seed, name in enumerate(("one", "two"))
    }
    lora_core.export(base, adapters={"one": adapters["one"]}, backend="xnnpack", out=work / "bundle", hub=hub)
    bundle = lora_core.add(work / "bundle", {"two": adapters["two"]}, model=base, hub=hub)
    return Labelled(base=base, adapters=adapters, bundle=bundle)


# `all-linear` is not for DistilBERT: peft then wants to save what it has put LoRA on.
@pytest.mark.parametrize(("name", "targets"), [*zip(SIZES, ("all-linear", ["q_lin", "lin1"]), strict=True)])
def test_a_head_that_an_adapter_trained_is_part_of_it(tmp_path: Path, name: str, targets: Any) -> None:
    base = written(tmp_path / "model", name, layers=2)
    told = {"task_type": "SEQ_CLS", "target_modules": targets}
    directory = tiny_models.write_adapter(tmp_path / "adapter", base, seed=1, **told)
    model = TransformersSource().open(str(base))
    adapter = PeftFormat(model.tensors).read("one", directory, model.summary)
    assert {update.kind for update in adapter.updates if update.module == "classifier"} == {"dense", "shift"}
    (placed,) = place_alone([adapter], model.summary.layers)
    loaded = model.load(ModelOptions(max_seq_len=32))
    inject(loaded.module, placed.plan, loaded.paths, placed.values_by_module())
    with torch.no_grad():
        ours = torch.stack([loaded.module(torch.tensor([text]))[0] for text in TEXTS])
    assert apart(ours, theirs(base, directory)) < LIMIT


def test_a_head_that_the_base_lacks_is_refused_by_name(tmp_path: Path) -> None:
    base = tiny_models.write_decoder(tmp_path / "model", "gpt2")
    classifier = written(tmp_path / "classifier", "BertForSequenceClassification", layers=1)
    directory = tiny_models.write_adapter(tmp_path / "adapter", classifier, seed=1, task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match=r"task_type='SEQ_CLS', which puts a head of its own on the base"):
        PeftFormat().read("one", directory, TransformersSource().open(str(base)).summary)


@pytest.mark.parametrize("adapter", [None, "one", "two"])
def test_labels_are_those_of_transformers_and_peft(labelled: Labelled, adapter: str | None, hub: PluginHub) -> None:
    with lora_core.open(labelled.bundle, hub=hub) as session:
        ours = [session.call(adapter, [np.array([text])])[0].reshape(-1) for text in TEXTS]
    expected = theirs(labelled.base, None if adapter is None else labelled.adapters[adapter])
    assert apart(torch.tensor(np.stack(ours)), expected) < LIMIT


def test_what_is_linked_has_the_bytes_of_a_full_export(labelled: Labelled, tmp_path: Path, hub: PluginHub) -> None:
    whole = lora_core.export(
        labelled.base, adapters=labelled.adapters, backend="xnnpack", out=tmp_path / "whole", hub=hub
    )
    files = {each.path for each in whole.manifest.artifacts}
    assert files == {each.path for each in labelled.bundle.manifest.artifacts}
    other = [name for name in files if (whole.path / name).read_bytes() != (labelled.bundle.path / name).read_bytes()]
    assert other == []


def test_verify_passes_on_calls_of_its_own(labelled: Labelled, hub: PluginHub) -> None:
    report = lora_core.verify(labelled.bundle, labelled.base, adapters=labelled.adapters, hub=hub)
    assert list(report.failures) == []
    assert [each.method for each in report.methods if each.numbers is None] == []


def test_the_base_is_stored_once(labelled: Labelled, hub: PluginHub) -> None:
    report = lora_core.inspect(labelled.bundle, hub=hub)
    assert report.passed
    assert report.sharing.duplicates == ()


def test_an_adapter_with_a_head_is_linked_against_the_base_alone(labelled: Labelled, hub: PluginHub) -> None:
    with pytest.raises(AdapterError, match=r"told as what they add to the base's.*add --model DIR"):
        lora_core.add(labelled.bundle, {"three": labelled.adapters["two"]}, hub=hub)
