"""Real weights: SmolLM2 cut to a few layers, with the real adapters, in float16 and at four bits."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import transformers
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.session_options import CoremlSessionOptions
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_core.bundle.bundle import Bundle

pytestmark = pytest.mark.full
LAYERS = 3
TOKENS = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365]
ADAPTERS = ("pirate", "shout")
POLICY = {policy.name: policy for policy in POLICIES}


def cut_adapter(source: Path, target: Path, layers: int) -> Path:
    """Write the part of the adapter at `source` that fits a model cut to `layers` layers."""
    target.mkdir(parents=True)
    shutil.copy(source / "adapter_config.json", target / "adapter_config.json")
    with safe_open(source / "adapter_model.safetensors", "np") as stored:
        names = [name for name in stored.keys() if _kept(name, layers)]  # noqa: SIM118
        save_file({name: stored.get_tensor(name) for name in names}, target / "adapter_model.safetensors")
    return target


def _kept(name: str, layers: int) -> bool:
    if "layers." not in name:
        return True
    return int(name.split("layers.")[1].split(".")[0]) < layers


@pytest.fixture(scope="session")
def real(exporter, smollm2_cut: Callable[[int], Path], examples: Path, tmp_path_factory):
    """The exporter of the tiny model, with real weights and adapters instead."""
    folder = tmp_path_factory.mktemp("real")
    adapters = {name: cut_adapter(examples / name, folder / name, LAYERS) for name in ADAPTERS}
    return attrs.evolve(exporter, model=smollm2_cut(LAYERS), adapters=adapters, made={})


@pytest.fixture(scope="session")
def expected(real) -> dict[str | None, np.ndarray]:
    """Logits after each of TOKENS from transformers in float32, adapters merged."""
    model = transformers.AutoModelForCausalLM.from_pretrained(real.model, dtype=torch.float32).eval()
    found: dict[str | None, np.ndarray] = {}
    for name in (None, *ADAPTERS):
        merged = copy.deepcopy(model).requires_grad_(False)
        for update in real.adapter(name).updates if name else ():
            merged.get_submodule(update.module).weight += torch.from_numpy(
                update.scaling * (update.tensors["b"].read() @ update.tensors["a"].read())
            )
        found[name] = merged(torch.tensor([TOKENS])).logits[0].numpy()
    return found


def bundle_of(real, policy: str) -> Bundle:
    return real.export(ADAPTERS, policy=POLICY[policy], input_len=8, max_context_len=64)


# Of the spread of the logits: float32 intermediates leave the rounding of the weights, strict float16 rounds all.
@pytest.mark.parametrize(("precision", "limit"), [("float16", 0.02), ("float32", 0.01)])
def test_float16_is_finite_and_agrees_with_transformers_on_real_weights(real, expected, precision, limit) -> None:
    with CoremlBackend().open(bundle_of(real, "fp16"), CoremlSessionOptions(precision=precision)) as session:
        for name, logits in expected.items():
            # The first token's residual stream passes 256 after the second layer, where plain norms lose it.
            for count in (1, len(TOKENS)):
                session.reset()
                found, wanted = session.step(name, TOKENS[:count], 0), logits[count - 1]
                assert np.isfinite(found).all()
                # The same token too, then, unless the reference's first two are within twice the limit.
                assert np.abs(found - wanted).max() < limit * wanted.std()


@pytest.mark.parametrize("policy", ["fp16", "c4w"])
def test_the_base_is_stored_once_and_an_adapter_costs_its_bytes(real, policy: str) -> None:
    bundle = bundle_of(real, policy)
    base = real.export([], plan_of=ADAPTERS, policy=POLICY[policy], input_len=8, max_context_len=64)
    sizes = {name: (each.path / "model.pte").stat().st_size for name, each in (("both", bundle), ("base", base))}
    own = sum(2 * plan.size / 2 for plan in bundle.manifest.plans)
    assert sizes["both"] <= sizes["base"] + own * 1.02 + 2 * 64 * 1024
    blobs = list(CoremlBackend().sharing.blobs(bundle))
    assert len({(blob.sha256, blob.size) for blob in blobs}) == len(blobs)
