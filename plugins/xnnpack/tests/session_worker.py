"""Scenarios for the session's tests: `python session_worker.py PROGRAMS SCENARIO [ARGUMENT ...]` prints JSON.

Each runs in a process of its own, because the weight cache and the threads belong to the process. `PROGRAMS` is what
`session_programs.py` wrote. Without arguments it serves the words of one command after another, a list in JSON on a
line of its standard input, by processes that are forked when the runtime is loaded, and tells how each ended.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import attrs
import mapped_memory
import numpy as np
from lora_core_xnnpack.runtime import open_program, packed_cache, shelf, weight_cache
from lora_core_xnnpack.runtime.library import load_runtime, runtime_library
from lora_core_xnnpack.runtime.runtime_options import BackendOptions, OptionError
from lora_core_xnnpack.session import XnnpackSession
from lora_core_xnnpack.session_options import XnnpackSessionOptions

from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Manifest, Method
from lora_core.errors import LoraCoreError
from lora_core.layers import ModelSummary
from lora_core.runtime.memory import measure
from tests.numeric import apart

FOUNDATION = "f" * 64
ADAPTERS = {"external": ("loud", "quiet"), "embedded": ("loud", "quiet"), "multimethod": ("loud",)}


def bundle(programs: Path, layout: str) -> Bundle:
    """Describe the files of one layout as a bundle."""
    model = "multimethod/model.pte"
    split = layout != "multimethod"
    methods = [Method(name="forward", program="base.pte" if split else model)]
    artifacts = [artifact(programs, "foundation.ptd", "foundation"), artifact(programs, methods[0].program, "program")]
    for name in ADAPTERS[layout]:
        methods.append(Method(name=name, program=f"{layout}/{name}.pte" if split else model, adapter=name))
        if split:
            artifacts.append(artifact(programs, f"{layout}/{name}.pte", "program", name))
        if layout == "external":
            artifacts.append(artifact(programs, f"{layout}/{name}.ptd", "adapter-data", name))
    adapters = [
        BundledAdapter(name=name, digest="", foundation=FOUNDATION, rank=8, modules=2) for name in ADAPTERS[layout]
    ]
    manifest = Manifest(
        backend="xnnpack",
        base=ModelSummary(name="tiny", family="module", layers=(), module_names=(), vocab_size=256),
        policy={},
        foundation=FOUNDATION,
        plans=(),
        options={},
        versions={},
        artifacts=tuple(artifacts),
        adapters=tuple(adapters),
        methods=tuple(methods),
    )
    return Bundle(path=programs, manifest=manifest)


def artifact(programs: Path, path: str, role: str, adapter: str | None = None) -> Artifact:
    return Artifact(path=path, role=role, sha256="", size=(programs / path).stat().st_size, adapter=adapter)


def answers(programs: Path, layout: str, cache: str, packed: str | None = None) -> dict[str, Any]:
    """Load everything, then compare prefill and every single step of every method with the eager model."""
    expected = np.load(programs / "expected.npz")
    tokens = [int(token) for token in expected["tokens"]]
    options = XnnpackSessionOptions(weight_cache=cache == "on", packed_cache=packed)
    with XnnpackSession(bundle(programs, layout), options) as session:
        before = measure()
        adapters = [method.adapter for method in session.bundle.manifest.methods]
        loads = [session.load(adapter) for adapter in adapters]
        mapped = mapped_memory.resident(programs / "foundation.ptd")
        errors: dict[str, float] = {}
        for adapter in adapters:
            rows = expected[adapter or "base"]
            prefill = session.step(adapter, tokens, 0)
            steps = [session.step(adapter, [token], position) for position, token in enumerate(tokens)]
            assert len(tokens) > 15, "the prompt must need more than one call"
            errors[adapter or "base"] = max(apart(prefill, rows[-1]), apart(np.stack(steps), rows))
        effect = apart(expected["loud"], expected["base"])
        return {
            "errors": errors,
            "effect": effect,
            "facts": dict(session.facts),
            "growth": [load.anonymous - last.anonymous for last, load in zip([before, *loads], loads, strict=False)],
            "packed": str(session.packed),
            "foundation_in_memory": mapped,
        }


def kv_rules(programs: Path, layout: str) -> dict[str, Any]:
    """Change adapters without starting again, and say what happened to each attempt."""
    expected = np.load(programs / "expected.npz")
    tokens = [int(token) for token in expected["tokens"]]
    with XnnpackSession(bundle(programs, layout)) as session:
        session.step(None, tokens[:4], 0)
        session.load("loud")
        refused = attempt(lambda: session.step("loud", tokens[4:5], 4))
        owner = session.step(None, tokens[4:5], 4)
        told = {
            "another adapter goes on": refused,
            "another adapter starts again": attempt(lambda: session.step("loud", tokens[:4], 0)),
            "the first one comes back": attempt(lambda: session.step(None, tokens[5:6], 5)),
            "a gap": attempt(lambda: session.step("loud", tokens[:1], 9)),
            "a step back": attempt(lambda: session.step("loud", tokens[2:4], 2)),
        }
        after = session.step("loud", tokens[4:5], 4)
        session.reset()
        told["after a reset"] = attempt(lambda: session.step("loud", tokens[5:6], 5))
        told["too long"] = attempt(lambda: session.step("loud", [5] * 65, 0))
        told["exactly full"] = attempt(lambda: session.step("loud", [5] * 64, 0))
        told["no tokens"] = attempt(lambda: session.step("loud", [], 0))
        told["unknown token"] = attempt(lambda: session.step("loud", [256], 0))
        errors = [apart(owner, expected["base"][4]), apart(after, expected["loud"][4])]
    return {"told": told, "errors": errors}


def refusals(programs: Path) -> dict[str, Any]:
    """Open bundles that are wrong in one way each."""
    whole = bundle(programs, "external")
    manifest = whole.manifest

    def load(changed: Bundle, adapter: str | None = "loud") -> str:
        return attempt(lambda: XnnpackSession(changed).load(adapter))

    def with_adapter_foundation(foundation: str) -> Bundle:
        adapters = tuple(attrs.evolve(each, foundation=foundation) for each in manifest.adapters)
        return attrs.evolve(whole, manifest=attrs.evolve(manifest, adapters=adapters))

    def with_foundation(data: bytes) -> Bundle:
        (programs / "other.ptd").write_bytes(data)
        entry = artifact(programs, "other.ptd", "foundation")
        artifacts = (entry, *(each for each in manifest.artifacts if each.role != "foundation"))
        return attrs.evolve(whole, manifest=attrs.evolve(manifest, artifacts=artifacts))

    def with_size(path: str, size: int) -> Bundle:
        artifacts = tuple(attrs.evolve(a, size=size) if a.path == path else a for a in manifest.artifacts)
        return attrs.evolve(whole, manifest=attrs.evolve(manifest, artifacts=artifacts))

    policy = attrs.evolve(whole, manifest=attrs.evolve(manifest, kv_cache="keep-forever"))
    foundation = (programs / "foundation.ptd").read_bytes()
    key = foundation.index(b"tok_embeddings")
    return {
        "whole": load(whole),
        "unknown adapter": load(whole, "lod"),
        "strength": load(whole, "loud@0.5"),
        "adapter of another foundation": load(with_adapter_foundation("e" * 64)),
        "foundation without the base's tensors": load(with_foundation((programs / "external/quiet.ptd").read_bytes())),
        "foundation with another name": load(with_foundation(foundation[:key] + b"X" + foundation[key + 1 :])),
        "file of another size": load(with_size("external/loud.ptd", 7)),
        "missing file": load(attrs.evolve(whole, path=programs / "nowhere")),
        "unknown policy": load(policy),
    }


def attempt(action: Callable[[], object]) -> str:
    """Return `ok`, or the error that lora-core raised."""
    try:
        action()
    except LoraCoreError as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def options(programs: Path) -> dict[str, Any]:
    """Read options that exist and one that does not, and lose the interface altogether."""
    load_runtime()
    runtime = BackendOptions(runtime_library())
    told: dict[str, Any] = {"before": runtime.flag(weight_cache.WEIGHT_CACHE)}
    for wanted in (True, False, True):
        told[f"switched {wanted}"] = [
            str(weight_cache.switch_weight_cache(wanted)),
            runtime.flag("weight_cache_enabled"),
        ]
    for name, read in (("flag", runtime.flag), ("number", runtime.number)):
        try:
            told[f"unknown {name}"] = read("weight_cash_enabled")
        except OptionError as error:
            told[f"unknown {name}"] = str(error)
    told["workspace"] = weight_cache.workspace_sharing()

    weight_cache.runtime_library = lambda: Path("libc.so.6")  # a library without the options interface
    session = XnnpackSession(bundle(programs, "embedded"))
    session.load(None)
    told["without the interface"] = [session.weight_cache.state, session.weight_cache.reason, str(session.facts)]
    return told


def packed_states(programs: Path, directory: str) -> dict[str, Any]:
    """Use one packed file in the ways that it must not be used."""
    whole = bundle(programs, "embedded")
    told = {}
    asked = XnnpackSessionOptions(packed_cache=directory)
    with XnnpackSession(whole, asked), XnnpackSession(whole, asked) as second:  # the first maps nothing yet
        second.load(None)
        told["while it is made"] = str(second.packed)
    with XnnpackSession(whole, XnnpackSessionOptions(packed_cache=directory, weight_cache=False)) as uncached:
        uncached.load(None)
        told["without the weight cache"] = str(uncached.packed)
    open_program.runtime_library = lambda: Path("libc.so.6")  # a library without the options interface
    with XnnpackSession(whole, XnnpackSessionOptions(packed_cache=directory)) as blind:
        blind.load(None)
        told["without the interface"] = str(blind.packed)
    return told


def automatic(programs: Path, directory: str) -> dict[str, Any]:
    """Open sessions that are told nothing of packed weights: of a small base, and of one that counts as large."""
    os.environ["XDG_CACHE_HOME"] = directory
    expected = np.load(programs / "expected.npz")
    tokens = [int(token) for token in expected["tokens"]]
    whole = bundle(programs, "embedded")
    with XnnpackSession(whole) as small:
        told: dict[str, Any] = {"small": small.facts["packed_cache"]}
    packed_cache._SMALL = 1
    with XnnpackSession(whole) as first:
        first.load(None)
        grown = measure().anonymous
        with XnnpackSession(whole) as second:
            second.load(None)
            told["growth"] = measure().anonymous - grown
            told["errors"] = [apart(each.step(None, tokens[:4], 0), expected["base"][3]) for each in (first, second)]
            told["while one makes it"] = [each.packed.state for each in (first, second) if each.packed]
    with XnnpackSession(whole) as third:
        third.step(None, tokens[:4], 0)
        third.load("loud")  # into the memory that the base's cache is in
        told["afterwards"] = third.packed.state if third.packed else ""
        told["errors"].append(apart(third.step(None, tokens[4:5], 4), expected["base"][4]))
        told["errors"].append(apart(third.step("loud", tokens[:4], 0), expected["loud"][3]))
    return told


def arenas(programs: Path, directory: str) -> dict[str, Any]:
    """Let one method read the KV cache that another wrote, with packed weights in memory and in a file.

    A session never does that; here it shows whether there is one cache or two.
    """
    tokens = [int(token) for token in np.load(programs / "expected.npz")["tokens"]]
    files = (load_runtime(), programs / "multimethod/model.pte", programs / "foundation.ptd")
    weight_cache.switch_weight_cache(True)

    def last_logits(program: open_program.OpenProgram) -> Any:
        base, loud = program.load("forward"), program.load("loud")
        base(tokens[:4], 0)
        return loud(tokens[4:5], 4)

    in_memory = open_program.ArenaProgram(*files)
    in_file = open_program.PackedProgram(*files, Path(directory) / "some.packed", None, share=True)
    alone = open_program.ArenaProgram(*files).load("loud")
    expected = last_logits(in_memory)
    return {
        "told": in_file.shares_arena,
        "difference": apart(last_logits(in_file), expected),
        "without the cache": apart(alone(tokens[4:5], 4), expected),
    }


def unloading(programs: Path, layout: str) -> dict[str, Any]:
    """Let an adapter go and load it again, between steps of the base."""
    expected = np.load(programs / "expected.npz")
    tokens = [int(token) for token in expected["tokens"]]
    with XnnpackSession(bundle(programs, layout)) as session:
        session.step(None, tokens[:4], 0)
        loaded = session.load("loud").anonymous
        session.unload("loud")
        gc.collect()
        left = measure().anonymous
        errors = [apart(session.step(None, tokens[4:5], 4), expected["base"][4])]
        session.step("loud", tokens[:4], 0)
        session.unload("loud")
        session.unload("loud")  # which is loaded no more
        told = attempt(lambda: session.step("loud", tokens[4:5], 4))
        errors.append(apart(session.step("loud", tokens[:4], 0), expected["loud"][3]))
        return {"returned": loaded - left, "errors": errors, "told": told}


def touching(programs: Path, layout: str) -> dict[str, Any]:
    """Load an adapter beside the base, with the foundation's pages left as the load leaves them."""
    foundation = programs / "foundation.ptd"
    with XnnpackSession(bundle(programs, layout)) as session:
        session.load(None)
        shelf.drop_pages = lambda _file: 0
        session.load("loud")
        return mapped_memory.resident(foundation)


def threads(programs: Path, given: str) -> dict[str, Any]:
    """Open a session where the environment says nothing of OpenMP, or `given`."""
    os.environ.pop("OMP_NUM_THREADS", None)
    if given:
        os.environ["OMP_NUM_THREADS"] = given
    with XnnpackSession(bundle(programs, "embedded"), XnnpackSessionOptions(threads=2)) as session:
        return {"facts": dict(session.facts), "environment": os.environ.get("OMP_NUM_THREADS", "")}


def killed_while_packing(programs: Path, directory: str) -> None:
    """Leave without closing, as a killed process does."""
    XnnpackSession(bundle(programs, "embedded"), XnnpackSessionOptions(packed_cache=directory)).load(None)
    os._exit(0)


def act(out: IO[str], programs: str, scenario: str, *arguments: str) -> None:
    """Write what a scenario tells to `out`."""
    found: Callable[..., dict[str, Any] | None] = globals()[scenario]
    print(json.dumps(found(Path(programs), *arguments)), file=out, flush=True)


def serve() -> None:
    """Run each command in a process that has the runtime loaded, and no program, and write its exit status.

    The first two words of a command are the files for what the scenario tells and for what is printed besides.
    """
    load_runtime()
    for line in sys.stdin:
        told, said, *words = json.loads(line)
        process = os.fork()
        if process == 0:
            with Path(told).open("w") as out, Path(said).open("w") as errors:
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(errors.fileno(), stream.fileno())
                act(out, *words)
            sys.stdout.flush()
            os._exit(0)  # taking the interpreter apart would copy all of torch
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        act(sys.stdout, *sys.argv[1:])
    else:
        serve()
