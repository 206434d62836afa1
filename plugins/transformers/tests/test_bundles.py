"""Decoders that no family covers, as bundles: exported, linked, run, verified, inspected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import attrs
import pytest
import tiny_models

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.events import Event, Noted
from lora_core.hub import PluginHub

OPTIONS = {"max_context_len": 32}


@attrs.frozen(kw_only=True)
class Exported:
    """A base, two adapters for it, and a bundle that was exported with `one` and got `two` by a link."""

    base: Path
    adapters: Mapping[str, Path]
    bundle: Bundle
    told: tuple[Event, ...]


# Lowering is the time that these tests take, so the second model has one layer.
CHANGES: Mapping[str, Mapping[str, int]] = {"gpt_neox": {}, "gpt2": {"n_layer": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, hub: PluginHub) -> Callable[[str], Exported]:
    """Return a function that exports a model when it is first asked for."""

    @cache
    def export(model_type: str) -> Exported:
        work = tmp_path_factory.mktemp(model_type)
        base = tiny_models.write_decoder(work / "model", model_type, **CHANGES[model_type])
        adapters = {
            "one": tiny_models.write_adapter(work / "one", base, seed=1, r=3),
            "two": tiny_models.write_adapter(work / "two", base, seed=2, r=2, use_rslora=True),
        }
        told: list[Event] = []
        lora_core.export(
            base,
            adapters={"one": adapters["one"]},
            backend="xnnpack",
            out=work / "bundle",
            options=OPTIONS,
            emit=told.append,
            hub=hub,
        )
        bundle = lora_core.add(work / "bundle", {"two": adapters["two"]}, hub=hub)
        return Exported(base=base, adapters=adapters, bundle=bundle, told=tuple(told))

    return export


@pytest.fixture(params=list(CHANGES))
def exported(request: pytest.FixtureRequest, made: Callable[[str], Exported]) -> Exported:
    return made(request.param)


def test_the_export_says_that_no_family_covers_it(exported: Exported) -> None:
    notes = [event.message for event in exported.told if isinstance(event, Noted)]
    assert any("is exported as transformers" in note and "llama::custom_sdpa" in note for note in notes)


def test_what_is_linked_has_the_bytes_of_a_full_export(
    made: Callable[[str], Exported], tmp_path: Path, hub: PluginHub
) -> None:
    exported = made("gpt2")
    whole = lora_core.export(
        exported.base, adapters=exported.adapters, backend="xnnpack", out=tmp_path / "whole", options=OPTIONS, hub=hub
    )
    files = {each.path for each in whole.manifest.artifacts}
    assert files == {each.path for each in exported.bundle.manifest.artifacts}
    other = [name for name in files if (whole.path / name).read_bytes() != (exported.bundle.path / name).read_bytes()]
    assert other == []


def test_verify_passes_against_transformers_and_peft(exported: Exported, hub: PluginHub) -> None:
    report = lora_core.verify(exported.bundle, exported.base, adapters=exported.adapters, tokens=8, hub=hub)
    assert report.reference.startswith("transformers ")
    assert (list(report.failures), list(report.unchecked)) == ([], [])
    assert {each.method for each in report.methods if each.numbers is not None and each.numbers.greedy == 1} == {
        "forward",
        "one",
        "two",
    }


def test_the_base_is_stored_once(exported: Exported, hub: PluginHub) -> None:
    report = lora_core.inspect(exported.bundle, hub=hub)
    assert report.passed
    assert report.sharing.duplicates == ()
    weights = sum(each.stat().st_size for each in exported.base.glob("*.safetensors"))
    assert report.sharing.shared > 0.9 * weights


def test_run_generates_the_tokens_of_transformers_and_peft(exported: Exported, hub: PluginHub) -> None:
    import peft
    import torch
    import transformers

    prompt = list(b"Hello")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported.base)
    tuned = peft.PeftModel.from_pretrained(model, exported.adapters["two"]).eval()
    theirs = tuned.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    with lora_core.open(exported.bundle, hub=hub) as session:
        tokens = list(prompt)
        logits = session.step("two", tokens, 0)
        for _ in range(8):
            tokens.append(int(logits.argmax()))
            logits = session.step("two", tokens[-1:], len(tokens) - 1)
    assert tokens == theirs[0].tolist()


def test_the_context_that_was_asked_for_is_that_of_the_program(exported: Exported, hub: PluginHub) -> None:
    with lora_core.open(exported.bundle, hub=hub) as session:
        session.load(None)
        assert session.facts["context_len"] == OPTIONS["max_context_len"]


@pytest.mark.deep
@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2", "opt"])
def test_a_quantized_bundle_links_and_verifies(tmp_path: Path, hub: PluginHub, model_type: str) -> None:
    base = tiny_models.write_decoder(tmp_path / "model", model_type)
    adapters = {name: tiny_models.write_adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate("ab", 1)}

    def exported(out: str, names: str) -> Bundle:
        return lora_core.export(
            base,
            adapters={name: adapters[name] for name in names},
            backend="xnnpack",
            out=tmp_path / out,
            policy="8da4w",
            options=OPTIONS,
            hub=hub,
        )

    whole = exported("whole", "ab")
    linked = lora_core.add(exported("linked", "a"), {"b": adapters["b"]}, hub=hub)
    files = [each.path for each in whole.manifest.artifacts]
    assert [name for name in files if (whole.path / name).read_bytes() != (linked.path / name).read_bytes()] == []
    report = lora_core.verify(whole, base, adapters=adapters, tokens=8, hub=hub)
    assert report.passed, report
