"""Bases that are no Llama: linked bytes are a full export's, and numbers are those of transformers and peft."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.events import Event, Noted
from lora_core.models.hf import HfModelSource
from lora_core.testing.families import EXPORTED, write_family_adapter, write_tiny_family

OPTIONS = {"max_context_len": 32, "max_seq_len": 16}


@attrs.frozen(kw_only=True)
class FamilyMaterials:
    """A tiny base and two adapters on all its linear layers."""

    base: Path
    adapters: dict[str, Path]

    @classmethod
    def make(cls, root: Path, family: str, **changes: object) -> FamilyMaterials:
        base = write_tiny_family(root / "base", family, **changes)
        summary = HfModelSource().open(str(base)).summary
        adapters = {name: write_family_adapter(root / name, summary, seed=seed) for seed, name in enumerate("ab", 1)}
        return cls(base=base, adapters=adapters)

    def export(self, out: Path, names: str, events: list[Event] | None = None, **more: object) -> Bundle:
        adapters = {name: self.adapters[name] for name in names}
        emit = (lambda _: None) if events is None else events.append
        return lora_core.export(
            self.base, adapters=adapters, backend="xnnpack", out=out, emit=emit, **{"options": OPTIONS, **more}
        )


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("policy", "family"), [(policy, family) for policy, some in EXPORTED["xnnpack"].items() for family in some]
)
def test_a_linked_bundle_is_that_of_a_full_export_and_computes_what_transformers_and_peft_do(
    tmp_path: Path, policy: str, family: str
) -> None:
    materials = FamilyMaterials.make(tmp_path, family)
    cache = tmp_path / "cache"
    whole = materials.export(tmp_path / "whole", "ab", policy=policy, cache=cache)
    linked = lora_core.add(
        materials.export(tmp_path / "linked", "a", policy=policy, cache=cache), {"b": materials.adapters["b"]}
    )
    assert files_of(linked.path) == files_of(whole.path)
    report = lora_core.verify(whole, materials.base, adapters=materials.adapters, tokens=8)
    assert report.passed, report


@pytest.mark.deep
def test_layers_that_repeat_in_a_pattern_are_derived_from_a_few(tmp_path: Path) -> None:
    materials = FamilyMaterials.make(tmp_path, "gemma3", num_hidden_layers=13)
    events: list[Event] = []
    materials.export(tmp_path / "out", "a", events, policy="8da4w")
    notes = [event.message for event in events if isinstance(event, Noted)]
    others = ("Slot plan: ", "The model has no tokenizer.json")
    assert [note for note in notes if not note.startswith(others)] == []
