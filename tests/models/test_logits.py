"""Logits of the module that gets exported, against transformers on the same checkpoint."""

import json

import pytest
import torch
import transformers

from lora_core.errors import ModelError
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.hf import HfModelSource
from tests.models.conftest import SIZES
from tests.models.static_runner import fed
from tests.numeric import apart, decoder_tolerance

pytestmark = pytest.mark.processors
CONTEXT = 64
PREFILL = 40
# 3e-5 of the spread: `test_a_thousandth_of_any_weight_is_beyond_the_tolerance` says what it still tells apart.
TOLERANCE = decoder_tolerance(
    layers=SIZES["num_hidden_layers"], hidden=SIZES["hidden_size"], inner=SIZES["intermediate_size"], context=CONTEXT
)

FAMILIES = [
    "llama2",
    "llama3.1-scaled-rope",
    "llama3.2-scaled-rope-tied",
    "llama-linear-rope",
    "llama-yarn",
    "llama-every-bias",
    "smollm2-tied",
    "mistral-within-window",
    "mistral-own-head-dim",
    "qwen2",
    "qwen2.5-tied",
    "qwen3-own-head-dim-tied",
    "qwen3-attention-bias",
]
OWN = [
    "mistral-beyond-window",
    "qwen2-windows-by-layer",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma4",
    "gemma4-dense",
    "phi3",
    "phi3.5-longrope",
    "phi3.5-longrope-long",
    "phi4-mini-partial-rotary",
    "smollm3",
    "granite",
    "olmo2",
    "lfm2",
    "qwen3.5",
    "qwen3-moe",
    "qwen3-moe-unnormalized",
]
STATES = ("lfm2", "qwen3.5")


def tokens_of(model, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (1, CONTEXT), generator=generator)


def load(directory, **options):
    return (
        HfModelSource()
        .open(str(directory))
        .load(ExecutorchOptions(max_context_len=CONTEXT, max_seq_len=CONTEXT, **options))
    )


def prefill_then_decode(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = [module(tokens[:, :PREFILL], {"input_pos": torch.tensor([0])})]
    for position in range(PREFILL, tokens.shape[1]):
        logits.append(module(tokens[:, position : position + 1], {"input_pos": torch.tensor([position])}))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES + OWN)
def test_prefill_and_decode_equal_transformers(tiny, family, attention):
    model = tiny(family)
    tokens = tokens_of(model.reference)
    ours = prefill_then_decode(load(model.directory, attention=attention, full_logits=True).module, tokens)
    theirs = model.reference(tokens).logits
    assert float(theirs.std()) > 0.1
    assert apart(ours, theirs) <= TOLERANCE


def test_a_thousandth_of_any_weight_is_beyond_the_tolerance(tiny):
    model = tiny("llama2")
    tokens = tokens_of(model.reference)
    module = load(model.directory, full_logits=True).module
    theirs = model.reference(tokens).logits
    for name, parameter in list(module.named_parameters()):
        kept = parameter.data
        parameter.data = kept * 1.001
        assert apart(prefill_then_decode(module, tokens), theirs) > TOLERANCE, name
        parameter.data = kept
    assert apart(prefill_then_decode(module, tokens), theirs) <= TOLERANCE


@pytest.mark.parametrize("family", ["qwen3-own-head-dim-tied", "gemma3"])
@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
def test_fixed_sequence_length_decodes_token_by_token(tiny, family, attention):
    model = tiny(family)
    tokens = tokens_of(model.reference)[:, :8]
    base = load(model.directory, attention=attention, dynamic_seq_len=False)
    assert base.dynamic_shapes is None
    ours = [
        base.module(tokens[:, position : position + 1], {"input_pos": torch.tensor([position])})
        for position in range(8)
    ]
    assert apart(torch.stack(ours, dim=1), model.reference(tokens).logits) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_static_attention_equals_transformers(tiny, family):
    from executorch.examples.models.llama.static_attention import StaticAttentionIOManager

    model = tiny(family)
    tokens = tokens_of(model.reference)[:, :24]
    options = ExecutorchOptions(max_context_len=CONTEXT, max_seq_len=8, attention="static", full_logits=True)
    base = HfModelSource().open(str(model.directory)).load(options)
    # ExecuTorch's own runner of static attention makes the rotary tables from ModelArgs, not from the module.
    manager = StaticAttentionIOManager(
        base.module.params, input_len=8, cache_lens=CONTEXT - 8, style="smart_mask", mask_val=float("-inf")
    )
    ours = manager.prefill(base.module, tokens[0].tolist())
    assert apart(ours[:, -1], model.reference(tokens).logits[:, -1]) <= TOLERANCE


@pytest.mark.parametrize("family", [family for family in OWN if family != "qwen3.5"])
def test_static_attention_of_other_families_equals_transformers(tiny, family):
    model = tiny(family)
    handle = HfModelSource().open(str(model.directory))
    context = min(CONTEXT, handle.architecture.window or CONTEXT)
    # A call reads as many tokens before its own as the cache holds: the last one begins there.
    tokens = tokens_of(model.reference)[:, : context // 4 * 4]
    options = ExecutorchOptions(max_context_len=context, max_seq_len=4, attention="static", full_logits=True)
    assert apart(fed(handle.load(options), tokens, 4), model.reference(tokens).logits) <= TOLERANCE


def test_static_attention_refuses_the_gated_delta_rule(tiny):
    model = HfModelSource().open(str(tiny("qwen3.5").directory))
    with pytest.raises(ModelError, match="Some layers keep a state"):
        model.load(ExecutorchOptions(max_context_len=16, max_seq_len=4, attention="static"))


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
def test_a_text_begins_with_no_state_of_the_one_before(tiny, family, attention):
    model = tiny(family)
    tokens = tokens_of(model.reference)
    module = load(model.directory, attention=attention, full_logits=True).module
    first = prefill_then_decode(module, tokens)
    assert torch.equal(prefill_then_decode(module, tokens), first)


def test_static_attention_refuses_a_context_beyond_the_window(tiny):
    model = HfModelSource().open(str(tiny("mistral-beyond-window").directory))
    with pytest.raises(ModelError, match=r"max_context_len \(13\) is longer than the model's sliding attention window"):
        model.load(ExecutorchOptions(max_context_len=13, max_seq_len=4, attention="static"))


@pytest.mark.parametrize("attention", ["custom_sdpa", "sdpa"])
def test_logits_are_of_the_last_token_unless_all_are_asked_for(tiny, attention):
    model = tiny("llama2")
    tokens = tokens_of(model.reference)
    ours = load(model.directory, attention=attention).module(tokens, {"input_pos": torch.tensor([0])})
    assert apart(ours, model.reference(tokens).logits[:, -1]) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["1GB", "40KB"], ids=["single", "sharded"])
def test_half_precision_checkpoints_are_computed_in_float32(tiny, dtype, shard):
    model = tiny("smollm2-tied", dtype=dtype, shard=shard)
    assert (model.directory / "model.safetensors.index.json").exists() == (shard == "40KB")
    tokens = tokens_of(model.reference)
    base = load(model.directory, full_logits=True)
    assert {parameter.dtype for parameter in base.module.parameters()} == {torch.float32}
    ours = prefill_then_decode(base.module, tokens)
    assert apart(ours, model.reference(tokens).logits) <= TOLERANCE


def test_sharded_checkpoint_equals_the_single_file(tiny):
    tokens = tokens_of(tiny("llama2").reference)
    single, sharded = tiny("llama2"), tiny("llama2", shard="40KB")
    assert len(list(sharded.directory.glob("model-*.safetensors"))) > 2
    ours = [load(model.directory, full_logits=True).module for model in (single, sharded)]
    whole, joined = (dict(module.named_parameters()) for module in ours)
    assert list(whole) == list(joined)
    assert [name for name in whole if not torch.equal(whole[name], joined[name])] == []
    # The weights lie at other addresses, and a BLAS may choose its kernel by their alignment.
    assert apart(*(prefill_then_decode(module, tokens) for module in reversed(ours))) <= TOLERANCE


def test_older_configuration_spelling_means_the_same(llama_directory):
    path = llama_directory / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    scaling = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config |= {"rope_theta": 500000.0, "rope_scaling": {**scaling, "original_max_position_embeddings": 32}}
    path.write_text(json.dumps(config))
    reference = transformers.AutoModelForCausalLM.from_pretrained(llama_directory, dtype=torch.float32).eval()
    tokens = tokens_of(reference)
    ours = prefill_then_decode(load(llama_directory, full_logits=True).module, tokens)
    assert apart(ours, reference(tokens).logits.detach()) <= TOLERANCE
