"""The entries of a manifest, or of a file of records, read from parsed JSON."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import attrs

from lora_core.adapters.names import is_name
from lora_core.bundle.entries import Artifact, Branch, BundledAdapter, Method
from lora_core.bundle.fields import Fields, Problems
from lora_core.bundle.paths import why_unsafe
from lora_core.prompting import Prompting

_WITH_PROMPTING = 3
"""From this schema on, bundle and adapters say how they are prompted."""
WITH_BRANCHES = 4
"""From this schema on, the records of many adapters are in files of their own."""


@attrs.frozen(kw_only=True)
class EntryLists:
    """The entries of one file."""

    artifacts: tuple[Artifact, ...]
    adapters: tuple[BundledAdapter, ...]
    methods: tuple[Method, ...]
    branches: tuple[Branch, ...] = ()

    @classmethod
    def read(cls, fields: Fields, version: int) -> EntryLists:
        """Read the lists of a file of schema `version`."""
        return cls(
            artifacts=tuple(_artifact(entry) for entry in fields.objects("artifacts")),
            adapters=tuple(_adapter(entry, version) for entry in fields.objects("adapters")),
            methods=tuple(_method(entry) for entry in fields.objects("methods")),
            branches=tuple(_branch(entry) for entry in fields.objects("branches")) if version >= WITH_BRANCHES else (),
        )

    def check(
        self, problems: Problems, *, plans: int, promptings: Iterable[Prompting | None] = (), base: Collection[str] = ()
    ) -> None:
        """Record what is listed twice and what refers to nothing; `base` are paths that are listed elsewhere."""
        own, names = [each.path for each in self.artifacts], [each.name for each in self.adapters]
        methods = [each.name for each in self.methods]
        for field, listed in (("artifacts", [*own, *base]), ("adapters", names), ("methods", methods)):
            for name in _repeated(listed):
                problems.add(field, f"lists {name!r} more than once.")
        for name in set(_repeated([each.lower() for each in names])) - set(_repeated(names)):
            problems.add("adapters", f"lists {name!r} more than once, in upper and lower case.")
        known, present = set(names), {*own, *base}
        for artifact in self.artifacts:
            if artifact.adapter is not None and artifact.adapter not in known:
                what = f"gives {artifact.path!r} to adapter {artifact.adapter!r}, which is not listed."
                problems.add("artifacts", what)
        for method in self.methods:
            if method.program not in present:
                problems.add("methods", f"has {method.name!r} in program {method.program!r}, which is not listed.")
            if method.adapter is not None and method.adapter not in known:
                problems.add("methods", f"has {method.name!r} for adapter {method.adapter!r}, which is not listed.")
        for prompting in (*promptings, *(adapter.prompting for adapter in self.adapters)):
            for path in prompting.files if prompting is not None else ():
                if path not in present:
                    problems.add("prompting", f"names {path!r}, which is not listed.")
        for adapter in self.adapters:
            if plans and adapter.plan >= plans:
                problems.add("adapters", f"has {adapter.name!r} on plan {adapter.plan} of {plans}.")


def read_prompting(fields: Fields, version: int) -> Prompting | None:
    """Return the record in field `prompting`, or None where it is null or the schema has none."""
    inner = fields.optional_object("prompting") if version >= _WITH_PROMPTING else None
    if inner is None:
        return None
    prompting = Prompting(
        tokenizer=inner.text("tokenizer"),
        chat_templates=inner.text_mapping("chat_templates"),
        special_tokens=inner.text_mapping("special_tokens"),
        bos_id=inner.optional_number("bos_id"),
        eos_ids=inner.numbers("eos_ids"),
    )
    inner.finish()
    return prompting


def _artifact(fields: Fields) -> Artifact:
    artifact = Artifact(
        path=fields.text("path"),
        role=fields.text("role"),
        sha256=_hash(fields),
        size=fields.number("size"),
        adapter=fields.optional_text("adapter"),
    )
    unsafe = why_unsafe(artifact.path)
    if unsafe:
        fields.problem("path", f"is {artifact.path!r}, which {unsafe}.")
    fields.finish()
    return artifact


def _adapter(fields: Fields, version: int) -> BundledAdapter:
    adapter = BundledAdapter(
        name=fields.text("name"),
        digest=fields.text("digest"),
        foundation=fields.text("foundation"),
        rank=fields.number("rank"),
        modules=fields.number("modules"),
        plan=fields.number("plan"),
        detail=fields.mapping("detail"),
        prompting=read_prompting(fields, version),
    )
    if not is_name(adapter.name):
        fields.problem("name", f"is {adapter.name!r}, which cannot be an adapter's name.")
    fields.finish()
    return adapter


def _method(fields: Fields) -> Method:
    method = Method(name=fields.text("name"), program=fields.text("program"), adapter=fields.optional_text("adapter"))
    fields.finish()
    return method


def _branch(fields: Fields) -> Branch:
    branch = Branch(prefix=fields.text("prefix"), adapters=fields.number("adapters"), sha256=_hash(fields))
    fields.finish()
    return branch


def _hash(fields: Fields) -> str:
    digits = fields.text("sha256")
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        fields.problem("sha256", "must be 64 lower-case hexadecimal digits.")
    return digits


def check_branches(branches: Sequence[Branch], above: str, problems: Problems) -> None:
    """Record what is wrong with the branches of the node with prefix `above`: one digit longer, each once, in order."""
    prefixes = [each.prefix for each in branches]
    right = [above + digit for digit in string.hexdigits.lower()[:16]]
    if any(prefix not in right for prefix in prefixes) or prefixes != sorted(set(prefixes)):
        problems.add("branches", f"must be below {above!r}, each once and in order.")
    if not all(each.adapters for each in branches):
        problems.add("branches", "has one without adapters.")


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)
