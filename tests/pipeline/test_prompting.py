"""What an adapter says about prompting travels with it, beside what the base says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lora_core
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.errors import AdapterError, ModelError
from lora_core.events import Noted, Warned
from lora_core.models.base import TokenizerFiles
from lora_core.models.text.stored import files_in
from lora_core.runtime.tokenizer import TextTokenizer
from tests.runtime.text_kinds import CHAT, PADDING, added, byte_level, write

OWN = "{% for m in messages %}<|end|>{{ m.role }}:{{ m.content }}{% endfor %}<|end|>bot:"
ENDS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}
MESSAGES = [{"role": "user", "content": "hello"}]
BEFORE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def model(fake, tmp_path):
    """A base with a tokenizer, a template and an end of text."""
    write(tmp_path / "model", byte_level())
    return fake.FakeModel(files=TokenizerFiles(files=files_in(tmp_path / "model")))


@pytest.fixture
def add(hub, tmp_path):
    """Add adapters to the bundle `tmp_path / NAME`."""
    return lambda name, adapters, **more: lora_core.add(tmp_path / name, adapters, hub=hub, **more)


def chatting(make_adapter, name, document=None, **told):
    """Return the directory of an adapter with tokenizer files of its own."""
    directory = make_adapter(name, seed=len(name))
    write(directory, document, **told)
    (directory / "config.json").unlink()
    return directory


def rendered(bundle, adapter=None):
    tokenizer = TextTokenizer.of_bundle(bundle, adapter)
    return tokenizer.decode(tokenizer.encode_chat(MESSAGES), skip_special_tokens=False)


def prompting(bundle, name):
    return {each.name: each.prompting for each in bundle.manifest.adapters}[name]


def warnings_of(heard):
    return [event.message for event in heard if isinstance(event, Warned)]


def test_an_adapter_is_prompted_with_its_own_template_and_end_of_text(export, make_adapter, model):
    own = chatting(make_adapter, "own", byte_level(), config=ENDS, template=OWN)
    heard = []
    bundle = export("b", {"own": own, "plain": make_adapter("plain")}, model=model, emit=heard.append)
    assert rendered(bundle) == rendered(bundle, "plain") == "<s>[user]hello</s>"
    assert rendered(bundle, "own") == "<|end|>user:hello<|end|>bot:"
    assert TextTokenizer.of_bundle(bundle, "own").eos_ids == (3, 2)
    assert TextTokenizer.of_bundle(bundle, "plain").eos_ids == (2,)
    (told,) = warnings_of(heard)
    assert "'own' brings another chat template, the end-of-text token '<|end|>' (the base has '</s>')" in told


def test_add_writes_what_an_export_writes(export, add, make_adapter, model, contents, tmp_path):
    own = chatting(make_adapter, "own", byte_level() | {"padding": PADDING}, config=ENDS, template=OWN)
    other = make_adapter("a")
    export("whole", {"a": other, "own": own}, model=model)
    export("bare", {"a": other}, model=model, max_rank=2, targets=["q_proj", "v_proj"])
    before = contents(tmp_path / "bare")
    heard = []
    add("bare", {"own": own}, emit=heard.append)
    assert contents(tmp_path / "bare") == contents(tmp_path / "whole")
    assert len(warnings_of(heard)) == 1
    assert contents(tmp_path / "bare") != before


def test_removing_an_adapter_takes_its_text_along(export, make_adapter, model, contents, tmp_path, hub):
    own = chatting(make_adapter, "own", byte_level(), config=ENDS, template=OWN)
    other = make_adapter("a")
    export("one", {"a": other}, model=model, max_rank=2, targets=["q_proj", "v_proj"])
    export("two", {"a": other, "own": own}, model=model)
    lora_core.remove(tmp_path / "two", ["own"], hub=hub)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not (tmp_path / "two/tokenizer/adapters").exists()


def test_the_same_files_beside_an_adapter_are_not_stored_again(export, make_adapter, model, tmp_path):
    copied = make_adapter("copied")
    for path in files_in(tmp_path / "model"):
        shutil.copy(path, copied)
    rewritten = chatting(make_adapter, "rewritten", byte_level() | {"padding": PADDING, "version": "1.0"})
    (rewritten / "tokenizer.json").write_text(json.dumps(byte_level(), indent=3, sort_keys=True))
    silent = make_adapter("silent", seed=4)
    heard = []
    adapters = {"copied": copied, "rewritten": rewritten, "silent": silent}
    bundle = export("b", adapters, model=model, emit=heard.append)
    assert [each.prompting for each in bundle.manifest.adapters] == [None, None, None]
    assert not [artifact for artifact in bundle.manifest.artifacts if artifact.path.startswith("tokenizer/adapters")]
    assert warnings_of(heard) == []


def test_a_compact_tokenizer_is_the_same_in_fewer_bytes(export, make_adapter, model, tmp_path):
    own = chatting(make_adapter, "own", byte_level())
    text = "tokenizer/tokenizer.json"
    whole = export("whole", model=model)
    bundle = export("compact", {"own": own}, model=model, compact_tokenizer=True)
    plain, compact = (tmp_path / name / text for name in ("whole", "compact"))
    assert json.loads(compact.read_text()) == json.loads(plain.read_text())
    assert compact.stat().st_size < 0.8 * plain.stat().st_size
    assert rendered(bundle) == rendered(whole)
    # An adapter that brings the base's tokenizer in another form still brings nothing.
    assert prompting(bundle, "own") is None


@pytest.mark.parametrize(
    ("config", "template", "document", "says"),
    [
        (None, OWN, None, "another chat template"),
        ({"chat_template": OWN}, None, None, "another chat template"),
        ({"chat_template": [{"name": "default", "template": OWN}]}, None, None, "another chat template"),
        ({"eos_token": "<|end|>"}, None, None, "the end-of-text token '<|end|>'"),
        ({"bos_token": "<pad>"}, None, None, "another bos_token"),
        (
            {"added_tokens_decoder": {"299": added("<|tool|>")}, "bos_token": "<s>", "eos_token": "</s>"},
            None,
            byte_level(),
            "added tokens ('<|tool|>')",
        ),
    ],
)
def test_whatever_differs_is_told_and_stored(export, make_adapter, model, config, template, document, says):
    own = chatting(make_adapter, "own", document, config=config or {}, template=template)
    heard = []
    bundle = export("b", {"own": own}, model=model, emit=heard.append)
    assert says in warnings_of(heard)[0]
    assert prompting(bundle, "own") is not None
    assert rendered(bundle, "own") is not None


def test_what_an_adapter_does_not_say_is_the_bases(export, make_adapter, model):
    own = chatting(make_adapter, "own", config={}, template=OWN)
    told = prompting(export("b", {"own": own}, model=model), "own")
    assert told.tokenizer == "tokenizer/tokenizer.json"
    assert told.chat_templates == {"default": "tokenizer/adapters/own/chat_template.jinja"}
    assert told.special_tokens["eos_token"] == "</s>"
    assert told.eos_ids == (2,)


def test_tokens_without_a_row_in_the_base_are_told(export, make_adapter, model, fake):
    import attrs

    class Sized(fake.FakeModel):
        @property
        def summary(self):
            return attrs.evolve(super().summary, vocab_size=len(byte_level()["model"]["vocab"]))

    config = {**ENDS, "added_tokens_decoder": {"999": added("<|tool|>")}}
    own = chatting(make_adapter, "own", byte_level(), config=config, template=OWN)
    heard = []
    export("b", {"own": own}, model=Sized(files=model.files), emit=heard.append)
    assert "no embedding: '<|tool|>'" in warnings_of(heard)[1]


def test_a_composite_is_prompted_as_its_parts_are_if_they_agree(export, make_adapter, model):
    one = chatting(make_adapter, "one", config={}, template=OWN)
    other = chatting(make_adapter, "other", config={}, template=OWN)
    differs = chatting(make_adapter, "differs", config={}, template=BEFORE)
    references = [
        AdapterReference(name="one", directory=one),
        AdapterReference.from_text(f"same={one}:0.5+{other}:0.5"),
        AdapterReference.from_text(f"named=one:0.5+{other}:0.5"),
        AdapterReference.from_text(f"mixed={one}:0.5+{differs}:0.5"),
    ]
    heard = []
    bundle = export("b", references, model=model, emit=heard.append)
    assert rendered(bundle, "same") == rendered(bundle, "named") == "<|end|>user:hello<|end|>bot:"
    assert prompting(bundle, "mixed") is None
    assert any("parts of composite 'mixed'" in message for message in warnings_of(heard))


def test_a_bundle_of_an_older_schema_takes_an_adapter_with_text_of_its_own(export, add, make_adapter, model, tmp_path):
    export("b", model=model, max_rank=2, targets=["q_proj", "v_proj"])
    manifest = tmp_path / "b/manifest.json"
    document = json.loads(manifest.read_text())
    for later in ("prompting", "branches", "base_weights"):
        document.pop(later)
    document["schema_version"] = 2
    manifest.write_text(json.dumps(document))
    bundle = add("b", {"own": chatting(make_adapter, "own", byte_level(), config=ENDS, template=OWN)})
    assert rendered(bundle) == "<s>[user]hello</s>"
    assert rendered(bundle, "own") == "<|end|>user:hello<|end|>bot:"


def test_an_adapters_broken_tokenizer_is_named(export, make_adapter, model):
    own = chatting(make_adapter, "own", byte_level())
    (own / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(AdapterError, match=r"git-lfs pointer.*own/tokenizer\.json"):
        export("b", {"own": own}, model=model)


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "{", '{"model": 3}'])
def test_a_models_tokenizer_that_cannot_be_read_is_told_before_the_lowering(export, model, tmp_path, content):
    (tmp_path / "model/tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"model/tokenizer\.json"):
        export("b", model=model)
    assert model.loads == 0
    assert not (tmp_path / "b").exists()


def test_a_model_without_a_tokenizer_is_told_before_the_lowering(export, fake):
    heard = []
    export("b", model=fake.FakeModel(), emit=heard.append)
    messages = [event.message for event in heard if isinstance(event, Noted)]
    assert "The model has no tokenizer.json: the bundle cannot be prompted with text." in messages


def test_the_manifest_names_files_that_need_no_others(export, fake, tmp_path):
    named = [{"name": "default", "template": CHAT}, {"name": "../../x", "template": "{{ tools }}"}]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": named, "bos_token": "<s>"}
    write(tmp_path / "m", byte_level() | {"padding": PADDING}, config=config, template=None)
    bundle = export("b", model=fake.FakeModel(files=TokenizerFiles(files=files_in(tmp_path / "m"))))
    told = bundle.manifest.prompting
    assert json.loads(bundle.file(told.tokenizer).read_text())["padding"] is None
    assert {name: bundle.file(path).read_text() for name, path in told.chat_templates.items()} == {
        "default": CHAT,
        "../../x": "{{ tools }}",
    }
    assert told.special_tokens == {"bos_token": "<s>"}
    assert verify_hashes(open_bundle(Path(bundle.path))) == []


def test_adapters_of_one_training_are_read_once(export, make_adapter, model, monkeypatch):
    from lora_core.models.text import tokenizer

    parsed = []
    honest = tokenizer.parse_tokenizer
    monkeypatch.setattr(tokenizer, "parse_tokenizer", lambda *given: parsed.append(given) or honest(*given))
    adapters = {
        name: chatting(make_adapter, name, byte_level(), config=ENDS, template=OWN) for name in ("a", "b", "c", "d")
    }
    bundle = export("bundle", adapters, model=model)
    assert len({each.prompting.eos_ids for each in bundle.manifest.adapters}) == 1
    assert len(parsed) == 2  # the model's and theirs
