"""Names, shapes and facts that are known before any weight is read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_core.models.base import ModelOptions
from lora_core.models.executorch import names
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.hf import HfModelSource
from tests.models.conftest import SIZES
from tests.numeric import apart, decoder_tolerance

FAMILIES = ["llama-every-bias", "smollm2-tied", "mistral-own-head-dim", "qwen2", "qwen3-own-head-dim-tied"]
FAMILIES += ["gemma", "gemma2", "gemma3", "gemma4", "gemma4-dense", "phi3", "smollm3", "granite", "olmo2"]
FAMILIES += ["lfm2", "qwen3.5", "qwen3-moe"]


def open_model(model):
    return HfModelSource().open(str(model.directory))


@pytest.mark.parametrize("family", FAMILIES)
def test_module_names_are_those_of_transformers_in_its_order(tiny, family):
    model = tiny(family)
    theirs = tuple(name for name, _ in model.reference.named_modules() if name)
    assert open_model(model).summary.module_names == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_transformers_in_its_order(tiny, family):
    model = tiny(family)
    theirs = [
        (name, module.weight.shape[::-1] if isinstance(module, torch.nn.Linear) else module.weight.shape)
        for name, module in model.reference.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    ]
    layers = open_model(model).summary.layers
    assert [(layer.name, torch.Size((layer.in_features, layer.out_features))) for layer in layers] == theirs
    biased = {name for name, _ in theirs if getattr(model.reference.get_submodule(name), "bias", None) is not None}
    assert {layer.name for layer in layers if layer.has_bias} == biased


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        (family, attention)
        for family in FAMILIES
        for attention in ("custom_sdpa", "sdpa", "static")
        if family not in ("lfm2", "qwen3.5") or attention != "static"  # refused: see test_logits.py
    ],
)
def test_paths_lead_to_the_layers_of_the_loaded_module(tiny, family, attention):
    options = ExecutorchOptions(max_context_len=12, max_seq_len=8, attention=attention)
    model = tiny(family)
    base = open_model(model).load(options)
    for layer in base.summary.layers:
        theirs = model.reference.get_submodule(layer.name)
        ours = base.module.get_submodule(base.paths[layer.name])
        assert isinstance(theirs, type(ours))
        assert torch.equal(ours.weight, theirs.weight)
        assert not layer.has_bias or torch.equal(ours.bias, theirs.bias)


def test_output_head_is_marked_and_says_what_it_is_tied_to(tiny):
    tied, untied = (open_model(tiny(family)).summary.layer("lm_head") for family in ("smollm2-tied", "llama2"))
    assert (tied.is_output, tied.tied_to) == (True, "model.embed_tokens")
    assert (untied.is_output, untied.tied_to) == (True, None)
    assert [layer.name for layer in open_model(tiny("llama2")).summary.layers if layer.is_output] == ["lm_head"]


def test_tied_output_head_shares_the_storage_of_the_embedding(tiny):
    module = open_model(tiny("smollm2-tied")).load(ModelOptions(max_context_len=32, max_seq_len=32)).module
    assert module.output.weight.data_ptr() == module.tok_embeddings.weight.data_ptr()


def test_parameters_of_the_module_are_exactly_those_the_checkpoint_fills(tiny):
    model = open_model(tiny("llama-every-bias"))
    module = model.load(ModelOptions(max_context_len=32, max_seq_len=32)).module
    assert set(names.parameter_names(model.architecture, names.MULTI_HEAD)) == dict(module.named_parameters()).keys()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module.training


def test_float32_weights_stay_memory_mapped(tiny):
    model = open_model(tiny("llama2"))
    module = model.load(ModelOptions(max_context_len=32, max_seq_len=32)).module
    path = str(model.checkpoint.tensors["lm_head.weight"].path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in maps if line.endswith(path)]
    ranges = [(int(low, 16), int(high, 16)) for low, high in mapped]
    assert ranges
    for name, parameter in module.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in ranges), name


def test_opening_a_model_imports_no_torch(tiny):
    code = (
        "import sys; from lora_core.models.hf import HfModelSource; "
        f"summary = HfModelSource().open({str(tiny('qwen2').directory)!r}).summary; "
        "print(summary.family, len(summary.layers), sorted({'torch', 'executorch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "qwen2 16 []\n"


def test_metadata_is_what_executorch_runners_read(tiny):
    options = ExecutorchOptions(max_context_len=48, max_seq_len=32)
    base = open_model(tiny("llama2")).load(options)
    assert base.metadata == {
        "get_max_seq_len": 32,
        "get_max_context_len": 48,
        "get_n_layers": 2,
        "get_vocab_size": 128,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
        "get_bos_id": 1,
        "get_eos_ids": [2],
    }


@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
def test_example_inputs_and_dynamic_shapes_export(tiny, attention):
    base = open_model(tiny("llama2", num_hidden_layers=1)).load(
        ExecutorchOptions(max_context_len=48, max_seq_len=32, attention=attention)
    )
    with torch.no_grad():
        exported = torch.export.export(
            base.module, base.example_args, base.example_kwargs, dynamic_shapes=base.dynamic_shapes, strict=True
        )
        tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
        position = {"input_pos": torch.tensor([0])}
        # An exported graph decomposes operations, so that sums are taken in another order.
        steps = decoder_tolerance(layers=1, hidden=SIZES["hidden_size"], inner=SIZES["intermediate_size"], context=6)
        assert apart(exported.module()(tokens, position), base.module(tokens, position)) <= steps
    assert ("llama.custom_sdpa" in exported.graph_module.code) == (attention == "custom_sdpa")
    bounds = [limit for symbol, limit in exported.range_constraints.items() if limit.upper == 31]
    assert bounds
