"""Checks of stored files that no honest export can show."""

from __future__ import annotations

import attrs
import pytest

from lora_core.bundle.bundle import Bundle, Manifest, Method
from lora_core.layers import ModelSummary
from lora_core.outcome import Outcome
from lora_core.sharing.blobs import Blob
from lora_core.verification import files

METHODS = frozenset({"forward", "a"})
PARTS = ()


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    manifest = Manifest(
        backend="any",
        base=ModelSummary(name="tiny", family="module", layers=(), module_names=()),
        policy={},
        foundation="f" * 64,
        plans=(),
        options={},
        versions={},
        artifacts=(),
        adapters=(),
        methods=(Method(name="forward", program="p"), Method(name="a", program="p", adapter="a")),
    )
    return Bundle(path=tmp_path, manifest=manifest)


def blob(sha: str, methods: frozenset[str], offset: int = 0) -> Blob:
    return Blob(key=f"{sha}{offset}", file="f", offset=offset, size=100, sha256=sha, methods=methods)


def test_a_base_that_all_methods_read_once_is_shared(bundle):
    finding = files.sharing(bundle, [blob("w", METHODS), blob("l", frozenset({"a"}), 100)], PARTS)
    assert finding.outcome is Outcome.PASSED
    assert finding.detail == "100 of 200 bytes are shared"


def test_base_bytes_stored_twice_are_found(bundle):
    finding = files.sharing(bundle, [blob("w", METHODS), blob("w", METHODS, 100)], PARTS)
    assert finding.outcome is Outcome.FAILED
    assert "100 bytes of the base are stored 2 times: f at 0, f at 100" in finding.detail


def test_an_adapter_with_a_base_of_its_own_is_found(bundle):
    finding = files.sharing(bundle, [blob("w", frozenset({"forward"})), blob("w", frozenset({"a"}), 100)], PARTS)
    assert finding.outcome is Outcome.FAILED
    assert "stored 2 times" in finding.detail
    assert "method 'a' reads nothing of what the base reads" in finding.detail


def test_another_fingerprint_is_found(bundle):
    assert files.foundation(bundle, "f" * 64).outcome is Outcome.PASSED
    assert files.foundation(bundle, "0" * 64).outcome is Outcome.FAILED


def test_a_model_of_another_vocabulary_is_found(bundle):
    model = attrs.evolve(bundle.manifest.base, vocab_size=7)
    assert files.same_model(bundle, bundle.manifest.base).outcome is Outcome.PASSED
    assert "vocabulary" in files.same_model(bundle, model).detail
