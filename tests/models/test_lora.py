"""LoRA injected into the module that gets exported, against PEFT, and into any other module."""

import functools

import numpy as np
import pytest
import torch

from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.modules import LoraLinear
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import AdapterError
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.hf import HfModelSource
from lora_core.models.injection import eject, inject, slot_modules
from tests.adapters.peft_cases import CASES, SHAPE, peft_model, tiny_model
from tests.models.conftest import SIZES
from tests.numeric import apart, decoder_tolerance, tolerance

COUNT = 24
# 3e-5 of the spread of the logits. Every adapter moves them by more than 0.1 of it.
TOLERANCE = decoder_tolerance(
    layers=SHAPE["num_hidden_layers"],
    hidden=SHAPE["hidden_size"],
    inner=SHAPE["intermediate_size"],
    context=COUNT,
    rank=16,
)

BEYOND_LLAMA = ["gemma", "gemma2", "gemma3", "gemma4", "gemma4-dense", "phi3", "smollm3", "granite", "olmo2"]
BEYOND_LLAMA += ["lfm2", "qwen3.5"]
OTHER_FAMILIES = decoder_tolerance(
    layers=SIZES["num_hidden_layers"],
    hidden=SIZES["hidden_size"],
    inner=SIZES["intermediate_size"],
    context=COUNT,
    rank=3,
)


def tokens() -> torch.Tensor:
    return torch.randint(0, 128, (1, COUNT), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the directory of the base that the PEFT cases of a family adapt."""

    @functools.cache
    def save(family: str) -> str:
        directory = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(directory)
        return str(directory)

    return save


def load(directory, attention: str = "sdpa"):
    options = ExecutorchOptions(max_context_len=32, max_seq_len=32, attention=attention, full_logits=True)
    return HfModelSource().open(directory).load(options)


def run(module: torch.nn.Module) -> torch.Tensor:
    return module(tokens(), {"input_pos": torch.tensor([0])})


def bound(plan: SlotPlan, adapter):
    return PlacedAdapter(adapter=adapter, plan=plan).values_by_module()


# Of the cases, those in which most is added up, and other kinds of numbers: the quick run needs no more.
PROCESSORS = {f"everything-{family}" for family in ("llama", "mistral", "qwen2", "qwen3")}
PROCESSORS |= {"both-patterns-rslora", "long-list-is-condensed", "output-head", "bfloat16"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.processors] if case.name in PROCESSORS else [])
        for case in CASES
    ],
)
def test_injected_logits_equal_peft(checkpoint, tmp_path, case):
    expected = peft_model(case, tmp_path)(tokens()).logits.detach()
    base = load(checkpoint(case.family))
    adapter = PeftFormat().read("tested", tmp_path, base.summary)
    plan = SlotPlan.from_adapters([adapter], base.summary.layers)
    ours = run(inject(base.module, plan, base.paths, bound(plan, adapter)))
    assert apart(ours, expected) <= TOLERANCE


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


# Of experts, which no adapter is on, peft would take the gates of other layers for theirs.
@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
@pytest.mark.parametrize(
    ("family", "targets"), [*((each, "all-linear") for each in BEYOND_LLAMA), ("qwen3-moe-unnormalized", ATTENTION)]
)
def test_adapters_on_every_layer_of_other_families_equal_peft(tiny, tmp_path, family, targets, attention):
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny(family).directory, dtype=torch.float32)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    adapted.save_pretrained(tmp_path)
    expected = adapted(tokens()).logits.detach()
    base = load(str(tiny(family).directory), attention)
    adapter = PeftFormat().read("tested", tmp_path, base.summary)
    plan = SlotPlan.from_adapters([adapter], base.summary.layers)
    blocks = sum(layer.kind == "linear" and not layer.is_output for layer in base.summary.layers)
    assert len(plan.slots) == blocks
    ours = run(inject(base.module, plan, base.paths, bound(plan, adapter)))
    assert apart(ours, expected) <= OTHER_FAMILIES


CASE_BY_NAME = {case.name: case for case in CASES}


@pytest.mark.processors
@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
def test_adapters_share_a_padded_plan_without_changing_their_logits(checkpoint, tmp_path, attention):
    base = load(checkpoint("llama"), attention)
    cases = [CASE_BY_NAME["rank-1"], CASE_BY_NAME["rank-pattern-suffix"]]
    expected = [peft_model(case, tmp_path / case.name)(tokens()).logits.detach() for case in cases]
    adapters = [PeftFormat().read(case.name, tmp_path / case.name, base.summary) for case in cases]
    plan = SlotPlan.from_adapters(adapters, base.summary.layers, max_rank=16, targets="all-linear")
    for adapter, logits in zip(adapters, expected, strict=True):
        module = inject(base.module, plan, base.paths, bound(plan, adapter))
        assert len(list(slot_modules(module))) == 21
        assert apart(run(module), logits) <= TOLERANCE
        eject(module)


@pytest.mark.processors
def test_static_attention_carries_lora_too(checkpoint, tmp_path):
    case = CASE_BY_NAME["everything-qwen3"]
    expected = peft_model(case, tmp_path)(tokens()).logits.detach()
    options = ExecutorchOptions(max_context_len=48, max_seq_len=24, attention="static", full_logits=True)
    base = HfModelSource().open(checkpoint("qwen3")).load(options)
    adapter = PeftFormat().read("tested", tmp_path, base.summary)
    plan = SlotPlan.from_adapters([adapter], base.summary.layers)
    inject(base.module, plan, base.paths, bound(plan, adapter))
    _, attention = base.example_args
    attention["masks"][24][:, :, 24:] = torch.triu(torch.full((24, 24), float("-inf")), diagonal=1)
    logits, _ = base.module(tokens(), attention)
    assert apart(logits, expected) <= TOLERANCE


# The layers below: a sum of 6 products, or of 6 and of the rank.
ONE_LAYER = tolerance(6 + 6 + 2)


def one_slot(rank: int = 2, **values):
    slot = Slot(module="first", in_features=6, out_features=4, rank=rank)
    return SlotPlan(slots=(slot,)), {"first": "0"}


def random_pair(rank: int = 2, seed: int = 0):
    generator = np.random.default_rng(seed)
    return {
        "a": generator.random((rank, 6), dtype=np.float32),
        "b": generator.random((4, rank), dtype=np.float32),
    }


def test_wrapped_layer_adds_the_product_of_b_and_a():
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())
    plan, paths = one_slot()
    a, b = random_pair().values()
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.relu(module[0](x) + x @ torch.from_numpy(b @ a).T)
    inject(module, plan, paths, {"first": {"a": a, "b": b}})
    assert apart(module(x), expected) <= ONE_LAYER


def test_wrapped_layer_keeps_the_base_and_its_weight_and_bias_readable():
    base = torch.nn.Linear(6, 4)
    module = torch.nn.Sequential(base)
    plan, paths = one_slot()
    inject(module, plan, paths, {"first": random_pair()})
    wrapped = module[0]
    assert wrapped.base is base
    assert wrapped.weight is base.weight
    assert wrapped.bias is base.bias
    assert (wrapped.in_features, wrapped.out_features, wrapped.rank) == (6, 4, 2)
    assert {name for name, _ in module.named_parameters()} == {
        "0.base.weight",
        "0.base.bias",
        "0.lora_a.weight",
        "0.lora_b.weight",
    }


def test_state_dict_with_the_old_names_still_loads():
    module = torch.nn.Sequential(torch.nn.Linear(6, 4))
    old = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    plan, paths = one_slot()
    inject(module, plan, paths, {"first": random_pair()})
    result = module.load_state_dict(old, strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == ["0.lora_a.weight", "0.lora_b.weight"]
    assert torch.equal(module[0].weight, old["0.weight"])
    assert torch.equal(module[0].bias, old["0.bias"])


def test_state_dict_of_executorchs_lora_linear_loads():
    from executorch.examples.models.llama.lora import LoRALinear

    torch.manual_seed(3)
    theirs = torch.nn.Sequential(LoRALinear(6, 4, rank=2, alpha=6.0, use_bias=True))
    plan, paths = one_slot()
    ours = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), plan, paths, {"first": random_pair()})
    state = theirs.state_dict()
    state["0.lora_b.weight"] = state["0.lora_b.weight"] * 3  # alpha / rank, which theirs multiplies by later
    ours.load_state_dict(state)
    x = torch.rand(2, 6)
    assert apart(ours(x), theirs(x)) <= ONE_LAYER


def test_state_dict_of_a_wrapped_module_loads_into_another():
    plan, paths = one_slot()
    first, second = (
        inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), plan, paths, {"first": random_pair(seed=seed)})
        for seed in (1, 2)
    )
    second.load_state_dict(first.state_dict())
    one, other = first.state_dict(), second.state_dict()
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    assert apart(second(x), first(x)) <= ONE_LAYER


def test_eject_restores_the_very_same_modules(tiny):
    base = load(str(tiny("llama2").directory))
    before = dict(base.module.named_modules())
    linear = [layer for layer in base.summary.layers if layer.kind == "linear"]
    plan = SlotPlan(
        slots=tuple(
            Slot(module=layer.name, in_features=layer.in_features, out_features=layer.out_features, rank=2)
            for layer in linear
        )
    )
    values = {slot.module: {part.name: np.ones(part.shape, np.float32) for part in slot.parts} for slot in plan.slots}
    inject(base.module, plan, base.paths, values)
    assert sum(isinstance(module, LoraLinear) for module in base.module.modules()) == len(linear) == 15
    eject(base.module)
    after = dict(base.module.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_slot_that_is_the_module_itself_is_wrapped_and_ejected():
    base = torch.nn.Linear(6, 4)
    plan, _ = one_slot()
    wrapped = inject(base, plan, {"first": ""}, {"first": random_pair()})
    assert isinstance(wrapped, LoraLinear)
    assert eject(wrapped) is base


def test_quantized_base_layer_is_left_alone():
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    module = torch.nn.Sequential(torch.nn.Linear(6, 4))
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(module, config)
    weight = module[0].weight
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    quantized = module(x)
    a, b = random_pair().values()
    plan, paths = one_slot()
    inject(module, plan, paths, {"first": {"a": a, "b": b}})
    assert module[0].weight is weight
    # The same layer on the same input: whatever its own rounding is, it is part of both.
    assert apart(module(x), quantized + x @ torch.from_numpy(b @ a).T) <= ONE_LAYER


def test_values_are_used_without_a_copy():
    a, b = random_pair().values()
    module = torch.nn.Sequential(torch.nn.Linear(6, 4))
    plan, paths = one_slot()
    inject(module, plan, paths, {"first": {"a": a, "b": b}})
    assert module[0].lora_a.weight.data_ptr() == a.ctypes.data
    assert module[0].lora_b.weight.data_ptr() == b.ctypes.data


@pytest.mark.parametrize("seed", [1, 2])
def test_exported_graph_does_not_depend_on_the_values(seed):
    plan, paths = one_slot()
    graphs = []
    for values in (random_pair(seed=0), random_pair(seed=seed)):
        module = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), plan, paths, {"first": values}).eval()
        graphs.append(torch.export.export(module, (torch.rand(1, 6),)).graph_module.code)
    assert graphs[0] == graphs[1]
    assert "mul" not in graphs[0]


def test_everything_that_does_not_fit_is_reported_and_nothing_is_changed():
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    paths = {name: str(index) for index, name in enumerate(("first", "second", "third"))}
    slots = [Slot(module=name, in_features=6, out_features=4, rank=2) for name in ("first", "second", "fourth")]
    values = {"first": random_pair(rank=3), "fourth": random_pair(), "third": random_pair()}
    with pytest.raises(AdapterError) as raised:
        inject(module, SlotPlan(slots=tuple(slots)), paths, values)
    assert [problem.what for problem in raised.value.problems] == [
        "A of slot first has shape (3, 6); the slot needs (2, 6)",
        "B of slot first has shape (4, 3); the slot needs (4, 2)",
        "Slot second has no values",
        "Slot fourth is no layer of the model",
        "There is no slot for the values of third",
    ]
    assert not list(slot_modules(module))


def test_injecting_twice_is_refused():
    module = torch.nn.Sequential(torch.nn.Linear(6, 4))
    plan, paths = one_slot()
    inject(module, plan, paths, {"first": random_pair()})
    with pytest.raises(AdapterError, match="already carries an update"):
        inject(module, plan, paths, {"first": random_pair()})
