"""GGUF models as bases: the checkpoint that they were converted from, in every architecture that is read."""

import gguf
import numpy as np
import pytest
import torch

from lora_core.errors import ModelError
from lora_core.hub import PluginHub
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.gguf.source import GgufModelSource
from lora_core.models.hf import HfModelSource
from lora_core.models.rope import Rope
from lora_core.models.text.tokenizer import parse_tokenizer
from lora_core.pipeline.given import open_model
from lora_core.tensors import row_blocks
from lora_core.testing.families import write_tiny_family
from tests.models.gguf_models import Kind, write_model
from tests.numeric import apart, decoder_tolerance

LONG = {"rope_factors_short.weight": [1.0, 1.3, 2.0], "rope_factors_long.weight": [1.0, 2.1, 4.0]}
LFM2 = {"layer_types": ["conv", "full_attention"], "conv_bias": False}
# By architecture: the family, what its configuration says besides, and the metadata that stands for that.
CONVERTED = {
    "llama": ("llama", {}, {"rope.dimension_count": 16}),
    "qwen2": ("qwen2", {"use_sliding_window": False}, {}),
    "qwen3": ("qwen3", {}, {}),
    "gemma": ("gemma", {}, {}),
    "gemma2": (
        "gemma2",
        {"query_pre_attn_scalar": 16},
        {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 12},
    ),
    "gemma3": (
        "gemma3",
        {"query_pre_attn_scalar": 16},
        {"attention.sliding_window": 12, "attention.sliding_window_pattern": 2, "rope.freq_base": 1e6},
    ),
    "phi3": (
        "phi3",
        {"sliding_window": 48},
        {
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.0,
            "attention.sliding_window": 48,
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4}, {"rope.freq_base": 2e6}),
    "granite": (
        "granite",
        {},
        {"embedding_scale": 3.0, "residual_scale": 0.3, "attention.scale": 0.11, "logit_scale": 2.5},
    ),
    "olmo2": ("olmo2", {}, {}),
    "lfm2": ("lfm2", LFM2, {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3, "rope.freq_base": 1e6}),
}


def converted(tmp_path, architecture, **options):
    family, changes, told = CONVERTED[architecture]
    checkpoint = write_tiny_family(tmp_path / "base", family, **changes)
    if architecture == "phi3":
        options["more"] = {name: np.array(values, np.float32) for name, values in LONG.items()}
    told = {**told, **options.pop("told", {})}
    return checkpoint, write_model(tmp_path / "tiny-Q8_0.gguf", checkpoint, architecture, told, **options)


def opened(path):
    return GgufModelSource().open(str(path))


@pytest.mark.parametrize("architecture", CONVERTED)
def test_a_gguf_model_is_the_checkpoint_that_it_was_converted_from(tmp_path, architecture):
    checkpoint, file = converted(tmp_path, architecture)
    theirs, ours = HfModelSource().open(str(checkpoint)), opened(file)
    assert ours.architecture == theirs.architecture
    assert ours.summary.layers == theirs.summary.layers
    assert ours.summary.eos_ids == (2,)
    values = {name: tensor.read() for name, tensor in theirs.tensors().items()}
    assert ours.tensors().keys() == values.keys()
    for name, tensor in ours.tensors().items():
        assert tensor.shape == values[name].shape, name
        # A norm of Gemma's is stored with the one that it lacks in a checkpoint: rounded once, by half a unit of 1.
        np.testing.assert_allclose(tensor.read(), values[name], rtol=0, atol=2**-23, err_msg=name)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_weights_are_what_the_gguf_package_dequantizes(tmp_path, kind):
    checkpoint, file = converted(tmp_path, "qwen3", kind=kind)
    before = HfModelSource().open(str(checkpoint)).tensors()
    for name, tensor in opened(file).tensors().items():
        stored = before[name].read()
        if stored.ndim == 2 and stored.shape[1] % 32 == 0:
            stored = gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind)
            np.testing.assert_array_equal(tensor.read(), stored, err_msg=name)


def test_rows_of_rotated_heads_can_be_read_a_few_at_a_time(tmp_path):
    checkpoint, file = converted(tmp_path, "llama")
    name = "model.layers.1.self_attn.q_proj.weight"
    whole = HfModelSource().open(str(checkpoint)).tensors()[name].read()
    blocks = list(row_blocks(opened(file).tensors()[name], 5 * 32 * 4))
    assert {len(block) for block in blocks} == {5, 4}
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_factors_of_llama_3_are_its_scaling(tmp_path):
    rope = Rope(theta=5e5, kind="llama3", factor=32.0)
    factors = {"rope_freqs.weight": np.array(rope.divisors(16), np.float32)}
    _, file = converted(tmp_path, "llama", more=factors, told={"rope.freq_base": 5e5})
    assert opened(file).architecture.rope == rope


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "lfm2"])
def test_logits_are_those_of_transformers_reading_the_same_file(tmp_path, architecture):
    model = opened(converted(tmp_path, architecture, kind=Kind.Q8_0)[1])
    tokens = torch.tensor([[1, 5, 9, 33, 60, 2, 17, 8]])
    options = ExecutorchOptions(max_context_len=16, max_seq_len=8, attention="sdpa", full_logits=True)
    ours = model.load(options).module(tokens, {"input_pos": torch.tensor([0])})[0]
    theirs = torch.from_numpy(model.reference(()).logits(None, tokens[0].tolist()))
    assert float(theirs.std()) > 0.1
    assert apart(ours, theirs) <= decoder_tolerance(layers=2, hidden=32, inner=48, context=16)


def test_text_is_that_of_transformers_reading_the_same_file(tmp_path):
    model = opened(converted(tmp_path, "llama", tokenizer=True)[1])
    rules, theirs = model.text(), model.reference_text(None)
    tokenizer = parse_tokenizer(rules.tokenizer, "tokenizer.json", ModelError)
    assert tuple(tokenizer.encode("hell he").ids) == theirs.encode("hell he")
    assert theirs.encode("hell he") == (61, 63)
    assert rules.templates["default"].source == "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert (rules.bos_id, rules.eos_ids) == (1, (2,))
    assert "made of the tokenizer inside tiny-Q8_0.gguf by transformers" in model.notes[1]


def refusal(path):
    with pytest.raises(ModelError) as raised:
        opened(path)
    return str(raised.value)


REFUSED = [
    ({"told": {"rope.scaling.type": "yarn"}}, "YaRN as llama.cpp stores and computes it is not read"),
    ({"told": {"expert_count": 8}}, "Experts are not read from GGUF files"),
    ({"told": {"attention.value_length": 8}}, "Keys of 16 and values of 8 numbers a head are not supported"),
    ({"told": {"attention.scale": 0.5}}, "The metadata says attention.scale = 0.5, which is not understood"),
    ({"more": {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}}, "are not those of Llama 3"),
    ({"more": {"blk.0.ffn_gate_exps.weight": np.zeros((2, 2), np.float32)}}, "blk.0.ffn_gate_exps.weight that"),
    ({"left_out": "blk.1.ffn_up.weight"}, "lacks tensor model.layers.1.mlp.up_proj.weight"),
]


@pytest.mark.parametrize(("changed", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_not_read_of_a_gguf_model_is_refused_by_name(tmp_path, changed, words):
    assert words in refusal(converted(tmp_path, "llama", **changed)[1])


def test_an_architecture_that_is_not_read_is_refused_with_those_that_are(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen35")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "The GGUF architecture 'qwen35' is not read as a base. Read are llama, " in refusal(tmp_path / "a.gguf")


def test_a_directory_with_one_gguf_file_is_that_model(tmp_path):
    file = converted(tmp_path, "llama")[1]
    directory = tmp_path / "only"
    directory.mkdir()
    file.rename(directory / file.name)
    model = open_model(str(directory), PluginHub(entry_points=()), download=False)
    assert model.summary.identities == ("tiny-Q8_0", "tiny")


@pytest.mark.parametrize(
    "told",
    [
        {"attention.head_count": "two"},
        {"rope.dimension_count": "16"},
        {"attention.head_count_kv": ["a", "b"]},
        {"rope.freq_base": [1.0]},
        {"attention.layer_norm_rms_epsilon": "small"},
        {"block_count": [1, 2]},
    ],
    ids=str,
)
def test_metadata_of_other_types_is_the_files_fault(tmp_path, told):
    checkpoint = write_tiny_family(tmp_path / "base", "llama")
    file = write_model(tmp_path / "model.gguf", checkpoint, "llama", {"rope.dimension_count": 16, **told})
    with pytest.raises(ModelError, match=r"model\.gguf"):
        GgufModelSource().open(str(file))
