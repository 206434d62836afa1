"""Figures of the QNN-style simulator: quality per mode, section overhead, switch cost, order rules, full runs.

    python benchmarks/qnn_sim.py MODEL_DIR [--layers N] [--part quality|switch|rules] [--json FILE]

MODEL_DIR is SmolLM2-135M-Instruct in Hugging Face layout; adapters are those of examples/adapters. `quality` exports
every mode and compares it, teacher-forced on answers that the float32 model with the same adapter gives, with that
model (float32 weights, no rounding anywhere): SQNR of logits, top-1 agreement over all positions and over the answers
only, and how far greedy decoding from the prompt agrees. `rules` runs the state machine for 10,000 steps.
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
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from lora_core_qnn_sim import building
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.autogroup import sqnr
from lora_core_qnn_sim.runtime.context import SimulatedContext

import lora_core

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = {name: ROOT / "examples" / "adapters" / name for name in ("json", "pirate", "shout")}
QUESTIONS = (
    "What is the tallest mountain in the world?", "How does a bicycle stay upright?", "Who wrote Hamlet?",
    "Explain what a prime number is.",
)  # fmt: skip
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
    "w8a16 not rotated": ("w8a16", {"rotate": False}),
    "w8a16 int8 LoRA": ("w8a16", {"lora_bits": 8}),
}


@attrs.define(kw_only=True)
class Reference:
    """The float32 model: answers and logits per adapter."""

    prompts: list[np.ndarray[Any, Any]]
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
        np.array(tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        ))
        for question in QUESTIONS
    ]  # fmt: skip
    found = Reference(prompts=prompts)
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
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ANSWER,
                    min_new_tokens=ANSWER, pad_token_id=0,
                )  # fmt: skip
                found.logits[name].append(model(input_ids=whole).logits[0].numpy())
            found.sequences[name].append(whole[0].numpy())
    return found


def all_logits(context: SimulatedContext, tokens: np.ndarray[Any, Any], alphas: Any) -> np.ndarray[Any, Any]:
    io, cache, length = context.read_io_encodings(), context.new_cache(), context.binary.spec.input_len
    rows = []
    for begin in range(0, len(tokens), length):
        chunk = tokens[begin : begin + length]
        padded = np.pad(chunk, (0, length - len(chunk)))
        rows.append(context.execute(
            "prefill", padded, valid=len(chunk), position=begin, cache=cache, io=io, alphas=alphas, all_logits=True
        ))  # fmt: skip
    return (np.concatenate(rows).astype(np.float64) + io.logits.offset) * io.logits.scale


def greedy(session: Any, adapter: str | None, prompt: np.ndarray[Any, Any]) -> list[int]:
    tokens: list[int] = []
    logits = session.step(adapter, prompt.tolist(), 0)
    for position in range(len(prompt), len(prompt) + ANSWER):
        tokens.append(int(logits.argmax()))
        logits = session.step(adapter, [tokens[-1]], position)
    return tokens


def quality(bundle: Any, found: Reference) -> dict[str, Any]:
    """Compare a bundle with the reference, per adapter."""
    rows = {}
    with lora_core.open(bundle) as session:
        for name in found.logits:
            session.load(name or None)
            ours = [all_logits(session.context, tokens, session._alphas()) for tokens in found.sequences[name]]
            theirs = found.logits[name]
            agree = [a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)]
            answers = [row[-ANSWER - 1 : -1] for row in agree]
            texts = [greedy(session, name or None, prompt) for prompt in found.prompts[:GREEDY]]
            wanted = [sequence[-ANSWER:].tolist() for sequence in found.sequences[name][:GREEDY]]
            rows[name or "base"] = {
                "sqnr_db": round(sqnr(np.concatenate(theirs), np.concatenate(ours)), 2),
                "top1": round(float(np.concatenate(agree).mean()), 4),
                "top1_answers": round(float(np.concatenate(answers).mean()), 4),
                "greedy_tokens": round(float(np.mean([_prefix(a, b) for a, b in zip(texts, wanted, strict=True)])), 4),
            }
    return rows


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
    build = building.build_foundation

    def reuse(job: Any, out: Path, emit: Any) -> Any:
        spec, options = building.base_spec(job), job.options
        key = directory / f"{abs(hash((spec, job.policy, options.weight_bits, options.rotates))):x}.bin"
        if not key.exists():
            build(job, out, emit)
            shutil.copy(out / building.FOUNDATION, key)
        shutil.copy(key, out / building.FOUNDATION)
        return read_foundation(out / building.FOUNDATION)

    building.build_foundation = reuse


def run_rules() -> dict[str, Any]:
    """Run the state machine for at least 10,000 steps, as the test does with fewer."""
    environment = os.environ | {"QNN_SIM_EXAMPLES": "220", "QNN_SIM_STEPS": "50"}
    test = ROOT / "plugins" / "qnn_sim" / "tests" / "test_state_machine.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", str(test)], env=environment, capture_output=True, text=True,
        cwd=ROOT, check=False,
    )  # fmt: skip
    steps = next((int(line.split()[0]) for line in done.stdout.splitlines() if line.strip().endswith(" steps")), 0)
    return {"passed": done.returncode == 0, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--part", choices=("quality", "policies", "switch", "rules"), action="append")
    parser.add_argument("--mode", action="append", help="only these modes of the quality part")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parts = arguments.part or ["quality", "policies", "switch", "rules"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work, model, adapters = Path(scratch), arguments.model, ADAPTERS
        (work / "foundations").mkdir()
        share_foundations(work / "foundations")
        if arguments.layers:
            model = cut(model, arguments.layers, work / "model")
            adapters = {n: cut_adapter(p, arguments.layers, work / n) for n, p in ADAPTERS.items()}
        found = reference(model, adapters) if {"quality", "policies"} & set(parts) else None
        jobs = [("quality", name, "w8a16", options) for name, options in MODES.items()]
        jobs += [("policies", name, policy, options) for name, (policy, options) in POLICIES.items()]
        for part, name, policy, options in jobs:
            if part not in parts or found is None or (arguments.mode and name not in arguments.mode):
                continue
            start = time.perf_counter()
            bundle = lora_core.export(
                model, adapters=adapters, backend="qnn_sim", policy=policy, out=work / "bundle",
                options={"context_len": 256, **options}, force=True,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            rows = quality(bundle, found)
            results.setdefault(part, {})[name] = rows
            groups = bundle.manifest.detail.get("groups")
            print(f"{name} (export {seconds:.0f} s) groups={groups}", json.dumps(rows), flush=True)
        if "switch" in parts:
            for bits in (16, 8):
                bundle = lora_core.export(
                    model, adapters=adapters, backend="qnn_sim", policy="w8a16", out=work / "bundle",
                    options={"context_len": 256, "group": ("voice=pirate,shout",), "lora_bits": bits}, force=True,
                )  # fmt: skip
                results.setdefault("switch", {})[f"int{bits}"] = switching(bundle, work / "bundle")
            voices = {name: adapters[name] for name in ("pirate", "shout")}
            bundle = lora_core.export(
                model, adapters=voices, backend="qnn_sim", policy="w8a16", out=work / "bundle",
                options={"context_len": 256, "lora_bits": 8}, force=True,
            )  # fmt: skip
            sections = sorted((work / "bundle" / "sections").iterdir())
            results["switch"]["r=8 on q and v, int8"] = {path.name: round(_overhead(path), 5) for path in sections}
            print(json.dumps(results["switch"], indent=1), flush=True)
    if "rules" in parts:
        results["rules"] = run_rules()
        print(results["rules"], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
