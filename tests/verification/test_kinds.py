"""What adapters do beside LoRA, through real bundles: the numbers of peft, linked as exported, or refused."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, ModelError, UnsupportedError
from lora_core.pipeline.packing import package_reference
from tests.adapters.trained_cases import QV, TrainedCase, model_of, opened

OPTIONS = {"max_context_len": 32, "max_seq_len": 16}
BIG = {"r": 4, "lora_alpha": 8, "target_modules": [*QV, "lm_head"]}
RICH = {**BIG, "bias": "all", "use_dora": True, "modules_to_save": ["down_proj"]}
# Of several kinds an adapter can have one on a layer; a template has room for all of them.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "plain": BIG,
    "rich": RICH,
    "embedded": {**BIG, "target_modules": ["embed_tokens", "q_proj"], "r": 3},
    "whole": {**BIG, "target_modules": QV, "modules_to_save": ["embed_tokens"]},
    "tokens": {**BIG, "target_modules": QV, "trainable_token_indices": [20, 121, 3], "use_dora": True},
}
IN_ONE_PROGRAM = ("plain", "rich", "tokens")
ON_COREML = ("rich", "embedded", "whole")


def case(name: str) -> TrainedCase:
    """Return what trains an adapter of a base of one layer: each kind is on one layer, and a second repeats it."""
    return TrainedCase(name=name, config=CONFIGS[name], model={"num_hidden_layers": 1}, family="qwen2")


@attrs.frozen(kw_only=True)
class Trained:
    model: Path
    adapters: Mapping[str, Path]

    def among(self, names: tuple[str, ...]) -> dict[str, Path]:
        return {name: self.adapters[name] for name in names}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A base with biases and a tied head, and an adapter of every kind."""
    root = tmp_path_factory.mktemp("trained")
    model_of(case("plain")).save_pretrained(root / "model")
    for name in CONFIGS:
        opened(case(name), root / name)
    return Trained(model=root / "model", adapters={name: root / name for name in CONFIGS})


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All adapters on one template."""
    out = tmp_path_factory.mktemp("split") / "bundle"
    return lora_core.export(trained.model, adapters=trained.adapters, backend="xnnpack", out=out, options=OPTIONS)


@pytest.fixture(scope="module")
def small(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One program over a quantized base, its adapters in int8."""
    out = tmp_path_factory.mktemp("together") / "bundle"
    return lora_core.export(
        trained.model,
        adapters=trained.among(IN_ONE_PROGRAM),
        backend="xnnpack",
        policy="8da8w",
        adapter_dtype="int8",
        out=out,
        options={**OPTIONS, "layout": "multimethod"},
    )


@pytest.fixture(scope="module")
def coreml(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What CoreML programs carry, in float16."""
    out = tmp_path_factory.mktemp("coreml") / "bundle"
    options = {"max_context_len": 32, "input_len": 8}
    adapters = trained.among(ON_COREML)
    return lora_core.export(trained.model, adapters=adapters, backend="coreml", out=out, options=options)


def assert_linked_as_exported(bundle: Bundle, linked: Bundle) -> None:
    names = sorted(each.path for each in bundle.manifest.artifacts)
    assert names == sorted(each.path for each in linked.manifest.artifacts)
    assert not filecmp.cmpfiles(bundle.path, linked.path, names, shallow=False)[1]


def test_a_bundle_gives_the_numbers_of_peft(trained: Trained, bundle: Bundle) -> None:
    report = lora_core.verify(bundle, trained.model, adapters=trained.adapters, tokens=4)

    assert report.passed, report.failures
    assert "peft" in report.reference
    assert {each.method for each in report.methods if each.numbers} == {"forward", *CONFIGS}


def test_a_quantized_base_with_int8_adapters_keeps_to_the_limits(trained: Trained, small: Bundle) -> None:
    report = lora_core.verify(small, trained.model, adapters=trained.among(IN_ONE_PROGRAM), tokens=4)

    assert report.passed, report.failures
    assert "peft" in report.reference
    assert {each.method for each in report.methods if each.effect} == set(IN_ONE_PROGRAM)


def test_a_coreml_program_gives_the_numbers_of_peft(trained: Trained, coreml: Bundle) -> None:
    report = lora_core.verify(coreml, trained.model, adapters=trained.among(ON_COREML), tokens=4)

    assert report.passed, report.failures
    assert {each.method for each in report.methods if each.effect} == set(ON_COREML)


def test_add_to_a_coreml_program_writes_what_the_export_wrote(
    trained: Trained, coreml: Bundle, copy: Callable[[Bundle], Bundle]
) -> None:
    emptied = lora_core.remove(copy(coreml).path, ["rich", "whole"])

    linked = lora_core.add(emptied, trained.among(("rich", "whole")), model=trained.model)

    assert_linked_as_exported(coreml, linked)


def test_coreml_refuses_trained_tokens_with_its_reason(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"cannot carry trained tokens.*float16 holds whole numbers only up to"):
        lora_core.export(trained.model, adapters=trained.among(("tokens",)), backend="coreml", out=tmp_path / "out")


def test_add_writes_what_the_export_wrote(trained: Trained, bundle: Bundle, copy: Callable[[Bundle], Bundle]) -> None:
    emptied = lora_core.remove(copy(bundle).path, list(CONFIGS))

    with pytest.raises(AdapterError, match="add --model DIR"):
        lora_core.add(emptied, {"rich": trained.adapters["rich"]})

    assert_linked_as_exported(bundle, lora_core.add(emptied, trained.adapters, model=trained.model))


def test_add_writes_what_the_export_wrote_in_int8(
    trained: Trained, small: Bundle, copy: Callable[[Bundle], Bundle]
) -> None:
    emptied = lora_core.remove(copy(small).path, list(IN_ONE_PROGRAM))

    linked = lora_core.add(emptied, trained.among(IN_ONE_PROGRAM), model=trained.model)

    assert_linked_as_exported(small, linked)


def test_packages_of_every_kind_are_linked_as_the_adapters_were(
    bundle: Bundle, copy: Callable[[Bundle], Bundle], tmp_path: Path
) -> None:
    packages = [lora_core.pack(bundle, name, out=tmp_path / f"{name}.lora").path for name in CONFIGS]
    emptied = lora_core.remove(copy(bundle).path, list(CONFIGS))

    linked = lora_core.add(emptied, [package_reference(path) for path in packages])

    assert_linked_as_exported(bundle, linked)


def test_add_refuses_another_model(
    trained: Trained, bundle: Bundle, copy: Callable[[Bundle], Bundle], tmp_path: Path
) -> None:
    other = attrs.evolve(case("plain"), model={"num_hidden_layers": 2})
    model_of(other).save_pretrained(tmp_path / "other")

    with pytest.raises(ModelError, match="not the model that the bundle was exported from"):
        lora_core.add(copy(bundle), {"again": trained.adapters["plain"]}, model=tmp_path / "other")


def test_add_refuses_a_fine_tune_of_the_same_shape(
    trained: Trained, bundle: Bundle, copy: Callable[[Bundle], Bundle], tmp_path: Path
) -> None:
    for file in trained.model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    changed = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, changed: weights[changed] * 1.001}, tmp_path / "model.safetensors")

    with pytest.raises(ModelError, match="of the same shape, and the weights are others"):
        lora_core.add(copy(bundle), {"again": trained.adapters["rich"]}, model=tmp_path)


@pytest.mark.parametrize("name", ["embedded", "whole"])
def test_rows_of_an_embedding_are_refused_in_one_program(trained: Trained, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"one program for all adapters cannot carry that.*--layout split"):
        lora_core.export(
            trained.model,
            adapters=trained.among((name,)),
            backend="xnnpack",
            out=tmp_path / "out",
            options={**OPTIONS, "layout": "multimethod"},
        )


@pytest.mark.parametrize(
    ("backend", "why"), [("qnn_sim", "what a binary section updates"), ("onnx", "what an adapter file")]
)
@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("rich", "DoRA"),
        ("rich", "trained biases"),
        ("rich", "whole trained linear layers"),
        ("embedded", "LoRA on an embedding"),
        ("whole", "whole trained embeddings"),
        ("tokens", "trained tokens"),
    ],
)
def test_a_backend_of_pairs_alone_refuses_the_rest_by_name_and_with_its_reason(
    trained: Trained, backend: str, why: str, name: str, feature: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        lora_core.export(trained.model, adapters=trained.among((name,)), backend=backend, out=tmp_path / "out")

    told = [problem.what for problem in caught.value.problems]
    beginning = f"Backend {backend!r} cannot carry {feature}, which adapter {name!r} has: {why}"
    assert any(each.startswith(beginning) for each in told)


@pytest.mark.parametrize(
    ("backend", "dtype", "why"),
    [
        ("coreml", "int8", "are not decompressed"),
        ("coreml", "fp32", "--dtype fp32"),
        ("qnn_sim", "fp16", "--lora-bits"),
        ("onnx", "int8", "these are float32"),
    ],
)
def test_a_type_that_a_backend_cannot_store_is_refused_with_the_reason(
    trained: Trained, backend: str, dtype: Any, why: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=f"Backend '{backend}' cannot store adapters as {dtype}: .*{why}"):
        lora_core.export(
            trained.model,
            adapters=trained.among(("plain",)),
            backend=backend,
            adapter_dtype=dtype,
            out=tmp_path / "out",
        )
