"""A small honest backend: weights in safetensors, programs in JSON, adapters linked from a template.

It is a plugin like any other (its hook is at the end). `layout="split"` gives each adapter files of its own; `joint`
keeps all adapters in one file that every link rewrites.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob, WrittenFile
from lora_core.bundle.bundle import Bundle, Method
from lora_core.bundle.hashing import file_sha256
from lora_core.capability import Capability
from lora_core.errors import Problem
from lora_core.events import Emit, Estimated
from lora_core.hookspecs import hookimpl
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.models.base import ModelHandle, ModelOptions, TokenizerFiles
from lora_core.sharing.blobs import Blob, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core.specs import BackendSpec, ReservedNames

WIDTH = 8
MODULES = tuple(
    f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "k_proj", "v_proj")
)
Tensors = Mapping[str, np.ndarray]


@attrs.frozen(kw_only=True)
class FakeOptions:
    """Options of the fake."""

    layout: str = attrs.field(default="split", validator=attrs.validators.in_(("split", "joint")))
    extra: Path | None = None
    fail: str = ""
    writes: int = 0


@attrs.define(kw_only=True, slots=False)
class FakeModel(ModelHandle):
    """A base of random matrices; counts how often it is loaded."""

    seed: int = 1
    files: TokenizerFiles | None = None
    identities: tuple[str, ...] = ("fake/base",)
    loads: int = 0

    @property
    def summary(self) -> ModelSummary:
        layers = tuple(LayerInfo(name=name, kind="linear", in_features=WIDTH, out_features=WIDTH) for name in MODULES)
        return ModelSummary(
            name="fake", family="llama", layers=layers, module_names=("model", *MODULES), identities=self.identities
        )

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        return self.files

    def tensors(self) -> Mapping[str, Any]:
        return {}  # nothing looks at its weights

    def load(self, options: ModelOptions) -> Any:
        self.loads += 1
        chance = np.random.default_rng(self.seed)
        return {name: chance.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in MODULES}


class FakeSharing(WeightSharing):
    """Blobs are the tensors of the safetensors files; programs list the keys they read."""

    def fingerprint(self, bundle: Bundle) -> str:
        return foundation_file_fingerprint(bundle)

    def blobs(self, bundle: Bundle) -> list[Blob]:
        found = []
        reads = {
            method.name: set(json.loads(bundle.file(method.program).read_bytes())["reads"][method.name])
            for method in bundle.manifest.methods
        }
        for artifact in bundle.manifest.artifacts:
            if not artifact.path.endswith(".safetensors"):
                continue
            data = bundle.file(artifact).read_bytes()
            length = int.from_bytes(data[:8], "little")
            for key, entry in json.loads(data[8 : 8 + length]).items():
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                name = f"{artifact.path}:{key}"
                found.append(
                    Blob(
                        key=key,
                        file=artifact.path,
                        offset=begin,
                        size=end - begin,
                        sha256=hashlib.sha256(data[begin:end]).hexdigest(),
                        methods=frozenset(method for method, keys in reads.items() if name in keys),
                        group="base" if artifact.role == "foundation" else "lora",
                    )
                )
        return found


class FakeBackend(Backend):
    """Writes and links bundles of numpy arrays."""

    def diagnose(self) -> Diagnosis:
        return Diagnosis()

    def check(self, job: ExportJob) -> Sequence[Problem]:
        return [Problem(what="The check refuses")] if job.options.fail == "check" else []

    def estimate(self, job: ExportJob) -> Estimated | None:
        return Estimated(written=job.options.writes) if job.options.writes else None

    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        weights = job.model.load(ModelOptions())
        foundation = "foundation.safetensors"
        (out / foundation).write_bytes(save(dict(sorted(weights.items()))))
        fingerprint = file_sha256(out / foundation)
        artifacts = [listed(foundation, "foundation")]
        for index, plan in enumerate(job.plans):
            path = f"templates/template-{index}.json"
            (out / "templates").mkdir(exist_ok=True)
            (out / path).write_text(json.dumps([attrs.asdict(slot) for slot in plan.slots]))
            artifacts.append(listed(path, "template"))
        if job.options.fail == "export":
            raise RuntimeError("the lowering broke")
        if job.options.fail == "interrupt":
            raise KeyboardInterrupt
        if job.options.fail == "unlisted":
            (out / "stray.bin").write_bytes(b"x")
        written = self._link(job.adapters, {}, job.options.layout, fingerprint, out)
        base_reads = [f"{foundation}:{key}" for key in weights]
        if job.options.layout == "split":
            (out / "base.json").write_text(json.dumps({"reads": {"forward": base_reads}}))
            artifacts.append(listed("base.json", "program"))
        program = "base.json" if job.options.layout == "split" else "program.json"
        return attrs.evolve(
            written,
            files=(*artifacts, *written.files),
            methods=(Method(name="forward", program=program), *written.methods),
            versions={"fake": "1"},
        )

    @property
    def sharing(self) -> WeightSharing:
        return FakeSharing()

    def links_independently(self, bundle: Bundle) -> bool:
        return bundle.manifest.options["layout"] == "split"

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
        manifest = bundle.manifest
        present = {} if manifest.options["layout"] == "split" else joint_tensors(bundle)
        return self._link(adapters, present, manifest.options["layout"], manifest.foundation, out)

    def unlink(self, bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts | None:
        if bundle.manifest.options["layout"] == "split":
            return None
        left = {key: value for key, value in joint_tensors(bundle).items() if key.split("/")[0] not in names}
        written = write_joint(left, out)
        return Artifacts(foundation=bundle.manifest.foundation, files=written, methods=())

    def _link(
        self,
        adapters: Sequence[PlacedAdapter],
        present: Tensors,
        layout: str,
        foundation: str,
        out: Path,
    ) -> Artifacts:
        artifacts: list[WrittenFile] = []
        joint = dict(present)
        for adapter in adapters:
            if adapter.name == "deadly":
                os._exit(9)
            if adapter.name == "slow":
                time.sleep(600)
            tensors = bound(adapter)
            if layout == "joint":
                joint |= {f"{adapter.name}/{key}": value for key, value in tensors.items()}
                continue
            data, program = f"{adapter.name}.safetensors", f"{adapter.name}.json"
            (out / data).write_bytes(save(tensors))
            reads = [*(f"foundation.safetensors:{name}" for name in MODULES), *(f"{data}:{key}" for key in tensors)]
            (out / program).write_text(json.dumps({"foundation": foundation, "reads": {adapter.name: reads}}))
            artifacts += [listed(data, "adapter-data", adapter.name), listed(program, "program", adapter.name)]
        if layout == "joint":
            artifacts += write_joint(joint, out)
        return Artifacts(
            foundation=foundation,
            files=tuple(artifacts),
            methods=tuple(
                Method(
                    name=adapter.name,
                    program="program.json" if layout == "joint" else f"{adapter.name}.json",
                    adapter=adapter.name,
                )
                for adapter in adapters
            ),
        )


def listed(path: str, role: str, adapter: str | None = None) -> WrittenFile:
    """Describe a file that the pipeline measures."""
    return WrittenFile(path=path, role=role, adapter=adapter)


def bound(adapter: PlacedAdapter) -> dict[str, np.ndarray]:
    """Return the tensors of every slot of the adapter's plan."""
    return {f"{slot.module}.{part}": value for slot, values in adapter.values() for part, value in values.items()}


def joint_tensors(bundle: Bundle) -> dict[str, np.ndarray]:
    """Read all tensors of a joint bundle, by `ADAPTER/KEY`."""
    with safe_open(bundle.file("adapters.safetensors"), framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict


def write_joint(tensors: Tensors, out: Path) -> tuple[WrittenFile, ...]:
    """Write the two files of the joint layout."""
    (out / "adapters.safetensors").write_bytes(save(dict(sorted(tensors.items()))))
    base = [f"foundation.safetensors:{name}" for name in MODULES]
    reads = {"forward": base}
    for key in sorted(tensors):
        reads.setdefault(key.split("/")[0], list(base)).append(f"adapters.safetensors:{key}")
    (out / "program.json").write_text(json.dumps({"reads": reads}))
    return listed("adapters.safetensors", "adapter-data"), listed("program.json", "program")


@hookimpl
def lora_core_register_backends() -> Sequence[BackendSpec]:
    return [
        BackendSpec(
            name=name,
            summary="Numpy arrays in files",
            target="fake_backend:FakeBackend",
            options="fake_backend:FakeOptions",
            capabilities=capabilities,
            policies=("fp32",),
            requires=requires,
            reserved=ReservedNames(names=frozenset({"forward"})),
        )
        for name, capabilities, requires in (
            ("fake", frozenset({Capability.EXPORT, Capability.LINK}), {}),
            ("fake_sealed", frozenset({Capability.EXPORT}), {}),
        )
    ]
