"""A bundle on ExecuTorch's runtime. Programs are real and small; each scenario has a process of its own, because the
weight cache belongs to the process. All but those that ask how the runtime is loaded are forked when it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from lora_core_xnnpack.files.joining import join_program

from tests.numeric import decoder_tolerance

HERE = Path(__file__).parent
LAYOUTS = ("external", "embedded", "multimethod")
# One layer in float32, of the spread of the logits; the worker measures in those units.
TOLERANCE = decoder_tolerance(layers=1, hidden=512, inner=4096, context=24, rank=8)


Scenario = Callable[..., dict[str, Any]]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(HERE.parents[2]), os.environ.get("PYTHONPATH"))))
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path}  # one is enough for such small programs


def python(*arguments: str) -> str:
    command = [sys.executable, str(HERE / "session_worker.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("programs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and ExecuTorch warn of their own deprecated calls
        import session_programs

        session_programs.main(out)
    return out


@pytest.fixture(scope="session")
def again(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    """Return a function that runs a scenario in a new process."""
    folder = tmp_path_factory.mktemp("scenarios")
    told, said = folder / "told.json", folder / "said.txt"
    command = [sys.executable, str(HERE / "session_worker.py")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment()) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(*arguments: str) -> dict[str, Any]:
            print(json.dumps([str(told), str(said), str(programs), *arguments]), file=server.stdin, flush=True)
            status = server.stdout.readline()
            assert status == "0\n", (status, said.read_text()[-4000:])
            return json.loads(told.read_text() or "{}")

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def scenario(again: Scenario) -> Scenario:
    """Return what a scenario told, which runs when it is first asked for."""
    return lru_cache(maxsize=None)(again)


@pytest.mark.parametrize("cache", ["on", "off"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_method_computes_what_the_eager_model_does(scenario, layout, cache):
    told = scenario("answers", layout, cache)
    assert max(told["errors"].values()) < TOLERANCE
    assert told["effect"] > 1000 * TOLERANCE


@pytest.mark.parametrize("cache", ["on", "off"])
def test_facts_say_whether_the_weight_cache_reads_back_as_on(scenario, cache):
    assert scenario("answers", "external", cache)["facts"]["weight_cache"] == cache


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_further_program_does_not_hold_the_foundation_again_with_the_cache_on(scenario, programs, layout):
    foundation = (programs / "foundation.ptd").stat().st_size
    first, *further = scenario("answers", layout, "on")["growth"]
    assert first > 0.8 * foundation
    assert max(further) < 0.15 * foundation


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_program_holds_the_foundation_with_the_cache_off(scenario, programs, layout):
    foundation = (programs / "foundation.ptd").stat().st_size
    assert min(scenario("answers", layout, "off")["growth"]) > 0.8 * foundation


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_embedding_table_is_mapped_and_neither_locked_nor_in_memory_before_it_is_read(scenario, layout):
    told = scenario("answers", layout, "on")["foundation_in_memory"]
    assert told["Size"] > 0
    assert (told["Rss"], told["Locked"]) == (0, 0)


@pytest.mark.parametrize("layout", ["external", "multimethod"])
def test_loading_an_adapter_reads_of_the_foundation_no_more_than_its_front(scenario, layout):
    told = scenario("touching", layout)
    assert told["Locked"] == 0
    assert told["Rss"] < 0.02 * told["Size"]  # all of it, where the runtime locks what it maps


def test_memory_of_an_adapter_that_is_unloaded_returns(scenario, programs):
    data = (programs / "external/loud.ptd").stat().st_size
    assert scenario("unloading", "external")["returned"] > data


@pytest.mark.parametrize("layout", ["external", "multimethod"])
def test_an_adapter_that_was_unloaded_is_loaded_again_with_an_empty_cache(scenario, layout):
    told = scenario("unloading", layout)
    assert max(told["errors"]) < TOLERANCE
    assert "filled to 0" in told["told"]


@pytest.mark.parametrize(("given", "settled"), [("", 1), ("2", 2)])
def test_openmp_has_one_thread_unless_the_environment_says_how_many(programs, given, settled):
    told = json.loads(python(str(programs), "threads", given))
    assert told["facts"]["openmp_threads"] == settled
    assert told["facts"]["threads"] == 2
    assert told["environment"] == given


def test_facts_give_the_context_that_the_program_was_exported_for(scenario):
    assert scenario("answers", "embedded", "on")["facts"]["context_len"] == 64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kv_cache_never_survives_a_change_of_adapter(scenario, layout):
    told = scenario("kv_rules", layout)["told"]
    assert "belongs to the base, so adapter 'loud' cannot continue at 4" in told["another adapter goes on"]
    assert told["another adapter starts again"] == "ok"
    assert "belongs to adapter 'loud', so the base cannot continue" in told["the first one comes back"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kv_cache_is_read_only_where_it_was_written(scenario, layout):
    told = scenario("kv_rules", layout)["told"]
    assert "Position 9 cannot follow a KV cache that is filled to 4" in told["a gap"]
    assert told["a step back"] == "ok"
    assert "filled to 0" in told["after a reset"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_load_or_a_refusal_leaves_the_owners_cache_and_a_new_owner_sees_nothing_of_it(scenario, layout):
    assert max(scenario("kv_rules", layout)["errors"]) < TOLERANCE


def test_steps_outside_of_context_and_vocabulary_are_refused(scenario):
    told = scenario("kv_rules", "external")["told"]
    assert "do not fit in the context of 64 tokens" in told["too long"]
    assert told["exactly full"] == "ok"
    assert "at least one token" in told["no tokens"]
    assert "Token 256 is not in the vocabulary of 256 tokens" in told["unknown token"]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("whole", "ok"),
        ("unknown adapter", "UsageError: The bundle has no adapter 'lod'. Did you mean 'loud'? Choices: loud, quiet."),
        ("strength", "UnsupportedError: The adapters of this bundle are constants of its programs, so 'loud@0.5'"),
        ("adapter of another foundation", "BundleError: Adapter 'loud' was linked against foundation eeeeeeeeeeee"),
        ("foundation without the base's tensors", "BundleError: ExecuTorch cannot load"),
        ("foundation with another name", "BundleError: ExecuTorch cannot load"),
        ("file of another size", "BundleError: external/loud.ptd has 57984 bytes, and the manifest says 7 bytes"),
        ("missing file", "BundleError: foundation.ptd is missing"),
        ("unknown policy", "BundleError: The bundle asks for the KV cache policy 'keep-forever'"),
    ],
)
def test_what_cannot_be_right_is_refused(scenario, case, told):
    assert scenario("refusals")[case].startswith(told)


def test_weight_cache_is_off_until_switched_and_reads_back_each_time(scenario):
    told = scenario("options")
    assert told["before"] is False
    assert told["switched True"] == ["on", True]
    assert told["switched False"] == ["off", False]


def test_an_option_that_the_runtime_does_not_know_is_not_taken_for_set(scenario):
    told = scenario("options")
    assert told["unknown flag"] == "the runtime does not know option 'weight_cash_enabled'"
    assert told["unknown number"] == "the runtime does not know option 'weight_cash_enabled'"


def test_sharing_is_not_claimed_where_the_option_cannot_be_set(scenario):
    state, reason, facts = scenario("options")["without the interface"]
    assert state == "impossible"
    assert "libc.so.6 does not export the options interface" in reason
    assert "'weight_cache': 'impossible" in facts


def test_a_joined_program_is_what_executorch_reads_as_program_with_data(programs):
    """ExecuTorch's own serializer wrote the other."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    files = [programs / "external" / f"loud.{suffix}" for suffix in ("pte", "ptd")]
    ours = deserialize_pte_binary(b"".join(bytes(part) for part in join_program(files[0], files[1:])))
    theirs = deserialize_pte_binary((programs / "embedded" / "loud.pte").read_bytes())
    data, expected = (
        {key: bytes(file.named_data.buffers[entry.buffer_index]) for key, entry in file.named_data.pte_data.items()}
        for file in (ours, theirs)
    )
    assert ours.program == theirs.program
    assert data == expected
    assert len(data) == 4


@pytest.fixture(scope="module")
def packed(scenario, tmp_path_factory):
    """A packed file that one process made, and what that process told."""
    directory = tmp_path_factory.mktemp("packed")
    return directory, scenario("answers", "embedded", "on", str(directory))


def file_of(directory: Path) -> Path:
    (path,) = directory.glob("*.packed")
    return path


@pytest.mark.parametrize("layout", ["external", "multimethod"])
def test_a_second_process_maps_packed_weights_instead_of_packing(packed, again, programs, layout):
    directory, first = packed
    told = again("answers", layout, "on", str(directory))
    assert (first["packed"], told["packed"]) == (f"written: {file_of(directory)}", f"proven: {file_of(directory)}")
    assert max(told["errors"].values()) < TOLERANCE
    # Not even the first program holds the foundation in anonymous memory now.
    assert max(told["growth"]) < 0.15 * (programs / "foundation.ptd").stat().st_size


def test_a_packed_file_is_not_changed_by_use(packed, again):
    directory, _ = packed
    before = file_of(directory).read_bytes()
    again("answers", "external", "on", str(directory))
    assert file_of(directory).read_bytes() == before


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no proof", "proof of a later version"])
def test_a_packed_file_without_its_proof_is_made_again(packed, again, tmp_path, damage):
    directory = shutil.copytree(packed[0], tmp_path / "packed")
    (proof,) = directory.glob("*.json")
    path = file_of(directory)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flipped bit":
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no proof":
        proof.unlink()
    else:
        proof.write_text(proof.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    told = again("answers", "embedded", "on", str(directory))
    assert told["packed"].startswith("written")
    assert max(told["errors"].values()) < TOLERANCE


def test_a_packed_file_of_a_process_that_was_killed_is_made_again(again, tmp_path):
    again("killed_while_packing", str(tmp_path))
    assert file_of(tmp_path).stat().st_size > 0
    told = again("answers", "external", "on", str(tmp_path))
    assert told["packed"].startswith("written")
    assert max(told["errors"].values()) < TOLERANCE


def test_a_packed_file_is_left_alone_where_it_cannot_be_used(scenario, tmp_path):
    told = scenario("packed_states", str(tmp_path))
    assert told["while it is made"] == "unused: another session is making it"
    assert told["without the weight cache"] == "unused: the weight cache is off"
    assert told["without the interface"].startswith("unused: libc.so.6 does not export Module::load")


def test_sessions_of_one_process_share_the_packed_file_that_one_of_them_makes(scenario, programs, tmp_path):
    told = scenario("automatic", str(tmp_path))
    assert told["small"] == "off: the base is small"
    assert (told["while one makes it"], told["afterwards"]) == (["written", "written"], "proven")
    assert max(told["errors"]) < TOLERANCE
    assert told["growth"] < 0.15 * (programs / "foundation.ptd").stat().st_size


def test_methods_share_one_kv_cache_with_packed_weights_in_a_file_too(scenario, tmp_path):
    told = scenario("arenas", str(tmp_path))
    assert told["told"] is True
    assert told["difference"] < TOLERANCE
    assert told["without the cache"] > 1000 * TOLERANCE
