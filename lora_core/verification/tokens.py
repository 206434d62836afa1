"""A bundle's tokens against those of an independent tokenizer, on texts and on chats, for the base and each adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lora_core.bundle.bundle import Bundle
from lora_core.errors import LoraCoreError, UnsupportedError
from lora_core.models.reference_model import ReferenceText
from lora_core.runtime.chat import ChatTemplate
from lora_core.runtime.template_sandbox import TooMuchError
from lora_core.runtime.tokenizer import TextTokenizer, has_tokenizer
from lora_core.verification.finding import Finding, found, unchecked
from lora_core.verification.prompts import TEXTS

CHECK = "tokens"
BUNDLE = "bundle"
_TEXTS = (*TEXTS, " Grüße, 東京 🙂\n\n  2024 ", "")
_CHATS: Sequence[Sequence[Mapping[str, str]]] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "List three fruits.\nAs JSON."},
    ),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}),
)
Open = Callable[[Path | None], ReferenceText | None]


def compare_tokens(
    bundle: Bundle, open_reference: Open, directories: Mapping[str, Path], texts: Sequence[str]
) -> list[Finding]:
    """Compare the tokens of the base, and of each adapter that has text of its own or is in one of `directories`.

    `texts` are compared beside our own. A bundle without a tokenizer has nothing to compare.
    """
    if not has_tokenizer(bundle):
        return []
    own = [each.name for each in bundle.manifest.adapters if each.prompting is not None]
    findings = [_compare(bundle, None, None, open_reference, texts)]
    for name in dict.fromkeys((*own, *directories)):
        if name in directories:
            findings.append(_compare(bundle, name, directories[name], open_reference, texts))
        else:
            findings.append(unchecked(CHECK, name, f"say --adapter {name}=DIR to compare how it is prompted"))
    return findings


def _compare(
    bundle: Bundle, adapter: str | None, directory: Path | None, open_reference: Open, texts: Sequence[str]
) -> Finding:
    subject = adapter or BUNDLE
    try:
        theirs = open_reference(directory)
    except UnsupportedError as error:
        return unchecked(CHECK, subject, str(error))
    if theirs is None:
        return unchecked(CHECK, subject, "the model has no independent tokenizer")
    try:
        ours = TextTokenizer.of_bundle(bundle, adapter)
        problems = [*_texts(ours, theirs, (*texts, *_TEXTS)), *_chats(ours, theirs)]
    except LoraCoreError as error:
        return found(CHECK, subject, [str(error)])
    if theirs.eos_id is not None and theirs.eos_id not in ours.eos_ids:
        problems.append(f"{theirs.name} ends a text with {theirs.eos_id}, the bundle with {list(ours.eos_ids)}")
    return found(CHECK, subject, problems, held=f"those of {theirs.name}, on texts and chats")


def _texts(ours: TextTokenizer, theirs: ReferenceText, texts: Sequence[str]) -> Iterator[str]:
    for text in dict.fromkeys(texts):
        yield from _difference(f"text {text!r}", tuple(ours.encode(text)), theirs.encode(text), theirs.name)


def _unbounded(theirs: ReferenceText, messages: Sequence[Mapping[str, str]]) -> str | None:
    """Return what is too much in the template of `theirs`, which bounds nothing, as our own sandbox has it."""
    template = theirs.template
    if template is None:
        return None
    try:
        ChatTemplate(source=template.source, special_tokens=template.special_tokens, where="").render(messages)
    except LoraCoreError as error:
        return str(error.__cause__) if isinstance(error.__cause__, TooMuchError) else None
    return None


def _chats(ours: TextTokenizer, theirs: ReferenceText) -> Iterator[str]:
    for messages in _CHATS:
        roles = ", ".join(message["role"] for message in messages)
        if (told := _unbounded(theirs, messages)) is not None:
            yield f"a chat of {roles} is not asked of {theirs.name}, whose chat template has no end: {told}"
            return
        try:
            mine = tuple(ours.encode_chat(messages))
        except LoraCoreError:
            mine = None
        yield from _difference(f"a chat of {roles}", mine, theirs.encode_chat(messages), theirs.name)


def _difference(what: str, mine: tuple[int, ...] | None, wanted: tuple[int, ...] | None, who: str) -> Iterator[str]:
    if mine == wanted:
        return
    if mine is None or wanted is None:
        yield f"{what} can be rendered {'by ' + who if mine is None else 'with the bundle'} alone"
        return
    pairs = zip(mine, wanted, strict=False)
    at = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(mine), len(wanted)))
    yield f"{what} has {len(mine)} tokens, those of {who} are {len(wanted)} and differ from number {at + 1} on"
