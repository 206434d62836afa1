"""Which source opens a model: those that know its files, then generic ones, or the one that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lora_core.errors import ModelError, UncoveredModelError, UsageError
from lora_core.hub import PluginHub
from lora_core.pipeline.given import open_model

MakeHub = Callable[[Mapping[str, str]], PluginHub]

GENERIC = """
from lora_core.errors import ModelError
from lora_core.hookspecs import hookimpl
from lora_core.layers import ModelSummary
from lora_core.models.base import ModelHandle, ModelSource
from lora_core.specs import ModelSourceSpec

class Handle(ModelHandle):
    summary = ModelSummary(name="any", family="any", layers=(), module_names=())
    tokenizer = None
    def tensors(self): return {}
    def load(self, options): raise NotImplementedError

class Source(ModelSource):
    def sniff(self, ref): return True
    def open(self, ref, *, download=False):
        if "refused" in ref:
            raise ModelError("This definition cannot be exported.")
        return Handle()

@hookimpl
def lora_core_register_model_sources():
    return [ModelSourceSpec(name="any", summary="anything", target="made_any:Source", generic=True)]
"""


def uncovered(directory: Path) -> str:
    """Write a checkpoint of a model type that no family has, and return its path."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "unheard_of"}), "utf-8")
    (directory / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return str(directory)


def test_a_generic_source_opens_what_no_family_covers(hub_of: MakeHub, tmp_path: Path) -> None:
    model = open_model(uncovered(tmp_path / "model"), hub_of({"any": GENERIC}), download=False)
    assert model.summary.name == "any"


def test_a_generic_source_is_not_asked_about_a_checkpoint_that_is_merely_wrong(hub_of: MakeHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[", "utf-8")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        open_model(str(tmp_path), hub_of({"any": GENERIC}), download=False)


def test_what_both_refuse_is_refused_with_both_reasons(hub_of: MakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        open_model(uncovered(tmp_path / "refused"), hub_of({"any": GENERIC}), download=False)
    said = [problem.what for problem in raised.value.problems]
    assert said[0].startswith("Model type 'unheard_of' is not supported")
    assert said[-1] == "This definition cannot be exported."


def test_without_a_generic_source_the_refusal_names_one(hub_of: MakeHub, tmp_path: Path) -> None:
    with pytest.raises(UncoveredModelError, match=r"pip install lora-core-transformers"):
        open_model(uncovered(tmp_path / "model"), hub_of({}), download=False)


def test_a_source_that_is_asked_for_opens_what_others_know(hub_of: MakeHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[", "utf-8")
    model = open_model(str(tmp_path), hub_of({"any": GENERIC}), download=False, source="any")
    assert model.summary.name == "any"


def test_a_source_that_there_is_not_is_refused_with_the_choices(hub_of: MakeHub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="huggingface"):
        open_model(str(tmp_path), hub_of({}), download=False, source="hugingface")
