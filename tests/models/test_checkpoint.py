"""Damaged and odd checkpoints: every problem at once, each with its file and tensor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_core.errors import ExitCode, ModelError
from lora_core.models.base import ModelOptions
from lora_core.models.hf import HfModelSource

OPTIONS = ModelOptions(max_context_len=32, max_seq_len=32)


@pytest.fixture
def sharded(tiny, tmp_path):
    directory = tmp_path / "sharded"
    shutil.copytree(tiny("llama2", shard="40KB").directory, directory)
    return directory


def open_model(directory):
    return HfModelSource().open(str(directory))


def problems_of(directory) -> list[str]:
    with pytest.raises(ModelError) as raised:
        open_model(directory)
    assert raised.value.exit_code is ExitCode.INPUT
    return [str(problem).replace(str(directory), "DIR") for problem in raised.value.problems]


def rewrite(directory, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_missing_misshapen_unused_and_unreadable_tensors_are_reported_together(llama_directory):
    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(48, 40)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(80, 48, dtype=torch.int8)

    rewrite(llama_directory, damage)
    assert problems_of(llama_directory) == [
        "The checkpoint lacks tensor model.norm.weight. (DIR)",
        "The checkpoint holds tensor model.layers.0.self_attn.q_proj.bias that this architecture does not use. "
        "Check that config.json belongs to these weights. (DIR)",
        "Tensor model.layers.0.self_attn.q_proj.weight has shape (48, 40); config.json asks for (48, 48). "
        "(DIR/model.safetensors: model.layers.0.self_attn.q_proj.weight)",
        "Tensor model.layers.1.mlp.up_proj.weight is stored as I8. Supported: F32, F16, BF16. "
        "(DIR/model.safetensors: model.layers.1.mlp.up_proj.weight)",
    ]


def test_long_lists_of_tensors_are_shortened(llama_directory):
    rewrite(llama_directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])
    (problem,) = problems_of(llama_directory)
    assert problem.startswith("The checkpoint lacks 9 tensors: model.layers.1.self_attn.q_proj.weight, ")
    assert problem.endswith(" and 4 more. (DIR)")


def test_configuration_and_checkpoint_problems_come_together(llama_directory):
    path = llama_directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))
    (llama_directory / "model.safetensors").write_bytes(b"no safetensors")
    activation, unreadable = problems_of(llama_directory)
    assert "Activation 'relu' is not supported" in activation
    assert "The weights cannot be read" in unreadable


def test_truncated_file_is_named(llama_directory):
    path = llama_directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    (problem,) = problems_of(llama_directory)
    assert problem.startswith("The weights are cut short")
    assert "(DIR/model.safetensors: " in problem


def test_missing_shards_are_all_named(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    for shard in (shards[0], shards[2]):
        (sharded / shard).unlink()
    found = problems_of(sharded)
    assert [shard in problem for shard, problem in zip((shards[0], shards[2]), found, strict=True)] == [True, True]
    assert all("is missing; it holds" in problem for problem in found)


def test_tensor_absent_from_its_shard_is_named(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["model.norm.weight"]
    tensors = load_file(sharded / shard)
    del tensors["model.norm.weight"]
    save_file(tensors, sharded / shard)
    assert problems_of(sharded) == [
        f"Shard {shard} lacks tensor model.norm.weight that the index puts there. (DIR/model.safetensors.index.json)"
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_unreadable_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    (problem,) = problems_of(sharded)
    assert "The index has no readable weight_map" in problem


def test_index_cannot_lead_out_of_the_directory(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    shutil.copy(sharded / shard, sharded.parent / shard)
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items() if file == shard}
    path.write_text(json.dumps(index))
    (problem,) = problems_of(sharded)
    assert f"Shard ../{shard} is missing" in problem


def test_pickle_checkpoint_is_not_opened(llama_directory):
    (llama_directory / "model.safetensors").rename(llama_directory / "pytorch_model.bin")
    assert problems_of(llama_directory) == [
        "There is no model.safetensors and no model.safetensors.index.json; pytorch_model.bin is of a format that is "
        "not read. Save the model with save_pretrained, which writes model.safetensors. (DIR)"
    ]


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.layers.0.input_layernorm.weight"],
    ids=["a buffer of older versions", "a head that guesses further"],
)
def test_leftovers_that_transformers_ignores_are_no_problem(llama_directory, name):
    rewrite(llama_directory, lambda tensors: tensors.update({name: torch.ones(6)}))
    assert open_model(llama_directory).summary.family == "llama"


def test_what_layers_that_borrow_keys_do_not_need_is_no_problem(tiny, tmp_path):
    directory = tmp_path / "borrowing"
    shutil.copytree(tiny("gemma4").directory, directory)
    left = "model.layers.3.self_attn.k_proj.weight"
    rewrite(directory, lambda tensors: tensors.update({left: torch.ones(16, 48)}))
    assert left not in open_model(directory).tensors()


@pytest.fixture
def tied(tiny, tmp_path):
    directory = tmp_path / "tied"
    shutil.copytree(tiny("smollm2-tied").directory, directory)
    return directory


def test_stored_copy_of_a_tied_output_head_is_accepted(tied):
    rewrite(tied, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    module = open_model(tied).load(OPTIONS).module
    assert module.output.weight.data_ptr() == module.tok_embeddings.weight.data_ptr()


def only_the_head(tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def test_a_tied_model_stored_under_its_head_alone_is_the_same_model(tied):
    def stored():
        return open_model(tied).tensors()["model.embed_tokens.weight"].read()

    before = stored()
    state = open_model(tied).load(OPTIONS).module.state_dict()
    rewrite(tied, only_the_head)
    assert (stored() == before).all()
    loaded = open_model(tied).load(OPTIONS).module.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)


def test_an_untied_model_without_its_embedding_is_refused(llama_directory):
    rewrite(llama_directory, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert problems_of(llama_directory) == ["The checkpoint lacks tensor model.embed_tokens.weight. (DIR)"]


def test_a_tied_model_without_embedding_and_head_is_refused(tied):
    rewrite(tied, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert problems_of(tied) == ["The checkpoint lacks tensor model.embed_tokens.weight. (DIR)"]


def indexed(directory, *, head: str | None = None, more=()):
    """Put the one file of `directory` into an index that lists the head in the file `head`, and `more` in its own."""
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    names = [*load_file(directory / "model-1.safetensors"), *more]
    weight_map = dict.fromkeys(names, "model-1.safetensors") | ({"lm_head.weight": head} if head else {})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("file", ["model-1.safetensors", "model-2.safetensors"])
def test_an_index_that_lists_the_tied_head_is_what_it_is_without(tied, file):
    indexed(tied, head=file)
    assert "lm_head.weight" not in open_model(tied).tensors()


def test_an_index_may_list_buffers_that_are_not_stored(tied):
    indexed(tied, more=["model.layers.0.self_attn.rotary_emb.inv_freq"])
    assert "model.embed_tokens.weight" in open_model(tied).tensors()


def test_an_index_of_an_untied_model_must_have_its_head(llama_directory):
    rewrite(llama_directory, lambda tensors: tensors.pop("lm_head.weight"))
    indexed(llama_directory, head="model-1.safetensors")
    assert "lacks tensor lm_head.weight" in problems_of(llama_directory)[0]


def test_output_head_that_contradicts_the_tie_is_refused(tied):
    rewrite(tied, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ModelError, match="ties the output head to the embedding, but the checkpoint holds another"):
        open_model(tied).load(OPTIONS)


def test_untied_model_without_output_head_is_refused(llama_directory):
    rewrite(llama_directory, lambda tensors: tensors.pop("lm_head.weight"))
    assert problems_of(llama_directory) == ["The checkpoint lacks tensor lm_head.weight. (DIR)"]


def inside(directory, prefix, *, others=("vision_tower.patch.weight",), **outer):
    """Make of a checkpoint the language model inside another, under `prefix`, beside parts that are not of it."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    path.write_text(json.dumps({"model_type": "outer", "architectures": ["Outer"], "text_config": config, **outer}))
    tensors = load_file(directory / "model.safetensors")
    renamed = {prefix(name): tensor for name, tensor in tensors.items()}
    save_file({**renamed, **{name: torch.zeros(2, 2) for name in others}}, directory / "model.safetensors")


NESTED = {
    "as transformers 4 wrote it": lambda name: f"language_model.{name}",
    "as transformers 5 writes it": lambda name: name.replace("model.", "model.language_model.", 1),
    "as SmolVLM has it": lambda name: name.replace("model.", "model.text_model.", 1),
    "beside the others": lambda name: name,
}


@pytest.mark.parametrize("prefix", NESTED.values(), ids=NESTED)
def test_the_language_model_inside_another_is_the_one_alone(tiny, llama_directory, prefix):
    alone = HfModelSource().open(str(tiny("llama2").directory))
    inside(llama_directory, prefix)
    model = HfModelSource().open(str(llama_directory))
    assert model.summary.layers == alone.summary.layers
    ours, theirs = model.tensors(), alone.tensors()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not (ours[name].read() == theirs[name].read()).all()] == []


def test_what_no_configuration_says_of_the_head_the_checkpoint_shows(tied):
    inside(tied, NESTED["as transformers 4 wrote it"])
    assert HfModelSource().open(str(tied)).architecture.tied


def test_sizes_that_the_configuration_inside_leaves_out_are_its_classes(llama_directory):
    inside(llama_directory, NESTED["as transformers 4 wrote it"])
    path = llama_directory / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]["intermediate_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"gate_proj\.weight has shape .*config\.json asks for \(11008, "):
        HfModelSource().open(str(llama_directory))


@pytest.mark.parametrize("prefix", [NESTED["as transformers 4 wrote it"], NESTED["as transformers 5 writes it"]])
def test_an_index_inside_another_that_lists_the_tied_head_is_what_it_is_without(tied, prefix):
    inside(tied, prefix)
    names = [*load_file(tied / "model.safetensors"), prefix("lm_head.weight"), "lm_head.weight"]
    (tied / "model.safetensors").rename(tied / "part.safetensors")
    (tied / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")})
    )
    assert HfModelSource().open(str(tied)).architecture.tied


def test_a_part_of_the_language_model_that_is_missing_is_named(llama_directory):
    inside(llama_directory, lambda name: f"language_model.{name}".replace("model.norm", "model.other"))
    assert problems_of(llama_directory) == [
        "The checkpoint lacks tensor model.norm.weight. (DIR)",
        "The checkpoint holds tensor model.other.weight that this architecture does not use. "
        "Check that config.json belongs to these weights. (DIR)",
    ]
