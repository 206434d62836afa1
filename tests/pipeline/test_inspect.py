"""Inspect tells what a bundle holds and proves what is shared."""

from __future__ import annotations

import json

import attrs
import pytest

import lora_core
from lora_core.bundle.manifest import dumps


@pytest.fixture
def bundle(export, make_adapter):
    return export("b", {"a": make_adapter("a", rank=4), "b": make_adapter("b", rank=2)})


def test_the_base_is_shared_and_each_adapter_is_its_own(bundle, hub, fake):
    report = lora_core.inspect(bundle.path, hub=hub)
    assert report.passed
    base = len(fake.MODULES) * fake.WIDTH**2 * 4
    lora = 4 * 4 * 2 * fake.WIDTH * 4  # four slots at rank 4, A and B
    assert report.sharing.shared == base
    assert report.sharing.unique["forward"] == 0
    assert report.sharing.unique["a"] == report.sharing.unique["b"] == lora
    assert report.sharing.separate == {"forward": base, "a": base + lora, "b": base + lora}
    assert report.sharing.total == base + 2 * lora


def test_the_report_is_plain_json_with_the_tables(bundle, hub):
    report = lora_core.inspect(bundle.path, hub=hub)
    told = json.loads(json.dumps(report.to_json()))
    assert told["backend"] == "fake"
    assert {row["name"] for row in told["adapters"]} == {"a", "b"}
    assert {row["name"] for row in told["methods"]} == {"forward", "a", "b"}
    assert told["bytes"] == sum(row["size"] for row in told["files"])
    assert told["plans"] == [{"slots": 4, "max_rank": 4, "adapter_bytes": 1024}]
    assert told["problems"] == []
    assert told["sharing"]["groups"][0]["name"] == "base"


def test_a_flipped_bit_is_a_problem(bundle, hub):
    file = bundle.path / "a.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    report = lora_core.inspect(bundle.path, hub=hub)
    assert [problem.where for problem in report.problems] == [str(file)]


def test_a_swapped_foundation_is_a_problem(bundle, export, hub, fake):
    other = export("other", model=fake.FakeModel(seed=2))
    (bundle.path / "foundation.safetensors").write_bytes((other.path / "foundation.safetensors").read_bytes())
    told = [problem.what for problem in lora_core.inspect(bundle.path, hub=hub).problems]
    assert any("SHA-256" in what for what in told)
    assert any("fingerprint" in what for what in told)


def test_an_adapter_of_another_foundation_is_a_problem(bundle, hub):
    foreign = attrs.evolve(bundle.manifest.adapters[0], foundation="0" * 64)
    manifest = attrs.evolve(bundle.manifest, adapters=(foreign, *bundle.manifest.adapters[1:]))
    (bundle.path / "manifest.json").write_bytes(dumps(manifest))
    told = [problem.what for problem in lora_core.inspect(bundle.path, hub=hub).problems]
    assert len(told) == 1
    assert "linked against foundation 000" in told[0]


def test_sizes_of_all_adapters_are_one_look_at_the_files(bundle, hub):
    class Looked(tuple):
        times = 0

        def __iter__(self):
            Looked.times += 1
            return super().__iter__()

    report = lora_core.inspect(bundle.path, hub=hub)
    manifest = attrs.evolve(report.bundle.manifest, artifacts=Looked(report.bundle.manifest.artifacts))
    report = attrs.evolve(report, bundle=attrs.evolve(report.bundle, manifest=manifest))
    sizes = [report.adapter_size(name) for name in ("a", "b", "a", "b")]
    assert sizes[:2] == sizes[2:]
    assert min(sizes) > 0
    assert Looked.times == 1
