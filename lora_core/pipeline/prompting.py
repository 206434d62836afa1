"""What a model and its adapters say about prompting, on its way into a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import attrs

from lora_core.adapters.packages.reading import AdapterPackage
from lora_core.adapters.reference import AdapterReference
from lora_core.backend import WrittenFile
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.durable import storage_errors
from lora_core.errors import AdapterError, BundleError
from lora_core.events import Event, Noted, Warned
from lora_core.layers import ModelSummary
from lora_core.models.base import ModelHandle
from lora_core.models.text.comparing import TextComparison, TextDifference
from lora_core.models.text.rules import TextRules, read_rules, read_rules_over
from lora_core.models.text.stored import TEMPLATE, TEMPLATES, TOKENIZER, StoredText, files_in
from lora_core.models.text.templates import DEFAULT, TemplateSource
from lora_core.pipeline.packed_text import unpacked
from lora_core.prompting import Prompting

DIRECTORY = "tokenizer"
ROLE = "tokenizer"
_PLAIN = re.compile(r"[\w-][\w.-]{0,63}", re.ASCII)


@attrs.frozen(kw_only=True)
class TextFiles:
    """How someone is prompted, and the files by their paths in the bundle that say so and are not there yet."""

    prompting: Prompting | None
    files: Mapping[str, bytes]

    def write(self, out: Path, adapter: str | None = None) -> Iterator[WrittenFile]:
        """Write the files into `out`, and yield them as files of `adapter` (None: of the base)."""
        for path, data in self.files.items():
            target = out / path
            with storage_errors("write", target):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            yield WrittenFile(path=path, role=ROLE, adapter=adapter)


@attrs.frozen(kw_only=True)
class BaseText:
    """What a base says about text, and where that stands in the bundle (only what stands there as it is used)."""

    rules: TextRules
    summary: ModelSummary
    tokenizer: str | None
    templates: Mapping[str, str]

    @classmethod
    def of_model(cls, handle: ModelHandle) -> tuple[BaseText, TextFiles]:
        """Read the text rules of a model, and what an export writes of them; raises `ModelError`."""
        summary, files = handle.summary, handle.tokenizer
        rules = handle.text() or _nothing(summary)
        written = {} if files is None else {name: files.stored.read(name) for name in files.stored.files}
        content = {f"{DIRECTORY}/{name}": data for name, data in written.items() if not name.endswith(".jinja")}
        tokenizer = f"{DIRECTORY}/{TOKENIZER}" if rules.tokenizer is not None else None
        if tokenizer is not None and rules.tokenizer is not None:
            content[tokenizer] = rules.tokenizer
        templates = _template_paths(DIRECTORY, rules.templates) if content else {}
        content |= {path: rules.templates[name].source.encode() for name, path in templates.items()}
        base = cls(rules=_with_ids(rules, summary), summary=summary, tokenizer=tokenizer, templates=templates)
        return base, TextFiles(prompting=base.prompting, files=content)

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> BaseText:
        """Read the text rules of a bundle's base; raises `BundleError`."""
        manifest = bundle.manifest
        told, config = manifest.prompting, manifest.base.config
        stored = StoredText.in_directory(bundle.path / DIRECTORY, BundleError)
        if told is None:
            rules = _with_ids(read_rules(stored, config=config), manifest.base)
            as_it_is = rules.tokenizer is not None and rules.tokenizer == stored.read(TOKENIZER)
            kept = {DEFAULT: f"{DIRECTORY}/{TEMPLATE}"} if stored.has(TEMPLATE) else {}
            path = f"{DIRECTORY}/{TOKENIZER}" if as_it_is else None
            return cls(rules=rules, summary=manifest.base, tokenizer=path, templates=kept)
        listed = StoredText(files={path: bundle.file(path) for path in told.files}, error=BundleError)
        rules = TextRules(
            tokenizer=listed.read(told.tokenizer),
            special_tokens=told.special_tokens,
            templates={
                name: TemplateSource(source=listed.text(path), where=listed.where(path))
                for name, path in told.chat_templates.items()
            },
            bos_id=told.bos_id,
            eos_ids=told.eos_ids,
        )
        return cls(rules=rules, summary=manifest.base, tokenizer=told.tokenizer, templates=told.chat_templates)

    @property
    def prompting(self) -> Prompting | None:
        """The record of the base; None without a tokenizer."""
        return None if self.tokenizer is None else _record(self.rules, self.tokenizer, self.templates)

    def files_of(self, name: str, rules: TextRules) -> TextFiles:
        """Return what has to be stored for an adapter that is prompted by `rules`: what the base does not have."""
        directory = f"{DIRECTORY}/adapters/{name}"
        files: dict[str, bytes] = {}
        tokenizer = self.tokenizer if rules.tokenizer == self.rules.tokenizer else None
        if tokenizer is None and rules.tokenizer is not None:
            tokenizer = f"{directory}/{TOKENIZER}"
            files[tokenizer] = rules.tokenizer
        assert tokenizer is not None
        paths = _template_paths(directory, rules.templates)
        for called, template in rules.templates.items():
            if called in self.templates and template == self.rules.templates.get(called):
                paths[called] = self.templates[called]
            else:
                files[paths[called]] = template.source.encode()
        return TextFiles(prompting=_record(rules, tokenizer, paths), files=files)


@attrs.frozen(kw_only=True)
class AdapterTexts:
    """What adapters say about prompting: files by adapter of those that differ from the base, and what to tell."""

    files: Mapping[str, TextFiles]
    told: tuple[Event, ...]

    def promptings(self) -> Mapping[str, Prompting]:
        """Return the records of the manifest by adapter."""
        return {name: each.prompting for name, each in self.files.items() if each.prompting is not None}

    def write(self, out: Path) -> Iterator[WrittenFile]:
        """Write every file into `out`, and yield it."""
        for name, each in self.files.items():
            yield from each.write(out, name)


class AdapterTextReader:
    """Reads what adapters say about prompting; `base` is made when the first one says anything."""

    def __init__(self, source: BaseText | Bundle) -> None:
        self._source = source
        self._known: dict[tuple[tuple[str, str], ...], TextDifference | None] = {}

    @cached_property
    def base(self) -> BaseText:
        """What they are compared with."""
        return self._source if isinstance(self._source, BaseText) else BaseText.of_bundle(self._source)

    def read(self, references: Sequence[AdapterReference]) -> AdapterTexts:
        """Read the text files beside the adapters of `references`; raises `AdapterError`."""
        files: dict[str, TextFiles] = {}
        told: list[Event] = []
        for reference in references:
            if reference.package is not None:
                fields = AdapterPackage.open(reference.package).header.prompting
                rules = unpacked(fields, self.base.rules, reference.package) if fields else None
                if rules is not None:
                    files[reference.name] = self.base.files_of(reference.name, rules)
                continue
            found = [each for path in _directories(reference, references) if (each := self._difference(path))]
            if len({_key(each) for each in found}) > 1:
                told.append(Warned(message=_disagree(reference.name)))
            elif found:
                told += _announced(reference.name, found[0])
                files[reference.name] = self.base.files_of(reference.name, found[0].rules)
        return AdapterTexts(files=files, told=tuple(told))

    def _difference(self, directory: Path) -> TextDifference | None:
        """Return how the adapter in `directory` is prompted otherwise than the base; None if it is not."""
        if not files_in(directory):
            return None
        stored = StoredText.in_directory(directory, AdapterError)
        # Adapters of one training have the same files, and a tokenizer takes long to read.
        content = tuple((name, sha256(stored.read(name)).hexdigest()) for name in stored.files)
        if content not in self._known:
            self._known[content] = self._compared(stored)
        return self._known[content]

    def _compared(self, stored: StoredText) -> TextDifference | None:
        rules = read_rules_over(stored, self.base.rules, config=self.base.summary.config)
        if rules.tokenizer is None:
            return None
        difference = self._comparison.of(rules)
        return difference if difference.says else None

    @cached_property
    def _comparison(self) -> TextComparison:
        return TextComparison(base=self.base.rules, vocab_size=self.base.summary.vocab_size)


def lacking(handle: ModelHandle, base: BaseText) -> Noted | None:
    """Return what to say of a model that cannot be prompted with text; None if it can."""
    if base.tokenizer is not None:
        return None
    files = handle.tokenizer
    if files is not None:
        names = ", ".join(sorted(files.stored.files))
        how = f"of its files ({names}) none is a tokenizer.json; AutoTokenizer.from_pretrained(...).save_pretrained"
        return Noted(message=f"The bundle cannot be prompted with text: {how} writes one.")
    return Noted(message="The model has no tokenizer.json: the bundle cannot be prompted with text.")


def _record(rules: TextRules, tokenizer: str, templates: Mapping[str, str]) -> Prompting:
    return Prompting(
        tokenizer=tokenizer,
        chat_templates=dict(templates),
        special_tokens=dict(rules.special_tokens),
        bos_id=rules.bos_id,
        eos_ids=rules.eos_ids,
    )


def _nothing(summary: ModelSummary) -> TextRules:
    return TextRules(tokenizer=None, special_tokens={}, templates={}, bos_id=summary.bos_id, eos_ids=summary.eos_ids)


def _with_ids(rules: TextRules, summary: ModelSummary) -> TextRules:
    """Return `rules` with the ids that a caller or an older manifest told, too."""
    bos = summary.bos_id if rules.bos_id is None else rules.bos_id
    return attrs.evolve(rules, bos_id=bos, eos_ids=tuple(dict.fromkeys((*rules.eos_ids, *summary.eos_ids))))


def _template_paths(directory: str, templates: Mapping[str, TemplateSource]) -> dict[str, str]:
    """Return a path for each template: transformers' own layout, and safe names for others."""
    paths = {}
    for index, name in enumerate(templates):
        called = name if _PLAIN.fullmatch(name) else f"template_{index}"
        paths[name] = f"{directory}/{TEMPLATE}" if name == DEFAULT else f"{directory}/{TEMPLATES}/{called}.jinja"
    return paths


def _directories(reference: AdapterReference, others: Sequence[AdapterReference]) -> Iterator[Path]:
    """Yield the directories that an adapter, or the parts of a composite, are in."""
    if reference.directory is not None:
        yield reference.directory
    by_name = {each.name: each for each in others}
    for part in reference.parts:
        if part.is_directory:
            yield Path(part.of)
        elif part.of in by_name:
            yield from _directories(by_name[part.of], ())


def _key(difference: TextDifference) -> tuple[object, ...]:
    rules = difference.rules
    named = tuple((name, each.source) for name, each in sorted(rules.templates.items()))
    return rules.tokenizer, named, tuple(sorted(rules.special_tokens.items())), rules.eos_ids


def _announced(name: str, difference: TextDifference) -> Iterator[Event]:
    says = ", ".join(difference.says)
    yield Warned(
        message=f"Adapter {name!r} brings {says}. It is prompted so, by `lora-core run` and by runners that read "
        "`prompting` of this adapter in manifest.json; base and other adapters are not."
    )
    if difference.beyond:
        shown = ", ".join(map(repr, difference.beyond[:4]))
        yield Warned(
            message=f"Adapter {name!r} has tokens for which the base has no embedding: {shown}. A prompt that needs "
            "one of them is refused."
        )


def _disagree(name: str) -> str:
    return (
        f"The parts of composite {name!r} bring chat templates or special tokens that differ, so it is prompted as the "
        "base is."
    )
