"""What adapters say about prompting, on its way into a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.reference import AdapterReference
from lora_core.backend import WrittenFile
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError
from lora_core.events import Event, Warned
from lora_core.models.text.stored import StoredText, files_in
from lora_core.pipeline.text_files import TextFiles
from lora_core.prompting import Prompting

if TYPE_CHECKING:
    from lora_core.models.text.comparing import TextComparison, TextDifference
    from lora_core.models.text.rules import TextRules
    from lora_core.pipeline.prompting import BaseText


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
    """Reads what adapters say about prompting.

    Most say nothing: the base is read, and what compares them with it imported, when the first one says anything.
    """

    def __init__(self, source: BaseText | Bundle) -> None:
        self._source = source
        self._known: dict[tuple[tuple[str, str], ...], TextDifference | None] = {}

    @cached_property
    def base(self) -> BaseText:
        """What they are compared with."""
        if not isinstance(self._source, Bundle):
            return self._source
        from lora_core.pipeline.prompting import BaseText

        return BaseText.of_bundle(self._source)

    def read(self, references: Sequence[AdapterReference]) -> AdapterTexts:
        """Read the text files beside the adapters of `references`; raises `AdapterError`."""
        files: dict[str, TextFiles] = {}
        told: list[Event] = []
        for reference in references:
            if reference.package is not None:
                rules = self._packed(reference.package)
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

    def _packed(self, package: Path) -> TextRules | None:
        """Return how the adapter in a package is prompted, None if as the base is."""
        from lora_core.adapters.packages.reading import AdapterPackage
        from lora_core.pipeline.packed_text import unpacked

        fields = AdapterPackage.open(package).header.prompting
        return unpacked(fields, self.base.rules, package) if fields else None

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
        from lora_core.models.text.rules import read_rules_over

        rules = read_rules_over(stored, self.base.rules, config=self.base.summary.config)
        if rules.tokenizer is None:
            return None
        difference = self._comparison.of(rules)
        return difference if difference.says else None

    @cached_property
    def _comparison(self) -> TextComparison:
        from lora_core.models.text.comparing import TextComparison

        return TextComparison(base=self.base.rules, vocab_size=self.base.summary.vocab_size)


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
