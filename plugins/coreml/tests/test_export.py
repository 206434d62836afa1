"""A program with adapters: its methods, its size, and what making it takes."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.storage import mil, package, pte

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.events import StageAdvanced


def test_every_adapter_is_a_method_beside_forward(bundle: Bundle) -> None:
    program = pte.read(bundle.path / "model.pte").program
    names = {plan["name"] for plan in program["execution_plan"]}
    assert {"forward", "shout", "pirate", "adapters", "adapter_methods", "kv_cache_specs"} <= names
    assert not [name for name in names if "template" in name]


@pytest.fixture(scope="module")
def lowered_again(exporter, tmp_path_factory: pytest.TempPathFactory):
    """The exporter with a template cache of its own, and a bundle with the adapters of `bundle` that filled it."""
    apart = attrs.evolve(exporter, cache=tmp_path_factory.mktemp("cache"), made={})
    return apart, apart.export_again(["pirate", "shout"])


def lowerings(exporter, bundle: Bundle) -> list[tuple[int, int | None]]:
    events = exporter.events[bundle.path]
    return [(event.done, event.total) for event in events if isinstance(event, StageAdvanced)]


def test_base_and_plan_are_lowered_once_whatever_the_adapters(lowered_again) -> None:
    apart, first = lowered_again
    assert lowerings(apart, first) == [(1, 2), (2, 2)]
    assert lowerings(apart, apart.export_again(["shout"], plan_of=["shout", "pirate"])) == []


def test_two_exports_are_byte_identical(bundle: Bundle, lowered_again) -> None:
    _, again = lowered_again
    files = sorted(path.relative_to(bundle.path) for path in bundle.path.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    for path in files:
        assert (bundle.path / path).read_bytes() == (again.path / path).read_bytes(), path


def test_the_program_grows_by_an_adapters_bytes_and_a_function(exporter, bundle: Bundle) -> None:
    alone = exporter.export(["shout"], plan_of=["shout", "pirate"])
    grown = (bundle.path / "model.pte").stat().st_size - (alone.path / "model.pte").stat().st_size
    (plan,) = bundle.manifest.plans
    assert grown <= 1.02 * plan.size / 2 + 64 * 1024


def test_a_template_holds_no_base_weights(bundle: Bundle) -> None:
    (foundation,) = bundle.manifest.detail["foundation_sizes"]
    template = sum(path.stat().st_size for path in (bundle.path / "template").iterdir())
    weights = (bundle.path / "model.pte").read_bytes()
    largest = max(CoremlBackend().sharing.blobs(bundle), key=lambda blob: blob.size)
    assert largest.methods >= {"forward"}
    stored = weights[largest.offset : largest.offset + largest.size]
    assert foundation > largest.size == len(stored)
    assert all(stored not in path.read_bytes() for path in (bundle.path / "template").iterdir())
    assert template < 200_000


def test_linking_needs_neither_torch_nor_coremltools(exporter, bundle: Bundle, tmp_path: Path) -> None:
    """A process of its own adds an adapter and then says what it had imported."""
    alone = exporter.export(["shout"], plan_of=["shout", "pirate"])
    script = f"""
import sys, pickle, pathlib
from lora_core.events import ignore
from lora_core_coreml.backend import CoremlBackend
bundle, adapters = pickle.loads(pathlib.Path({str(tmp_path / "given")!r}).read_bytes())
CoremlBackend().link(bundle, adapters, pathlib.Path({str(tmp_path)!r}), ignore)
print([name for name in ("torch", "coremltools", "executorch", "torchao") if name in sys.modules])
"""
    (tmp_path / "given").write_bytes(pickle.dumps((alone, exporter.placed(alone, ["pirate"]))))
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "model.pte").read_bytes() == (bundle.path / "model.pte").read_bytes()


def test_verify_passes_and_fails_when_functions_are_swapped(exporter, tmp_path: Path) -> None:
    given = {name: str(exporter.adapters[name]) for name in ("shout", "pirate")}
    out = tmp_path / "bundle"
    options = {"max_context_len": 48, "input_len": 8}
    lora_core.export(str(exporter.model), adapters=given, backend="coreml", policy="fp16", out=out, options=options)
    report = lora_core.verify(out, str(exporter.model), adapters=given, tokens=3)
    assert report.passed, [str(finding) for finding in report.failures]
    assert report.facts["precision"] == "float16 and float32"
    assert set(report.facts["float32_accumulating"]) == {"forward", "shout", "pirate"}

    broken = shutil.copytree(out, tmp_path / "broken")
    swap_functions(broken / "model.pte", "shout", "pirate")
    # Hashes are made to fit, so that nothing but the numbers can tell.
    old, new = (hashlib.sha256((path / "model.pte").read_bytes()).hexdigest() for path in (out, broken))
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new))
    report = lora_core.verify(broken, str(exporter.model), adapters=given, tokens=3)
    assert {finding.check for finding in report.failures} & {"logits", "effect"}, report.failures


def swap_functions(path: Path, one: str, other: str) -> None:
    """Exchange two functions of a program in place; the model's length does not change."""
    (found,) = package.stored_packages(pte.read(path))
    model = mil.parse_model(found.read(package.MODEL))
    functions = model.mlProgram.functions
    kept = type(functions[one])()
    kept.CopyFrom(functions[one])
    functions[one].CopyFrom(functions[other])
    functions[other].CopyFrom(kept)
    offset, size = found.region(package.MODEL)
    serialized = mil.serialize(model)
    assert len(serialized) == size
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = serialized
    path.write_bytes(bytes(data))
