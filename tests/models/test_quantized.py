"""Checkpoints that are stored quantized: the weights that they stand for, as their own formats define them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_core.errors import ModelError
from lora_core.models.hf import HfModelSource
from lora_core.models.quantized.weights import _float8
from lora_core.testing.families import write_tiny_family

LAYER = "model.layers.1.mlp.down_proj"
GROUP = 16


@pytest.fixture
def base(tmp_path):
    return write_tiny_family(tmp_path / "base", "llama")


def rewrite(base, settings, make):
    """Store every linear layer of the blocks as `make` does, which returns tensors by ending; return what it kept."""
    tensors, kept = load_file(base / "model.safetensors"), {}
    for name in list(tensors):
        if name.endswith("_proj.weight"):
            layer = name.removesuffix(".weight")
            parts, kept[name] = make(tensors.pop(name))
            tensors |= {f"{layer}.{ending}": part for ending, part in parts.items()}
    save_file(tensors, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return kept


def packed(values, bits, axis):
    """Put values of `bits` into 32-bit words along `axis`, the first in the lowest bits."""
    values = values.movedim(axis, -1).to(torch.int64)
    words = values.reshape(*values.shape[:-1], -1, 32 // bits)
    joined = sum(words[..., place] << (bits * place) for place in range(32 // bits))
    return joined.to(torch.int32).movedim(-1, axis).contiguous()


def grouped(weight, bits):
    """Return integers (in, out), zero points and scales (groups, out), and the weight that they stand for."""
    turned = weight.T.reshape(-1, GROUP, len(weight))
    top = 2**bits - 1
    scale = ((turned.amax(1) - turned.amin(1)) / top).half().float()
    zero = (-turned.amin(1) / scale).round().clamp(1, top)
    q = (turned / scale[:, None] + zero[:, None]).round().clamp(0, top)
    stands = ((q - zero[:, None]) * scale[:, None]).reshape(weight.shape[1], -1).T
    return q.reshape(weight.shape[1], -1), zero, scale, stands


def gptq(bits, version):
    def make(weight):
        q, zero, scale, stands = grouped(weight, bits)
        # Groups in another order, as act-order leaves them.
        order = torch.arange(len(q)) // GROUP
        order = order.flip(0)
        parts = {
            "qweight": packed(q.flip(0), bits, 0),
            "qzeros": packed(zero - int(version == "gptq"), bits, 1),
            "scales": scale.half(),
            "g_idx": order.to(torch.int32),
        }
        return parts, stands.flip(1)

    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": version}, make


def awq():
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def words(values):
        shuffled = values.reshape(len(values), -1, 8)[:, :, order].reshape(len(values), -1)
        return packed(shuffled, 4, 1)

    def make(weight):
        q, zero, scale, stands = grouped(weight, 4)
        return {"qweight": words(q), "qzeros": words(zero), "scales": scale.half()}, stands

    return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, make


def fp8(block):
    def make(weight):
        rows, columns = weight.shape
        if block is None:
            scale = weight.abs().amax(1, keepdim=True) / 448
            wide = scale.expand_as(weight)
        else:
            scale = torch.rand(-(-rows // block), -(-columns // block)) * 1e-3 + 1e-3
            wide = scale.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
        stored = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        ending = "weight_scale" if block is None else "weight_scale_inv"
        return {"weight": stored, ending: scale}, stored.float() * wide

    size = None if block is None else [block, block]
    return {"quant_method": "fp8", "weight_block_size": size}, make


def compressed(*, ordered=True):
    def make(weight):
        if not ordered:  # groups in another order, as `actorder` leaves them
            parts, stands = compressed()[1](weight.flip(1))
            parts["weight_packed"] = packed(unpacked(parts["weight_packed"]).flip(1), 4, 1)
            parts["weight_g_idx"] = (torch.arange(weight.shape[1]) // GROUP).flip(0).to(torch.int32)
            return parts, stands.flip(1)
        groups = weight.reshape(len(weight), -1, GROUP)
        scale = (groups.abs().amax(-1) / 7).half().float()
        q = (groups / scale[..., None]).round().clamp(-8, 7)
        stands = (q * scale[..., None]).reshape(weight.shape)
        parts = {
            "weight_packed": packed(q.reshape(weight.shape) + 8, 4, 1),
            "weight_scale": scale.half(),
            "weight_shape": torch.tensor(weight.shape),
        }
        return parts, stands

    weights = {"num_bits": 4, "symmetric": True, "group_size": GROUP}
    groups = {"group_0": {"weights": weights, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}, make


def unpacked(words):
    """Return the 4-bit values of words along the last axis."""
    return torch.stack([(words >> (4 * place)) & 15 for place in range(8)], -1).reshape(len(words), -1)


def compressed_int8(block):
    """Integers with scales of groups of a row, or of blocks; zero points of zeros, as older versions stored them."""

    def make(weight):
        if block:
            rows, columns = (-(-size // block) for size in weight.shape)
            scale = torch.rand(rows, columns) * 1e-2 + 1e-2
            wide = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: len(weight), : weight.shape[1]]
        else:
            scale = weight.reshape(len(weight), -1, GROUP).abs().amax(-1) / 127
            wide = scale.repeat_interleave(GROUP, 1)
        q = (weight / wide).round().clamp(-128, 127).to(torch.int8)
        return {"weight": q, "weight_scale": scale, "weight_zero_point": torch.zeros_like(scale)}, q.float() * wide

    weights = {"num_bits": 8, "type": "int", "symmetric": True}
    weights |= {"block_structure": [block, block]} if block else {"group_size": GROUP}
    groups = {"group_0": {"weights": weights, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}, make


def compressed_asymmetric():
    def make(weight):
        _, zero, scale, stands = grouped(weight, 4)
        wide_zero, wide = (each.T.repeat_interleave(GROUP, 1) for each in (zero, scale))
        q = (stands / wide + wide_zero).round()
        parts = {"weight_packed": packed(q, 4, 1), "weight_scale": scale.T.contiguous()}
        parts |= {"weight_zero_point": packed(zero.T, 4, 0), "weight_shape": torch.tensor(weight.shape)}
        return parts, stands

    weights = {"num_bits": 4, "symmetric": False, "group_size": GROUP}
    groups = {"group_0": {"weights": weights, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}, make


def gptq_mixed():
    """Bits that differ from layer to layer, as GPTQModel has them."""
    made = {bits: gptq(bits, "gptq")[1] for bits in (4, 8)}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "dynamic": {r"+:.*down_proj": {"bits": 8}}}
    return settings, lambda weight: made[8 if weight.shape[1] == 48 else 4](weight)


def gptq_in_order():
    """Groups that follow each other, which no `g_idx` says, and biases of zeros, as AutoGPTQ stored them."""

    def make(weight):
        q, zero, scale, stands = grouped(weight, 4)
        parts = {"qweight": packed(q, 4, 0), "qzeros": packed(zero - 1, 4, 1), "scales": scale.half()}
        return {**parts, "bias": torch.zeros(len(weight))}, stands

    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP}, make


def fp8_static():
    """One scale a layer, and those of its inputs, of which the weight knows nothing."""

    def make(weight):
        scale = weight.abs().amax() / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        parts = {"weight": stored, "weight_scale": scale.reshape(()), "input_scale": torch.tensor(0.5)}
        return {**parts, "k_scale": torch.tensor(1.0)}, stored.float() * scale

    return {"quant_method": "fp8", "activation_scheme": "static"}, make


def bnb_in_words():
    """Bytes in words of another type (`bnb_4bit_quant_storage`), as for training in shards."""

    def make(weight):
        parts, stands = bnb_4bit(nested=False)[1](weight)
        return {**parts, "weight": parts["weight"].view(-1, 2).view(torch.bfloat16)}, stands

    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, make


def bnb_int8():
    def make(weight):
        largest = weight.abs().amax(1)
        q = (weight * 127 / largest[:, None]).round().to(torch.int8)
        parts = {"weight": q, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return parts, q.float() * (largest / 127)[:, None]

    return {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, make


def bnb_4bit(*, nested):
    def make(weight):
        codes = torch.linspace(-1, 1, 16) ** 3
        blocks = weight.reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
        parts = {"weight.quant_map": codes}
        if nested:
            nested_codes = torch.linspace(-1, 1, 256)
            offset, nested_absmax = absmax.mean(), torch.tensor([1.5, 2.5])[: -(-len(absmax) // 256)]
            wide = nested_absmax.repeat_interleave(256)[: len(absmax)]
            chosen = ((absmax - offset) / wide)[:, None].sub(nested_codes).abs().argmin(1)
            absmax = nested_codes[chosen] * wide + offset
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
            parts |= {"weight.absmax": chosen.to(torch.uint8), "weight.nested_absmax": nested_absmax}
            parts |= {"weight.nested_quant_map": nested_codes}
        else:
            parts |= {"weight.absmax": absmax}
        q = (blocks / absmax[:, None])[..., None].sub(codes).abs().argmin(-1)
        flat = q.reshape(-1, 2)
        parts["weight"] = (flat[:, :1] * 16 + flat[:, 1:]).to(torch.uint8)
        told = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.from_numpy(told.copy())
        return parts, (codes[q] * absmax[:, None]).reshape(weight.shape)

    return {"quant_method": "bitsandbytes", "load_in_4bit": True}, make


FORMATS = {
    "gptq": gptq(4, "gptq"),
    "gptq v2": gptq(4, "gptq_v2"),
    "gptq 8 bits": gptq(8, "gptq"),
    "gptq, bits by layer": gptq_mixed(),
    "gptq in order, with biases": gptq_in_order(),
    "awq": awq(),
    "fp8, static": fp8_static(),
    "fp8 blocks": fp8(12),
    "fp8 rows": fp8(None),
    "compressed-tensors": compressed(),
    "compressed-tensors, in another order": compressed(ordered=False),
    "compressed-tensors, asymmetric": compressed_asymmetric(),
    "compressed-tensors, 8 bits": compressed_int8(None),
    "compressed-tensors, blocks": compressed_int8(12),
    "bitsandbytes 8 bits": bnb_int8(),
    "bitsandbytes 4 bits": bnb_4bit(nested=False),
    "bitsandbytes 4 bits, nested": bnb_4bit(nested=True),
    "bitsandbytes 4 bits, in words": bnb_in_words(),
}


@pytest.mark.parametrize(("settings", "make"), FORMATS.values(), ids=FORMATS)
def test_a_quantized_checkpoint_is_read_as_the_weights_it_stands_for(base, settings, make):
    plain = HfModelSource().open(str(base))
    kept = rewrite(base, settings, make)
    model = HfModelSource().open(str(base))
    assert model.summary.layers == plain.summary.layers
    assert "quantization_config" not in model.summary.config
    ours = model.tensors()
    assert len(kept) == 14
    for name, expected in kept.items():
        # Products and sums of two float32 numbers each, in another order.
        assert np.allclose(ours[name].read(), expected.numpy(), rtol=1e-5, atol=1e-6), name
    assert "stored quantized" in model.notes[0]


def test_a_quantized_checkpoint_is_loaded_with_those_weights(base):
    kept = rewrite(base, *FORMATS["gptq"])
    from lora_core.models.base import ModelOptions

    loaded = HfModelSource().open(str(base)).load(ModelOptions(max_context_len=16, max_seq_len=8))
    weight = loaded.module.get_submodule(loaded.paths[LAYER]).weight
    assert torch.allclose(weight, kept[f"{LAYER}.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stored", ["bitsandbytes 4 bits, nested", "gptq", "awq", "fp8, static"])
def test_a_quantized_language_model_inside_another_is_read_as_the_one_alone(base, stored):
    kept = rewrite(base, *FORMATS[stored])
    tensors = {f"language_model.{name}": each for name, each in load_file(base / "model.safetensors").items()}
    save_file({**tensors, "vision_tower.weight": torch.zeros(2)}, base / "model.safetensors")
    inner = json.loads((base / "config.json").read_text())
    outer = {"model_type": "outer", "quantization_config": inner.pop("quantization_config"), "text_config": inner}
    (base / "config.json").write_text(json.dumps(outer))
    ours = HfModelSource().open(str(base)).tensors()[f"{LAYER}.weight"].read()
    assert np.allclose(ours, kept[f"{LAYER}.weight"].numpy(), rtol=1e-5, atol=1e-6)  # as above


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "hqq"}, "(hqq), and is of a format that is not read"),
        ({"quant_method": "gptq", "bits": 3}, "(gptq), and of GPTQ, 2, 4, 8 bits are read, not 3"),
        ({"quant_method": "awq", "version": "gemv"}, "(awq), and of AWQ, version gemm with 4 bits is read"),
        ({"quant_method": "gptq", "bits": None}, "(gptq), and of GPTQ, 2, 4, 8 bits are read, not None"),
    ],
)
def test_another_format_is_refused_with_the_reason(base, settings, said):
    rewrite(base, settings, FORMATS["gptq"][1])
    with pytest.raises(ModelError) as raised:
        HfModelSource().open(str(base))
    assert raised.value.problems[0].what == f"The checkpoint is already quantized {said}"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"type": "float"}, "of packed weights, integers of one width are read"),
        ({"num_bits": 3}, "of packed weights, integers of one width are read"),
    ],
)
def test_compressed_weights_of_another_kind_are_refused_with_the_reason(base, weights, said):
    settings, make = compressed()
    told = {"num_bits": 4, **weights}
    rewrite(base, {**settings, "config_groups": {"group_0": {"weights": told}}}, make)
    with pytest.raises(ModelError, match=said):
        HfModelSource().open(str(base))


def test_a_bias_that_counts_is_no_leftover(base):
    settings, make = gptq_in_order()
    rewrite(base, settings, lambda weight: ({**make(weight)[0], "bias": torch.ones(len(weight))}, None))
    with pytest.raises(ModelError, match=r"down_proj\.bias"):
        HfModelSource().open(str(base))


def test_a_quantized_layer_that_lacks_a_tensor_is_refused_naming_it(base):
    rewrite(base, *FORMATS["gptq"])
    tensors = load_file(base / "model.safetensors")
    del tensors[f"{LAYER}.scales"]
    save_file(tensors, base / "model.safetensors")
    weight = HfModelSource().open(str(base)).tensors()[f"{LAYER}.weight"]
    with pytest.raises(ModelError, match=rf"Of the quantized {LAYER}\.weight there is no tensor {LAYER}\.scales"):
        weight.read()


def test_every_byte_is_the_8_bit_float_that_torch_reads():
    theirs = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(_float8(), theirs, equal_nan=True)


def damaged_state(**changes):
    """Change what bitsandbytes' state of every layer says."""

    def change(tensors):
        for name in [name for name in tensors if name.endswith("bitsandbytes__nf4")]:
            state = json.loads(bytes(tensors[name].tolist())) | changes
            tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return change


def damaged_part(ending, damage):
    """Change one part of every layer."""

    def change(tensors):
        for name in [name for name in tensors if name.endswith(ending)]:
            tensors[name] = damage(tensors[name]).contiguous()

    return change


HOSTILE = {
    "gptq: groups that are not there": ("gptq", damaged_part("g_idx", lambda part: part + 1000)),
    "gptq: groups from the end": ("gptq", damaged_part("g_idx", lambda part: part - 1)),
    "gptq: no groups": ("gptq", damaged_part("scales", lambda part: part[:0])),
    "gptq: a row of zero points less": ("gptq", damaged_part("qzeros", lambda part: part[1:])),
    "gptq: words of 16 bits": ("gptq", damaged_part("qweight", lambda part: part.half())),
    "gptq: half of the groups' numbers": ("gptq", damaged_part("g_idx", lambda part: part[::2])),
    "awq: no groups": ("awq", damaged_part("scales", lambda part: part[:0])),
    "awq: a column of zero points less": ("awq", damaged_part("qzeros", lambda part: part[:, 1:])),
    "fp8: scales of other blocks": ("fp8 blocks", damaged_part("scale_inv", lambda part: part[:1])),
    "compressed-tensors: columns that are not there": (
        "compressed-tensors",
        damaged_part("weight_shape", lambda part: part * torch.tensor([1, 2**40])),
    ),
    "compressed-tensors: no scales": ("compressed-tensors", damaged_part("weight_scale", lambda part: part[:, :0])),
    "bitsandbytes: enormous blocks": ("bitsandbytes 4 bits", damaged_state(blocksize=2**62)),
    "bitsandbytes: no blocks": ("bitsandbytes 4 bits", damaged_state(blocksize=0)),
    "bitsandbytes: a negative size": ("bitsandbytes 4 bits", damaged_state(shape=[-64, -64])),
    "bitsandbytes: a shape of text": ("bitsandbytes 4 bits", damaged_state(shape="64")),
    "bitsandbytes: few values in the map": ("bitsandbytes 4 bits", damaged_part("quant_map", lambda part: part[:3])),
}


@pytest.mark.parametrize(("stored", "change"), HOSTILE.values(), ids=HOSTILE)
def test_parts_that_do_not_fit_are_the_checkpoints_fault(base, stored, change):
    rewrite(base, *FORMATS[stored])
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ModelError, match=r"quantized|config\.json asks for"):
        HfModelSource().open(str(base)).tensors()[f"{LAYER}.weight"].read()


@pytest.mark.parametrize(
    "settings",
    [
        [1],
        "gptq",
        {"quant_method": "gptq", "bits": 4.0},
        {"quant_method": "gptq", "bits": [4]},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        {"quant_method": "compressed-tensors", "config_groups": {"g": 3}},
        {"quant_method": "fp8", "weight_block_size": 128},
    ],
    ids=str,
)
def test_settings_of_another_form_are_the_checkpoints_fault(base, settings):
    told = settings["quant_method"] if isinstance(settings, dict) else "gptq"
    stored = {"fp8": "fp8 blocks"}.get(told, told)
    rewrite(base, settings, FORMATS[stored][1])
    with pytest.raises(ModelError, match="already quantized"):
        HfModelSource().open(str(base))


def test_blocks_larger_than_the_weight_repeat_nothing(base):
    kept = rewrite(base, {"quant_method": "fp8", "weight_block_size": [2**40, 2**40]}, fp8(64)[1])
    ours = HfModelSource().open(str(base)).tensors()[f"{LAYER}.weight"].read()
    assert np.allclose(ours, kept[f"{LAYER}.weight"].numpy(), rtol=1e-5, atol=1e-6)  # two products of float32
