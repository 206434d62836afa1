"""What adapters do beside LoRA, through real XNNPACK bundles: the numbers of peft, linked as exported, or refused."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, ModelError, UnsupportedError
from tests.adapters.trained_cases import QV, TrainedCase, model_of, opened

OPTIONS = {"max_context_len": 32, "max_seq_len": 16}
BIG = {"r": 4, "lora_alpha": 8, "target_modules": [*QV, "lm_head"]}
CASE = TrainedCase(
    name="everything", config={**BIG, "bias": "all", "use_dora": True, "modules_to_save": ["down_proj"]}, family="qwen2"
)
PLAIN = TrainedCase(name="plain", config=BIG, family="qwen2")


@attrs.frozen(kw_only=True)
class Trained:
    model: Path
    rich: Path
    plain: Path
    bundle: Bundle

    @property
    def adapters(self) -> dict[str, Path]:
        return {"rich": self.rich, "plain": self.plain}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A base with biases, an adapter with everything that can be carried, and a plain one, on one template."""
    root = tmp_path_factory.mktemp("trained")
    model_of(CASE).save_pretrained(root / "model")
    for name, case in (("rich", CASE), ("plain", PLAIN)):
        opened(case, root / name)
    adapters = {"rich": root / "rich", "plain": root / "plain"}
    bundle = lora_core.export(
        root / "model", adapters=adapters, backend="xnnpack", out=root / "bundle", options=OPTIONS
    )
    return Trained(model=root / "model", rich=root / "rich", plain=root / "plain", bundle=bundle)


def test_a_bundle_gives_the_numbers_of_peft(trained: Trained) -> None:
    report = lora_core.verify(trained.bundle, trained.model, adapters=trained.adapters, tokens=4)

    assert report.passed, report.failures
    assert "peft" in report.reference
    assert {each.method for each in report.methods if each.numbers} == {"forward", "rich", "plain"}


def test_add_writes_what_the_export_wrote(trained: Trained, copy: Callable[[Bundle], Bundle]) -> None:
    bundle = lora_core.remove(copy(trained.bundle).path, ["rich", "plain"])

    with pytest.raises(AdapterError, match="add --model DIR"):
        lora_core.add(bundle, {"rich": trained.rich})
    bundle = lora_core.add(bundle, trained.adapters, model=trained.model)

    names = sorted(each.path for each in trained.bundle.manifest.artifacts)
    assert names == sorted(each.path for each in bundle.manifest.artifacts)
    assert not filecmp.cmpfiles(trained.bundle.path, bundle.path, names, shallow=False)[1]


def test_add_refuses_another_model(trained: Trained, copy: Callable[[Bundle], Bundle], tmp_path: Path) -> None:
    other = attrs.evolve(CASE, model={"num_hidden_layers": 1})
    model_of(other).save_pretrained(tmp_path / "other")

    with pytest.raises(ModelError, match="not the model that the bundle was exported from"):
        lora_core.add(copy(trained.bundle), {"again": trained.plain}, model=tmp_path / "other")


@pytest.mark.parametrize("backend", ["coreml", "qnn_sim"])
def test_other_backends_refuse_by_name(backend: str, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        lora_core.export(trained.model, adapters={"rich": trained.rich}, backend=backend, out=tmp_path / "out")

    told = "\n".join(problem.what for problem in caught.value.problems)
    for feature in ("DoRA", "trained biases", "whole trained linear layers"):
        assert f"Backend {backend!r} cannot carry {feature}, which adapter 'rich' has" in told
