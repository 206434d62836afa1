"""Adding is linking: the bytes of a full export, without the base, or a refusal that changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lora_core
from lora_core.adapters.reference import AdapterReference, CompositePart
from lora_core.bundle.store import open_bundle, verify_hashes
from lora_core.errors import AdapterError, BundleError, LoraCoreError, UnsupportedError, UsageError
from lora_core.events import StageAdvanced, Warned
from lora_core.pipeline import add as add_module


@pytest.fixture
def add(hub, tmp_path):
    def run(name, adapters, **more):
        return lora_core.add(tmp_path / name, adapters, hub=hub, **more)

    return run


@pytest.mark.parametrize("layout", ["split", "joint"])
@pytest.mark.parametrize("order", ["abcd", "dcba"])
def test_adding_gives_the_bytes_of_a_full_export(export, add, make_adapter, contents, tmp_path, layout, order):
    shapes = {"a": {"rank": 4}, "b": {"rank": 2}, "c": {"targets": ["v_proj"]}, "d": {"rank": 1}}
    adapters = {name: make_adapter(name, **shape) for name, shape in shapes.items()}
    export("full", adapters, options={"layout": layout})
    export("grown", {"a": adapters["a"]}, options={"layout": layout})
    for name in order.replace("a", ""):
        add("grown", {name: adapters[name]})
    assert contents(tmp_path / "grown") == contents(tmp_path / "full")


@pytest.mark.parametrize("layout", ["split", "joint"])
def test_adding_many_at_once_gives_the_bytes_of_adding_one_by_one(
    export, add, make_adapter, contents, tmp_path, layout, monkeypatch
):
    monkeypatch.setattr(add_module, "BATCH", 3)
    adapters = {f"a{i}": make_adapter(f"a{i}", rank=1 + i % 4) for i in range(10)}
    for name in ("together", "single"):
        export(name, max_rank=4, targets=["q_proj", "v_proj"], options={"layout": layout})
    add("together", adapters)
    for name, path in adapters.items():
        add("single", {name: path})
    assert contents(tmp_path / "together") == contents(tmp_path / "single")


def test_several_processes_write_what_one_does(export, add, make_adapter, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(add_module, "BATCH", 4)
    monkeypatch.setattr(add_module, "WORTH_A_PROCESS", 4)
    adapters = {f"a{i}": make_adapter(f"a{i}") for i in range(12)}
    told = []
    for name, jobs in (("one", 1), ("two", 2)):
        export(name, max_rank=4, targets=["q_proj", "v_proj"])
        add(name, adapters, jobs=jobs, emit=told.append)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    progress = [(event.done, event.total) for event in told if isinstance(event, StageAdvanced)]
    assert progress == [(4, 12), (8, 12), (12, 12)] * 2


SCRIPT = """
import sys
from importlib.metadata import EntryPoint
import lora_core
from lora_core.hub import PluginHub
from lora_core.pipeline import add
add.BATCH = add.WORTH_A_PROCESS = 1
print("once")
hub = PluginHub([EntryPoint("fake", "fake_backend", "lora_core")])
adapters = dict(zip(sys.argv[2::2], sys.argv[3::2]))
lora_core.add(sys.argv[1], adapters, jobs=2, hub=hub, emit=lambda event: print(event, flush=True))
"""


def script(bundle: Path, adapters: dict[str, Path]) -> subprocess.Popen[str]:
    """Start a script that adds in two processes, written as a careless user would: without a `__main__` guard."""
    arguments = [str(bundle), *(text for name, path in adapters.items() for text in (name, str(path)))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_processes_do_not_run_the_callers_script_again(export, make_adapter, tmp_path):
    export("b", max_rank=4, targets=["q_proj", "v_proj"])
    running = script(tmp_path / "b", {name: make_adapter(name) for name in ("x", "y")})
    told, failed = running.communicate()
    assert running.returncode == 0, failed
    assert told.count("once") == 1
    assert [adapter.name for adapter in open_bundle(tmp_path / "b").manifest.adapters] == ["x", "y"]


def test_a_process_that_dies_while_linking_is_reported_and_changes_nothing(
    export, add, make_adapter, contents, tmp_path, monkeypatch
):
    monkeypatch.setattr(add_module, "BATCH", 1)
    monkeypatch.setattr(add_module, "WORTH_A_PROCESS", 1)
    export("b", max_rank=4, targets=["q_proj", "v_proj"])
    adapters = {name: make_adapter(name) for name in ("deadly", "fine")}
    said = refused(tmp_path, contents, lambda name, given: add(name, given, jobs=2), adapters, LoraCoreError)
    assert "ended unexpectedly" in said


def test_problems_found_in_other_processes_come_back_whole(export, add, make_adapter, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(add_module, "BATCH", 1)
    monkeypatch.setattr(add_module, "WORTH_A_PROCESS", 1)
    export("b", max_rank=2, targets=["q_proj", "v_proj"])
    adapters = {name: make_adapter(name, rank=8) for name in ("x", "y")}
    said = refused(tmp_path, contents, lambda name, given: add(name, given, jobs=2), adapters, AdapterError)
    assert "'x' has rank 8" in said
    assert "'y' has rank 8" in said


def test_processes_end_when_the_one_that_started_them_is_killed(export, make_adapter, contents, tmp_path):
    export("b", max_rank=4, targets=["q_proj", "v_proj"])
    before = contents(tmp_path / "b")
    running = script(tmp_path / "b", {name: make_adapter(name) for name in ("quick", "slow")})
    while "StageAdvanced" not in running.stdout.readline():
        assert running.poll() is None
    running.kill()
    # Returns when no process holds the other end of the pipes any more; the slow one would hold it for ten minutes.
    running.communicate(timeout=120)
    assert open_bundle(tmp_path / "b").manifest.adapters == ()
    assert contents(tmp_path / "b") == before


def test_composites_are_added_with_their_parts_from_any_batch(export, add, make_adapter, monkeypatch, tmp_path):
    monkeypatch.setattr(add_module, "BATCH", 1)
    export("b", max_rank=8, targets=["q_proj", "v_proj"])
    references = [
        AdapterReference(name="z", directory=make_adapter("z")),
        AdapterReference(name="mix", parts=(CompositePart(of="x", strength=0.5), CompositePart(of="y", strength=0.25))),
        AdapterReference(name="x", directory=make_adapter("x")),
        AdapterReference(name="y", directory=make_adapter("y")),
    ]
    bundle = add("b", references)
    assert {adapter.name: adapter.rank for adapter in bundle.manifest.adapters} == {"mix": 4, "x": 2, "y": 2, "z": 2}
    assert verify_hashes(bundle) == []


def test_an_adapter_finds_its_template_among_several(export, add, make_adapter):
    export("b", {"a": make_adapter("a", rank=4), "b": make_adapter("b", rank=2)}, plan="per-shape")
    bundle = add("b", {name: make_adapter(name, rank=rank) for name, rank in (("c", 4), ("d", 2), ("e", 1))})
    assert {adapter.name: adapter.plan for adapter in bundle.manifest.adapters} == {
        "a": 1,
        "b": 0,
        "c": 1,
        "d": 0,
        "e": 0,
    }


def test_a_contradicting_base_is_a_warning(export, add, make_adapter):
    export("b", {"a": make_adapter("a")})
    told = []
    add("b", {"b": make_adapter("b", base="someone/else")}, emit=told.append)
    assert [("someone/else" in event.message) for event in told if isinstance(event, Warned)] == [True]


def refused(tmp_path, contents, add, adapters, kind) -> str:
    """Add to bundle `b`, expect an error and no change, and return what it says."""
    before = contents(tmp_path / "b")
    with pytest.raises(kind) as caught:
        add("b", adapters)
    assert contents(tmp_path / "b") == before
    return str(caught.value)


def test_a_name_in_use_is_refused(export, add, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")})
    assert "'A'" in refused(tmp_path, contents, add, {"A": make_adapter("other")}, UsageError)


def test_a_rank_or_layer_outside_the_plan_is_refused_with_the_export_that_has_room(
    export, add, make_adapter, contents, tmp_path
):
    export("b", {"a": make_adapter("a")})
    adapters = {"big": make_adapter("big", rank=8), "wide": make_adapter("wide", targets=["k_proj"])}
    said = refused(tmp_path, contents, add, adapters, AdapterError)
    assert "'big' has rank 8" in said
    assert "'wide' targets k_proj" in said
    assert "--max-rank 8 --targets" in said


def test_problems_of_adapters_in_different_batches_are_reported_together(
    export, add, make_adapter, contents, tmp_path, monkeypatch
):
    monkeypatch.setattr(add_module, "BATCH", 1)
    export("b", {"a": make_adapter("a")})
    adapters = {name: make_adapter(name, rank=8) for name in ("x", "y", "z")} | {"fine": make_adapter("fine")}
    said = refused(tmp_path, contents, add, adapters, AdapterError)
    assert all(f"'{name}'" in said for name in "xyz")


def test_a_bundle_without_template_is_refused(export, add, make_adapter, contents, tmp_path):
    export("b")
    assert "no template" in refused(tmp_path, contents, add, {"a": make_adapter("a")}, BundleError)


def test_a_backend_that_cannot_link_is_refused(export, add, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")}, backend="fake_sealed")
    refused(tmp_path, contents, add, {"b": make_adapter("b")}, UnsupportedError)


def test_a_damaged_template_is_refused_even_if_its_size_is_right(export, add, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")})
    template = tmp_path / "b/templates/template-0.json"
    template.write_bytes(template.read_bytes().replace(b"q_proj", b"o_proj"))
    said = refused(tmp_path, contents, add, {"b": make_adapter("b")}, BundleError)
    assert "templates/template-0.json" in said


def test_another_foundation_of_the_same_size_is_refused(export, add, make_adapter, contents, tmp_path, fake):
    export("b", {"a": make_adapter("a")})
    export("other", model=fake.FakeModel(seed=2))
    time.sleep(0.02)  # the clock of file changes ticks in hundredths of a second
    shutil.copy2(tmp_path / "other/foundation.safetensors", tmp_path / "b/foundation.safetensors")
    said = refused(tmp_path, contents, add, {"b": make_adapter("b")}, BundleError)
    assert "not the foundation that this bundle was made with" in said


def test_a_missing_foundation_is_refused(export, add, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")})
    (tmp_path / "b/foundation.safetensors").unlink()
    assert "'foundation.safetensors' is missing" in refused(
        tmp_path, contents, add, {"b": make_adapter("b")}, BundleError
    )


def test_a_newer_schema_is_refused(export, add, make_adapter, contents, tmp_path):
    export("b", {"a": make_adapter("a")})
    manifest = tmp_path / "b/manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 4', '"schema_version": 5'))
    assert "schema version 5" in refused(tmp_path, contents, add, {"b": make_adapter("b")}, BundleError)


@pytest.mark.parametrize(("adapters", "jobs"), [({}, 1), ((), 1), ({"x": "nowhere"}, 0)])
def test_a_call_that_asks_for_nothing_is_refused(export, add, adapters, jobs):
    export("b")
    with pytest.raises(UsageError):
        add("b", adapters, jobs=jobs)


def test_a_foreign_exception_of_the_backend_names_it_and_changes_nothing(
    export, add, make_adapter, contents, tmp_path, fake, monkeypatch
):
    export("b", {"a": make_adapter("a")})
    monkeypatch.setattr(fake, "bound", lambda adapter: 1 / 0)
    said = refused(tmp_path, contents, add, {"b": make_adapter("b")}, LoraCoreError)
    assert "fake" in said
    assert "ZeroDivisionError" in said


def test_eight_processes_adding_at_once_all_succeed(export, make_adapter, hub, tmp_path):
    export("b", max_rank=2, targets=["q_proj", "v_proj"])
    paths = {f"a{i}": make_adapter(f"a{i}") for i in range(8)}
    pids = []
    for name, path in paths.items():
        pid = os.fork()
        if pid == 0:
            try:
                lora_core.add(tmp_path / "b", {name: path}, hub=hub)
                os._exit(0)
            finally:
                os._exit(70)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    bundle = open_bundle(tmp_path / "b")
    assert [adapter.name for adapter in bundle.manifest.adapters] == sorted(paths)
    assert verify_hashes(bundle) == []


def test_adding_imports_neither_torch_nor_what_other_adapters_need(export, make_adapter, tmp_path):
    export("b", {"a": make_adapter("a")})
    script = (
        "import sys\n"
        "from importlib.metadata import EntryPoint\n"
        "import lora_core\n"
        "from lora_core.hub import PluginHub\n"
        "hub = PluginHub([EntryPoint('fake', 'fake_backend', 'lora_core')])\n"
        "lora_core.add(sys.argv[1], {'b': sys.argv[2]}, hub=hub)\n"
        "heavy = {'torch', 'executorch', 'torchao', 'coremltools', 'transformers', 'peft', 'cattrs', 'jinja2',\n"
        "         'tokenizers', 'multiprocessing', 'concurrent.futures'}\n"
        "heavy |= {f'lora_core.{name}' for name in (\n"
        "    'adapters.packages.reading', 'adapters.gguf.reading', 'adapters.mlx_lm.reading',\n"
        "    'adapters.peft.derived', 'models.text.rules', 'pipeline.packing', 'sharing.report',\n"
        "    'verification.numbers')}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    arguments = [str(tmp_path / "b"), str(make_adapter("b"))]
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert ran.stdout.strip() == "[]"
