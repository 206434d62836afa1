"""Chat templates, against transformers rendering the same."""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path

import pytest

from lora_core.errors import BundleError, ExitCode
from lora_core.runtime.chat import ChatTemplate
from lora_core.runtime.tokenizer import TextTokenizer

CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}
    {{ '<|im_start|>assistant\n' }}
{% endif %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tools": "{% if tools %}tools{% elif tools is none %}none{% endif %}{% if x is defined %}x{% endif %}",
    "date": "{{ strftime_now('%Y') }}{{ bos_token }}",
}
MESSAGES = [
    {"role": "user", "content": ' Grüße <b>&amp; "quotes" </b> '},
    {"role": "assistant", "content": "東京 🙂"},
    {"role": "user", "content": "and\nlines"},
]


@pytest.fixture
def directory(byte_tokenizer, tmp_path: Path) -> Path:
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_config(tmp_path)
    return tmp_path


def write_config(directory: Path, **fields: object) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True, "lstrip": False},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config | fields))


def transformers_tokenizer(directory: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of its own dependencies on import
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_what_transformers_renders(directory, name, ask):
    (directory / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    template = ChatTemplate.read(directory)
    theirs = transformers_tokenizer(directory)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=ask)
    assert template is not None
    assert template.render(MESSAGES, add_generation_prompt=ask) == expected


def test_tokens_are_what_transformers_gives(directory):
    (directory / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    theirs = transformers_tokenizer(directory)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    ours = TextTokenizer.read(directory)
    assert ours.encode_chat(MESSAGES) == expected
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    assert ours.encode("Grüße 🙂") == theirs("Grüße 🙂")["input_ids"]


def test_the_template_file_comes_before_the_configuration(directory):
    write_config(directory, chat_template="from the configuration")
    assert ChatTemplate.read(directory).render(MESSAGES) == "from the configuration"
    (directory / "chat_template.jinja").write_text("from the file")
    assert ChatTemplate.read(directory).render(MESSAGES) == "from the file"


def test_of_several_named_templates_the_default_is_used(directory):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_config(directory, chat_template=named)
    assert ChatTemplate.read(directory).render(MESSAGES) == "plain"


def test_a_model_without_a_template_has_none(directory):
    assert ChatTemplate.read(directory) is None


def test_a_template_may_refuse_with_a_reason(directory):
    (directory / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BundleError, match=r"roles must alternate.*chat_template\.jinja"):
        ChatTemplate.read(directory).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'x'}) }}",
        "{% for m in messages %}",
    ],
)
def test_a_template_that_is_broken_or_leaves_the_sandbox_is_refused(directory, source):
    (directory / "chat_template.jinja").write_text(source)
    with pytest.raises(BundleError, match="chat template cannot be used"):
        ChatTemplate.read(directory).render(MESSAGES)


FAILING = {
    "adds a number to a text": "{{ messages[0].content + 1 }}",
    "writes what is not there as JSON": "{{ tool_spec | tojson }}",
    "asks something of nothing": "{{ tools.first.name }}",
    "divides by zero": "{{ 1 // 0 }}",
    "calls itself for ever": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "counts too far": "{% for i in range(10 ** 9) %}{% endfor %}",
    "writes without an end": "{% for i in range(9999) %}{% for j in range(9) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
    "asks for a filter that there is not": "{{ messages | nonsense }}",
    "asks for another template": "{% include 'other' %}",
    "formats what does not fit": "{{ '%d' % 'x' }}",
    "calls what is no function": "{{ messages() }}",
    "is no template": "{% if %}",
}


@pytest.mark.parametrize("how", FAILING)
def test_a_template_that_fails_is_an_input_error_that_names_it(directory, how):
    (directory / "chat_template.jinja").write_text(FAILING[how])
    with pytest.raises(BundleError, match=r"The chat template cannot be used: .+chat_template\.jinja\)") as caught:
        ChatTemplate.read(directory).render(MESSAGES)
    assert caught.value.exit_code is ExitCode.INPUT
    assert caught.value.__cause__ is not None


GREEDY = {
    "loops in loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "TimeoutError: it takes longer than 0 seconds",
    ),
    "a power that never ends": ("{{ 9 ** (9 ** 9) }}", "OverflowError: a power is too large"),
    "a text of ten gigabytes": ("{{ ('x' * 10_000_000_000) | length }}", "it takes more than 64 MiB"),
    "a text that doubles": (
        "{% set n = namespace(s='x' * 1000) %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "it takes more than 64 MiB|TimeoutError",
    ),
}


@pytest.mark.parametrize("case", GREEDY)
def test_a_template_that_would_take_everything_is_stopped(directory, monkeypatch, case):
    monkeypatch.setattr("lora_core.runtime.bounds.PATIENCE", 0.3)
    monkeypatch.setattr("lora_core.runtime.bounds.MEMORY", 64 << 20)
    source, told = GREEDY[case]
    (directory / "chat_template.jinja").write_text(source)
    limits, trace = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    with pytest.raises(BundleError, match=told):
        ChatTemplate.read(directory).render(MESSAGES)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert sys.gettrace() is trace


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        ("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", True),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", False),
        ("{% if messages[0].role == 'system' %}You are good.{% endif %}{{ messages[-1].content }}", False),
        ("{{ messages[0].content }}", True),
    ],
)
def test_a_template_takes_a_system_message_if_its_text_counts(directory, source, takes):
    (directory / "chat_template.jinja").write_text(source)
    assert ChatTemplate.read(directory).takes_system(MESSAGES[:1]) is takes


def test_several_templates_of_which_none_is_the_default_are_listed(directory):
    write_config(directory, chat_template=[{"name": "tools", "template": "t"}, {"name": "rag", "template": "r"}])
    with pytest.raises(BundleError, match=r"several chat templates \(rag, tools\).*none is the default"):
        ChatTemplate.read(directory)


def test_templates_in_files_of_their_own_are_read_with_their_names(directory):
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates/tools.jinja").write_text("tools")
    with pytest.raises(BundleError, match=r"\(tools\)"):
        ChatTemplate.read(directory)
    (directory / "chat_template.jinja").write_text("plain")
    assert ChatTemplate.read(directory).render(MESSAGES) == "plain"


def test_a_configuration_that_is_no_json_is_named(directory):
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(BundleError, match=r"not JSON.*tokenizer_config\.json"):
        ChatTemplate.read(directory)
