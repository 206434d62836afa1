"""A base without its weights is the loaded base but for them, and says where each is read."""

import pytest
import torch

from lora_core.errors import ModelError
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.hf import HfModelSource
from lora_core.models.outline import Outline
from lora_core.tensors import row_blocks

OPTIONS = ExecutorchOptions(max_context_len=16, max_seq_len=8)


def shapes(tensors):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}


@pytest.mark.parametrize("family", ["llama-every-bias", "qwen3-own-head-dim-tied", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_outline_is_the_loaded_base_without_its_weights(tiny, family, dtype):
    handle = HfModelSource().open(str(tiny(family, dtype=dtype, shard="20KB").directory))
    loaded, outline = handle.load(OPTIONS), handle.outline(OPTIONS)
    module = outline.base.module
    assert all(parameter.is_meta for parameter in module.parameters())
    assert shapes(module.named_parameters(remove_duplicate=False)) == shapes(
        loaded.module.named_parameters(remove_duplicate=False)
    )
    values = dict(loaded.module.named_parameters(remove_duplicate=False))
    assert set(outline.sources) == set(values)
    for path, source in outline.sources.items():
        assert torch.equal(torch.cat([torch.from_numpy(rows) for rows in row_blocks(source, 4096)]), values[path])
    buffers = dict(loaded.module.named_buffers())
    for name, buffer in module.named_buffers():
        assert buffer.is_meta or torch.equal(buffer, buffers[name])
    assert (outline.base.paths, outline.base.metadata) == (loaded.paths, loaded.metadata)


def test_tied_parameters_of_an_outline_are_one(tiny):
    outline = HfModelSource().open(str(tiny("qwen2.5-tied").directory)).outline(OPTIONS)
    module = outline.base.module
    assert module.get_parameter("output.weight") is module.get_parameter("tok_embeddings.weight")
    assert outline.sources["output.weight"] is outline.sources["tok_embeddings.weight"]


def test_a_parameter_without_a_source_is_refused(tiny):
    outline = HfModelSource().open(str(tiny("qwen2").directory)).outline(OPTIONS)
    sources = {path: source for path, source in outline.sources.items() if path != "norm.weight"}
    values = {source.name: torch.zeros(source.shape) for source in sources.values()}
    with pytest.raises(ModelError, match=r"have other parameters: norm\.weight"):
        Outline(base=outline.base, sources=sources).fill(values)
