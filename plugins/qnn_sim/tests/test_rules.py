"""Every rule of applying and executing has a refusal of its own, and a refused call changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from lora_core_qnn_sim import errors
from lora_core_qnn_sim.artifacts import container
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary, lora_dtype, read_context, zero_lora
from lora_core_qnn_sim.artifacts.section import read_section, write_section
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.runtime.context import SimulatedContext

from plugins.qnn_sim.tests import tiny

Q = "layers.0.self_attn.q_proj"


@pytest.fixture
def context(grouped: Any) -> SimulatedContext:
    return SimulatedContext.create(grouped.file("context.bin"), grouped.file("foundation.bin"))


def run(context: SimulatedContext, tokens: list[int], **changes: Any) -> np.ndarray[Any, Any]:
    length = context.binary.spec.input_len
    arguments: dict[str, Any] = {
        "tokens": np.pad(np.array(tokens), (0, length - len(tokens))),
        "valid": len(tokens),
        "position": 0,
        "cache": context.new_cache(),
        "io": context.read_io_encodings(),
    } | changes
    return context.execute("prefill", arguments.pop("tokens"), **arguments)


def made(
    tmp_path: Path,
    context: SimulatedContext,
    *,
    part: Any = "combined",
    binary: ContextBinary | None = None,
    weights: Mapping[str, Any] | None = None,
    encodings: Mapping[str, Encoding] | None = None,
) -> Path:
    """Write a section that is right but for what is given."""
    right = context.binary
    return write_section(
        tmp_path,
        binary or right,
        "made",
        part,
        encodings_id=context.encodings_id,
        weights=zero_lora(right.spec) if weights is None else weights,
        encodings=dict(right.branch) if encodings is None else encodings,
    )


def test_a_section_that_is_right_is_applied(tmp_path: Path, context: SimulatedContext) -> None:
    applied = context.apply(made(tmp_path, context))
    assert applied.weight_bytes > 0
    assert applied.encoding_bytes > 0


def test_encodings_come_before_weights_when_crossing_groups(context: SimulatedContext, grouped: Any) -> None:
    directory = grouped.path / "sections"
    before = run(context, [1, 2, 3])
    with pytest.raises(errors.EncodingsFirstError, match="encodings section of its group first"):
        context.apply(directory / "llm_a1_weights.bin")
    assert np.array_equal(run(context, [1, 2, 3]), before)
    context.apply(directory / "llm_a1_encodings.bin")
    context.apply(directory / "llm_a1_weights.bin")
    assert not np.array_equal(run(context, [1, 2, 3]), before)


def test_executing_between_encodings_and_weights_fails_and_the_section_stays(
    context: SimulatedContext, grouped: Any
) -> None:
    context.apply(grouped.path / "sections" / "llm_a1_encodings.bin")
    applied = context.encodings_id
    with pytest.raises(errors.MismatchedEncodingsError):
        run(context, [1])
    assert context.encodings_id == applied
    context.apply(grouped.path / "sections" / "llm_a2_weights.bin")
    run(context, [1])


def test_within_a_group_weights_are_enough(context: SimulatedContext, grouped: Any) -> None:
    directory = grouped.path / "sections"
    context.apply(directory / "llm_a1_encodings.bin")
    context.apply(directory / "llm_a1_weights.bin")
    applied = context.apply(directory / "llm_a2_weights.bin")
    assert applied.encoding_bytes == 0
    run(context, [1])


def test_io_encodings_must_be_read_again_after_a_section(context: SimulatedContext, grouped: Any) -> None:
    old = context.read_io_encodings()
    context.apply(grouped.path / "sections" / "llm_a5.bin")
    with pytest.raises(errors.StaleIoEncodingsError, match="Read the I/O encodings again"):
        run(context, [1], io=old)


def test_a_reloaded_graph_applies_its_last_sections_again(context: SimulatedContext, grouped: Any) -> None:
    directory = grouped.path / "sections"
    context.apply(directory / "llm_a3_encodings.bin")
    context.apply(directory / "llm_a4_weights.bin")
    before = run(context, [4, 5])
    context.unload()
    context.load()
    assert context.applied == "a4"
    assert np.array_equal(run(context, [4, 5]), before)


def test_an_unloaded_graph_neither_executes_nor_takes_sections(context: SimulatedContext, grouped: Any) -> None:
    io = context.read_io_encodings()
    context.unload()
    for call in (
        lambda: run(context, [1], io=io),
        lambda: context.apply(grouped.path / "sections" / "llm_a5.bin"),
        context.unload,
        context.read_io_encodings,
    ):
        with pytest.raises(errors.GraphNotLoadedError):
            call()
    context.load()
    with pytest.raises(errors.GraphLoadedError):
        context.load()


def test_a_cache_of_another_adapter_or_strength_is_refused(context: SimulatedContext, grouped: Any) -> None:
    context.apply(grouped.path / "sections" / "llm_a5.bin")
    cache = context.new_cache()
    run(context, [1, 2], cache=cache)
    with pytest.raises(errors.StaleKvCacheError, match="Reset it"):
        run(context, [3], cache=cache, position=2, alphas=[0.5])
    context.apply(grouped.path / "sections" / "llm_default_adapter.bin")
    with pytest.raises(errors.StaleKvCacheError):
        run(context, [3], cache=cache, position=2)
    cache.reset()
    run(context, [3], cache=cache)


def test_positions_must_follow_the_cache_and_fit_the_context(context: SimulatedContext) -> None:
    with pytest.raises(errors.PositionError, match="does not follow"):
        run(context, [1], position=3)
    cache = context.new_cache()
    for position in range(0, 32, 8):
        run(context, [1] * 8, cache=cache, position=position)
    with pytest.raises(errors.PositionError, match="beyond the context of 32"):
        run(context, [1], cache=cache, position=32)


@pytest.mark.parametrize("tokens", [np.array([1, 2]), np.array([96] + [0] * 7), np.array([-1] + [0] * 7)])
def test_inputs_of_another_shape_or_range_are_refused(context: SimulatedContext, tokens: Any) -> None:
    with pytest.raises(errors.StaticShapeError):
        context.execute(
            "prefill", tokens, valid=1, position=0, cache=context.new_cache(), io=context.read_io_encodings()
        )


@pytest.mark.parametrize("alphas", [[1.0, 1.0], [2.5], [-0.5], [float("nan")]])
def test_an_alpha_vector_that_does_not_fit_is_refused(context: SimulatedContext, alphas: list[float]) -> None:
    with pytest.raises(errors.AlphaVectorError):
        run(context, [1], alphas=alphas)


def test_a_section_of_another_base_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    foreign = attrs.evolve(context.binary, foundation="0" * 64)
    with pytest.raises(errors.ForeignBaseError):
        context.apply(made(tmp_path, context, binary=foreign))


def test_a_section_of_another_graph_or_mode_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    spec = context.binary.spec
    other_graph = attrs.evolve(context.binary, spec=attrs.evolve(spec, context_len=16))
    for foreign in (attrs.evolve(context.binary, mode="all"), other_graph):
        with pytest.raises(errors.ForeignGraphError):
            context.apply(made(tmp_path, context, binary=foreign))


def test_a_foundation_of_another_context_is_refused(tmp_path: Path, grouped: Any, model: Any) -> None:
    other = tiny.export(tiny.make_job(model, policy="w4a16"), tmp_path / "other")
    with pytest.raises(errors.ForeignBaseError):
        SimulatedContext.create(grouped.file("context.bin"), other.file("foundation.bin"))


def test_a_tensor_that_is_not_updatable_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    weights = zero_lora(context.binary.spec) | {f"{Q}.weight": np.zeros((32, 32), lora_dtype(context.binary.spec))}
    with pytest.raises(errors.NotUpdatableError, match=r"q_proj\.weight is not updatable"):
        context.apply(made(tmp_path, context, weights=weights))


def test_encodings_of_the_base_are_out_of_scope_in_mode_adapter_only(tmp_path: Path, context: SimulatedContext) -> None:
    base = context.foundation.encodings["norm.output"]
    with pytest.raises(errors.OutOfScopeError, match=r"keeps the encoding of norm\.output fixed"):
        context.apply(made(tmp_path, context, encodings=dict(context.binary.branch) | {"norm.output": base}))


def test_any_encoding_is_out_of_scope_in_mode_none(tmp_path: Path, model: Any, five: Any) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:1], quant_updatable="none"), tmp_path / "out")
    context = SimulatedContext.create(bundle.file("context.bin"), bundle.file("foundation.bin"))
    with pytest.raises(errors.OutOfScopeError, match="Mode 'none'"):
        context.apply(made(tmp_path, context))
    context.apply(made(tmp_path, context, part="weights"))


def test_another_shape_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    weights = zero_lora(context.binary.spec)
    weights[f"{Q}.lora_a.weight"] = weights[f"{Q}.lora_a.weight"][:2]
    with pytest.raises(errors.TensorShapeError, match=r"has shape \(2, 32\), the graph \(4, 32\)"):
        context.apply(made(tmp_path, context, weights=weights))


def test_another_type_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    weights = {name: array.astype(np.int32) for name, array in zero_lora(context.binary.spec).items()}
    with pytest.raises(errors.TensorDtypeError, match="has type int32, the graph int16"):
        context.apply(made(tmp_path, context, weights=weights))


def test_an_encoding_that_is_no_grid_of_the_graphs_width_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    branch = dict(context.binary.branch)
    for wrong in ({"scale": float("inf")}, {"scale": -1.0}, {"offset": 5}, {"offset": -(1 << 20)}):
        broken = branch | {f"{Q}.lora_a.output": attrs.evolve(branch[f"{Q}.lora_a.output"], **wrong)}
        with pytest.raises(errors.TensorDtypeError, match="no grid of 16 bits"):
            context.apply(made(tmp_path, context, encodings=broken))


def test_a_section_that_leaves_tensors_out_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    weights, branch = zero_lora(context.binary.spec), dict(context.binary.branch)
    del weights[f"{Q}.lora_b.weight"]
    with pytest.raises(errors.IncompleteSectionError, match=r"q_proj\.lora_b\.weight is missing"):
        context.apply(made(tmp_path, context, weights=weights))
    del branch[f"{Q}.lora_b.output"]
    with pytest.raises(errors.IncompleteSectionError, match=r"q_proj\.lora_b\.output is missing"):
        context.apply(made(tmp_path, context, encodings=branch))


def test_a_hot_switch_context_takes_no_sections(tmp_path: Path, model: Any, five: Any, grouped: Any) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:2], hot_switch=True), tmp_path / "out")
    context = SimulatedContext.create(bundle.file("context.bin"), bundle.file("foundation.bin"))
    with pytest.raises(errors.SectionsNotAllowedError, match="alpha vector"):
        context.apply(grouped.path / "sections" / "llm_a5.bin")


def test_a_section_of_another_version_is_refused(
    tmp_path: Path, context: SimulatedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(container, "VERSION", "2")
        path = made(tmp_path, context)
    with pytest.raises(errors.ContainerVersionError, match="version '2'"):
        context.apply(path)


def test_a_renamed_section_is_refused(tmp_path: Path, context: SimulatedContext) -> None:
    path = made(tmp_path, context)
    renamed = path.rename(path.with_name("llm_other.bin"))
    with pytest.raises(errors.RenamedSectionError, match=r"was written as llm_made\.bin"):
        context.apply(renamed)


def test_refusals_say_that_their_names_are_the_simulators_own() -> None:
    assert "simulator's own" in (errors.__doc__ or "")
    assert issubclass(errors.SectionError, errors.SimulatorError)
    assert issubclass(errors.ExecutionError, errors.SimulatorError)


def test_any_safetensors_reader_opens_a_section(grouped: Any) -> None:
    from safetensors.numpy import load_file

    path = grouped.path / "sections" / "llm_a5.bin"
    theirs = load_file(path)
    ours = container.read_container(path, "section").tensors
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], ours[name]) for name in ours)
    assert read_section(path).size == path.stat().st_size
    assert read_context(grouped.file("context.bin")).hot_switch is False
