"""`verify`'s reference of a language model inside another: opened by transformers, as the checkpoint is."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lora_core.adapters.reference import AdapterReference
from lora_core.errors import UnsupportedError
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.hf import HfModelSource
from lora_core.testing.families import write_family_adapter
from tests.numeric import apart, decoder_tolerance

TOKENS = [1, 5, 9, 33, 60, 2, 17, 8]
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "sliding_window": 12,
    "query_pre_attn_scalar": 24,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TOLERANCE = decoder_tolerance(layers=2, hidden=32, inner=48, context=16)


GEMMA_4 = {
    **{name: value for name, value in TEXT.items() if name != "query_pre_attn_scalar"},
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "global_head_dim": 24,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
}
GEMMA_4_VISION = {name: VISION[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
}


def made(family):
    if family == "gemma3":
        config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
        return transformers.Gemma3ForConditionalGeneration(config)
    config = transformers.Gemma4Config(text_config=GEMMA_4, vision_config=GEMMA_4_VISION)
    return transformers.Gemma4ForConditionalGeneration(config)


@pytest.fixture(scope="module", params=["gemma3", "gemma4"])
def seeing(request, tmp_path_factory):
    """A tiny model that sees, saved by transformers."""
    torch.manual_seed(3)
    model = made(request.param).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    directory = tmp_path_factory.mktemp("model") / "seeing"
    model.save_pretrained(directory)
    return directory


def ours(directory):
    options = ExecutorchOptions(max_context_len=16, max_seq_len=8, attention="sdpa", full_logits=True)
    module = HfModelSource().open(str(directory)).load(options).module
    with torch.no_grad():
        return module(torch.tensor([TOKENS]), {"input_pos": torch.tensor([0])})[0]


def whole(directory, adapter=None):
    model = transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS])).logits[0]


def adapter_inside(directory, summary):
    """An adapter that was trained on the whole: its tensors have the names of the language model in there."""
    write_family_adapter(directory, summary, seed=1)
    path = directory / "adapter_model.safetensors"
    alone, inside = "base_model.model.model.", "base_model.model.model.language_model."
    save_file({name.replace(alone, inside): tensor for name, tensor in load_file(path).items()}, path)
    config = json.loads((directory / "adapter_config.json").read_text())
    config["target_modules"] = r".*language_model.*(_proj|_gate|_projection)"
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def reference(directory, adapters=()):
    references = [AdapterReference(name=path.name, directory=path) for path in adapters]
    return HfModelSource().open(str(directory)).reference(references)


def test_the_language_model_is_opened_alone(seeing):
    theirs = torch.from_numpy(reference(seeing).logits(None, TOKENS))
    assert apart(theirs, whole(seeing)) <= TOLERANCE
    assert apart(ours(seeing), theirs) <= TOLERANCE


def test_an_adapter_that_names_it_alone_is_loaded_whole(seeing, tmp_path):
    adapter = write_family_adapter(tmp_path / "a", HfModelSource().open(str(seeing)).summary, seed=1)
    opened = reference(seeing, [adapter])
    assert opened.unloaded("a") == ()
    inside = adapter_inside(tmp_path / "inside", HfModelSource().open(str(seeing)).summary)
    assert apart(torch.from_numpy(opened.logits("a", TOKENS)), whole(seeing, inside)) <= TOLERANCE


def test_an_adapter_that_was_trained_on_the_whole_is_loaded_into_it(seeing, tmp_path):
    adapter = adapter_inside(tmp_path / "a", HfModelSource().open(str(seeing)).summary)
    opened = reference(seeing, [adapter])
    assert opened.unloaded("a") == ()
    theirs = torch.from_numpy(opened.logits("a", TOKENS))
    assert apart(theirs, whole(seeing, adapter)) <= TOLERANCE
    assert apart(theirs, torch.from_numpy(opened.logits(None, TOKENS))) > 0.01


def test_adapters_of_both_kinds_are_not_compared_at_once(seeing, tmp_path):
    summary = HfModelSource().open(str(seeing)).summary
    both = [write_family_adapter(tmp_path / "a", summary, seed=1), adapter_inside(tmp_path / "b", summary)]
    with pytest.raises(UnsupportedError, match="Some adapters are of the language model alone"):
        reference(seeing, both)
