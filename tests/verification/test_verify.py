"""Verify holds for what was exported honestly, and names what is wrong with what was not."""

from __future__ import annotations

import json

import pytest

import lora_core
from lora_core.adapters.reference import parse_references
from lora_core.errors import UsageError
from lora_core.outcome import Outcome
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint
from tests.verification.breaking import (
    detail,
    failed,
    flip_bit,
    mutant,
    rehash,
    replace_adapter,
    swap_layers,
    swap_weights,
    verify,
    write_manifest,
    zeros,
)


def test_an_honest_bundle_holds_against_transformers_and_peft(float32, sources):
    report = verify(float32, sources)
    assert report.passed, report.failures
    assert not report.unchecked
    assert report.reference.startswith("transformers ")
    assert "peft" in report.reference
    assert {each.method for each in report.methods if each.numbers} == {"forward", "alice", "bob"}
    assert {each.check for each in report.findings} >= {"hashes", "foundation", "model", "sharing", "digest"}
    assert {each.check for each in report.findings} >= {"precision", "runs", "logits", "effect", "kv-cache"}
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_an_honest_bundle_holds_against_the_eager_module(float32, sources):
    report = verify(float32, sources, reference="eager")
    assert report.passed, report.failures
    assert "eager" in report.reference


def test_an_honest_quantized_bundle_holds(int8, sources):
    report = verify(int8, sources)
    assert report.passed, report.failures
    assert "8-bit" in report.limits.reason


def test_composites_and_strengths_are_compared_as_they_were_given(float32, sources, copy):
    texts = ["mix=alice:0.7+bob:-0.4", "half=" + str(sources.adapters["alice"]) + "@0.5"]
    given = parse_references([f"{name}={path}" for name, path in sources.adapters.items()] + texts)
    bundle = lora_core.remove(copy(float32).path, ["alice", "bob"])
    bundle = lora_core.add(bundle, given)
    report = verify(bundle, sources, adapters=given)
    assert report.passed, report.failures
    assert report.reference.startswith("transformers ")


@pytest.mark.parametrize(
    "config",
    [{"lora_alpha": 16.0}, {"use_rslora": True}, {"alpha_pattern": {"layers.1.self_attn.q_proj": 64.0}}],
    ids=["alpha", "rslora", "pattern"],
)
def test_a_wrong_scale_is_found(float32, sources, copy, tmp_path, config):
    wrong = mutant(sources.adapters["alice"], tmp_path / "wrong", config=config)
    report = verify(replace_adapter(copy(float32), "alice", wrong), sources)
    assert failed(report) == {("effect", "alice"), ("logits", "alice"), ("precision", "alice")}
    assert "scaling" in detail(report, "effect", "alice")
    assert "B of model.layers." in detail(report, "precision", "alice")


def test_a_wrong_scale_is_found_beneath_quantization(int8, sources, copy, tmp_path):
    wrong = mutant(sources.adapters["alice"], tmp_path / "wrong", config={"lora_alpha": 12.0})
    report = verify(replace_adapter(copy(int8), "alice", wrong), sources)
    assert ("effect", "alice") in failed(report)
    assert not {subject for _, subject in failed(report)} - {"alice"}


def test_matrices_of_the_wrong_layer_are_found(float32, sources, copy, tmp_path):
    wrong = mutant(sources.adapters["alice"], tmp_path / "wrong", tensors=swap_layers)
    report = verify(replace_adapter(copy(float32), "alice", wrong), sources)
    # All bytes are there, so only the numbers can tell.
    assert failed(report) == {("effect", "alice"), ("logits", "alice")}
    assert "on other layers" in detail(report, "effect", "alice")


def test_an_adapter_that_does_nothing_is_found(float32, sources, copy, tmp_path):
    nothing = mutant(sources.adapters["alice"], tmp_path / "nothing", tensors=zeros)
    bundle = replace_adapter(copy(float32), "alice", nothing)
    report = verify(bundle, sources)
    assert failed(report) == {("effect", "alice"), ("logits", "alice"), ("precision", "alice")}
    assert "changes nothing" in detail(report, "effect", "alice")
    blind = verify(bundle, sources, adapters={"bob": sources.adapters["bob"]})
    assert failed(blind) == {("effect", "alice")}


def test_an_adapter_whose_weights_are_zero_may_do_nothing(float32, sources, copy, tmp_path):
    nothing = mutant(sources.adapters["alice"], tmp_path / "nothing", tensors=zeros)
    bundle = lora_core.add(copy(float32).path, {"nothing": nothing})
    report = verify(bundle, sources, adapters={**sources.adapters, "nothing": nothing})
    assert report.passed, report.failures
    assert "weights are zero" in detail(report, "effect", "nothing")


def test_the_foundation_of_another_model_is_found_by_its_hash_and_not_run(float32, sources, copy, tmp_path):
    bundle = copy(float32)
    assert swap_weights(bundle, sources.model, write_tiny_checkpoint(tmp_path / "other", seed=1)) > 10
    report = verify(bundle, sources)
    assert failed(report) == {("hashes", "bundle"), ("foundation", "bundle")}
    assert {each.subject for each in report.unchecked if each.check == "runs"} == {"forward", "alice", "bob"}
    assert not report.ran


def test_the_foundation_of_another_model_is_found_by_its_numbers(float32, sources, copy, tmp_path):
    bundle = copy(float32)
    assert swap_weights(bundle, sources.model, write_tiny_checkpoint(tmp_path / "other", seed=1)) > 10
    report = verify(rehash(bundle), sources)
    found = failed(report)
    assert {("logits", "forward"), ("logits", "alice"), ("logits", "bob"), ("precision", "bundle")} <= found
    assert not {check for check, _ in found} & {"hashes", "foundation", "digest", "sharing", "kv-cache"}


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("foundation.ptd", {("foundation", "bundle")}),
        ("alice.ptd", set()),
        ("alice.pte", {("sharing", "bundle")}),  # which ends with the name of its adapter
    ],
)
def test_a_flipped_bit_is_found_and_not_run(float32, sources, copy, file, more):
    bundle = copy(float32)
    flip_bit(bundle.path / file)
    report = verify(bundle, sources)
    assert failed(report) == {("hashes", "bundle"), *more}
    assert file in detail(report, "hashes", "bundle")
    assert not report.ran


def test_a_cache_that_lets_anyone_go_on_is_found(float32, sources, monkeypatch):
    monkeypatch.setattr("lora_core_xnnpack.session.KvCache.check", lambda *arguments: None)
    report = verify(float32, sources)
    assert failed(report) == {("kv-cache", "bundle")}
    assert "still attends to an earlier text after a reset" in detail(report, "kv-cache", "bundle")


def test_a_cache_that_is_not_started_anew_is_found(float32, sources, monkeypatch):
    from lora_core_xnnpack.runtime.shelf import LoadedMethod

    step = LoadedMethod.__call__
    used = set()

    def keeps_the_first_entry(self, tokens, position):
        shift = 1 if id(self) in used else 0
        logits = step(self, tokens, position + shift)
        if len(tokens) == 1:
            used.add(id(self))
        return logits

    monkeypatch.setattr(LoadedMethod, "__call__", keeps_the_first_entry)
    report = verify(float32, sources)
    assert ("kv-cache", "bundle") in failed(report)
    assert "answers the same text differently" in detail(report, "kv-cache", "bundle")


def test_a_quantized_layer_that_should_not_be_is_found(int8, sources, copy):
    bundle = copy(int8)
    policy = {**bundle.manifest.policy, "linear": None}
    report = verify(write_manifest(bundle, policy=policy), sources)
    # The logits keep to the limits of 8 bits: only what is stored tells.
    assert failed(report) == {("precision", "bundle")}
    assert "q_proj is not stored in float32" in detail(report, "precision", "bundle")


def test_a_quantized_model_does_not_pass_as_full_precision(int8, sources, copy):
    policy = dict.fromkeys(("linear", "output", "embedding", "lora")) | {"name": "fp32", "summary": ""}
    report = verify(write_manifest(copy(int8), policy=policy), sources)
    assert {("logits", "forward"), ("precision", "bundle")} <= failed(report)


def test_a_layer_that_should_be_quantized_is_found(float32, sources, copy, int8):
    report = verify(write_manifest(copy(float32), policy=int8.manifest.policy), sources)
    assert failed(report) == {("precision", "bundle")}
    assert "quantizes it to 8 bits" in detail(report, "precision", "bundle")


def test_an_adapter_of_another_foundation_is_found(float32, sources, copy):
    import attrs

    bundle = copy(float32)
    adapters = tuple(attrs.evolve(each, foundation="0" * 64) for each in bundle.manifest.adapters)
    report = verify(write_manifest(bundle, adapters=adapters), sources)
    assert failed(report) == {("foundation", "bundle")}


def test_another_source_than_was_linked_is_found(float32, sources):
    swapped = {"alice": sources.adapters["bob"], "bob": sources.adapters["bob"]}
    report = verify(float32, sources, adapters=swapped)
    assert {("digest", "alice"), ("effect", "alice"), ("logits", "alice")} <= failed(report)
    assert {subject for _, subject in failed(report)} == {"alice"}


def test_another_model_is_found_and_nothing_is_run(float32, sources, tmp_path):
    config = {**TINY_LLAMA, "intermediate_size": 128}
    other = write_tiny_checkpoint(tmp_path / "other", config=config)
    report = lora_core.verify(float32.path, other)
    assert failed(report) == {("model", "bundle")}
    assert "mlp.gate_proj is another" in detail(report, "model", "bundle")
    assert not report.ran


def test_adapters_without_a_source_are_reported_as_unchecked(float32, sources):
    report = verify(float32, sources, adapters={"alice": sources.adapters["alice"]})
    assert report.passed
    assert {(each.check, each.subject) for each in report.unchecked} == {("digest", "bob"), ("logits", "bob")}


def test_an_adapter_that_the_bundle_does_not_have_is_refused(float32, sources, tmp_path):
    stranger = write_tiny_adapter(tmp_path / "stranger", seed=9)
    with pytest.raises(UsageError, match=r"no adapter 'alcie'\. Did you mean"):
        verify(float32, sources, adapters={"alcie": stranger})


def test_numbers_that_a_machine_cannot_have_are_unchecked(float32, sources, monkeypatch):
    from lora_core.errors import UnsupportedError

    def cannot(*arguments):
        raise UnsupportedError("no runtime here")

    monkeypatch.setattr("lora_core_xnnpack.backend.XnnpackBackend.open", cannot)
    report = verify(float32, sources)
    assert report.passed
    assert not report.ran
    assert {each.detail for each in report.findings if each.check == "runs"} == {"no runtime here."}
    assert all(each.outcome is Outcome.UNCHECKED for each in report.findings if each.check == "runs")


def test_a_prompt_needs_room_for_its_tokens(float32, sources):
    with pytest.raises(UsageError, match="leave no room"):
        verify(float32, sources, tokens=31)


def test_text_needs_a_tokenizer(float32, sources):
    with pytest.raises(UsageError, match="no tokenizer"):
        verify(float32, sources, prompts=["Hello"])
