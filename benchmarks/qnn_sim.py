"""Figures of the QNN-style simulator: quality per mode, section overhead, switch cost, order rules, full runs.

    python benchmarks/qnn_sim.py MODEL_DIR [--layers N] [--part quality|policies|switch|rules] [--work DIR]

MODEL_DIR is SmolLM2-135M-Instruct in Hugging Face layout; adapters are those of examples/adapters. `quality` exports
every mode and compares it, teacher-forced on answers that the float32 model with the same adapter gives, with that
model (float32 weights, no rounding anywhere): SQNR of logits, top-1 agreement over all positions and over the answers
only, and how far greedy decoding from the prompt agrees. The system prompt that the questions share counts once.
`rules` runs the state machine for 10,000 steps.

--work DIR keeps answers, foundations and results, so that a run goes on where it was stopped; --table prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from lora_core_qnn_sim import exporting
from lora_core_qnn_sim.artifacts import FOUNDATION
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.quantizing import base_spec
from lora_core_qnn_sim.runtime.context import SimulatedContext

import lora_core

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = {name: ROOT / "examples" / "adapters" / name for name in ("json", "pirate", "shout")}
QUESTIONS = (
    "What is the tallest mountain in the world?",
    "How does a bicycle stay upright?",
    "Who wrote Hamlet?",
    "Explain what a prime number is.",
)
ANSWER = 24
GREEDY = 2
MODES: dict[str, dict[str, Any]] = {
    "none": {"quant_updatable": "none"},
    "adapter_only": {"quant_updatable": "adapter_only"},
    "all": {"quant_updatable": "all"},
    "grouped {pirate,shout}": {"group": ("voice=pirate,shout",)},
    "grouped auto": {"group": ("auto",), "max_sqnr_drop": 1.0},
    "hot switch": {"hot_switch": True},
}
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "w4a16 adapter_only": ("w4a16", {}),
    "w8a8 adapter_only": ("w8a8", {}),
    "w8a16 not split": ("w8a16", {"split_outliers": False}),
    "w8a16 neither rotated nor split": ("w8a16", {"rotate": False, "split_outliers": False}),
    "w8a16 int8 LoRA": ("w8a16", {"lora_bits": 8}),
}


@attrs.define(kw_only=True)
class Reference:
    """The float32 model: answers and logits per adapter; the first `shared` tokens of all prompts are the same."""

    prompts: list[np.ndarray[Any, Any]]
    shared: int
    sequences: dict[str, list[np.ndarray[Any, Any]]] = attrs.field(factory=dict)
    logits: dict[str, list[np.ndarray[Any, Any]]] = attrs.field(factory=dict)


def cut(model: Path, layers: int, out: Path) -> Path:
    """Write the first `layers` layers of a checkpoint as one of its own."""
    from safetensors.numpy import load_file, save_file

    out.mkdir()
    tensors = load_file(model / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.startswith("model.layers.") or int(n.split(".")[2]) < layers}
    save_file(kept, out / "model.safetensors")
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": layers}
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (model / name).is_file():
            (out / name).write_bytes((model / name).read_bytes())
    return out


def cut_adapter(source: Path, layers: int, out: Path) -> Path:
    """Write the part of an adapter that concerns the first `layers` layers."""
    from safetensors.numpy import load_file, save_file

    out.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    kept = {n: t for n, t in tensors.items() if int(n.split(".layers.")[1].split(".")[0]) < layers}
    save_file(kept, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    return out


def reference(model_dir: Path, adapters: dict[str, Path]) -> Reference:
    """Answer the questions with transformers and peft in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompts = [
        np.array(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            )
        )
        for question in QUESTIONS
    ]
    shared = next(i for i, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
    found = Reference(prompts=prompts, shared=shared)
    for name in ("", *adapters):
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        if name:
            model = PeftModel.from_pretrained(model, adapters[name])
        model.eval()
        found.sequences[name], found.logits[name] = [], []
        for prompt in prompts:
            ids = torch.from_numpy(prompt)[None]
            with torch.no_grad():
                whole = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=ANSWER,
                    min_new_tokens=ANSWER,
                    pad_token_id=0,
                )
                found.logits[name].append(model(input_ids=whole).logits[0].numpy())
            found.sequences[name].append(whole[0].numpy())
    return found


def all_logits(context: SimulatedContext, tokens: np.ndarray[Any, Any], alphas: Any) -> np.ndarray[Any, Any]:
    io, cache, length = context.read_io_encodings(), context.new_cache(), context.binary.spec.input_len
    rows = []
    for begin in range(0, len(tokens), length):
        chunk = tokens[begin : begin + length]
        padded = np.pad(chunk, (0, length - len(chunk)))
        rows.append(
            context.execute(
                "prefill", padded, valid=len(chunk), position=begin, cache=cache, io=io, alphas=alphas, all_logits=True
            )
        )
    return (np.concatenate(rows).astype(np.float64) + io.logits.offset) * io.logits.scale


def greedy(session: Any, adapter: str | None, prompt: np.ndarray[Any, Any]) -> list[int]:
    tokens: list[int] = []
    logits = session.step(adapter, prompt.tolist(), 0)
    for position in range(len(prompt), len(prompt) + ANSWER):
        tokens.append(int(logits.argmax()))
        logits = session.step(adapter, [tokens[-1]], position)
    return tokens


def quality(bundle: Any, found: Reference, questions: int) -> dict[str, Any]:
    """Compare a bundle with the reference, per adapter; decode greedily for the first `questions`."""
    rows = {}
    with lora_core.open(bundle) as session:
        for name in found.logits:
            session.load(name or None)
            ours = [all_logits(session.context, tokens, session._alphas()) for tokens in found.sequences[name]]
            theirs = found.logits[name]
            agree = [a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)]
            noise = [np.square(a - b).sum(-1) for a, b in zip(ours, theirs, strict=True)]
            signal = [np.square(b, dtype=np.float64).sum(-1) for b in theirs]
            agree, noise, signal = (_once(rows, found.shared) for rows in (agree, noise, signal))
            answers = [row[-ANSWER - 1 : -1] for row in agree]
            texts = [greedy(session, name or None, prompt) for prompt in found.prompts[:questions]]
            wanted = [sequence[-ANSWER:].tolist() for sequence in found.sequences[name][:questions]]
            rows[name or "base"] = {
                "sqnr_db": round(10 * float(np.log10(np.concatenate(signal).sum() / np.concatenate(noise).sum())), 2),
                "top1": round(float(np.concatenate(agree).mean()), 4),
                "positions": sum(map(len, agree)),
                "noise": np.concatenate(noise).tolist(),
                "signal": np.concatenate(signal).tolist(),
                "agree": np.concatenate(agree).astype(int).tolist(),
                "top1_answers": round(float(np.concatenate(answers).mean()), 4),
            }
            if questions:
                same = [_prefix(a, b) for a, b in zip(texts, wanted, strict=True)]
                rows[name or "base"]["greedy_tokens"] = round(float(np.mean(same)), 4)
    return rows


def _once(rows: list[np.ndarray[Any, Any]], shared: int) -> list[np.ndarray[Any, Any]]:
    """Drop what the prompts share from all but the first: its values are the same every time."""
    return [row if index == 0 else row[shared:] for index, row in enumerate(rows)]


def paired(results: dict[str, Any], one: str, other: str) -> dict[str, Any]:
    """Compare two modes position by position over all adapters: mean difference in dB and in top-1, with 95% intervals.

    The interval is that of a bootstrap over positions (seeded), of the pooled SQNR and the pooled agreement.
    """
    names = [name for name in results[one] if name != "base"]
    noise = [np.concatenate([results[mode][name]["noise"] for name in names]) for mode in (one, other)]
    agree = [np.concatenate([results[mode][name]["agree"] for name in names]) for mode in (one, other)]
    rng, rows = np.random.default_rng(0), len(noise[0])
    picks = rng.integers(0, rows, (2000, rows))
    decibels = 10 * np.log10(noise[1][picks].sum(1) / noise[0][picks].sum(1))
    top1 = (agree[0][picks].mean(1) - agree[1][picks].mean(1)) * 100
    return {
        "positions": rows,
        "dB": [round(float(v), 2) for v in (10 * np.log10(noise[1].sum() / noise[0].sum()), *_interval(decibels))],
        "top1 points": [round(float(v), 2) for v in ((agree[0].mean() - agree[1].mean()) * 100, *_interval(top1))],
    }


def _interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _prefix(ours: list[int], theirs: list[int]) -> float:
    """Return the share of an answer before the first token that differs."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(theirs))
    return same / len(theirs)


def switching(bundle: Any, out: Path) -> dict[str, Any]:
    """Measure switches within a group, across groups, and re-loading the context."""
    figures: dict[str, Any] = {}
    with lora_core.open(bundle) as session:
        for label, before, after in (("within", "pirate", "shout"), ("across", "shout", "json")):
            times = []
            for _ in range(7):
                session.load(before)
                session.load(after)
                times.append(session.facts["last switch"])
            best = min(times, key=lambda cost: cost["seconds"])
            figures[label] = {key: best[key] for key in ("sections", "weight bytes", "encoding bytes", "seconds")}
    reloads = []
    for _ in range(3):
        start = time.perf_counter()
        SimulatedContext.create(out / "context.bin", out / "foundation.bin")
        reloads.append(time.perf_counter() - start)
    figures["re-load the context"] = {"bytes": (out / "foundation.bin").stat().st_size, "seconds": min(reloads)}
    figures["overhead"] = {path.name: round(_overhead(path), 5) for path in sorted((out / "sections").iterdir())}
    return figures


def _overhead(path: Path) -> float:
    from lora_core_qnn_sim.artifacts.container import read_container

    container = read_container(path, "section")
    return container.size / container.payload - 1


def share_foundations(directory: Path) -> None:
    """Build each foundation once: it has the same bytes in every mode, which tests hold it to."""
    build = exporting.build_foundation

    def reuse(job: Any, out: Path, emit: Any) -> Any:
        options = job.options
        said = repr((base_spec(job), job.policy, options.weight_bits, options.rotates, options.splits))
        key = directory / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.bin"
        if not key.exists():
            build(job, out, emit)
            shutil.copy(out / FOUNDATION, key)
        shutil.copy(key, out / FOUNDATION)
        return read_foundation(out / FOUNDATION)

    exporting.build_foundation = reuse


def run_rules() -> dict[str, Any]:
    """Run the state machine for at least 10,000 steps, as the test does with fewer."""
    environment = os.environ | {"QNN_SIM_EXAMPLES": "220", "QNN_SIM_STEPS": "50"}
    test = ROOT / "plugins" / "qnn_sim" / "tests" / "test_state_machine.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", str(test)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    steps = next((int(line.split()[0]) for line in done.stdout.splitlines() if line.strip().endswith(" steps")), 0)
    return {"passed": done.returncode == 0, "steps": steps}


def measure_modes(model: Path, adapters: dict[str, Path], work: Path, wanted: list[tuple[str, str, str, Any]]) -> None:
    """Export and compare each of `wanted` that has no result yet."""
    answers = work / "reference.pkl"
    if not answers.exists():
        answers.write_bytes(pickle.dumps(reference(model, adapters)))
    found = pickle.loads(answers.read_bytes())
    for part, name, policy, options in wanted:
        done = work / f"{part} {name}.json"
        if done.exists():
            continue
        start = time.perf_counter()
        bundle = lora_core.export(
            model,
            adapters=adapters,
            backend="qnn_sim",
            policy=policy,
            out=work / "bundle",
            options={"context_len": 256, **options},
            force=True,
            emit=_say_notes,
        )
        seconds = time.perf_counter() - start
        rows = quality(bundle, found, GREEDY if part == "quality" else 0)
        done.write_text(json.dumps(rows))
        groups = bundle.manifest.detail.get("groups")
        print(f"{name} (export {seconds:.0f} s) groups={groups}", flush=True)
        print_row(name, rows)


def _say_notes(event: Any) -> None:
    if type(event).__name__ in ("Noted", "Warned"):
        print(event.message, flush=True)


def print_row(name: str, rows: dict[str, Any]) -> None:
    """Print the figures of one mode."""
    for adapter, row in rows.items():
        shown = {key: value for key, value in row.items() if key not in ("noise", "signal", "agree")}
        print(f"{name:32} {adapter:7} {json.dumps(shown)}", flush=True)


def print_table(work: Path) -> None:
    """Print every result kept, and the modes against each other."""
    kept = {path.stem.partition(" ")[2]: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    for name, rows in kept.items():
        print_row(name, rows)
    for one, other in (("all", "adapter_only"), ("adapter_only", "none"), ("all", "none")):
        if {one, other} <= set(kept):
            print(one, "against", other, paired(kept, one, other))


def measure_switches(model: Path, adapters: dict[str, Path], work: Path) -> dict[str, Any]:
    """Export groups and a small plan, and measure switches and section sizes."""
    figures: dict[str, Any] = {}
    for bits in (16, 8):
        bundle = lora_core.export(
            model,
            adapters=adapters,
            backend="qnn_sim",
            policy="w8a16",
            out=work / "bundle",
            options={"context_len": 256, "group": ("voice=pirate,shout",), "lora_bits": bits},
            force=True,
        )
        figures[f"int{bits}"] = switching(bundle, work / "bundle")
    voices = {name: adapters[name] for name in ("pirate", "shout")}
    for group in ((), ("voice=pirate,shout",)):
        lora_core.export(
            model,
            adapters=voices,
            backend="qnn_sim",
            policy="w8a16",
            out=work / "bundle",
            options={"context_len": 256, "lora_bits": 8, "group": group},
            force=True,
        )
        sections = sorted((work / "bundle" / "sections").iterdir())
        figures[f"r=8 on q and v, int8, groups {group}"] = {path.name: round(_overhead(path), 5) for path in sections}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--part", choices=("quality", "policies", "switch", "rules"), action="append")
    parser.add_argument("--mode", action="append", help="only these of quality and policies")
    parser.add_argument("--work", type=Path, help="directory for what later runs reuse")
    parser.add_argument("--table", action="store_true", help="only print the results that --work holds")
    arguments = parser.parse_args()
    parts = arguments.part or ["quality", "policies", "switch", "rules"]
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.table:
            print_table(work)
            return
        model, adapters = arguments.model, ADAPTERS
        (work / "foundations").mkdir(parents=True, exist_ok=True)
        share_foundations(work / "foundations")
        if arguments.layers:
            shutil.rmtree(work / "cut", ignore_errors=True)
            (work / "cut").mkdir()
            model = cut(model, arguments.layers, work / "cut" / "model")
            adapters = {n: cut_adapter(p, arguments.layers, work / "cut" / n) for n, p in ADAPTERS.items()}
        wanted = [("quality", name, "w8a16", options) for name, options in MODES.items()]
        wanted += [("policies", name, policy, options) for name, (policy, options) in POLICIES.items()]
        wanted = [each for each in wanted if each[0] in parts and each[1] in (arguments.mode or [each[1]])]
        if wanted:
            measure_modes(model, adapters, work, wanted)
            print_table(work)
        if "switch" in parts:
            print(json.dumps(measure_switches(model, adapters, work), indent=1), flush=True)
        if "rules" in parts:
            print(run_rules(), flush=True)


if __name__ == "__main__":
    main()
