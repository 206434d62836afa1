"""Commands do what the library does, and print what it returns."""

from __future__ import annotations

import json
import shutil

from lora_core import __version__
from tests.cli.shell import Shell


def test_export_add_remove_inspect(shell: Shell) -> None:
    added = shell.run("add", "bundle", "--from-dir", "adapters/../more")
    assert added.code == 2
    (shell.directory / "more").mkdir()
    (shell.directory / "adapters" / "bob").rename(shell.directory / "more" / "bob")
    assert shell.run("add", "bundle", "--from-dir", "more").out == "bundle: added bob; it has 2 now\n"
    facts = json.loads(shell.run("inspect", "bundle", "--json").out)
    assert [adapter["name"] for adapter in facts["adapters"]] == ["alice", "bob"]
    assert facts["problems"] == []
    removed = shell.run("remove", "bundle", "alice", "bob")
    assert removed.out == "bundle: removed alice, bob; adapters left: none\n"


def test_directories_are_called_by_safe_names_and_the_mapping_is_printed(shell: Shell) -> None:
    for name in ("checkpoint-500", "checkpoint_500", "qwen2.5-lora", "base", "500"):
        shutil.copytree(shell.directory / "adapters" / "bob", shell.directory / "more" / name)
    added = shell.run("add", "bundle", "--from-dir", "more")
    assert added.code == 0
    assert added.out.splitlines()[:-1] == [
        "more/500 -> a_500",
        "more/base -> my_base_lora",
        "more/checkpoint-500 -> checkpoint_500_2",
        "more/qwen2.5-lora -> qwen2_5_lora",
    ]
    facts = json.loads(shell.run("inspect", "bundle", "--json").out)
    names = {adapter["name"] for adapter in facts["adapters"]}
    assert names == {"alice", "a_500", "my_base_lora", "checkpoint_500", "checkpoint_500_2", "qwen2_5_lora"}


def test_safe_names_leave_out_those_that_are_given(shell: Shell) -> None:
    shutil.copytree(shell.directory / "adapters" / "bob", shell.directory / "more" / "a-b")
    added = shell.run("add", "bundle", "--adapter", "a_b=adapters/bob", "--from-dir", "more")
    assert added.out.startswith("more/a-b -> a_b_2\n")


def test_a_package_is_added_by_the_name_that_it_or_the_command_says(shell: Shell) -> None:
    packed = shell.run("pack", "bundle", "bob=adapters/bob", "-o", "bob.lora")
    assert packed.out.startswith("bob.lora: adapter bob, ")
    added = shell.run("add", "bundle", "--package", "bob.lora", "--package", "other=bob.lora")
    assert added.out == "bundle: added bob, other; it has 3 now\n"


def test_list_says_what_each_adapter_is_and_whether_it_fits(shell: Shell) -> None:
    listed = shell.run("list", "adapters", "--bundle", "bundle")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == ["adapter", "alice", "bob"]
    assert all(line.endswith("template 0") for line in listed.out.splitlines()[1:])
    (entry,) = json.loads(shell.run("list", "adapters/bob", "--json").out)
    assert (entry["name"], entry["place"], entry["modules"], entry["fits"]) == ("bob", ".", 4, [])


def test_pack_all_packs_says_what_failed_and_leaves_alone_what_is_done(shell: Shell) -> None:
    words = ("pack-all", "adapters", "--bundle", "bundle", "-o", "fleet", "--jobs", "2")
    packed = shell.run(*words)
    assert (packed.code, packed.out[: packed.out.index(", in ")]) == (0, "fleet: 2 packed, 0 unchanged, 0 failed")
    shell.run("pack", "bundle", "bob=adapters/bob", "-o", "bob.lora")
    one = (shell.directory / "bob.lora").read_bytes()
    assert (shell.directory / "fleet" / "packages" / "bob.lora").read_bytes() == one
    (shell.directory / "adapters" / "alice" / "adapter_model.safetensors").write_bytes(b"short")
    again = shell.run(*words)
    assert again.code == 3
    head, told = again.out.splitlines()
    assert head.startswith("fleet: 0 packed, 1 unchanged, 1 failed, in ")
    assert told.startswith("alice: ")
    report = json.loads(shell.run(*words, "--json").out)
    assert (report["unchanged"], [each["place"] for each in report["failed"]]) == (1, ["alice"])


def test_adapter_files_are_as_good_as_a_directory(shell: Shell) -> None:
    files = ("adapters/bob/adapter_model.safetensors", "adapters/bob/adapter_config.json")
    assert shell.run("add", "bundle", "--adapter-files", "bob", *files).code == 0
    stored = (shell.directory / "bundle" / "bob.safetensors").read_bytes()
    assert shell.run("remove", "bundle", "bob").code == 0
    assert shell.run("add", "bundle", "--adapter", "bob=adapters/bob").code == 0
    assert (shell.directory / "bundle" / "bob.safetensors").read_bytes() == stored


def test_convert_writes_an_adapter_that_can_be_added(shell: Shell) -> None:
    outcome = shell.run("convert", "adapters/bob", "-o", "again")
    assert outcome.out == "again: 4 modules as a PEFT adapter\n"
    assert shell.run("convert", "adapters/bob", "-o", "again").code == 2
    assert shell.run("add", "bundle", "--adapter", "bob=again").code == 0


def test_inspect_shows_the_sharing_proof(shell: Shell) -> None:
    outcome = shell.run("inspect", "bundle")
    assert outcome.code == 0, outcome
    assert "foundation.safetensors" in outcome.out
    assert "Stored twice: 0 B." in outcome.out


def test_backends_shows_what_is_installed_and_what_is_broken(shell: Shell) -> None:
    (shell.sites[0] / "lora_core_plain").is_dir()
    facts = json.loads(shell.run("backends", "--json").out)
    plain = next(backend for backend in facts["backends"] if backend["name"] == "plain")
    assert plain["distribution"] == f"lora-core-plain {__version__}"
    assert plain["capabilities"] == ["export", "link"]
    assert plain["missing"] == []


def test_conform_says_what_holds(shell: Shell) -> None:
    outcome = shell.run("conform", "plain", "--check", "works-here", "--check", "blobs-true", "--json")
    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    assert [(each["id"], each["outcome"]) for each in report["results"]] == [
        ("works-here", "passed"),
        ("blobs-true", "passed"),
    ]


def test_conform_holds_known_gaps_to_their_word(shell: Shell) -> None:
    outcome = shell.run("conform", "plain", "--check", "works-here", "--known-gap", "works-here=not yet")
    assert outcome.code == 5
    assert "It holds, and is listed as a known gap (not yet): take it off." in outcome.out
    assert ") fails 1 of 1 checks; policies: fp32" in outcome.out
    refused = shell.run("conform", "plain", "--known-gap", "works-here")
    assert refused.code == 2
    assert "Write --known-gap ID=REASON" in refused.err


def test_backends_and_doctor_list_adapter_formats(shell: Shell) -> None:
    assert "PEFT" in shell.run("backends").out
    formats = json.loads(shell.run("backends", "--json").out)["adapter_formats"]
    assert {"peft", "mlx-lm", "gguf"} <= {each["name"] for each in formats}
    assert all(each["distribution"].startswith("lora-core ") for each in formats)
    assert "peft (lora-core " in shell.run("doctor").out.partition("adapter formats: ")[2]


def test_doctor_reports_every_backend(shell: Shell) -> None:
    facts = json.loads(shell.run("doctor", "--json").out)
    assert facts["backends"]["plain"]["problems"] == []
    assert "xnnpack" in facts["backends"]
    assert facts["machine"]["python"]


def test_export_help_groups_the_options_of_every_backend(shell: Shell) -> None:
    text = shell.run("export", "--help").out
    common, _, of_backends = text.partition("With --backend")
    assert "--policy" in common
    assert "--dtype" not in common
    assert "plain:" in of_backends
    assert "--adapter-data" in of_backends


def test_export_takes_the_options_of_the_backend(shell: Shell) -> None:
    words = ("export", "--backend", "plain", "--model", "model", "-o", "half", "--dtype", "float16")
    assert shell.run(*words).code == 0
    manifest = json.loads((shell.directory / "half" / "manifest.json").read_text("utf-8"))
    assert manifest["options"] == {"dtype": "float16"}
    half, full = ((shell.directory / name / "foundation.safetensors").stat().st_size for name in ("half", "bundle"))
    assert half < 0.6 * full


def test_verify_checks_the_files_where_nothing_can_be_run(shell: Shell) -> None:
    words = ("verify", "bundle", "--model", "model", "--adapter", "alice=adapters/alice", "--json")
    outcome = shell.run(*words)
    assert outcome.code == 4, outcome
    states = {(each["check"], each["subject"]): each["outcome"] for each in json.loads(outcome.out)["findings"]}
    assert states["hashes", "bundle"] == "passed"
    assert states["digest", "alice"] == "passed"
    assert states["runs", "forward"] == "unchecked"


def test_verify_fails_when_an_adapter_is_another_than_was_exported(shell: Shell) -> None:
    outcome = shell.run("verify", "bundle", "--model", "model", "--adapter", "alice=adapters/bob")
    assert outcome.code == 5, outcome
    assert "failed: 1 of" in outcome.out


def test_targets_may_have_spaces_between_them(shell: Shell) -> None:
    room = ("--max-rank", "2", "--targets", "q_proj, v_proj")
    refused = shell.run("export", "--backend", "plain", "--model", "model", *room, "-o", "out")
    # The example stores adapters as they are; that it says so, and nothing of a pattern, shows that the list was read.
    assert "there is no room to reserve" in refused.err
    exported = shell.run(
        "export", "--backend", "qnn_sim", "--model", "model", *room, "-o", "out", "--context-len", "32"
    )
    assert exported.code == 0, exported
    manifest = json.loads((shell.directory / "out" / "manifest.json").read_text("utf-8"))
    assert {slot["module"].rpartition(".")[2] for slot in manifest["plans"][0]["slots"]} == {"q_proj", "v_proj"}


def test_help_of_run_shows_what_sessions_of_every_backend_can_be_told(shell: Shell) -> None:
    text = shell.run("run", "--help").out
    common, _, of_backends = text.partition("With a bundle of")
    assert "--weight-cache" not in common
    assert "--weight-cache [on|off]" in of_backends
