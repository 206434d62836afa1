"""What packing needs of a bundle, and no more: its template, as plain data that goes to any process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.identity import other_base, refuse_fitted_elsewhere
from lora_core.adapters.packages.header import VERSION
from lora_core.adapters.packages.writing import Source
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.slots.choice import place, place_alone
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.rendering import plain
from lora_core.events import Event
from lora_core.layers import ModelSummary
from lora_core.pipeline.adapter_texts import AdapterTextReader
from lora_core.pipeline.kinds import refuse_kinds
from lora_core.pipeline.packed_text import packed_fields
from lora_core.pipeline.prompting import BaseText
from lora_core.pipeline.text_files import TextFiles
from lora_core.specs import BackendSpec
from lora_core.version import __version__


@attrs.frozen(kw_only=True)
class Readied:
    """An adapter read for a kit: what its package is made of, what speaks against it although it fits (`doubt`), and
    what is to be `told` of it.
    """

    adapter: Adapter
    source: Source
    doubt: str | None
    told: tuple[Event, ...]


@attrs.frozen(kw_only=True)
class PackingKit:
    """The part of a bundle that adapters are packed for: `templates` and `plan_digests` are in the order of `plans`
    (one of each for a backend without slot plans).
    """

    base: ModelSummary
    plans: tuple[SlotPlan, ...]
    foundation: str
    templates: tuple[str, ...]
    plan_digests: tuple[str, ...]
    spec: BackendSpec
    text: BaseText

    @classmethod
    def of(cls, bundle: Bundle, spec: BackendSpec, backend: Backend) -> PackingKit:
        """Return the kit of a bundle; raises `BundleError`."""
        manifest = bundle.manifest
        indexes = range(len(manifest.plans) or 1)
        return cls(
            base=manifest.base,
            plans=manifest.plans,
            foundation=manifest.foundation,
            templates=tuple(template_digest(bundle, backend, index) for index in indexes),
            plan_digests=tuple(plan_digest(bundle, index) for index in indexes),
            spec=spec,
            text=BaseText.of_bundle(bundle),
        )

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all that decides what an adapter's package holds besides the adapter."""
        rules = self.text.rules
        told = {
            "versions": [__version__, VERSION],
            "base": plain(self.base, "base"),
            "foundation": self.foundation,
            "templates": [*self.templates, *self.plan_digests],
            "kinds": sorted(self.spec.kinds),
            "tokenizer": None if rules.tokenizer is None else hashlib.sha256(rules.tokenizer).hexdigest(),
            "text": [dict(rules.special_tokens), rules.bos_id, list(rules.eos_ids)],
            "chat_templates": {name: each.source for name, each in rules.templates.items()},
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def readied(self, reference: AdapterReference, formats: Sequence[AdapterFormat]) -> Readied:
        """Read an adapter and put it on the plan that it uses; raises as `lora_core.pack`."""
        (adapter,) = read_adapters([reference], self.base, formats, reserved=self.spec.reserved)
        refuse_kinds(self.spec, [adapter])
        refuse_fitted_elsewhere([adapter], self.foundation)
        placed = place([adapter], self.plans) if self.spec.slot_plans else place_alone([adapter], self.base.layers)
        index = placed[0].index
        texts = AdapterTextReader(self.text).read([reference])
        return Readied(
            adapter=adapter,
            source=Source(
                foundation=self.foundation,
                template=self.templates[index],
                plan=self.plan_digests[index],
                prompting=self._prompting(texts.files.get(adapter.name)),
            ),
            doubt=other_base(adapter, self.base),
            told=texts.told,
        )

    def _prompting(self, text: TextFiles | None) -> dict[str, str]:
        if text is None or text.prompting is None:
            return {}
        stored: Mapping[str, bytes] = {
            path: self.text.rules.templates[name].source.encode() for name, path in self.text.templates.items()
        }
        content = {**stored, **text.files}
        return packed_fields(text.prompting, self.text.tokenizer, lambda path: content[path].decode("utf-8", "replace"))


def template_digest(bundle: Bundle, backend: Backend, plan: int) -> str:
    """Return the SHA-256 of the hashes of a plan's template files, one a line in the order of their paths."""
    known = {artifact.path: artifact.sha256 for artifact in bundle.manifest.base_artifacts}
    lines = "".join(f"{known[path]}\n" for path in sorted(backend.template_files(bundle, plan)))
    return hashlib.sha256(lines.encode("ascii")).hexdigest()


def plan_digest(bundle: Bundle, plan: int) -> str:
    """Return the SHA-256 of a slot plan as compact JSON with sorted keys; of no slots where there are no plans."""
    plans = bundle.manifest.plans
    text = json.dumps(attrs.asdict(plans[plan] if plans else SlotPlan(slots=())), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
