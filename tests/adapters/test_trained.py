"""DoRA, trained biases and whole modules: the logits of peft, by updates of kinds that link without the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.composites import compose
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.peft.writing import write_peft
from lora_core.adapters.slots.choice import place, place_alone
from lora_core.adapters.slots.kinds import is_zero
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import AdapterError, UnsupportedError
from lora_core.layers import ModelSummary
from lora_core.models.injection import inject
from lora_core.pipeline.kinds import refuse_kinds
from lora_core.specs import BackendSpec
from tests.adapters.peft_cases import summary_of
from tests.adapters.toy import PREFIX
from tests.adapters.trained_cases import CASES, TrainedCase, model_of, opened, weights_of

TOKENS = torch.tensor([[1, 20, 33, 47, 90, 121]])
BY_NAME = {case.name: case for case in CASES}
# float32 through two layers of 32 features; logits are near 1.
CLOSE = 1e-5


def base_of(case: TrainedCase) -> ModelSummary:
    model = model_of(case)
    summary = summary_of(model, case.family)
    tied = model.config.tie_word_embeddings
    layers = tuple(
        attrs.evolve(each, tied_to="model.embed_tokens") if each.is_output and tied else each for each in summary.layers
    )
    return attrs.evolve(summary, layers=layers)


def read(case: TrainedCase, directory: Path, *, strength: float = 1.0) -> Adapter:
    reader = PeftFormat().with_weights(lambda: weights_of(model_of(case)))
    return reader.read("tested", directory, base_of(case), strength=strength)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits[0]


def adapted(case: TrainedCase, adapter: Adapter, plan: SlotPlan | None = None) -> torch.Tensor:
    """The logits of the model with the adapter's parts on its layers."""
    base = base_of(case)
    (placed,) = place_alone([adapter], base.layers) if plan is None else place([adapter], [plan])
    model = inject(model_of(case), placed.plan, {name: name for name in base.module_names}, placed.values_by_module())
    return logits(model)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_trained_beside_a_and_b_gives_the_logits_of_peft(case: TrainedCase, tmp_path: Path) -> None:
    expected = logits(opened(case, tmp_path))

    found = adapted(case, read(case, tmp_path))

    assert float((found - expected).abs().max()) < CLOSE
    assert float((logits(model_of(case)) - expected).abs().max()) > 100 * CLOSE


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.5])
def test_a_strength_counts_as_in_peft(strength: float, tmp_path: Path) -> None:
    case = BY_NAME["biases-and-dora"]
    model = opened(case, tmp_path)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= strength

    assert float((adapted(case, read(case, tmp_path, strength=strength)) - logits(model)).abs().max()) < CLOSE


def test_a_slot_that_an_adapter_does_not_fill_does_nothing(tmp_path: Path) -> None:
    rich, plain = BY_NAME["biases-and-dora"], BY_NAME["biases-of-lora-only"]
    opened(rich, tmp_path / "rich")
    expected = logits(opened(plain, tmp_path / "plain"))
    adapters = [read(rich, tmp_path / "rich"), read(plain, tmp_path / "plain")]
    plan = SlotPlan.from_adapters(adapters, base_of(plain).layers)

    assert {slot.kind for slot in plan.slots} == {"gain", "low_rank", "shift"}
    assert float((adapted(plain, adapters[1], plan) - expected).abs().max()) < CLOSE


@pytest.mark.parametrize("name", ["dora", "biases", "head", "whole-embedding", "tokens"])
def test_without_the_base_the_reader_says_what_it_needs(name: str, tmp_path: Path) -> None:
    opened(BY_NAME[name], tmp_path)

    with pytest.raises(AdapterError) as caught:
        PeftFormat().read("tested", tmp_path, base_of(BY_NAME[name]))

    (problem,) = caught.value.problems
    assert "add --model DIR" in problem.remedy


@pytest.mark.parametrize("name", ["dora", "biases", "head"])
def test_a_composite_of_what_does_not_add_up_is_refused(name: str, tmp_path: Path) -> None:
    opened(BY_NAME[name], tmp_path)

    with pytest.raises(AdapterError, match="cannot be part of a composite"):
        compose("mix", [(read(BY_NAME[name], tmp_path), 0.5)])


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("dora", "DoRA"),
        ("biases", "trained biases"),
        ("head", "whole trained linear layers"),
        ("whole-embedding", "whole trained embeddings"),
    ],
)
def test_a_backend_that_does_not_declare_a_kind_refuses_it_by_name(name: str, feature: str, tmp_path: Path) -> None:
    opened(BY_NAME[name], tmp_path)
    spec = BackendSpec(name="plain", summary="", target="a:B", options="a:C", capabilities=frozenset())

    with pytest.raises(UnsupportedError, match=f"'plain' cannot carry {feature}"):
        refuse_kinds(spec, [read(BY_NAME[name], tmp_path)])


Change = Callable[[dict[str, Any]], dict[str, Any]]
HEAD = f"{PREFIX}lm_head.weight"
MAGNITUDE = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_magnitude_vector"
WRONG: list[tuple[str, Change, str]] = [
    ("dora", lambda t: {k: v for k, v in t.items() if k != MAGNITUDE}, "one of them is missing"),
    ("dora", lambda t: {k: v for k, v in t.items() if "magnitude" not in k}, "needs A, B and a magnitude"),
    ("dora", lambda t: t | {MAGNITUDE: np.ones(7, np.float32)}, "shape [7] does not fit"),
    ("head", lambda t: {k: v for k, v in t.items() if k != HEAD}, "no weight for it"),
    ("head", lambda t: t | {HEAD: np.ones((130, 32), np.float32)}, "vocabulary resized"),
    ("biases", lambda t: t | {f"{PREFIX}nowhere.bias": np.ones(7, np.float32)}, "trained bias"),
]


@pytest.mark.parametrize(("name", "change", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_what_does_not_fit_is_named(name: str, change: Change, words: str, tmp_path: Path) -> None:
    opened(BY_NAME[name], tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)

    with pytest.raises(AdapterError, match=words.replace("[", r"\[")):
        read(BY_NAME[name], tmp_path)


@pytest.mark.parametrize("saved", ["mlp", "norm", "input_layernorm"])
def test_whole_modules_that_are_no_layers_are_refused_by_name(saved: str, tmp_path: Path) -> None:
    case = BY_NAME["dora"]
    opened(case, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": [saved]}))

    with pytest.raises(AdapterError, match=rf"\({saved}\) that are neither linear layers nor embeddings"):
        read(case, tmp_path)


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "lm_head.weight", "lm_head.base_layer.weight"])
def test_a_copy_of_the_base_is_accepted_if_it_is_one(key: str, tmp_path: Path) -> None:
    case = BY_NAME["low-rank-head"]
    expected = logits(opened(case, tmp_path))
    weights = tmp_path / "adapter_model.safetensors"
    copy = model_of(case).get_input_embeddings().weight.detach().numpy()
    save_file(load_file(weights) | {f"{PREFIX}{key}": copy}, weights)

    assert float((adapted(case, read(case, tmp_path)) - expected).abs().max()) < CLOSE
    with pytest.raises(AdapterError, match="save_embedding_layers=False"):
        PeftFormat().read("tested", tmp_path, base_of(case))
    save_file(load_file(weights) | {f"{PREFIX}{key}": copy + 1}, weights)
    with pytest.raises(AdapterError, match="is not what the base has") as caught:
        read(case, tmp_path)
    assert "modules_to_save" not in str(caught.value)


def test_an_adapter_whose_gains_are_1_and_whose_b_is_zero_does_nothing(tmp_path: Path) -> None:
    case = BY_NAME["dora"]
    opened(case, tmp_path)
    weights, stored = tmp_path / "adapter_model.safetensors", {}
    base = {name: tensor.read() for name, tensor in weights_of(model_of(case)).items()}
    for key, value in load_file(weights).items():
        module = key.removeprefix(PREFIX).partition(".lora_")[0]
        norms = np.linalg.norm(base[f"{module}.weight"].astype(np.float64), axis=1).astype(np.float32)
        stored[key] = norms if "magnitude" in key else value * np.float32("lora_A" in key)
    save_file(stored, weights)

    assert is_zero(read(case, tmp_path))


def test_a_backend_that_cannot_carry_an_embedding_is_told_with_a_remedy_that_unties_first(tmp_path: Path) -> None:
    opened(BY_NAME["embedding"], tmp_path)
    spec = BackendSpec(name="plain", summary="", target="a:B", options="a:C", capabilities=frozenset())

    with pytest.raises(UnsupportedError) as caught:
        refuse_kinds(spec, [read(BY_NAME["embedding"], tmp_path)])

    (problem,) = caught.value.problems
    assert "cannot carry LoRA on an embedding" in problem.what
    assert problem.remedy.index("untied copy") < problem.remedy.index("merge_and_unload")


def test_tokens_of_an_embedding_and_its_head_are_told_once_with_the_backends_reason(tmp_path: Path) -> None:
    opened(BY_NAME["tokens"], tmp_path)
    spec = BackendSpec(
        name="plain",
        summary="",
        target="a:B",
        options="a:C",
        capabilities=frozenset(),
        refused_kinds={"tokens": "because", "token_logits": "because"},
    )

    with pytest.raises(UnsupportedError) as caught:
        refuse_kinds(spec, [read(BY_NAME["tokens"], tmp_path)])

    (problem,) = caught.value.problems
    assert problem.what == "Backend 'plain' cannot carry trained tokens, which adapter 'tested' has: because"


def test_a_composite_of_lora_on_an_embedding_is_the_sum(tmp_path: Path) -> None:
    case = BY_NAME["embedding-alone-rslora"]
    opened(case, tmp_path)
    adapter = read(case, tmp_path)

    mixed = compose("mix", [(adapter, 0.25), (adapter, 0.75)])

    assert float((adapted(case, mixed) - adapted(case, adapter)).abs().max()) < CLOSE


def test_lora_on_an_embedding_is_written_as_it_was_read(tmp_path: Path) -> None:
    case = BY_NAME["embedding"]
    opened(case, tmp_path / "read")
    (tmp_path / "written").mkdir()

    write_peft(read(case, tmp_path / "read"), tmp_path / "written")

    names = [tmp_path / name / "adapter_model.safetensors" for name in ("read", "written")]
    (one, other) = map(load_file, names)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


TOKENS_OF = {
    "a token that there is not": ({"trainable_token_indices": [3, 128]}, "trains token 128"),
    "another number of tokens": ({"trainable_token_indices": [3, 4]}, "does not fit 2 tokens"),
    "a layer that there is not": ({"trainable_token_indices": {"nowhere": [3, 4, 5]}}, "tokens of 'nowhere'"),
    "a token twice": ({"trainable_token_indices": [3, 3, 4]}, "different token ids"),
    "no tokens": ({"trainable_token_indices": None}, "does not say trainable_token_indices"),
    "other tokens of the tied head": (
        {"trainable_token_indices": {"embed_tokens": [20, 121, 3], "lm_head": [1]}},
        "whose weight it shares",
    ),
}


@pytest.mark.parametrize("what", TOKENS_OF)
def test_tokens_that_cannot_be_are_named(what: str, tmp_path: Path) -> None:
    opened(BY_NAME["tokens"], tmp_path)
    changed, words = TOKENS_OF[what]
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))

    with pytest.raises(AdapterError, match=words):
        read(BY_NAME["tokens"], tmp_path)


def test_a_tied_embedding_that_is_to_stay_tied_is_refused_whole(tmp_path: Path) -> None:
    opened(BY_NAME["whole-embedding-tied"], tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "ensure_weight_tying": True}))

    with pytest.raises(AdapterError, match="ensure_weight_tying"):
        read(BY_NAME["whole-embedding-tied"], tmp_path)
