"""A bundle's tokens are compared with those of transformers, for the base and for each adapter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import attrs
import pytest

from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Manifest
from lora_core.errors import UnsupportedError
from lora_core.layers import ModelSummary
from lora_core.models.base import ModelHandle, TokenizerFiles
from lora_core.models.text.stored import files_in
from lora_core.models.transformers_text import open_text
from lora_core.outcome import Outcome
from lora_core.pipeline.adapter_texts import AdapterTextReader
from lora_core.pipeline.prompting import BaseText
from lora_core.verification.tokens import compare_tokens
from tests.runtime.text_kinds import CHAT, LLAMA, PADDING, added, byte_level, sentence_piece, write

OWN = "{% for m in messages %}<|end|>{{ m.role }}:{{ m.content }}{% endfor %}<|end|>bot:"
ENDS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}


@attrs.frozen
class TextModel(ModelHandle):
    """A model of which nothing but its text matters."""

    directory: Path

    @property
    def summary(self):
        config = json.loads((self.directory / "config.json").read_text())
        return ModelSummary(name="text", family="llama", layers=(), module_names=(), config=config)

    @property
    def tokenizer(self):
        return TokenizerFiles(files=files_in(self.directory))

    def tensors(self):
        raise NotImplementedError

    def load(self, options):
        raise NotImplementedError


@pytest.fixture
def bundle_of(tmp_path):
    """Return a function that makes the text part of a bundle of the model in a directory, with adapters by name."""

    def make(directory, **adapters):
        base, files = BaseText.of_model(TextModel(directory))
        references = [AdapterReference(name=name, directory=path) for name, path in adapters.items()]
        texts = AdapterTextReader(base).read(references)
        out = tmp_path / "bundle"
        written = [*files.write(out), *texts.write(out)]
        manifest = Manifest(
            backend="none",
            base=base.summary,
            policy={},
            foundation="0" * 64,
            plans=(),
            options={},
            versions={},
            artifacts=tuple(Artifact(path=each.path, role=each.role, sha256="0" * 64, size=0) for each in written),
            adapters=tuple(
                BundledAdapter(
                    name=name, digest="", foundation="", rank=1, modules=1, prompting=texts.promptings().get(name)
                )
                for name in adapters
            ),
            methods=(),
            prompting=files.prompting,
        )
        return Bundle(path=out, manifest=manifest)

    return make


def outcomes(bundle, directory, **adapters):
    found = compare_tokens(bundle, partial(open_text, directory), adapters, ())
    return {each.subject: (each.outcome, each.detail) for each in found}


@pytest.mark.parametrize(
    ("document", "config"),
    [
        (byte_level() | {"padding": PADDING}, None),
        (sentence_piece(), LLAMA),
        (byte_level(), {**ENDS, "added_tokens_decoder": {"299": added("<|tool|>")}}),
    ],
)
def test_tokens_that_are_those_of_transformers_pass(bundle_of, tmp_path, document, config):
    directory = write(tmp_path / "model", document, config=config)
    assert outcomes(bundle_of(directory), directory)["bundle"][0] is Outcome.PASSED


def test_other_merges_are_found(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    bundle = bundle_of(directory)
    path = bundle.file(bundle.manifest.prompting.tokenizer)
    document = json.loads(path.read_text())
    document["model"]["merges"] = document["model"]["merges"][5:]
    path.write_text(json.dumps(document))
    outcome, detail = outcomes(bundle, directory)["bundle"]
    assert outcome is Outcome.FAILED
    assert "text 'What is the capital of France?' has" in detail


def test_another_chat_template_is_found(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    bundle = bundle_of(directory)
    bundle.file("tokenizer/chat_template.jinja").write_text(CHAT.replace("eos_token", "bos_token"))
    outcome, detail = outcomes(bundle, directory)["bundle"]
    assert outcome is Outcome.FAILED
    assert "a chat of user has" in detail


def test_a_template_that_one_of_both_cannot_render_is_found(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    bundle = bundle_of(directory)
    bundle.file("tokenizer/chat_template.jinja").write_text("{{ nothing.of.this }}")
    outcome, detail = outcomes(bundle, directory)["bundle"]
    assert outcome is Outcome.FAILED
    assert "a chat of user can be rendered by transformers" in detail


def test_another_end_of_text_is_found(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    bundle = bundle_of(directory)
    other = attrs.evolve(bundle.manifest.prompting, eos_ids=(7,))
    bundle = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, prompting=other))
    outcome, detail = outcomes(bundle, directory)["bundle"]
    assert outcome is Outcome.FAILED
    assert "ends a text with 2, the bundle with [7]" in detail


@pytest.mark.parametrize(
    ("document", "config", "template", "files"),
    [
        (byte_level(), ENDS, OWN, {}),
        (byte_level() | {"padding": PADDING}, ENDS, None, {}),
        (None, {}, OWN, {}),
        (None, {"eos_token": "<|end|>"}, None, {}),
        (None, {"chat_template": OWN, "bos_token": "<pad>"}, None, {}),
        (None, {}, OWN, {"special_tokens_map": {"eos_token": added("<|end|>")}}),
        (None, {**ENDS, "added_tokens_decoder": {"299": added("<|tool|>")}}, OWN, {}),
    ],
)
def test_an_adapters_own_text_is_compared_with_transformers(bundle_of, tmp_path, document, config, template, files):
    directory = write(tmp_path / "model", byte_level())
    own = write(tmp_path / "own", document, config=config, template=template, **files)
    (own / "config.json").unlink()
    bundle = bundle_of(directory, own=own)
    assert bundle.manifest.adapters[0].prompting is not None
    assert outcomes(bundle, directory, own=own)["own"][0] is Outcome.PASSED


def test_an_adapters_changed_template_is_found(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    own = write(tmp_path / "own", None, config={}, template=OWN)
    bundle = bundle_of(directory, own=own)
    (own / "chat_template.jinja").write_text(OWN.replace("bot", "machine"))
    assert outcomes(bundle, directory, own=own)["own"][0] is Outcome.FAILED


def test_a_template_without_an_end_is_not_asked_of_transformers(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    bundle = bundle_of(directory)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (directory / "chat_template.jinja").write_text(loop)
    outcome, detail = outcomes(bundle, directory)["bundle"]
    assert outcome is Outcome.FAILED
    assert "whose chat template has no end" in detail


def test_an_adapter_whose_source_is_not_given_is_unchecked(bundle_of, tmp_path):
    directory = write(tmp_path / "model", byte_level())
    own = write(tmp_path / "own", None, config={}, template=OWN)
    assert outcomes(bundle_of(directory, own=own), directory)["own"][0] is Outcome.UNCHECKED


def test_without_transformers_tokens_are_unchecked(bundle_of, tmp_path):
    def refuse(adapter):
        raise UnsupportedError("transformers is not installed.")

    directory = write(tmp_path / "model", byte_level())
    (finding,) = compare_tokens(bundle_of(directory), refuse, {}, ())
    assert finding.outcome is Outcome.UNCHECKED
