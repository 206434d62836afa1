"""A bundle beside llama.cpp: prompts, steps, loads, memory, and how far logits are from full precision.

    python benchmarks/llama_cpp.py BUNDLE --gguf MODEL.gguf --peer VENV/bin/python
        [--adapter NAME --lora ADAPTER.gguf] [--reference FP32_BUNDLE --text FILE] [--threads 1] [--rounds 6]

`--peer` is a Python with `xllamacpp` from PyPI (prebuilt; a benchmark's dependency only, in an environment of its own).
Each side is a process; in every round both read the same prompts and take the same number of steps, in turn, so that a
busy machine is as busy for one as for the other. Times are of the whole process, in CPU seconds, so that threads that
wait by spinning count; medians of all rounds but the first. A step is what 16 more of them add to a prompt. llama.cpp
loads adapters with its base: what one adds to that is its load. Memory is what the process has gained since before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PROMPTS, STEPS, CONTEXT = (128, 400), 16, 512


class Side(ABC):
    """One runtime with a model."""

    @abstractmethod
    def load(self, adapter: str) -> None:
        """Load the base, and an adapter unless it is empty."""

    @abstractmethod
    def run(self, tokens: Sequence[int], steps: int, *, with_adapter: bool) -> None:
        """Read a prompt and take steps of one token after it, with nothing kept of what was read before."""

    @abstractmethod
    def log_probabilities(self, tokens: Sequence[int]) -> Any:
        """Return the natural logarithms of what the base makes of every next token, (tokens, vocabulary)."""


class Ours(Side):
    """A bundle on its session."""

    def __init__(self, model: str, threads: int) -> None:
        self._model, self._threads = model, threads

    def load(self, adapter: str) -> None:
        import lora_core

        self._session = lora_core.open(self._model, options={"threads": self._threads})
        self._session.load(None)
        self._adapter = adapter
        if adapter:
            self._session.load(adapter)

    def run(self, tokens: Sequence[int], steps: int, *, with_adapter: bool) -> None:
        adapter = self._adapter if with_adapter else None
        logits = self._session.step(adapter, tokens, 0)
        for step in range(steps):
            logits = self._session.step(adapter, (int(logits.argmax()),), len(tokens) + step)

    def log_probabilities(self, tokens: Sequence[int]) -> Any:
        logits = np.stack([self._session.step(None, (token,), place) for place, token in enumerate(tokens)])
        logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Theirs(Side):
    """A GGUF file on llama.cpp."""

    def __init__(self, model: str, threads: int) -> None:
        self._model, self._threads = model, threads

    def load(self, adapter: str) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = self._model
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_parallel, params.warmup = 1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        if adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
        self._has_adapter = bool(adapter)
        self._server = xllamacpp.Server(params)

    def run(self, tokens: Sequence[int], steps: int, *, with_adapter: bool) -> None:
        self._complete(tokens, steps + 1, with_adapter=with_adapter, cache_prompt=False)

    def log_probabilities(self, tokens: Sequence[int]) -> Any:
        rows = []
        for end in range(1, len(tokens) + 1):
            told = self._complete(tokens[:end], 1, with_adapter=False, cache_prompt=True, n_probs=1 << 20)
            row = np.full(len(told["completion_probabilities"][0]["top_logprobs"]), -np.inf)
            for each in told["completion_probabilities"][0]["top_logprobs"]:
                row[each["id"]] = each["logprob"]
            rows.append(row)
        return np.stack(rows)

    def _complete(self, tokens: Sequence[int], count: int, *, with_adapter: bool, **more: object) -> Any:
        strengths = [{"id": 0, "scale": float(with_adapter)}] if self._has_adapter else []
        asked = {"prompt": list(tokens), "n_predict": count, "temperature": 0.0, "ignore_eos": True, "lora": strengths}
        return self._server.handle_completions(asked | more)


def timed(action: Callable[[], object]) -> list[float]:
    """Return the CPU and wall seconds of an action."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return [time.process_time() - cpu, time.perf_counter() - wall]


def memory() -> dict[str, int]:
    """Return resident and anonymous bytes of this process (Linux)."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        found[name.rstrip(":")] = int(value) * 1024
    return {"resident": found["Rss"], "anonymous": found["Anonymous"]}


def work(side: Side) -> None:
    """Do what each line of stdin asks, and answer with a line of JSON on stdout as it was at the start."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    known: dict[str, Callable[..., object]] = {
        "memory": memory,
        "load": lambda adapter: timed(lambda: side.load(adapter)),
        "run": lambda tokens, steps, with_adapter: timed(lambda: side.run(tokens, steps, with_adapter=with_adapter)),
        "log_probabilities": lambda tokens, path: np.save(path, side.log_probabilities(tokens)),
    }
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(known[name](**arguments)), file=answers, flush=True)


class Worker:
    """A side in a process of its own."""

    def __init__(self, python: str, kind: str, model: str, threads: int) -> None:
        command = [python, __file__, model, "--worker", kind, "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, arguments]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def compare(workers: dict[str, Worker], tokens: list[int], rounds: int, *, adapter: bool) -> dict[str, Any]:
    """Return the median of every measure by side, CPU and wall milliseconds."""
    found: dict[str, dict[str, list[list[float]]]] = {side: defaultdict(list) for side in workers}
    for number in range(rounds + 1):
        for with_adapter in (False, True) if adapter else (False,):
            suffix = ", adapter" if with_adapter else ""
            for length in PROMPTS:
                for side, worker in workers.items():
                    asked = {"tokens": tokens[:length], "with_adapter": with_adapter}
                    prompt, more = (worker.ask("run", steps=steps, **asked) for steps in (0, STEPS))
                    if number:
                        step = [(long - short) / STEPS for short, long in zip(prompt, more, strict=True)]
                        found[side][f"prompt of {length}{suffix}"].append(prompt)
                        found[side][f"step after {length}{suffix}"].append(step)
    return {
        side: {
            name: {"cpu_ms": 1e3 * median(cpu), "wall_ms": 1e3 * median(wall)}
            for name, values in measures.items()
            for cpu, wall in [zip(*values, strict=True)]
        }
        for side, measures in found.items()
    }


def divergence(exact: Any, own: Any) -> dict[str, float]:
    """Return how far log probabilities are from exact ones: mean and median KL divergence, and top-1 agreement."""
    divergences = (np.exp(exact) * (exact - own)).sum(axis=1)
    return {
        "kl": float(divergences.mean()),
        "kl_median": float(np.median(divergences)),
        "top1": float((exact.argmax(axis=1) == own.argmax(axis=1)).mean()),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="BUNDLE")
    parser.add_argument("--gguf")
    parser.add_argument("--peer", help="a Python with xllamacpp")
    parser.add_argument("--adapter", default="", help="an adapter of the bundle")
    parser.add_argument("--lora", default="", help="the same adapter as GGUF")
    parser.add_argument("--reference", help="a bundle of the same base in fp32")
    parser.add_argument("--text", type=Path, help="what logits are compared on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.worker:
        work((Ours if given.worker == "ours" else Theirs)(given.model, given.threads))
        return
    from lora_core.bundle.store import open_bundle

    bundle = open_bundle(Path(given.model))
    workers, result = {}, {}
    for side, python, model, adapter in (
        ("ours", sys.executable, given.model, given.adapter),
        ("theirs", given.peer, given.gguf, given.lora),
    ):
        workers[side] = worker = Worker(python, side, model, given.threads)
        before, took, after = worker.ask("memory"), worker.ask("load", adapter=adapter), worker.ask("memory")
        result[side] = {"load": took, "memory": {kind: after[kind] - before[kind] for kind in after}}
    tokens = np.random.default_rng(0).integers(10, bundle.manifest.base.vocab_size, max(PROMPTS)).tolist()
    adapter = bool(given.adapter and given.lora)
    for side, measures in compare(workers, tokens, given.rounds, adapter=adapter).items():
        result[side] |= measures
    foundation = sum(each.size for each in bundle.manifest.artifacts if each.role == "foundation")
    result["bytes"] = {"ours": foundation, "theirs": Path(given.gguf).stat().st_size}
    if given.reference and given.text:
        result["divergence"] = divergences(workers, bundle, given)
    for worker in workers.values():
        worker.close()
    print(json.dumps(result, indent=2))


def divergences(workers: dict[str, Worker], bundle: Any, given: argparse.Namespace) -> dict[str, Any]:
    from lora_core.runtime.tokenizer import TextTokenizer

    reference = Worker(sys.executable, "ours", given.reference, given.threads)
    reference.ask("load", adapter="")
    tokens = TextTokenizer.of_bundle(bundle).encode(given.text.read_text("utf-8"))[: CONTEXT - 1]
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for side, worker in {"exact": reference, **workers}.items():
            worker.ask("log_probabilities", tokens=tokens, path=str(Path(directory, f"{side}.npy")))
            found[side] = np.load(Path(directory, f"{side}.npy"))
    reference.close()
    return {side: divergence(found["exact"], found[side]) for side in workers}


if __name__ == "__main__":
    main()
