"""A backend that stores tensors and runs nothing: the least that a plugin has to do."""

from hashlib import sha256

from safetensors.numpy import save

from lora_core.adapters.slots.padding import folded_b
from lora_core.backend import Artifacts, Backend, Diagnosis
from lora_core.bundle.bundle import Artifact, BundledAdapter, Method
from lora_core.events import stage
from lora_core.models.base import ModelOptions
from lora_core_plain.sharing import PlainSharing

FOUNDATION = "foundation.safetensors"


class PlainBackend(Backend):
    sharing = PlainSharing()

    def diagnose(self):
        return Diagnosis()

    def check(self, job):
        return []

    def export(self, job, out, emit):
        with stage(emit, "Store the base"):
            base = job.model.load(ModelOptions(attention="sdpa"))
            weights = {
                name: weight.numpy().astype(job.options.dtype) for name, weight in base.module.named_parameters()
            }
            # A tied output head has the embedding's weights: stored once.
            for layer in base.summary.layers:
                if layer.tied_to is not None:
                    weights.pop(f"{layer.path}.weight")
            data = save(weights)
            (out / FOUNDATION).write_bytes(data)
        foundation = sha256(data).hexdigest()
        artifact = Artifact(path=FOUNDATION, role="foundation", sha256=foundation, size=len(data))
        linked = self._link(job.adapters, foundation, out)
        return Artifacts(
            foundation=foundation,
            artifacts=(artifact, *linked.artifacts),
            adapters=linked.adapters,
            methods=(Method(name="forward", program=FOUNDATION), *linked.methods),
        )

    def link(self, bundle, adapters, out, emit):
        return self._link(adapters, self.sharing.require_own(bundle), out)

    def links_independently(self, bundle):
        return True

    def _link(self, adapters, foundation, out):
        artifacts, bundled, methods = [], [], []
        for adapter in adapters:
            tensors = {f"{pair.module}.a": pair.a.read() for pair in adapter.pairs}
            tensors |= {f"{pair.module}.b": folded_b(pair) for pair in adapter.pairs}
            path = f"{adapter.name}.safetensors"
            (out / path).write_bytes(save(tensors, metadata={"foundation": foundation}))
            artifacts.append(Artifact(path=path, role="adapter-data", sha256="", size=0, adapter=adapter.name))
            bundled.append(
                BundledAdapter(
                    name=adapter.name,
                    digest=adapter.digest,
                    foundation=foundation,
                    rank=adapter.max_rank,
                    modules=len(adapter.pairs),
                )
            )
            methods.append(Method(name=adapter.name, program=path, adapter=adapter.name))
        return Artifacts(
            foundation=foundation, artifacts=tuple(artifacts), adapters=tuple(bundled), methods=tuple(methods)
        )
