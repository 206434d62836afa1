"""One program for the base and all adapters. ExecuTorch's own lowering of all methods together is the oracle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from lora_core_xnnpack.files.marks import MARKS, PROGRAM_ADAPTERS, foundation_mark
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.files.program_root import ProgramRoot
from lora_core_xnnpack.files.repacking import PlanSource
from lora_core_xnnpack.lowering.base import load_base
from lora_core_xnnpack.lowering.lowering import lower
from lora_core_xnnpack.multimethod.linking import MultimethodTarget
from lora_core_xnnpack.options import XnnpackOptions
from lora_core_xnnpack.slot_tensors import linkable_values
from marked_oracle import marked
from multimethod_worker import TOKENS
from workbench import ALL_LINEAR, TINY_OPTIONS, Workbench

import lora_core
from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import place
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.events import Event, ignore
from tests.numeric import apart, decoder_tolerance

OPTIONS = {"layout": "multimethod", "max_context_len": 32, "max_seq_len": 16}
# One layer in float32, whose sums are taken in another order, of the spread of the logits.
TOLERANCE = decoder_tolerance(layers=1, hidden=64, inner=96, context=16, rank=2)


@attrs.frozen(kw_only=True)
class Exported:
    """A bundle, the adapters in it, and what its export told."""

    bundle: Bundle
    adapters: tuple[Adapter, ...]
    events: tuple[Event, ...]


@pytest.fixture(scope="session")
def exported_together(one_layer: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Two adapters on plans of their own. One sorts before `forward`, and they have tensors in common: zeros."""
    alpha = one_layer.adapter("alpha", seed=1, rank=2, zero=("v_proj",))
    zulu = one_layer.adapter("zulu", seed=2, rank=2, targets=ALL_LINEAR, zero=("k_proj", "v_proj"))
    events: list[Event] = []
    root = tmp_path_factory.mktemp("together")
    bundle = lora_core.export(
        one_layer.checkpoint,
        adapters={"zulu": zulu.source, "alpha": alpha.source},
        backend="xnnpack",
        policy="fp32",
        out=root / "bundle",
        options=OPTIONS,
        plan="per-shape",
        cache=root / "cache",
        emit=events.append,
    )
    return Exported(bundle=bundle, adapters=(alpha, zulu), events=tuple(events))


@pytest.fixture
def copied(exported_together: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_together.bundle.path, tmp_path / "bundle"))


def run(scenario: str, *arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parent / "multimethod_worker.py"), scenario, *map(str, arguments)]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # one is enough for such small programs
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def stock_logits(bundle: Path, *methods: str) -> dict[str, Any]:
    """Run methods with ExecuTorch's own runtime and nothing of ours but the tokens, without a weight cache."""
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers the operators
    from executorch.extension.pybindings import portable_lib

    module = portable_lib._load_for_executorch(str(bundle / "model.pte"), data_path=str(bundle / "foundation.ptd"))
    inputs = (torch.tensor([TOKENS], dtype=torch.long), torch.tensor([0], dtype=torch.long))
    return {name: module.run_method(name, inputs)[0].reshape(-1).tolist() for name in methods}


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def methods_of(bundle: Bundle) -> list[str]:
    return [name for name, method in ProgramParts.read(bundle.file("model.pte")).methods.items() if method.computes]


def test_the_program_equals_a_full_lowering_of_all_methods_together(
    exported_together: Exported, one_layer: Workbench
) -> None:
    from lora_core.models.injection import inject

    plans = exported_together.bundle.manifest.plans
    entries = {entry.name: entry.plan for entry in exported_together.bundle.manifest.adapters}
    assert sorted(entries.values()) == [0, 1]
    bases = {name: load_base(one_layer.job([]), ignore) for name in ("forward", "alpha", "zulu")}
    modules = {"forward": bases["forward"].module}
    for adapter in exported_together.adapters:
        (placed,) = place([adapter], [plans[entries[adapter.name]]])
        base = bases[adapter.name]
        modules[adapter.name] = inject(base.module, placed.plan, base.paths, linkable_values(placed))
    full = lower(modules, bases["forward"], lora_tag=None)
    written = files_of(exported_together.bundle.path)
    mark = foundation_mark(exported_together.bundle.file("foundation.ptd"))
    assert mark is not None
    assert (written["model.pte"], written["foundation.ptd"]) == marked(full, mark, "alpha", "zulu")


def test_adapters_taken_out_and_added_in_another_order_give_the_same_files(
    exported_together: Exported, copied: Path
) -> None:
    before = files_of(copied)
    emptied = lora_core.remove(copied, ["alpha", "zulu"])
    assert methods_of(emptied) == ["forward"]
    assert [method.name for method in emptied.manifest.methods] == ["forward"]
    alpha, zulu = exported_together.adapters
    lora_core.add(copied, {"zulu": zulu.source})
    after = lora_core.add(copied, {"alpha": alpha.source})
    assert methods_of(after) == ["alpha", "forward", "zulu"]
    changed = [name for name, content in files_of(copied).items() if before[name] != content]
    assert changed in ([], ["manifest.json"])  # whose entries have no order
    assert {entry.name: entry for entry in after.manifest.adapters} == {
        entry.name: entry for entry in exported_together.bundle.manifest.adapters
    }


def test_copies_of_a_plan_are_what_packing_it_afresh_gives(exported_together: Exported) -> None:
    program = ProgramParts.read(exported_together.bundle.file("model.pte"))
    names = [letter * length for length in (1, 2, 3, 4, 5, 8, 11) for letter in ("a", "z")]
    copies = dict.fromkeys(names, program.methods["zulu"])
    afresh = {name: attrs.evolve(method, source=PlanSource(method.source.table)) for name, method in copies.items()}
    assert b"".join(program.assemble(copies, ())) == b"".join(program.assemble(afresh, ()))


def test_an_adapter_taken_out_leaves_nothing_of_its_own(copied: Path) -> None:
    named = ProgramParts.read(copied / "model.pte").named
    left = lora_core.remove(copied, ["zulu"])
    assert methods_of(left) == ["alpha", "forward"]
    program = left.file("model.pte").read_bytes()
    kept = dict(ProgramParts.parse(program).named)
    assert 0 < len(kept) < len(named)
    assert bytes(kept.pop(PROGRAM_ADAPTERS)) == b"alpha"
    assert all(bytes(kept[key]) == bytes(named[key]) for key in kept)
    gone = named.keys() - kept.keys() - {PROGRAM_ADAPTERS}
    assert [key for key in gone if key.encode() in program] == []


def test_adding_takes_neither_torch_nor_executorch(
    exported_together: Exported, copied: Path, one_layer: Workbench
) -> None:
    third = one_layer.adapter("mike", seed=3, rank=2)
    assert run("adding", copied, f"mike={third.source}")["heavy"] == []
    assert [method.adapter for method in lora_core.inspect(copied).bundle.manifest.methods].count("mike") == 1
    assert methods_of(attrs.evolve(exported_together.bundle, path=copied)) == ["alpha", "forward", "mike", "zulu"]


def test_every_blob_is_told_to_be_read_by_the_methods_that_read_it(exported_together: Exported) -> None:
    sharing = XnnpackBackend().sharing
    readers = {(blob.group == "lora", blob.methods) for blob in sharing.blobs(exported_together.bundle)}
    everyone = frozenset(("forward", "alpha", "zulu"))
    own = {frozenset(("alpha",)), frozenset(("zulu",)), frozenset(("alpha", "zulu"))}
    assert readers == {(False, everyone)} | {(True, methods) for methods in own}


def test_a_session_switches_adapters_and_computes_what_the_split_layout_does(
    exported_together: Exported, one_layer: Workbench, tmp_path: Path, lowered_once: Path
) -> None:
    alpha = exported_together.adapters[0]
    split = lora_core.export(
        one_layer.checkpoint,
        adapters={"alpha": alpha.source},
        backend="xnnpack",
        policy="fp32",
        out=tmp_path / "split",
        options={**OPTIONS, "layout": "split"},
        cache=lowered_once,
    )
    assert split.manifest.foundation == exported_together.bundle.manifest.foundation
    split_told = run("switching", split.path, "alpha")
    told = run("switching", exported_together.bundle.path, "alpha", "zulu")
    stock = stock_logits(exported_together.bundle.path, "forward", "alpha", "zulu")
    for name in ("forward", "alpha"):
        assert apart(told[name], split_told[name]) <= TOLERANCE
    for name in ("forward", "alpha", "zulu"):
        assert apart(told[name][0], stock[name]) <= TOLERANCE
    assert apart(told["again"], told["forward"][0]) <= TOLERANCE
    assert "belongs to adapter 'zulu', so the base cannot continue" in told["continued"]
    results = [told[name][1] for name in ("forward", "alpha", "zulu")]
    assert min(apart(results[i], results[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 100 * TOLERANCE


def test_the_methods_share_one_kv_cache(exported_together: Exported) -> None:
    memory = exported_together.bundle.manifest.detail["planned_memory"]["model"]
    parts = ProgramParts.read(exported_together.bundle.file("model.pte")).methods
    plans = {name: method.source.table.fields[8] for name, method in parts.items() if method.computes}
    sizes = {name: np.frombuffer(getattr(plan, "data", b""), "<i8").tolist() for name, plan in plans.items()}
    # Keys and values of 32 positions, 2 heads of 16 numbers each, in an arena of their own: the third.
    assert {name: each[2:] for name, each in sizes.items()} == {name: [2 * 32 * 2 * 16 * 4] for name in sizes}
    assert memory["forward"] == sum(sizes["forward"])


def test_a_changed_tensor_is_not_linked_on(exported_together: Exported, copied: Path) -> None:
    bundle = attrs.evolve(exported_together.bundle, path=copied)
    program = copied / "model.pte"
    content = bytearray(program.read_bytes())
    root = ProgramRoot.read(content)
    offset, size = max(root.spans[index] for key, index in root.named if key not in MARKS)
    content[offset + size - 1] ^= 1
    program.write_bytes(content)
    with pytest.raises(BundleError, match=r"model.pte does not hold adapter 'zulu' as it was linked"):
        MultimethodTarget.of_bundle(bundle)


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("template/model.json", '"schema_version":2', '"schema_version":5', "has schema 5; this version reads 2 to 4"),
        ("template/model.json", '"offset":', '"offset":9', "model.json is damaged: ValueError: a key ends behind"),
        ("template/model.json", '"plans"', '"plants"', "model.json is damaged: KeyError: 'plans'"),
        ("template/model.pte", "eh00", "eh01", "model.pte is not a whole ExecuTorch program: it has no ExecuTorch"),
        ("model.pte", "eh00", "eh01", "model.pte is not a whole ExecuTorch program: it has no ExecuTorch header"),
    ],
)
def test_damaged_files_are_named(
    exported_together: Exported, copied: Path, file: str, old: str, new: str, told: str
) -> None:
    path = copied / file
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(BundleError, match=told):
        MultimethodTarget.of_bundle(attrs.evolve(exported_together.bundle, path=copied))


def test_adapter_data_goes_with_the_layout(one_layer: Workbench) -> None:
    assert TINY_OPTIONS.adapter_data == "external"
    assert XnnpackOptions(layout="multimethod").adapter_data == "embedded"
    options = XnnpackOptions(layout="multimethod", adapter_data="external")
    assert [str(problem) for problem in XnnpackBackend().check(attrs.evolve(one_layer.job([]), options=options))] == [
        "--layout multimethod with --adapter-data external could not be loaded: a program takes one data file, and "
        "that is the foundation. Leave --adapter-data out, or choose embedded."
    ]
