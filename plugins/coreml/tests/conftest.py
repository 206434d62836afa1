"""Tiny Llamas and adapters as their own tools save them, and bundles exported from them once a session."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quant import POLICIES
from lora_core_coreml.quiet import quiet
from safetensors.numpy import save_file

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.choice import PlacedAdapter, place
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, ExportJob
from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.events import Event, ignore
from lora_core.models.hf import HfModelSource
from lora_core.pipeline.recording import Changed, bundled, recorded, updated
from lora_core.quant.policy import QuantPolicy

with quiet():  # coremltools and torchao warn while they are imported
    import coremltools  # noqa: F401
    import executorch.exir  # noqa: F401
    import torchao.quantization  # noqa: F401
    import transformers

FP16 = next(policy for policy in POLICIES if policy.name == "fp16")
TARGETS = ("q_proj", "v_proj")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Llama of two layers with a tied head: `.directory` and `.reference`, what transformers loads from it."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = transformers.LlamaConfig(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.15 if parameter.dim() > 1 else 0.4)
    model.tie_weights()
    model.save_pretrained(directory)
    return SimpleNamespace(directory=directory, reference=model.eval().requires_grad_(False))


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: SimpleNamespace) -> Callable[..., Path]:
    """Return a maker of PEFT directories for the tiny model."""

    def make(name: str, *, seed: int, rank: int = 4, targets: Sequence[str] = TARGETS, spread: float = 0.2) -> Path:
        directory = tmp_path_factory.mktemp("adapter") / name
        directory.mkdir()
        random = np.random.default_rng(seed)
        tensors = {}
        for module, layer in tiny_model.reference.named_modules():
            if module.rpartition(".")[2] in targets and isinstance(layer, torch.nn.Linear):
                prefix = f"base_model.model.{module}"
                a, b = (rank, layer.in_features), (layer.out_features, rank)
                tensors[f"{prefix}.lora_A.weight"] = (random.standard_normal(a) * spread).astype(np.float32)
                tensors[f"{prefix}.lora_B.weight"] = (random.standard_normal(b) * spread).astype(np.float32)
        save_file(tensors, directory / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(targets)}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return make


@attrs.frozen(kw_only=True)
class Exporter:
    """Exports the tiny model without the command line: the backend and a manifest made of what it returns.

    Bundles that differ in their adapters alone are lowered once: `cache` has the methods.
    """

    model: Path
    adapters: dict[str, Path]
    folder: Callable[[str], Path]
    cache: Path | None = None
    made: dict[object, Bundle] = attrs.field(factory=dict)
    events: dict[Path, list[Event]] = attrs.field(factory=dict)

    def adapter(self, name: str) -> Adapter:
        summary = HfModelSource().open(str(self.model)).summary
        return PeftFormat().read(name, self.adapters[name], summary)

    def job(
        self,
        names: Sequence[str],
        *,
        policy: QuantPolicy = FP16,
        plan_of: Sequence[str] | None = None,
        **options: object,
    ) -> ExportJob:
        handle = HfModelSource().open(str(self.model))
        reserved = [self.adapter(name) for name in (names if plan_of is None else plan_of)]
        plans = (SlotPlan.from_adapters(reserved, handle.summary.layers),) if reserved else ()
        sizes = {"max_context_len": 24, "input_len": 4}
        chosen = CoremlOptions(**{**sizes, **options})
        adapters = place([self.adapter(name) for name in sorted(names)], plans)
        return ExportJob(model=handle, adapters=adapters, plans=plans, policy=policy, options=chosen)

    def export(self, names: Sequence[str], **options: object) -> Bundle:
        """Return a bundle, made once for each set of arguments: tests must not change it."""
        key = repr((sorted(names), sorted(options.items())))
        if key not in self.made:
            self.made[key] = self.export_again(names, **options)
        return self.made[key]

    def export_again(self, names: Sequence[str], **options: object) -> Bundle:
        job = attrs.evolve(self.job(names, **options), cache=self.cache)
        out = self.folder("bundle")
        self.events[out] = []
        return self.bundle(out, job, CoremlBackend().export(job, out, self.events[out].append))

    def bundle(self, out: Path, job: ExportJob, made: Artifacts) -> Bundle:
        manifest = Manifest(
            backend="coreml",
            base=job.model.summary,
            policy=attrs.asdict(job.policy),
            foundation=made.foundation,
            plans=job.plans,
            options=attrs.asdict(job.options),
            versions=made.versions,
            artifacts=recorded(made.files, out, "coreml"),
            adapters=bundled(job.adapters, made, {}),
            methods=made.methods,
            detail=made.detail,
        )
        return Bundle(path=out, manifest=manifest)

    def placed(self, bundle: Bundle, names: Sequence[str]) -> tuple[PlacedAdapter, ...]:
        return place([self.adapter(name) for name in names], bundle.manifest.plans)

    def add(self, bundle: Bundle, names: Sequence[str]) -> Bundle:
        return self.link(bundle, self.placed(bundle, names))

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter]) -> Bundle:
        out = self.folder("added")
        changed = Changed.of(CoremlBackend().link(bundle, adapters, out, ignore), adapters, out, "coreml")
        for path in bundle.path.rglob("*"):
            target = out / path.relative_to(bundle.path)
            if path.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return Bundle(path=out, manifest=updated(bundle.manifest, changed))


@pytest.fixture(scope="session")
def exporter(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: SimpleNamespace,
    tiny_adapter: Callable[..., Path],
    lowered_once: Path,
) -> Exporter:
    adapters = {
        "shout": tiny_adapter("shout", seed=1),
        "pirate": tiny_adapter("pirate", seed=2),
        "whole": tiny_adapter("whole", seed=3, rank=12, targets=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")),
    }
    folder = tmp_path_factory.mktemp
    return Exporter(model=tiny_model.directory, adapters=adapters, folder=folder, cache=lowered_once)


@pytest.fixture(scope="session")
def bundle(exporter: Exporter) -> Bundle:
    """The tiny base with `shout` and `pirate`, fp16."""
    return exporter.export(["shout", "pirate"])
