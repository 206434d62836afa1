"""A base with adapters beside llama.cpp: prompts, steps, loads, memory, and how far logits are from full precision.

    python benchmarks/llama_cpp.py build/models/SmolLM2-135M-Instruct --peer VENV/bin/python --work DIR
        [--pair fp32 8da4w] [--lora inputs] [--part loads] [--threads 1 2] [--rounds 6] [--short]

VENV has `xllamacpp` (prebuilt llama.cpp) and numpy from PyPI, and is used by this benchmark alone. DIR keeps what is
made once: a bundle of each policy with the adapters (context 512, split layout, or as inputs), and for llama.cpp the
same as GGUF (`gguf_files.py`): fp32 stands beside F32, 8da4w beside Q4_0. Packed weights are kept in DIR too.

Each side is a process; in every round both read the same prompts and take the same number of steps, in turn, so that a
busy machine is as busy for one as for the other. Times are CPU milliseconds of the whole process, so that threads that
wait by spinning count, and wall time beside them; medians of all rounds but the first. A step is what 16 more of them
add to a prompt. Loads begin when libraries have been imported, each in a process of its own, when one before has run:
`open` and base here, `Server` there. llama.cpp loads adapters with its base: of one adapter it is a share of what 8
copies of it add. Memory is what the process has gained since its libraries were imported. A change of adapter is what
reading one token costs more after another adapter than after the same. Divergence is that of TEXT (`four_bits.py`) from
our base in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PROMPTS, STEPS, CONTEXT, COPIES = (128, 400), 16, 512, 8
PAIRS = {"fp32": "f32", "8da4w": "q4_0"}
ADAPTERS = ("pirate", "json")
EXAMPLES = Path(__file__).parents[1] / "examples" / "adapters"


class Side(ABC):
    """One runtime with a model and its adapters."""

    def __init__(self, model: str, threads: int) -> None:
        self.model, self.threads = model, threads

    @abstractmethod
    def start(self) -> None:
        """Import the libraries."""

    @abstractmethod
    def load(self, adapters: Sequence[str]) -> None:
        """Load the base, and with it adapters, where they cannot come later."""

    @abstractmethod
    def load_adapter(self, adapter: str) -> None:
        """Load an adapter beside the base."""

    @abstractmethod
    def run(self, tokens: Sequence[int], steps: int, adapter: int | None) -> None:
        """Read a prompt with an adapter and take steps of one token after it, keeping nothing that was read before."""

    @abstractmethod
    def log_probabilities(self, tokens: Sequence[int]) -> Any:
        """Return the natural logarithms of what the base makes of every next token, (tokens, vocabulary)."""


class Ours(Side):
    """A bundle on its session."""

    def start(self) -> None:
        from lora_core_xnnpack.runtime.library import load_runtime

        load_runtime()
        self._adapters: list[str] = []

    def load(self, adapters: Sequence[str]) -> None:
        import lora_core

        packed = str(Path(self.model).parent / "packed")
        self._session = lora_core.open(self.model, options={"threads": self.threads, "packed_cache": packed})
        self._session.load(None)
        for adapter in adapters:
            self.load_adapter(adapter)

    def load_adapter(self, adapter: str) -> None:
        self._session.load(adapter)
        self._adapters.append(adapter)

    def run(self, tokens: Sequence[int], steps: int, adapter: int | None) -> None:
        name = None if adapter is None else self._adapters[adapter]
        logits = self._session.step(name, tokens, 0)
        for step in range(steps):
            logits = self._session.step(name, (int(logits.argmax()),), len(tokens) + step)

    def log_probabilities(self, tokens: Sequence[int]) -> Any:
        logits = np.stack([self._session.step(None, (token,), place) for place, token in enumerate(tokens)])
        logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def close(self) -> None:
        self._session.close()


class Theirs(Side):
    """A GGUF file on llama.cpp."""

    def start(self) -> None:
        import xllamacpp

        self._library = xllamacpp

    def load(self, adapters: Sequence[str]) -> None:
        params = self._library.CommonParams()
        params.model.path = self.model
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_parallel, params.warmup, params.verbosity = 1, False, -1
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        if adapters:
            params.lora_adapters = [self._library.CommonAdapterLoraInfo(each, 1.0) for each in adapters]
        self._count = len(adapters)
        self._server = self._library.Server(params)

    def load_adapter(self, adapter: str) -> None:
        raise NotImplementedError("llama.cpp's server loads adapters with its base")

    def run(self, tokens: Sequence[int], steps: int, adapter: int | None) -> None:
        self._complete(tokens, steps + 1, adapter, cache_prompt=False)

    def log_probabilities(self, tokens: Sequence[int]) -> Any:
        rows = []
        for end in range(1, len(tokens) + 1):
            told = self._complete(tokens[:end], 1, None, cache_prompt=True, n_probs=1 << 20)
            likely = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            row = np.full(len(likely), -np.inf)
            row[[each["id"] for each in likely]] = [each["logprob"] for each in likely]
            rows.append(row)
        return np.stack(rows)

    def _complete(self, tokens: Sequence[int], count: int, adapter: int | None, **more: object) -> Any:
        strengths = [{"id": each, "scale": float(each == adapter)} for each in range(self._count)]
        asked = {"prompt": list(tokens), "n_predict": count, "temperature": 0.0, "ignore_eos": True, "lora": strengths}
        answer = self._server.handle_completions(asked | more)
        return json.loads(answer) if isinstance(answer, str) else answer


def timed(action: Callable[[], object]) -> list[float]:
    """Return the CPU and wall milliseconds of an action."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return [1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)]


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
    side.start()
    known: dict[str, Callable[..., object]] = {
        "memory": memory,
        "load": lambda adapters: timed(lambda: side.load(adapters)),
        "load_adapter": lambda adapter: timed(lambda: side.load_adapter(adapter)),
        "run": lambda tokens, steps, adapter: timed(lambda: side.run(tokens, steps, adapter)),
        "log_probabilities": lambda tokens, path: np.save(path, side.log_probabilities(tokens)),
    }
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(known[name](**arguments)), file=answers, flush=True)
    if isinstance(side, Ours):
        side.close()


class Worker:
    """A side in a process of its own."""

    def __init__(self, side: str, given: argparse.Namespace, model: Path, threads: int) -> None:
        python = sys.executable if side == "ours" else given.peer
        command = [python, __file__, str(model), "--worker", side, "--threads", str(threads)]
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - libraries log at length, until the process ends
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise, text=True
        )

    def ask(self, name: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([name, arguments]), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self.close()
            raise SystemExit(f"The worker ended: {self._said()}") from error

    def close(self) -> None:
        try:
            self._process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _said(self) -> str:
        self._noise.seek(0)
        return self._noise.read().decode("utf-8", "replace")[-3000:]


class Materials:
    """The files of both sides in a directory, each made when it is first asked for."""

    def __init__(self, model: Path, work: Path, lora: str) -> None:
        self._model, self._work, self._lora = model, work, lora

    def bundle(self, policy: str) -> Path:
        from measured import run_lora_core

        path = self._work / (policy if self._lora == "constants" else f"{policy}-{self._lora}")
        if not path.exists():
            print(f"exporting {policy}", file=sys.stderr, flush=True)
            command = ["export", "--backend", "xnnpack", "--policy", policy, "--model", self._model, "-o", path]
            for adapter in ADAPTERS:
                command += ["--adapter", f"{adapter}={EXAMPLES / adapter}"]
            command += ["--max-context-len", CONTEXT, "--max-seq-len", CONTEXT, "--cache", self._work / "cache"]
            command += ["--lora", self._lora]
            run_lora_core(*map(str, command))
        return path

    def gguf(self, kind: str) -> Path:
        from gguf_files import write_model

        path = self._work / f"{kind}.gguf"
        if not path.exists():
            write_model(self._model, kind, path)
        return path

    def adapters(self, side: str) -> list[str]:
        """Return how a side calls its adapters."""
        from gguf_files import write_adapter

        if side == "ours":
            return list(ADAPTERS)
        paths = [self._work / f"{adapter}.gguf" for adapter in ADAPTERS]
        for adapter, path in zip(ADAPTERS, paths, strict=True):
            if not path.exists():
                write_adapter(self._model, EXAMPLES / adapter, path)
        return list(map(str, paths))

    def copies(self) -> list[str]:
        """Return copies of the first adapter for llama.cpp."""
        first = self.adapters("theirs")[0]
        return [str(shutil.copyfile(first, self._work / f"{ADAPTERS[0]}.{each}.gguf")) for each in range(COPIES)]


def load_alone(given: argparse.Namespace, model: Path, threads: int, adapters: list[str]) -> list[float]:
    """Return what llama.cpp takes to load its base with adapters, in a process of its own."""
    worker = Worker("theirs", given, model, threads)
    took: list[float] = worker.ask("load", adapters=adapters)
    worker.ask("run", tokens=[1], steps=0, adapter=None)  # a server that has done nothing does not end
    worker.close()
    return took


def loads(given: argparse.Namespace, materials: Materials, models: Mapping[str, Path], threads: int) -> dict[str, Any]:
    """Return what loading the base and an adapter costs each side, in processes of their own, in turn."""
    found: dict[str, dict[str, list[list[float]]]] = {side: defaultdict(list) for side in models}
    memories: dict[str, dict[str, float]] = {}
    for number in range(given.first, given.loads + 1):
        for side, model in models.items():
            names = materials.adapters(side)
            worker = Worker(side, given, model, threads)
            before = worker.ask("memory")
            base = worker.ask("load", adapters=[] if side == "ours" else names)
            after = worker.ask("memory")
            if side == "ours":
                adapter = worker.ask("load_adapter", adapter=names[0])
                another = worker.ask("load_adapter", adapter=names[1])
            for place in (None, 0, 1):
                worker.ask("run", tokens=[1, 2, 3], steps=1, adapter=place)
            ran = worker.ask("memory")
            worker.close()
            if side == "theirs":
                base, several = (load_alone(given, model, threads, each) for each in ([], materials.copies()))
                adapter = another = [(many - one) / COPIES for many, one in zip(several, base, strict=True)]
            print(f"loaded {model.name}", file=sys.stderr, flush=True)
            if number:
                found[side]["load base"].append(base)
                found[side]["load adapter"].append(adapter)
                found[side]["load another adapter"].append(another)
                memories[side] = {f"{kind}, base and two adapters": (ran[kind] - before[kind]) / 1e6 for kind in ran}
                memories[side]["anonymous, loaded"] = (after["anonymous"] - before["anonymous"]) / 1e6
    return {side: {"ms": medians(found[side]), "MB": memories[side]} for side in models}


def compare(given: argparse.Namespace, workers: Mapping[str, Worker], tokens: list[int]) -> dict[str, Any]:
    """Return the medians of prompts, steps and changes of adapter by side."""
    found: dict[str, dict[str, list[list[float]]]] = {side: defaultdict(list) for side in workers}

    def runs(worker: Worker, length: int, steps: Sequence[int], adapter: int | None) -> list[list[float]]:
        return [worker.ask("run", tokens=tokens[:length], steps=each, adapter=adapter) for each in steps]

    for number in range(given.first, given.rounds + 1):
        print(f"round {number}", file=sys.stderr, flush=True)
        for adapter, suffix in ((None, ""), (0, f", {ADAPTERS[0]}"), (1, f", {ADAPTERS[1]}")):
            for length in given.prompts:
                for side, worker in workers.items():
                    prompt, more = runs(worker, length, (0, STEPS), adapter)
                    if number:
                        step = [(long - short) / STEPS for short, long in zip(prompt, more, strict=True)]
                        found[side][f"prompt of {length}{suffix}"].append(prompt)
                        found[side][f"step after {length}{suffix}"].append(step)
        for side, worker in workers.items():
            (changed,), (same,) = runs(worker, 1, (0,), number % 2), runs(worker, 1, (0,), number % 2)
            if number:
                more = [one - other for one, other in zip(changed, same, strict=True)]
                found[side]["change of adapter"].append(more)
    return {side: medians(measures) for side, measures in found.items()}


def medians(measures: Mapping[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {"cpu": median(each[0] for each in values), "wall": median(each[1] for each in values)}
        for name, values in measures.items()
    }


def divergence(exact: Any, own: Any) -> dict[str, float]:
    """Return how far log probabilities are from exact ones: mean and median KL divergence, and top-1 agreement."""
    divergences = (np.exp(exact) * (exact - own)).sum(axis=1)
    return {
        "KL": float(divergences.mean()),
        "KL, median": float(np.median(divergences)),
        "top-1": float((exact.argmax(axis=1) == own.argmax(axis=1)).mean()),
    }


def texts(model: Path, *, short: bool) -> list[list[int]]:
    """Return the texts that logits are compared on."""
    from four_bits import TEXT
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens = [list(tokenizer.encode(text).ids) for text in TEXT]
    return [each[:12] for each in tokens] if short else tokens


def divergences(given: argparse.Namespace, materials: Materials) -> dict[str, Any]:
    """Return the divergence of every policy and type from our base in fp32."""
    known = texts(Path(given.model), short=given.short)
    models = {("ours", policy): materials.bundle(policy) for policy in ("fp32", *given.pair)}
    models |= {("theirs", PAIRS[policy]): materials.gguf(PAIRS[policy]) for policy in given.pair}
    exact, found = None, {}
    for (side, kind), model in models.items():
        worker = Worker(side, given, model, max(given.threads))
        worker.ask("load", adapters=[])
        rows = []
        for tokens in known:
            path = Path(given.work, "logits.npy")
            worker.ask("log_probabilities", tokens=tokens, path=str(path))
            rows.append(np.load(path))
            path.unlink()
        worker.close()
        own = np.concatenate(rows)
        exact = own if exact is None else exact
        size = _bytes(model) / 1e6
        found[kind] = divergence(exact, own) | {"MB": size}
        print(f"{kind}: {found[kind]}", file=sys.stderr, flush=True)
    return found


def _bytes(model: Path) -> int:
    if model.is_file():
        return model.stat().st_size
    from lora_core.bundle.store import open_bundle

    # llama.cpp's file holds the tokenizer too, so ours counts with the base's program and tokenizer.
    return sum(artifact.size for artifact in open_bundle(model).manifest.base_artifacts)


def table(found: Mapping[str, Any]) -> str:
    """Return the measures of every pair and number of threads as a table: both sides, and their ratio."""
    lines = ["| | ours | llama.cpp | ratio |", "|---|---|---|---|"]
    for name, sides in found.items():
        ours, theirs = sides["ours"], sides["theirs"]
        lines.append(f"| **{name}** | | | |")
        for kind in ("ms", "MB"):
            for measure, own in ours[kind].items():
                other = theirs[kind][measure]
                for unit, a, b in (
                    [(f"{kind} CPU", own["cpu"], other["cpu"]), (f"{kind}", own["wall"], other["wall"])]
                    if kind == "ms"
                    else [(kind, own, other)]
                ):
                    ratio = f"{a / b:.2f}" if b > 0 and a > 0 else ""
                    lines.append(f"| {measure}, {unit} | {a:.1f} | {b:.1f} | {ratio} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer", help="a Python with xllamacpp and numpy")
    parser.add_argument("--work", type=Path, help="where bundles and GGUF files are kept")
    parser.add_argument("--pair", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--part", nargs="+", choices=("times", "loads", "quality"), default=["times", "quality"])
    parser.add_argument("--lora", choices=("constants", "inputs"), default="constants")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one round, one load, few tokens: does it all work?")
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.worker:
        work((Ours if given.worker == "ours" else Theirs)(given.model, given.threads[0]))
        return
    given.first, given.prompts = 0, PROMPTS  # the first round does not count
    if given.short:
        given.first = given.rounds = given.loads = 1
        given.prompts = (16,)
    given.work.mkdir(parents=True, exist_ok=True)
    materials, result = Materials(Path(given.model), given.work, given.lora), {}
    tokens = np.random.default_rng(0).integers(20, 40_000, max(PROMPTS)).tolist()
    for policy in given.pair if {"times", "loads"} & {*given.part} else ():
        models = {"ours": materials.bundle(policy), "theirs": materials.gguf(PAIRS[policy])}
        for threads in given.threads:
            name = f"{policy} beside {PAIRS[policy]}, {threads} thread{'s' if threads > 1 else ''}"
            result[name] = found = loads(given, materials, models, threads)
            if "times" not in given.part:
                continue
            workers = {side: Worker(side, given, model, threads) for side, model in models.items()}
            for side, worker in workers.items():
                worker.ask("load", adapters=materials.adapters(side))
            for side, measures in compare(given, workers, tokens).items():
                found[side]["ms"] |= measures
            for worker in workers.values():
                worker.close()
            print(f"measured {name}", file=sys.stderr, flush=True)
    if result:
        print(table(result))
    if "quality" in given.part:
        result["divergence"] = qualities = divergences(given, materials)
        print("\n| | KL | top-1 | MB |\n|---|---|---|---|")
        for kind, each in qualities.items():
            print(f"| {kind} | {each['KL']:.3f} ({each['KL, median']:.3f}) | {each['top-1']:.1%} | {each['MB']:.1f} |")
    (given.work / "result.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
