"""Linking gives the bytes of a full lowering: ExecuTorch's own exporter and serializers are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from lora_core_xnnpack.files.marks import foundation_mark
from lora_core_xnnpack.lowering.base import load_base
from lora_core_xnnpack.lowering.lowering import LORA_TAG, Lowered, lower
from lora_core_xnnpack.options import XnnpackOptions
from lora_core_xnnpack.slot_tensors import linkable_values
from lora_core_xnnpack.split.linking import link_values
from lora_core_xnnpack.split.relocations import SplitTemplate
from marked_oracle import marked
from workbench import ALL_LINEAR, TINY_OPTIONS, Workbench

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, ExportJob
from lora_core.events import ignore

Exported = Callable[[ExportJob], tuple[Path, Artifacts]]
ExportedJob = tuple[ExportJob, Path]


def full_lowering(job: ExportJob, adapter: PlacedAdapter, *, embed: bool = False) -> Lowered:
    """Lower the base with the adapter's own tensors, as if there were no templates."""
    from lora_core.models.injection import inject

    base = load_base(job, ignore)
    module = inject(base.module, adapter.plan, base.paths, linkable_values(adapter))
    return lower({"forward": module}, base, lora_tag=None if embed else LORA_TAG)


def template_of(out: Path) -> SplitTemplate:
    return SplitTemplate.read(out / "template/0.pte", out / "template/0.json")


def mark_of(out: Path) -> str:
    """Return the mark of the foundation in `out`."""
    mark = foundation_mark(out / "foundation.ptd")
    assert mark is not None
    return mark


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def full_precision(two_layers: Workbench, exported: Exported) -> ExportedJob:
    """Adapters of several ranks and targets in one plan; the zero modules make tensors and payloads coincide."""
    adapters = [
        two_layers.adapter("attention", seed=1),
        two_layers.adapter("zeros", seed=3, rank=3, targets=ALL_LINEAR, zero=("v_proj", "0.mlp.down_proj")),
    ]
    job = two_layers.job(adapters)
    return job, exported(job)[0]


@pytest.fixture(scope="session")
def quantized(one_layer: Workbench, exported: Exported, lowered_once: Path) -> ExportedJob:
    adapter = one_layer.adapter("everything", seed=2, targets=ALL_LINEAR)
    job = one_layer.job([adapter], policy="8da4w", embedding="8,0", cache=lowered_once)
    return job, exported(job)[0]


@pytest.mark.parametrize(("case", "name"), [("full_precision", "attention"), ("quantized", "everything")])
def test_linked_files_equal_a_full_lowering(request: pytest.FixtureRequest, case: str, name: str) -> None:
    job, out = request.getfixturevalue(case)
    adapter = next(each for each in job.adapters if each.name == name)
    full = full_lowering(job, adapter)
    assert (out / f"{name}.pte").read_bytes() == marked(full, mark_of(out), name)[0]
    assert (out / f"{name}.ptd").read_bytes() == bytes(full.manager._tensor_data[LORA_TAG])


def test_an_embedded_program_with_equal_tensors_equals_a_full_lowering(full_precision: ExportedJob) -> None:
    job, out = full_precision
    adapter = next(each for each in job.adapters if each.name == "zeros")
    linked = link_values(template_of(out), "zeros", linkable_values(adapter), embed=True)
    assert b"".join(linked.program) == marked(full_lowering(job, adapter, embed=True), mark_of(out), "zeros")[0]


def test_adapters_change_neither_the_foundation_nor_the_base_program(
    full_precision: ExportedJob, exported: Exported
) -> None:
    job, out = full_precision
    alone = files_of(exported(attrs.evolve(job, adapters=(), plans=()))[0])
    assert alone == {name: content for name, content in files_of(out).items() if name in alone}


def test_a_plan_for_each_shape_pads_nothing(one_layer: Workbench, exported: Exported, lowered_once: Path) -> None:
    adapters = [one_layer.adapter("thin", seed=1, rank=2), one_layer.adapter("wide", seed=2, targets=("down_proj",))]
    plans = SlotPlan.per_shape(adapters, one_layer.handle.summary.layers)
    job = one_layer.job(adapters, plans=plans, cache=lowered_once)
    out, _ = exported(job)
    assert {placed.index for placed in job.adapters} == {0, 1}
    costs = [placed.plan.cost(placed.adapter) for placed in job.adapters]
    assert all(cost.own == cost.padded for cost in costs)
    full = full_lowering(job, job.adapters[1])
    assert (out / "wide.pte").read_bytes() == marked(full, mark_of(out), "wide")[0]


def test_an_adapter_tensor_that_the_foundation_holds_is_not_stored_again(full_precision: ExportedJob) -> None:
    job, out = full_precision
    template, adapter = template_of(out), job.adapters[0]
    first = template.table.tensors[0]
    key = first.blob(linkable_values(adapter)).key
    known = attrs.evolve(template, table=attrs.evolve(template.table, foundation_keys=(key,)))
    linked, shorter = (link_values(each, "a", linkable_values(adapter), embed=False) for each in (template, known))
    assert key.encode() in b"".join(linked.data or ())
    assert key.encode() not in b"".join(shorter.data or ())
    assert b"".join(shorter.program) == b"".join(linked.program)


def test_no_two_tensors_of_different_shapes_are_equal(full_precision: ExportedJob) -> None:
    # The weight cache would take one for the other: it looks at the bytes, and at rows and columns in either order.
    job, _ = full_precision
    for adapter in job.adapters:
        shapes: dict[bytes, set[tuple[int, ...]]] = {}
        for array in (array for values in linkable_values(adapter).values() for array in values.values()):
            shapes.setdefault(array.tobytes(), set()).add(array.shape)
        assert [found for found in shapes.values() if len(found) > 1] == []


def test_a_slot_without_effect_adds_exactly_nothing(full_precision: ExportedJob) -> None:
    job, _ = full_precision
    adapter = next(each for each in job.adapters if each.name == "zeros")
    values = linkable_values(adapter)["model.layers.0.self_attn.v_proj"]
    assert values["a"].any()
    assert not values["b"].any()


def test_max_seq_len_beyond_the_cache_is_a_problem(one_layer: Workbench) -> None:
    job = attrs.evolve(one_layer.job([]), options=attrs.evolve(TINY_OPTIONS, max_seq_len=64))
    assert [str(problem) for problem in XnnpackBackend().check(job)] == [
        "--max-seq-len 64 is more than a context of 32; one call cannot be longer than the KV cache. "
        "Lower it, or raise --max-context-len."
    ]


def test_context_is_the_models_own_unless_asked_for_and_never_longer(one_layer: Workbench) -> None:
    options = XnnpackOptions()
    assert (options.context_len(64), options.seq_len(64)) == (64, 64)
    assert (options.context_len(8192), options.context_len(None)) == (2048, 2048)
    assert XnnpackOptions(max_context_len=48).seq_len(64) == 48
    job = attrs.evolve(one_layer.job([]), options=XnnpackOptions(max_context_len=65))
    assert [str(problem) for problem in XnnpackBackend().check(job)] == [
        "--max-context-len 65 is more than the base's 64 tokens. Give at most 64. (--max-context-len)"
    ]
