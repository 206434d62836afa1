"""Chat templates, against transformers rendering the same."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path

import pytest

from lora_core.errors import BundleError, ExitCode
from lora_core.runtime.chat import ChatTemplate
from lora_core.runtime.template_sandbox import TooMuchError, render
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
    "loop variables": "{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.nextitem }}{% endfor %}",
    "chosen": "{% for m in messages if m.role == 'user' %}{{ loop.revindex }}{% else %}none{% endfor %}",
    "pairs": "{% for key, value in messages[0].items() %}{{ key ~ '=' ~ value }}{% endfor %}",
    "nothing to loop over": "{% for m in nothing %}{{ m }}{% else %}none{% endfor %}",
    "macros": "{% macro of(m) %}{{ m.role }}{% endmacro %}{% for m in messages %}{{ of(m) }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tools": "{% if tools %}tools{% elif tools is none %}none{% endif %}{% if x is defined %}x{% endif %}",
    "texts": (
        "{{ 'Knowledge cutoff 20231201: %s, %-5s|%5.1f%%' % ('x', 'y', 2) }}{{ '{:>5}|{!r}'.format('x', 'y') }}"
        "{{ 'a<b' | e | center(9) }}{{ ('%s<' | e) % '<' }}{{ ('{}<' | e).format('<') }}{{ 'a b c'.replace('b', 'x') }}"
        "{{ 'one two three four' | wordwrap(9) }}{{ 'a\nb' | indent(2) }}{{ [1, [2, 'x']] }}{{ [1, 2] | sum }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ ', '.join(messages | map(attribute='role')) }}"
        "{{ 2.567 | round(1) }}{{ '{a}'.format_map({'a': 1}) }}{{ [1, 2, 3] | batch(2, 0) | list }}"
        "{{ 'a\tb'.expandtabs(4) }}{{ 'a1' | replace(1, 2) }}"
    ),
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
    "turns without writing": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "turns where nothing passes": "{% for i in range(9) %}{% for j in range(99999) if 0 %}{% endfor %}{% endfor %}",
    "calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "doubles a text": "{% set a = namespace(t='xx') %}{% for i in range(99) %}{% set a.t = a.t ~ a.t %}{% endfor %}",
    "doubles a list": "{% set a = namespace(t=[1]) %}{% for i in range(99) %}{% set a.t = a.t + a.t %}{% endfor %}",
    "multiplies a text": "{{ 'x' * 10 ** 12 }}",
    "makes a number that is too large": "{{ 9 ** (9 ** 9) }}",
    "asks for a wide number": "{{ '%999999999d' % 1 }}",
    "asks for a filter that there is not": "{{ messages | nonsense }}",
    "asks for another template": "{% include 'other' %}",
    "formats what does not fit": "{{ '%d' % 'x' }}",
    "calls what is no function": "{{ messages() }}",
    "is no template": "{% if %}",
}


GREEDY = {
    "pads a text": "{{ 'x' | center(10 ** 10) }}",
    "pads a text by name": "{{ 'x' | center(width=10 ** 10) }}",
    "pads a text, called": "{{ 'x'.ljust(10 ** 10) }}",
    "pads bytes": "{{ 'x'.encode().zfill(10 ** 10) }}",
    "pads each of several": "{{ messages | map('string') | map('center', 10 ** 10) | list }}",
    "pads in a format": "{{ '{:>9999999999}'.format(1) }}",
    "pads in a format by what is given": "{{ '{:>{w}}'.format(1, w=10 ** 10) }}",
    "pads in a format of a map": "{{ '{x:>9999999999}'.format_map({'x': 1}) }}",
    "pads in a filter that formats": "{{ '%9999999999d' | format(1) }}",
    "pads behind a key": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "asks for wide bytes": "{{ (1).to_bytes(10 ** 10) }}",
    "indents": "{{ 'x' | indent(10 ** 10) }}",
    "indents many lines": "{{ ('x\n' * 10 ** 6) | indent(1000) }}",
    "indents JSON": "{{ messages | tojson(indent=10 ** 10) }}",
    "expands tabs": "{{ ('\t' * 10 ** 6).expandtabs(10 ** 6) }}",
    "replaces by more": "{{ ('x' * 10 ** 6).replace('x', 'x' * 1000) }}",
    "replaces nothing by more": "{{ ('x' * 10 ** 6) | replace('', 'x' * 1000) }}",
    "replaces by more, by name": "{{ ('x' * 10 ** 6) | replace(new='x' * 1000, old='x') }}",
    "translates into more": "{{ ('x' * 10 ** 6).translate({120: 'y' * 10 ** 6}) }}",
    "joins one text many times": "{{ (['x' * 10 ** 6] * 1000) | join }}",
    "joins with much": "{{ ('x' * 10 ** 6) | join('y' * 10 ** 6) }}",
    "joins with much, called": "{{ ('y' * 10 ** 6).join('x' * 10 ** 6) }}",
    "joins what is made on the way": "{{ (['x' * 10 ** 6] * 1000) | map('upper') | join }}",
    "wraps with much": "{{ ('x' * 10 ** 6) | wordwrap(1, wrapstring='y' * 1000) }}",
    "writes one text in a format many times": "{{ ('{0}' * 10 ** 4).format('x' * 10 ** 6) }}",
    "writes one text by its key many times": "{{ ('%(a)s' * 10 ** 4) % {'a': 'x' * 10 ** 6} }}",
    "writes one text in a list many times": "{{ ['x' * 10 ** 6] * 1000 }}",
    "makes a text of such a list": "{{ (['x' * 10 ** 6] * 1000) | string | length }}",
    "doubles a list in a list": (
        "{% set a = namespace(t=[]) %}{% for i in range(99) %}{% set a.t = [a.t, a.t] %}{% endfor %}{{ a.t }}"
    ),
    "adds lists in a list": "{{ ([[1] * 10 ** 4] * 10 ** 4) | sum(start=[]) | length }}",
    "adds lists in a list by name": ("{{ ([namespace(t=[1] * 10 ** 4)] * 10 ** 4) | sum('t', start=[]) | length }}"),
    "joins with much, by name": "{{ ('x' * 10 ** 6) | join(attribute=none, d='y' * 10 ** 6) }}",
    "formats by a list": "{{ ['%9999999999d'] | format(1) }}",
    "escapes such a list": "{{ ('x' | e).escape(['x' * 10 ** 6] * 1000) | length }}",
    "makes batches": "{{ [1] | batch(10 ** 10, 0) | list }}",
    "rounds to a large power": "{{ 1 | round(-10 ** 9) }}",
    "keeps what it writes": (
        "{% set a %}{% for i in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}{% endset %}{{ a | length }}"
    ),
    "keeps its own text": (
        "{% set a %}{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}{% endset %}{{ a | length }}"
    ),
    "makes many copies": "{{ (['x' * 10 ** 6] * 1000) | map('upper') | list | length }}",
    "keeps many copies": "{% set a = namespace(t=[]) %}{% set b = 'x' * 10 ** 6 %}{% for i in range(9999) %}"
    "{% set a.t = a.t + [b[1:], b.upper()] %}{% endfor %}",
}
"""What asks for a gigabyte in a few steps."""


@pytest.mark.parametrize("how", FAILING)
def test_a_template_that_fails_is_an_input_error_that_names_it(directory, how):
    (directory / "chat_template.jinja").write_text(FAILING[how])
    with pytest.raises(BundleError, match=r"The chat template cannot be used: .+chat_template\.jinja\)") as caught:
        ChatTemplate.read(directory).render(MESSAGES)
    assert caught.value.exit_code is ExitCode.INPUT
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("how", GREEDY)
def test_what_a_template_asks_for_is_counted_before_it_is_made(how):
    tracemalloc.start()
    try:
        with pytest.raises(TooMuchError, match="more than"):
            render(GREEDY[how], {"messages": MESSAGES})
        assert tracemalloc.get_traced_memory()[1] < 300e6, "200,000 steps of 1,000 characters, and what counts them"
    finally:
        tracemalloc.stop()


def test_a_template_may_loop_as_much_as_a_long_chat_needs(directory):
    source = "{% for m in messages %}{% for other in messages if other.role == m.role %}{% endfor %}x{% endfor %}"
    (directory / "chat_template.jinja").write_text(source)
    assert ChatTemplate.read(directory).render([{"role": "user", "content": "a"}] * 300) == "x" * 300


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
