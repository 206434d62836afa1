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

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError
from lora_core.hub import PluginHub
from tests.numeric import apart, decoder_tolerance

SIZES: Mapping[str, Mapping[str, Any]] = {
    "BertForSequenceClassification": {
        "vocab_size": tiny_models.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "num_labels": 3,
    },
    "DistilBertForSequenceClassification": {
        "vocab_size": tiny_models.VOCABULARY,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 32,
        "num_labels": 3,
    },
}
TEXTS = (list(b"Hello"), list(b"a longer text of bytes"), [7])
LIMIT = decoder_tolerance(layers=2, hidden=32, inner=48, context=32, rank=3)


@attrs.frozen(kw_only=True)
class Labelled:
    """A classifier, an adapter of it that was exported with it, and one that was linked."""

    base: Path
    adapters: Mapping[str, Path]
    bundle: Bundle


@pytest.fixture(scope="module", params=SIZES)
def labelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub: PluginHub) -> Labelled:
    work = tmp_path_factory.mktemp(request.param)
    base = tiny_models.write_classifier(work / "model", request.param, **SIZES[request.param])
    adapters = {
        name: tiny_models.write_adapter(work / name, base, seed=seed, task_type="SEQ_CLS")
        for seed, name in enumerate(("one", "two"))
    }
    lora_core.export(base, adapters={"one": adapters["one"]}, backend="xnnpack", out=work / "bundle", hub=hub)
    bundle = lora_core.add(work / "bundle", {"two": adapters["two"]}, model=base, hub=hub)
    return Labelled(base=base, adapters=adapters, bundle=bundle)


@pytest.mark.parametrize("adapter", [None, "one", "two"])
def test_labels_are_those_of_transformers_and_peft(labelled: Labelled, adapter: str | None, hub: PluginHub) -> None:
    import peft

    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(labelled.base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, labelled.adapters[adapter])
    with torch.no_grad():
        theirs = [model.eval()(input_ids=torch.tensor([text])).logits[0] for text in TEXTS]
    with lora_core.open(labelled.bundle, hub=hub) as session:
        ours = [session.call(adapter, [np.array([text])])[0].reshape(-1) for text in TEXTS]
    assert apart(torch.tensor(np.stack(ours)), torch.stack(theirs)) < LIMIT


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
