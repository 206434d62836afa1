"""Bases, adapters and KV caches in fewer bytes on XNNPACK: what they store, and the numbers that come of it."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.limits import FLOAT16, INT8
from lora_core.verification.verify_report import VerifyReport
from tests.verification.breaking import Sources
from tests.verification.conftest import OPTIONS


def export(sources: Sources, out: Path, cache: Path, kind: str, adapters: Mapping[str, Path], **rest: Any) -> Bundle:
    return lora_core.export(
        sources.model,
        adapters=adapters,
        backend="xnnpack",
        out=out / "bundle",
        options={**OPTIONS, "kv_cache": kind},
        max_rank=8,
        cache=cache,
        **rest,
    )


@pytest.fixture(scope="module")
def halved(sources: Sources, tmp_path_factory: pytest.TempPathFactory, lowered_once: Path) -> Bundle:
    """Everything in float16: the base, its adapters, keys and values."""
    out = tmp_path_factory.mktemp("half")
    return export(sources, out, lowered_once, "fp16", sources.adapters, policy="fp16", adapter_dtype="fp16")


@pytest.fixture(scope="module")
def cached(sources: Sources, tmp_path_factory: pytest.TempPathFactory, lowered_once: Path) -> Bundle:
    """A base in float32 with keys and values in int8."""
    return export(sources, tmp_path_factory.mktemp("int8-cache"), lowered_once, "int8", {}, policy="fp32")


def verified(sources: Sources, bundle: Bundle) -> VerifyReport:
    adapters = sources.adapters if bundle.manifest.adapters else {}
    return lora_core.verify(bundle, sources.model, adapters=adapters, tokens=4)


def size(bundle: Bundle, path: str) -> int:
    return (bundle.path / path).stat().st_size


def arena(bundle: Bundle) -> int:
    """Return the bytes that the base's program plans: its activations and its KV cache."""
    planned: int = bundle.manifest.detail["planned_memory"]["base"]["forward"]
    return planned


def test_a_bundle_in_float16_keeps_to_the_limits_of_float16(sources: Sources, halved: Bundle) -> None:
    report = verified(sources, halved)

    assert report.passed, report.failures
    assert report.facts["kv_cache_type"] == "fp16"
    assert report.limits.kl == FLOAT16.kl
    assert {each.method for each in report.methods if each.effect} == set(sources.adapters)
    (base, *adapters) = [each.detail for each in report.findings if each.check == "precision"]
    assert base.startswith("0 of ")
    assert base.endswith("in float16")
    assert all(each.endswith("in float16") for each in adapters)


def test_float16_halves_base_and_adapters(halved: Bundle, float32: Bundle) -> None:
    tables = 2 * 4 * 32 * 16  # rotary tables, which stay float32
    stored = size(halved, "foundation.ptd") - tables
    assert stored < 0.6 * (size(float32, "foundation.ptd") - tables)
    assert size(halved, "alice.ptd") < 0.6 * size(float32, "alice.ptd")


def test_add_writes_what_the_export_wrote_in_float16(
    sources: Sources, halved: Bundle, copy: Callable[[Bundle], Bundle]
) -> None:
    emptied = lora_core.remove(copy(halved).path, list(sources.adapters))

    linked = lora_core.add(emptied, sources.adapters)

    names = sorted(each.path for each in halved.manifest.artifacts)
    assert not filecmp.cmpfiles(halved.path, linked.path, names, shallow=False)[1]


def test_keys_and_values_in_int8_keep_to_the_limits_of_8_bits(sources: Sources, cached: Bundle) -> None:
    report = verified(sources, cached)

    assert report.passed, report.failures
    assert report.limits.kl == INT8.kl
    assert all(each.numbers and each.numbers.kl > 0 for each in report.methods)


def test_a_cache_of_fewer_bytes_is_planned_in_fewer(halved: Bundle, cached: Bundle, float32: Bundle) -> None:
    layers, positions, heads, width = 2, OPTIONS["max_context_len"], 2, 16
    tensors = 2 * layers * positions * heads
    saved = arena(float32) - arena(cached)
    assert saved >= 0.8 * tensors * (4 * width - (width + 5))
    assert arena(float32) - arena(halved) >= 0.8 * tensors * 2 * width
