"""What a model says about prompting, on its way into a bundle and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.events import Noted
from lora_core.layers import ModelSummary
from lora_core.models.base import ModelHandle
from lora_core.models.text.rules import TextRules, read_rules
from lora_core.models.text.stored import TEMPLATE, TEMPLATES, TOKENIZER, StoredText
from lora_core.models.text.templates import DEFAULT, TemplateSource
from lora_core.models.text.tokenizer import compacted
from lora_core.pipeline.text_files import TextFiles
from lora_core.prompting import Prompting

DIRECTORY = "tokenizer"
_PLAIN = re.compile(r"[\w-][\w.-]{0,63}", re.ASCII)


@attrs.frozen(kw_only=True)
class BaseText:
    """What a base says about text, and where that stands in the bundle (only what stands there as it is used)."""

    rules: TextRules
    summary: ModelSummary
    tokenizer: str | None
    templates: Mapping[str, str]

    @classmethod
    def of_model(cls, handle: ModelHandle, *, compact: bool = False) -> tuple[BaseText, TextFiles]:
        """Read the text rules of a model, and what an export writes of them, `compact` or as they are; raises
        `ModelError`.
        """
        summary, files = handle.summary, handle.tokenizer
        rules = handle.text() or _nothing(summary)
        if compact and rules.tokenizer is not None:
            rules = attrs.evolve(rules, tokenizer=compacted(rules.tokenizer))
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
