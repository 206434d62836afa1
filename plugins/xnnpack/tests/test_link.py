"""Linking gives the bytes of a full lowering: ExecuTorch's own exporter and serializers are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.lowering.lowering import LORA_TAG, Lowered, lower, tag_of
from lora_core_xnnpack.split.exporting import load_base
from lora_core_xnnpack.split.rewriting import Template, link_adapter, slot_matrices
from workbench import ALL_LINEAR, TINY_OPTIONS, Workbench

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, ExportJob
from lora_core.events import ignore

Exported = Callable[[ExportJob], tuple[Path, Artifacts]]
ExportedJob = tuple[ExportJob, Path]


def full_lowering(job: ExportJob, adapter: Adapter, plan: SlotPlan, *, embed: bool = False) -> Lowered:
    """Lower the base with the adapter's own tensors, as if there were no templates."""
    from lora_core.models.lora import inject

    base = load_base(job, ignore)
    module = inject(base.module, plan, base.summary.layers, slot_matrices(adapter, plan))
    return lower(
        {"forward": module}, base, tag=lambda node: None if embed and tag_of(node) == LORA_TAG else tag_of(node)
    )


def template_of(out: Path) -> Template:
    return Template.read(out / "template/0.pte", out / "template/0.json")


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
def quantized(one_layer: Workbench, exported: Exported) -> ExportedJob:
    job = one_layer.job([one_layer.adapter("everything", seed=2, targets=ALL_LINEAR)], policy="8da4w", embedding="8,0")
    return job, exported(job)[0]


@pytest.fixture(scope="session")
def small(one_layer: Workbench, exported: Exported) -> ExportedJob:
    adapters = [one_layer.adapter("first", seed=1), one_layer.adapter("second", seed=2, rank=2, targets=ALL_LINEAR)]
    job = one_layer.job(adapters)
    return job, exported(job)[0]


@pytest.mark.parametrize(("case", "name"), [("full_precision", "attention"), ("quantized", "everything")])
def test_linked_files_equal_a_full_lowering(request: pytest.FixtureRequest, case: str, name: str) -> None:
    job, out = request.getfixturevalue(case)
    adapter = next(each for each in job.adapters if each.name == name)
    full = full_lowering(job, adapter, job.plans[0])
    assert (out / f"{name}.pte").read_bytes() == full.pte
    assert (out / f"{name}.ptd").read_bytes() == bytes(full.manager._tensor_data[LORA_TAG])


def test_an_embedded_program_with_equal_tensors_equals_a_full_lowering(full_precision: ExportedJob) -> None:
    job, out = full_precision
    adapter = next(each for each in job.adapters if each.name == "zeros")
    linked = link_adapter(template_of(out), adapter, job.plans[0], embed=True)
    assert b"".join(linked.program) == full_lowering(job, adapter, job.plans[0], embed=True).pte


@pytest.mark.parametrize("case", ["small", "quantized"])
def test_adapters_change_neither_the_foundation_nor_the_base_program(
    request: pytest.FixtureRequest, exported: Exported, case: str
) -> None:
    job, out = request.getfixturevalue(case)
    alone = files_of(exported(attrs.evolve(job, adapters=(), plans=()))[0])
    assert alone == {name: content for name, content in files_of(out).items() if name in alone}


def test_the_order_of_adapters_changes_nothing_and_exports_repeat(small: ExportedJob, exported: Exported) -> None:
    job, out = small
    again = files_of(exported(attrs.evolve(job, adapters=job.adapters[::-1]))[0])
    before = files_of(out)
    assert sorted(again) == sorted(before)
    assert [name for name, content in before.items() if again[name] != content] == []


def test_a_plan_for_each_shape_pads_nothing(one_layer: Workbench, exported: Exported) -> None:
    adapters = [one_layer.adapter("thin", seed=1, rank=2), one_layer.adapter("wide", seed=2, targets=("down_proj",))]
    job = one_layer.job(adapters, plans=SlotPlan.per_shape(adapters, one_layer.handle.summary.layers))
    out, artifacts = exported(job)
    used = {entry.name: job.plans[entry.plan] for entry in artifacts.adapters}
    assert len({id(plan) for plan in used.values()}) == 2
    assert all(used[adapter.name].cost(adapter).own == used[adapter.name].cost(adapter).padded for adapter in adapters)
    assert (out / "wide.pte").read_bytes() == full_lowering(job, adapters[1], used["wide"]).pte


def test_an_adapter_tensor_that_the_foundation_holds_is_not_stored_again(small: ExportedJob) -> None:
    job, out = small
    template, adapter = template_of(out), job.adapters[0]
    first = template.table.tensors[0]
    matrix = slot_matrices(adapter, job.plans[0])[first.module][0 if first.matrix == "a" else 1]
    key = DataBlob.under_content_key(matrix.tobytes()).key
    known = attrs.evolve(template, table=attrs.evolve(template.table, foundation_keys=(key,)))
    linked, shorter = (link_adapter(each, adapter, job.plans[0], embed=False) for each in (template, known))
    assert key.encode() in b"".join(linked.data or ())
    assert key.encode() not in b"".join(shorter.data or ())
    assert b"".join(shorter.program) == b"".join(linked.program)


def test_no_two_matrices_of_different_shapes_are_equal(full_precision: ExportedJob) -> None:
    # The weight cache would take one for the other: it looks at the bytes, and at rows and columns in either order.
    job, _ = full_precision
    for adapter in job.adapters:
        shapes: dict[bytes, set[tuple[int, ...]]] = {}
        for matrix in (matrix for pair in slot_matrices(adapter, job.plans[0]).values() for matrix in pair):
            shapes.setdefault(matrix.tobytes(), set()).add(matrix.shape)
        assert [found for found in shapes.values() if len(found) > 1] == []


def test_a_slot_without_effect_adds_exactly_nothing(full_precision: ExportedJob) -> None:
    job, _ = full_precision
    adapter = next(each for each in job.adapters if each.name == "zeros")
    matrices = slot_matrices(adapter, job.plans[0])
    a, b = matrices["model.layers.0.self_attn.v_proj"]
    assert a.any()
    assert not b.any()


def test_max_seq_len_beyond_the_cache_is_a_problem(one_layer: Workbench) -> None:
    job = attrs.evolve(one_layer.job([]), options=attrs.evolve(TINY_OPTIONS, max_seq_len=64))
    assert [str(problem) for problem in XnnpackBackend().check(job)] == [
        "--max-seq-len 64 is more than --max-context-len 32; one call cannot be longer than the KV cache. "
        "Lower the first or raise the second."
    ]
