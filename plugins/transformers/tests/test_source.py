"""What the generic source opens and refuses, and why."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import transformers
from lora_core_transformers.source import TransformersSource
from safetensors.torch import load_file, save_file

from lora_core.backend import ExportJob
from lora_core.errors import ModelError, UnsupportedError
from lora_core.hub import PluginHub
from lora_core.models.base import ModelOptions
from lora_core.models.executorch.options import ExecutorchOptions

ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ENCODER |= {"vocab_size": tiny_models.VOCABULARY, "max_position_embeddings": 34, "pad_token_id": 1}
OPTIONS = ModelOptions(max_context_len=16, max_seq_len=16)


@pytest.fixture
def gpt_neox(tmp_path: Path) -> Path:
    return tiny_models.write_decoder(tmp_path / "pythia", "gpt_neox")


def rewritten(base: Path, **changes: Any) -> Path:
    """Change fields of the configuration."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")
    return base


def test_summary_names_the_definition_and_the_base(gpt_neox: Path) -> None:
    summary = TransformersSource().open(str(gpt_neox)).summary
    assert (summary.name, summary.family, summary.eos_ids) == ("pythia", "gpt_neox (transformers)", (257,))
    assert summary.vocab_size == tiny_models.VOCABULARY
    assert [layer.name for layer in summary.layers if layer.is_output] == ["lm_head"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "these are stored quantized"),
        ({"model_type": "unheard_of"}, "transformers does not know this configuration"),
        ({"architectures": ["GPTNeoXForQuestionAnswering"]}, "is neither a decoder .* nor a classifier"),
        ({"num_hidden_layers": 1_000_000_000}, "no model has more than"),
        ({"text_config": {"num_experts": 1_000_000_000}}, "no model has more than"),
        ({"architectures": ["GPTNeoXModel"]}, "is neither a decoder .* nor a classifier"),
    ],
)
def test_a_configuration_that_cannot_be_exported_is_refused(gpt_neox: Path, changes: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        TransformersSource().open(str(rewritten(gpt_neox, **changes)))


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="an encoder beside its decoder"):
        TransformersSource().open(str(tmp_path))


def test_weights_that_would_be_random_are_refused_by_name(gpt_neox: Path) -> None:
    weights = load_file(gpt_neox / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, gpt_neox / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks gpt_neox\.layers\.1\.mlp\.dense_h_to_4h\.weight"):
        TransformersSource().open(str(gpt_neox)).load(OPTIONS)


def test_weights_that_nothing_reads_are_refused_by_name(gpt_neox: Path) -> None:
    with pytest.raises(ModelError, match=r"holds what nothing reads: gpt_neox\.layers\.1"):
        TransformersSource().open(str(rewritten(gpt_neox, num_hidden_layers=1))).load(OPTIONS)


def test_pickled_weights_are_not_opened(gpt_neox: Path) -> None:
    (gpt_neox / "model.safetensors").rename(gpt_neox / "pytorch_model.bin")
    with pytest.raises(ModelError, match="transformers cannot open the model"):
        TransformersSource().open(str(gpt_neox)).load(OPTIONS)


def test_static_attention_is_refused(gpt_neox: Path) -> None:
    with pytest.raises(UnsupportedError, match="no static attention"):
        TransformersSource().open(str(gpt_neox)).load(ExecutorchOptions(attention="static"))


@pytest.mark.parametrize("backend", ["coreml", "onnx", "qnn_sim"])
def test_a_backend_of_other_decoders_refuses_by_name_before_weights_are_read(gpt_neox: Path, backend: str) -> None:
    (gpt_neox / "model.safetensors").write_bytes(b"")
    hub = PluginHub([EntryPoint(name=backend, value=f"lora_core_{backend}.hooks", group="lora_core")])
    job = ExportJob(
        model=TransformersSource().open(str(gpt_neox)),
        adapters=(),
        plans=(),
        policy=hub.policies[hub.backends[backend].policies[0]],
        options=hub.backend_options(backend)(),
    )
    (problem,) = hub.backend(backend).check(job)
    assert "'gpt_neox" in problem.what
    assert "another backend" in problem.remedy


@pytest.mark.parametrize(
    ("write", "context"),
    [
        (lambda directory: tiny_models.write_decoder(directory, "gpt2"), 64),
        (lambda directory: tiny_models.write_decoder(directory, "mpt"), 64),
        (lambda directory: tiny_models.write_classifier(directory, "BertForSequenceClassification", **ENCODER), 34),
        # Positions are numbered from the one after the padding's.
        (lambda directory: tiny_models.write_classifier(directory, "RobertaForSequenceClassification", **ENCODER), 32),
    ],
    ids=["gpt2", "mpt", "bert", "roberta"],
)
def test_the_context_is_what_the_definition_has_positions_for(tmp_path: Path, write: Any, context: int) -> None:
    assert TransformersSource().open(str(write(tmp_path / "model"))).summary.context_len == context


def test_positions_that_are_no_table_are_told_and_are_no_layer(tmp_path: Path) -> None:
    model = TransformersSource().open(str(tiny_models.write_decoder(tmp_path / "model", "opt")))
    assert [each.name for each in model.summary.layers if each.kind == "embedding"] == ["model.decoder.embed_tokens"]
    assert "model.decoder.embed_positions (OPTLearnedPositionalEmbedding)" in model.notes[1]


def test_an_encoder_without_a_head_gets_one_of_zeros(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, num_labels=3)
    transformers.BertForPreTraining(config).save_pretrained(tmp_path)
    head = TransformersSource().open(str(tmp_path)).tensors()["classifier.weight"].read()
    assert head.shape == (3, 16)
    assert not head.any()
