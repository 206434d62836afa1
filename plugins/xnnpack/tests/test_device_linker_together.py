"""The device linker adds adapters to the one program of a multi-method bundle as the Python linker does."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
from device_linker import DeviceError, DeviceLinker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_core_xnnpack.multimethod.relocations import MultimethodTemplate
from lora_core_xnnpack.multimethod.residents import Resident, link_program
from lora_core_xnnpack.slot_tensors import linkable_values, tensor_blob
from synthetic import FOUNDATION, Array, plan_of, summary_of, write_peft
from synthetic_together import make_template, write_template
from toolchain import COMPILERS, NATIVE, SANITIZERS, built, compilers, library_sources

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.packages.writing import Source, package_bytes
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import PlacedAdapter, place
from lora_core.bundle.hashing import file_sha256

SMALL = {"model.layers.0.q_proj": (2, 16, 16), "model.layers.0.v_proj": (2, 16, 8)}
LARGE = {
    "model.layers.0.q_proj": (4, 16, 16),
    "model.layers.0.v_proj": (4, 16, 8),
    "model.layers.1.q_proj": (4, 16, 16),
    "model.layers.1.down_proj": (3, 24, 16),
}
PLANS = (plan_of(SMALL), plan_of(LARGE))
NAMES = ("zulu", "alpha", "Mike", "g1")  # one sorts before `forward`, one before all others


@attrs.frozen(kw_only=True)
class Guest:
    """An adapter that is added: how it looks, from a seed."""

    seed: int
    rank: int
    dtype: str
    alpha: float
    use_rslora: bool
    strength: float
    targets: tuple[str, ...]
    odd: str


GUESTS = st.builds(
    Guest,
    seed=st.integers(0, 5),  # few, so that adapters are equal
    rank=st.integers(1, 3),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    alpha=st.sampled_from([1.0, 2.0, 7.5]),
    use_rslora=st.booleans(),
    strength=st.sampled_from([1.0, 0.3, -1.5]),
    targets=st.lists(st.sampled_from([*LARGE]), min_size=1, unique=True).map(tuple),
    odd=st.sampled_from(["none", "zero a", "zero b", "minus zero", "equal", "in foundation"]),
)
PLAIN = Guest(seed=1, rank=2, dtype="F16", alpha=4.0, use_rslora=False, strength=1.0, targets=tuple(SMALL), odd="none")


def matrices(guest: Guest) -> dict[str, tuple[Array, Array]]:
    chance = np.random.default_rng(guest.seed)
    factor_a, factor_b = {"zero a": (0, 1), "zero b": (1, 0), "minus zero": (-0.0, -0.0)}.get(guest.odd, (1, 1))
    made: dict[str, tuple[Array, Array]] = {}
    for module in guest.targets:
        _, rows, columns = LARGE[module]
        a, b = (
            chance.standard_normal(shape).astype(np.float32) for shape in ((guest.rank, rows), (columns, guest.rank))
        )
        if guest.odd == "equal" and made:
            first = next(iter(made.values()))
            a, b = (kept if kept.shape == each.shape else each for kept, each in zip(first, (a, b), strict=True))
        made[module] = (a * np.float32(factor_a), b * np.float32(factor_b))
    return made


@attrs.frozen(kw_only=True)
class Stage:
    """Files of a template in a directory, and a program of nobody but the base."""

    root: Path
    template: MultimethodTemplate
    program: Path
    table: Path
    current: Path

    @classmethod
    def of(cls, root: Path, *, seed: int = 0, foundation_keys: Sequence[str] = ()) -> Stage:
        template = make_template(PLANS, seed=seed, foundation_keys=foundation_keys)
        program, table = write_template(template, root)
        current = root / "model.pte"
        current.write_bytes(b"".join(link_program(template, [])))
        return cls(root=root, template=template, program=program, table=table, current=current)

    def adapter(self, name: str, guest: Guest = PLAIN) -> tuple[Adapter, Path]:
        directory = self.root / "adapters" / name
        shutil.rmtree(directory, ignore_errors=True)
        write_peft(directory, matrices(guest), dtype=guest.dtype, alpha=guest.alpha, use_rslora=guest.use_rslora)
        return PeftFormat().read(name, directory, summary_of(PLANS[1])), directory

    def package(self, adapter: Adapter, **changed: str) -> Path:
        lines = "".join(f"{file_sha256(path)}\n" for path in (self.table, self.program))
        template = hashlib.sha256(lines.encode()).hexdigest()
        source = Source(**{"foundation": FOUNDATION, "template": template, "plan": "0" * 64} | changed)
        path = self.root / f"{adapter.name}.lora"
        path.write_bytes(b"".join(package_bytes(adapter, source)))
        return path

    def resident(self, adapter: Adapter, strength: float = 1.0) -> Resident:
        (placed,) = place([adapter.scaled(strength)], PLANS)
        return Resident.of_adapter(placed, self.template)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.of(tmp_path)


@pytest.fixture
def opened(linker: DeviceLinker, stage: Stage) -> Iterator[object]:
    template = linker.open(stage.program, stage.table)
    yield template
    linker.close(template)


@given(guests=st.lists(GUESTS, min_size=1, max_size=len(NAMES)), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_adapters_are_added_and_removed_to_the_bytes_of_the_python_linker(
    linker: DeviceLinker, tmp_path: Path, guests: list[Guest], seed: int
) -> None:
    keys = [
        tensor_blob(linkable_values(PlacedAdapter(adapter=adapter, plan=PLANS[1]))[guest.targets[0]]["a"]).key
        for guest in guests
        if guest.odd == "in foundation"
        for adapter, _ in [Stage.of(tmp_path, seed=seed).adapter("some", guest)]
    ]
    stage = Stage.of(tmp_path, seed=seed, foundation_keys=keys)
    template = linker.open(stage.program, stage.table)
    residents: list[Resident] = []
    steps = [stage.current.read_bytes()]
    for name, guest in zip(NAMES, guests, strict=False):
        adapter, directory = stage.adapter(name, guest)
        residents.append(stage.resident(adapter, guest.strength))
        expected = b"".join(link_program(stage.template, residents))
        by_peft = tmp_path / "by-peft.pte"
        linker.add_peft(template, stage.current, directory, name, by_peft, strength=guest.strength)
        linker.add_package(
            template, stage.current, stage.package(adapter), None, stage.current, strength=guest.strength
        )
        assert by_peft.read_bytes() == expected
        assert stage.current.read_bytes() == expected
        steps.append(expected)
    for name, before in zip(reversed(NAMES[: len(guests)]), reversed(steps[:-1]), strict=True):
        linker.remove(template, stage.current, name, stage.current)
        assert stage.current.read_bytes() == before
    linker.close(template)


def test_an_adapter_gets_the_least_slot_plan_that_holds_it(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    small, large = PLAIN, attrs.evolve(PLAIN, rank=3)
    placed = place([stage.adapter("small", small)[0], stage.adapter("large", large)[0]], PLANS)
    assert [each.index for each in placed] == [0, 1]
    for each in placed:
        linker.add_peft(opened, stage.current, stage.root / "adapters" / each.name, each.name, stage.current)
    residents = [Resident.of_adapter(each, stage.template) for each in placed]
    assert stage.current.read_bytes() == b"".join(link_program(stage.template, residents))


@pytest.mark.parametrize("changed", ["foundation", "template"])
def test_a_package_of_another_base_or_template_is_refused(
    linker: DeviceLinker, opened: object, stage: Stage, changed: str
) -> None:
    package = stage.package(stage.adapter("some")[0], **{changed: "ab" * 32})
    before = stage.current.read_bytes()
    with pytest.raises(DeviceError, match=f"foreign: the adapter was packed for (a )?{changed}"):
        linker.add_package(opened, stage.current, package, None, stage.current)
    assert stage.current.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Some", "has a method 'some' already"),
        ("forward", "the method of the base"),
        ("get_max_seq_len", "metadata"),
        ("a-b", "cannot be an adapter's name"),
        ("", "cannot be an adapter's name"),
    ],
)
def test_names_that_lora_core_add_refuses_are_refused(
    linker: DeviceLinker, opened: object, stage: Stage, name: str, why: str
) -> None:
    _, directory = stage.adapter("some")
    linker.add_peft(opened, stage.current, directory, "some", stage.current)
    with pytest.raises(DeviceError, match=f"misfit: .*{why}"):
        linker.add_peft(opened, stage.current, directory, name, stage.current)


def test_an_adapter_beyond_all_slot_plans_is_refused_by_name(
    linker: DeviceLinker, opened: object, stage: Stage
) -> None:
    _, directory = stage.adapter("big", attrs.evolve(PLAIN, rank=9))
    with pytest.raises(DeviceError, match=r"misfit: .*rank 9 at model.layers.0.q_proj.*room for 4"):
        linker.add_peft(opened, stage.current, directory, "big", stage.current)


def test_an_adapter_that_is_not_there_cannot_be_removed(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    with pytest.raises(DeviceError, match="misfit: the program has no adapter 'nobody'"):
        linker.remove(opened, stage.current, "nobody", stage.current)


def test_a_program_for_each_adapter_is_not_linked_from_this_template(
    linker: DeviceLinker, opened: object, stage: Stage
) -> None:
    _, directory = stage.adapter("some")
    with pytest.raises(DeviceError, match="unsupported: the template is of a bundle with one program"):
        linker.link_peft(opened, directory, stage.root / "out.pte", None)


def test_a_changed_tensor_of_an_adapter_that_is_there_is_found(
    linker: DeviceLinker, opened: object, stage: Stage
) -> None:
    _, directory = stage.adapter("some")
    linker.add_peft(opened, stage.current, directory, "some", stage.current)
    whole = bytearray(stage.current.read_bytes())
    matrix = matrices(PLAIN)["model.layers.0.q_proj"][0].astype(np.float16).astype("<f4").tobytes()
    assert whole.count(matrix) == 1
    whole[whole.index(matrix)] ^= 1
    stage.current.write_bytes(whole)
    with pytest.raises(DeviceError, match="damaged: the program does not hold adapter 'some' as it was linked"):
        linker.add_peft(opened, stage.current, directory, "other", stage.current)


def test_a_program_of_another_template_is_refused(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    (elsewhere := stage.root / "elsewhere").mkdir()
    other = Stage.of(elsewhere, seed=2)
    other.current.write_bytes(b"".join(link_program(other.template, [other.resident(other.adapter("theirs")[0])])))
    with pytest.raises(DeviceError, match="damaged: method 'theirs' of the program was not linked from this template"):
        linker.add_peft(opened, other.current, stage.adapter("some")[1], "some", stage.current)


def test_a_program_made_for_another_foundation_is_refused(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    stage.current.write_bytes(stage.current.read_bytes().replace(b"ab" * 32, b"cd" * 32))
    with pytest.raises(DeviceError, match="foreign: the program was made for another foundation"):
        linker.add_peft(opened, stage.current, stage.adapter("some")[1], "some", stage.current)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_changed_inputs_are_refused_and_nothing_worse(compiler: str, stage: Stage) -> None:
    if compiler not in compilers():
        pytest.skip(f"there is no {compiler} on this machine, so its sanitizers are not used")
    fuzz = built(compiler, "fuzz", ("-O0", *SANITIZERS), (*library_sources(), NATIVE / "tests" / "fuzz.cpp"))
    adapter, directory = stage.adapter("some")
    there = stage.resident(stage.adapter("there", attrs.evolve(PLAIN, seed=7))[0])
    stage.current.write_bytes(b"".join(link_program(stage.template, [there])))
    files = (stage.program, stage.table, stage.package(adapter))
    peft = (directory / "adapter_model.safetensors", directory / "adapter_config.json")
    command = [fuzz, *files, *peft, "1000", "2", stage.current]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert told["refused"] > 200
    assert told["linked"] > 50  # changes that mean nothing, or that only make another adapter
