"""Fixtures for the tests of the core and of every plugin: the real model, and a few layers of it."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two workers fill two cores. Threads of torch and numpy wait for each other by spinning, which takes longer than what
# tiny models compute: logits of small decoders took three times the processor time. They read this when imported.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# A busy machine is no fault of an example that takes long.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

ROOT = Path(__file__).parent
SMOLLM2 = ROOT / "build/models/SmolLM2-135M-Instruct"
# Workers take file by file in the order of collection: with the longest first, both end at about one time.
LONGEST = (
    "plugins/coreml/tests/test_variants.py",
    "tests/full/test_smollm2_xnnpack.py",
    "plugins/coreml/tests/test_stamping.py",
    "plugins/xnnpack/tests/test_conformance.py",
    "plugins/coreml/tests/test_conformance.py",
    "plugins/coreml/tests/test_cache.py",
    "plugins/xnnpack/tests/test_fast_lowering.py",
    "plugins/coreml/tests/test_smollm2.py",
    "plugins/xnnpack/tests/test_session.py",
    "plugins/xnnpack/tests/test_cache.py",
    "tests/processors/test_golden.py",
    "plugins/xnnpack/tests/test_stamping.py",
    "plugins/xnnpack/tests/test_packages.py",
    "plugins/qnn_sim/tests/test_smollm2.py",
    "plugins/transformers/tests/test_bundles.py",
    "tests/verification/test_kinds.py",
    "plugins/coreml/tests/test_export.py",
    "tests/verification/test_formats.py",
    "plugins/xnnpack/tests/test_link.py",
    "plugins/coreml/tests/test_peer.py",
    "plugins/xnnpack/tests/test_multimethod.py",
    "plugins/xnnpack/tests/test_export_llm.py",
    "plugins/xnnpack/tests/test_shortening.py",
    "plugins/coreml/tests/test_linking.py",
    "tests/verification/test_verify.py",
    "plugins/xnnpack/tests/test_device_linker.py",
    "plugins/xnnpack/tests/test_inputs.py",
    "tests/full/test_smollm2_onnx.py",
    "plugins/qnn_sim/tests/test_conformance.py",
    "plugins/transformers/tests/test_classifiers.py",
    "plugins/ray/tests/test_executor.py",
    "plugins/onnx/tests/test_conformance.py",
    "plugins/coreml/tests/test_errors.py",
    "tests/testing/test_mutants.py",
    "tests/testing/test_conformance.py",
    "tests/bundle/test_many_adapters.py",
    "tests/security/test_promises.py",
)


_IMPORTED = pytest.StashKey[int]()


def pytest_configure() -> None:
    """Let the garbage collector look less often: nearly all that it meets here is modules and graphs, which stay."""
    gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Take what libraries made when they were imported out of the garbage collector's walks.

    torch, ExecuTorch, coremltools and transformers leave millions of objects for good, and each lowering ends with a
    walk over all that there is.
    """
    if len(sys.modules) > item.config.stash.get(_IMPORTED, 500) + 200:
        item.config.stash[_IMPORTED] = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; tests of one file stay together, in their order."""
    places = {ROOT / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that all workers of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def lowered_once(run_directory: Path) -> Path:
    """Return a template cache: where lowering is not a test's subject, it takes what others of this run lowered."""
    return run_directory / "lowered"


@pytest.fixture(scope="session")
def examples() -> Path:
    """Return the directory of the real adapters: `pirate`, `shout` and `json`."""
    return ROOT / "examples/adapters"


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """Return SmolLM2-135M-Instruct as a Hugging Face directory; `make model` makes it."""
    assert (SMOLLM2 / "config.json").exists(), f"{SMOLLM2} is missing: run 'make model'"
    return SMOLLM2


@pytest.fixture(scope="session")
def smollm2_cut(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that gives SmolLM2 cut to its first layers, with its real weights and tokenizer."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    def cut(layers: int) -> Path:
        directory = tmp_path_factory.mktemp("smollm2") / f"{layers}-layers"
        directory.mkdir()
        for path in smollm2_dir.iterdir():
            if path.suffix != ".safetensors":
                (directory / path.name).write_bytes(path.read_bytes())
        with safe_open(smollm2_dir / "model.safetensors", framework="numpy") as file:
            kept = [name for name in file.keys() if _layer(name) < layers]  # noqa: SIM118 - a file, not a dict
            save_file({name: file.get_tensor(name) for name in kept}, directory / "model.safetensors")
        config = json.loads((smollm2_dir / "config.json").read_text("utf-8"))
        (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), "utf-8")
        return directory

    return cut


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1
