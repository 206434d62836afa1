"""The device linker of `native/` writes what the Python linker writes, and refuses what it must not link."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np
import pytest
from device_linker import DeviceError, DeviceLinker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_core_xnnpack.files.marks import program_adapters
from lora_core_xnnpack.slot_tensors import linkable_values, tensor_blob
from lora_core_xnnpack.split.linking import link_values
from lora_core_xnnpack.split.relocations import SplitTemplate
from synthetic import FOUNDATION, Array, make_template, plan_of, summary_of, write_peft, write_template
from toolchain import COMPILERS, NATIVE, SANITIZERS, WARNINGS, built, compilers, library_sources

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.packages.writing import Source, package_bytes
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.bundle.hashing import file_sha256

PLAN = plan_of(
    {
        "model.layers.0.q_proj": (4, 16, 16),
        "model.layers.0.v_proj": (4, 16, 8),
        "model.layers.1.q_proj": (4, 16, 16),
        "model.layers.1.v_proj": (4, 16, 8),
        "model.layers.1.down_proj": (3, 24, 16),
    }
)
MODULES = [slot.module for slot in PLAN.slots]


@attrs.frozen(kw_only=True)
class Case:
    """An adapter to be linked into a template: how it looks, from a seed."""

    seed: int
    rank: int
    dtype: str
    alpha: float
    use_rslora: bool
    strength: float
    targets: tuple[str, ...]
    odd: str
    embedded: bool


CASES = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    rank=st.integers(1, 3),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    alpha=st.sampled_from([1.0, 2.0, 3.0, 7.5, 16.0]),
    use_rslora=st.booleans(),
    strength=st.sampled_from([1.0, 0.3, -1.5]),
    targets=st.lists(st.sampled_from(MODULES), min_size=1, unique=True).map(tuple),
    odd=st.sampled_from(["none", "zero a", "zero b", "minus zero", "equal", "in foundation", "tiny"]),
    embedded=st.booleans(),
)


def matrices(case: Case) -> Mapping[str, tuple[Array, Array]]:
    chance = np.random.default_rng(case.seed)
    made: dict[str, tuple[Array, Array]] = {}
    for slot in PLAN.slots:
        if slot.module in case.targets:
            a, b = (
                chance.standard_normal(shape).astype(np.float32)
                for shape in ((case.rank, slot.in_features), (slot.out_features, case.rank))
            )
            if case.odd == "equal" and made:
                first = next(iter(made.values()))
                a, b = (kept if kept.shape == each.shape else each for kept, each in zip(first, (a, b), strict=True))
            factors = {"zero a": (0, 1), "zero b": (1, 0), "minus zero": (-0.0, -0.0), "tiny": (1e-7, 1e-7)}
            factor_a, factor_b = factors.get(case.odd, (1, 1))
            made[slot.module] = (a * np.float32(factor_a), b * np.float32(factor_b))
    return made


@attrs.frozen(kw_only=True)
class Stage:
    """Files of one template and one adapter in a directory, and what Python links of them."""

    root: Path
    template: SplitTemplate
    program: Path
    table: Path
    adapter: Adapter
    directory: Path

    @classmethod
    def of(cls, case: Case, root: Path) -> Stage:
        directory = write_peft(
            root / "adapter", matrices(case), dtype=case.dtype, alpha=case.alpha, use_rslora=case.use_rslora
        )
        adapter = PeftFormat().read("some", directory, summary_of(PLAN))
        placed = PlacedAdapter(adapter=adapter, plan=PLAN)
        keys: tuple[str, ...] = ()
        if case.odd == "in foundation":
            values = linkable_values(placed)
            keys = tuple(sorted({tensor_blob(values[module]["a"]).key for module in MODULES[:2]}))
        template = make_template(PLAN, seed=case.seed, foundation_keys=keys)
        program, table = write_template(template, root)
        return cls(root=root, template=template, program=program, table=table, adapter=adapter, directory=directory)

    def package(self, **changed: str) -> Path:
        lines = "".join(f"{file_sha256(path)}\n" for path in (self.table, self.program))
        template = hashlib.sha256(lines.encode()).hexdigest()
        source = Source(**{"foundation": FOUNDATION, "template": template, "plan": "0" * 64} | changed)
        path = self.root / "some.lora"
        path.write_bytes(b"".join(package_bytes(self.adapter, source)))
        return path

    def expected(self, case: Case) -> tuple[bytes, bytes | None]:
        placed = PlacedAdapter(adapter=self.adapter.scaled(case.strength), plan=PLAN)
        linked = link_values(self.template, self.adapter.name, linkable_values(placed), embed=case.embedded)
        return b"".join(linked.program), None if linked.data is None else b"".join(linked.data)


PLAIN = Case(
    seed=1,
    rank=2,
    dtype="F16",
    alpha=4.0,
    use_rslora=False,
    strength=1.0,
    targets=tuple(MODULES),
    odd="none",
    embedded=False,
)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.of(PLAIN, tmp_path)


@pytest.fixture
def opened(linker: DeviceLinker, stage: Stage) -> Iterator[object]:
    template = linker.open(stage.program, stage.table)
    yield template
    linker.close(template)


@given(case=CASES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packages_and_peft_files_link_to_the_bytes_of_the_python_linker(
    linker: DeviceLinker, tmp_path: Path, case: Case
) -> None:
    stage = Stage.of(case, tmp_path)
    expected = stage.expected(case)
    program, data = tmp_path / "out.pte", None if case.embedded else tmp_path / "out.ptd"
    template = linker.open(stage.program, stage.table)
    for link, source in ((linker.link_package, stage.package()), (linker.link_peft, stage.directory)):
        link(template, source, program, data, strength=case.strength)
        assert (program.read_bytes(), None if data is None else data.read_bytes()) == expected
    linker.close(template)


def test_a_template_says_for_which_foundation_it_is(linker: DeviceLinker, opened: object) -> None:
    assert linker.foundation(opened) == FOUNDATION


def test_another_foundation_is_told_from_its_bytes(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    with pytest.raises(DeviceError, match="foreign: the foundation is"):
        linker.check_foundation(opened, stage.program)


def test_fields_of_a_package_can_be_read(linker: DeviceLinker, stage: Stage) -> None:
    package = stage.package()
    assert linker.field(package, "name") == "some"
    assert linker.field(package, "signature") is None


@pytest.mark.parametrize("changed", ["foundation", "template"])
def test_a_package_of_another_base_or_template_is_refused(
    linker: DeviceLinker, opened: object, stage: Stage, changed: str
) -> None:
    package = stage.package(**{changed: "ab" * 32})
    with pytest.raises(DeviceError, match=f"foreign: the adapter was packed for (a )?{changed}"):
        linker.link_package(opened, package, stage.root / "out.pte", stage.root / "out.ptd")
    assert sorted(path.name for path in stage.root.glob("out*")) == []


def test_every_changed_byte_of_a_package_is_found(linker: DeviceLinker, stage: Stage) -> None:
    package = stage.package()
    whole = package.read_bytes()
    passed = []
    for position in range(0, len(whole), 5):
        package.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            linker.field(package, "name")
            passed.append(position)
        except DeviceError:
            pass
    assert passed == []


def test_a_package_of_a_newer_version_is_refused(linker: DeviceLinker, stage: Stage) -> None:
    package = stage.package()
    package.write_bytes(package.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(DeviceError, match="newer"):
        linker.field(package, "name")


def test_an_adapter_beyond_the_template_is_refused_by_name(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    big = {"model.layers.0.q_proj": (np.ones((9, 16), np.float32), np.ones((16, 9), np.float32))}
    with pytest.raises(DeviceError, match=r"misfit: .*rank 9 at model.layers.0.q_proj.*room for 4"):
        linker.link_peft(opened, write_peft(stage.root / "big", big), stage.root / "out.pte", None)
    strange = {"model.layers.7.q_proj": (np.ones((2, 16), np.float32), np.ones((16, 2), np.float32))}
    with pytest.raises(DeviceError, match=r"misfit: the template has no slot for model\.layers\.7\.q_proj"):
        linker.link_peft(opened, write_peft(stage.root / "strange", strange), stage.root / "out.pte", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 1}),
        ("alpha_pattern", {"q_proj": 1}),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("modules_to_save", ["lm_head"]),
        ("peft_type", "LOHA"),
    ],
)
def test_what_changes_the_mathematics_of_a_peft_adapter_is_refused(
    linker: DeviceLinker, opened: object, stage: Stage, field: str, value: object
) -> None:
    config = stage.directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {field: value}), "utf-8")
    with pytest.raises(DeviceError, match="unsupported"):
        linker.link_peft(opened, stage.directory, stage.root / "out.pte", None)


@pytest.mark.parametrize("name", ["pirate", "shout"])
def test_configurations_that_peft_writes_are_read(
    linker: DeviceLinker, opened: object, stage: Stage, examples: Path, name: str
) -> None:
    config = json.loads((examples / name / "adapter_config.json").read_text("utf-8")) | {"r": 2, "lora_alpha": 4}
    (stage.directory / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    linker.link_peft(opened, stage.directory, stage.root / "out.pte", stage.root / "out.ptd")
    assert ((stage.root / "out.pte").read_bytes(), (stage.root / "out.ptd").read_bytes()) == stage.expected(PLAIN)


def test_the_program_says_the_name_that_the_adapter_was_given(linker: DeviceLinker, tmp_path: Path) -> None:
    stage = Stage.of(attrs.evolve(PLAIN, seed=2), tmp_path)  # whose template has a mark, as all that are exported now
    template, program = linker.open(stage.program, stage.table), stage.root / "out.pte"
    linker.link_package(template, stage.package(), program, None, name="other")
    assert program_adapters(program) == "other"
    linker.link_peft(template, stage.directory, program, None, name="third")
    assert program_adapters(program) == "third"
    linker.close(template)


@pytest.mark.parametrize("name", [None, "", "../x", "forward", "get_max_seq_len"])
def test_a_name_that_lora_core_add_refuses_is_refused(
    linker: DeviceLinker, opened: object, stage: Stage, name: str | None
) -> None:
    with pytest.raises(DeviceError, match="misfit"):
        linker.link_peft(opened, stage.directory, stage.root / "out.pte", None, name=name)


def test_a_matrix_with_nan_is_refused(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    made = {MODULES[0]: (np.full((2, 16), np.nan, np.float32), np.ones((16, 2), np.float32))}
    with pytest.raises(DeviceError, match="NaN"):
        linker.link_peft(opened, write_peft(stage.root / "nan", made), stage.root / "out.pte", None)


def test_a_newer_relocation_table_is_refused(linker: DeviceLinker, stage: Stage) -> None:
    stage.table.write_text(stage.table.read_text("utf-8").replace('"schema_version":2', '"schema_version":3'), "utf-8")
    with pytest.raises(DeviceError, match="newer: the relocation table has schema 3"):
        linker.open(stage.program, stage.table)


def test_a_directory_that_is_not_there_is_an_io_error(linker: DeviceLinker, opened: object, stage: Stage) -> None:
    with pytest.raises(DeviceError, match="io: cannot create"):
        linker.link_package(opened, stage.package(), stage.root / "nowhere" / "out.pte", None)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_changed_inputs_are_refused_and_nothing_worse(compiler: str, stage: Stage) -> None:
    if compiler not in compilers():
        pytest.skip(f"there is no {compiler} on this machine, so its sanitizers are not used")
    fuzz = built(compiler, "fuzz", ("-O0", *SANITIZERS), (*library_sources(), NATIVE / "tests" / "fuzz.cpp"))
    adapter = (stage.directory / "adapter_model.safetensors", stage.directory / "adapter_config.json")
    command = [fuzz, stage.program, stage.table, stage.package(), *adapter, "4000", "1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert told["refused"] > 1000
    assert told["linked"] > 100  # changes that mean nothing, or that only make another adapter


def test_cmake_builds_with_the_flags_of_these_tests() -> None:
    told = (NATIVE / "CMakeLists.txt").read_text("utf-8")
    assert " ".join(WARNINGS) in told
    assert all(f"src/{path.name}" in told for path in (NATIVE / "src").glob("*.cpp"))


def test_the_hashes_of_this_processor_and_of_every_processor_agree(tmp_path: Path) -> None:
    found = compilers()
    if not found:
        pytest.skip("there is no C++ compiler (g++ or clang++) on this machine, so native/ is not tested")
    program = built(found[0], "hashes", ("-O1",), (NATIVE / "src" / "sha256.cpp", NATIVE / "tests" / "hashes.cpp"))
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n")
