"""Methods that follow from a few layers are those of a full lowering, byte for byte, or are not used."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import transformers
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.lowering import base
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.methods import MethodLowering
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.stamping import stamp
from lora_core_coreml.stamping.choosing import among, choose
from lora_core_coreml.stamping.items import Item, NotDerivableError, item
from lora_core_coreml.stamping.layers import kinds_of, with_layers
from lora_core_coreml.stamping.prediction import Example, predict
from lora_core_coreml.weightless.lowering import StandInLowering

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Event, Noted, StageAdvanced
from lora_core.models.hf import HfModelSource

POLICY = {policy.name: policy for policy in POLICIES}
DEPTH = stamp.FEWEST  # thirteen: names of layers have one and two digits


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of the fewest layers for which it is worth it, small ones."""
    directory = tmp_path_factory.mktemp("model") / "deep"
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.tie_weights()
    model.save_pretrained(directory)
    return directory


def deep_job(model: Path, ranks: dict[int, int], policy: str = "fp16", **options: object) -> ExportJob:
    """Return a job with slots of a rank on q_proj of some layers, by their number."""
    handle = HfModelSource().open(str(model))
    names = {f"model.layers.{number}.self_attn.q_proj": rank for number, rank in ranks.items()}
    slots = tuple(
        Slot(module=each.name, in_features=each.in_features, out_features=each.out_features, rank=names[each.name])
        for each in handle.summary.layers
        if each.name in names
    )
    return ExportJob(
        model=handle,
        adapters=(),
        plans=(SlotPlan(slots=slots),) if slots else (),
        policy=POLICY[policy],
        options=CoremlOptions(**{"max_context_len": 16, "input_len": 4, **options}),
    )


def exported(job: ExportJob, out: Path) -> tuple[dict[str, bytes], list[Event]]:
    out.mkdir()
    events: list[Event] = []
    CoremlBackend().export(job, out, events.append)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}, events


def lowerings(events: list[Event]) -> int:
    return max(event.done for event in events if isinstance(event, StageAdvanced))


def stamped_and_full(
    job: ExportJob, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], dict[str, bytes], int]:
    """Return the files of a stamped export and of a full one with weights, and how often the former lowered."""
    stamped, events = exported(job, folder / "stamped")
    monkeypatch.setattr(StandInLowering, "weightless", lambda self, known, always: None)
    full, _ = exported(job, folder / "full")
    assert [event for event in events if isinstance(event, Noted)] == []
    return stamped, full, lowerings(events)


def test_thirteen_layers_follow_from_three_and_four(
    deep_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[int] = []
    trace = MethodLowering.trace

    def counted(self: MethodLowering, name: str, prepared: PreparedBase, *more: object) -> object:
        traced.append(len(prepared.module.layers))
        return trace(self, name, prepared, *more)

    monkeypatch.setattr(MethodLowering, "trace", counted)
    job = deep_job(deep_model, dict.fromkeys(range(DEPTH), 4))
    stamped, full, count = stamped_and_full(job, tmp_path, monkeypatch)
    assert count == 3 + 3  # of base and template: three layers, four, and five as the proof
    assert traced == [5, 3] * 2  # four are cut out of five
    assert stamped == full


def test_what_cannot_be_cut_out_or_is_wrong_then_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def run(self: Any) -> dict[str, object]:
        tried.append(self.cuts)
        if self.cuts:
            raise NotDerivableError("the proof was predicted wrongly")
        return {}

    monkeypatch.setattr(stamp._Derivation, "run", run)
    choice = stamp.Choice(kinds=(0,) * DEPTH, chosen=choose((0,) * DEPTH))
    stamper = stamp.Stamper(job=None, prepared=None, directory=Path(), lowering=None)
    assert stamper.methods(str, None, choice).origins == {}
    assert tried == [True, False]


@pytest.mark.deep
@pytest.mark.parametrize("policy", ["c4w", "b4w", "emb8"])
def test_a_policy_changes_nothing_in_that(
    deep_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    job = deep_job(deep_model, dict.fromkeys(range(DEPTH), 4), policy)
    stamped, full, _ = stamped_and_full(job, tmp_path, monkeypatch)
    assert stamped == full


@pytest.mark.deep
@pytest.mark.parametrize(
    ("ranks", "template"),
    [
        ({0: 2, DEPTH - 1: 4}, 3),
        ({0: 2, DEPTH // 2: 3, DEPTH - 1: 4}, 1),  # its examples would be as deep as it is
    ],
)
def test_decode_and_prefill_follow_too(
    deep_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: dict[int, int], template: int
) -> None:
    """Layers with slots lie between layers without: the base follows, and the template where it has few kinds."""
    job = deep_job(deep_model, ranks, "c4w", multifunction=True)
    stamped, full, count = stamped_and_full(job, tmp_path, monkeypatch)
    assert count == 2 * (3 + template)
    assert stamped == full


def test_what_cannot_follow_is_noted_and_lowered_in_full(
    exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = exporter.job([], graph_breaks=True, split_size=32, max_splits=4)
    full, _ = exported(attrs.evolve(job, cache=exporter.cache), tmp_path / "full")
    monkeypatch.setattr(stamp, "FEWEST", 1)
    tried, events = exported(job, tmp_path / "tried")
    assert tried == full
    assert [event.message for event in events if isinstance(event, Noted)] == [
        "The base is lowered layer by layer, as it does not follow from a few: the model is no plain sequence of layers"
    ]


def test_layers_of_one_kind_differ_in_their_weights_only(deep_model: Path) -> None:
    job = deep_job(deep_model, {3: 4, 4: 8, 5: 4})
    prepared = base.prepare(job)
    assert len(set(kinds_of(prepared, None))) == 1
    assert kinds_of(prepared, job.plans[0]) == (0, 0, 0, 1, 2, 1, *(0,) * (DEPTH - 6))
    prepared.module.layers[7].ffn_norm.weight.data.fill_(1.0)
    assert kinds_of(prepared, None) == (0,) * 7 + (1,) + (0,) * (DEPTH - 8)


def test_a_module_of_few_layers_has_stand_ins_of_its_own(deep_model: Path) -> None:
    prepared = base.prepare(deep_job(deep_model, {}))
    before = {name: parameter.clone() for name, parameter in prepared.module.named_parameters()}
    few = with_layers(prepared, (0, 5, 5, 12)).module
    assert [layer.attention.layer_id for layer in few.layers] == [0, 1, 2, 3]
    weights = [layer.attention.wo.weight for layer in few.layers]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))
    assert len(prepared.module.layers) == DEPTH
    assert all(torch.equal(parameter, before[name]) for name, parameter in prepared.module.named_parameters())


def counting(kinds: tuple[int, ...], *, wrong: int = 0) -> Example:
    """A method in which layers of kind 0 have one operation and those of kind 1 two, each of its predecessor."""
    operations: list[Item] = [item(["in", 0])]
    for layer, kind in enumerate(kinds):
        for step in range(1 + kind):
            operations.append(item(["op", kind, step, "from", len(operations) - 1 + wrong], layer=layer))
    operations.append(item(["out", len(operations) - 1]))
    return Example(kinds, {"operations": operations})


@pytest.mark.parametrize("kinds", [(0,) * 14, (0, *(1,) * 7, *(0,) * 7), (0, 1) * 8, (1, 0, 0, 1) * 7])
def test_numbers_count_on_over_layers_of_several_kinds(kinds: tuple[int, ...]) -> None:
    chosen = choose((*kinds, *kinds, *kinds))
    assert chosen is not None
    whole = (*kinds, *kinds, *kinds)
    samples = [counting(tuple(whole[number] for number in layers)) for layers in chosen.examples]
    for asked in (whole, tuple(whole[number] for number in chosen.proof)):
        predicted = predict(samples, asked)["operations"]
        assert [each.text for each in predicted] == [each.text for each in counting(asked).document["operations"]]


def test_examples_that_do_not_tell_are_refused() -> None:
    with pytest.raises(NotDerivableError, match="too few examples"):
        predict([counting((0, 0, 0)), counting((0, 0, 0))], (0,) * 5)
    with pytest.raises(NotDerivableError, match="too few examples"):
        predict([counting((0, 0, 0)), counting((0, 0, 0, 0))], (0, 0, 1, 0, 0))


def test_layers_of_one_kind_with_other_operations_are_refused() -> None:
    odd = counting((0, 1, 0))
    with pytest.raises(NotDerivableError, match="operations differs between layers of one kind"):
        predict([counting((0, 0, 0)), counting((0, 0, 0, 0)), attrs.evolve(odd, kinds=(0, 0, 0))], (0,) * 5)


def test_the_proof_is_deeper_and_has_every_meeting_of_kinds() -> None:
    kinds = (0,) * 20 + (1,) * 20
    chosen = choose(kinds)
    assert chosen is not None
    assert len(chosen.proof) > max(map(len, chosen.examples))
    inner = [kinds[number] for number in chosen.proof]
    assert {(0, 0), (0, 1), (1, 1)} <= set(pairwise(inner))
    assert chosen.layers < len(kinds)


def test_layers_are_found_among_those_of_a_deeper_model_by_their_kinds() -> None:
    assert among((5, 0, 1, 6), (5, 0, 0, 1, 0, 6)) == (0, 1, 3, 5)
    assert among((5, 1, 1, 6), (5, 0, 0, 1, 0, 6)) is None


def test_a_model_that_is_no_deeper_than_its_examples_is_lowered_in_full() -> None:
    assert choose((0,) * 12) is None
    assert choose(tuple(range(30))) is None
