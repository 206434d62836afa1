"""A backend that exports, links and runs."""

import numpy as np
from safetensors.numpy import save_file

from lora_core.backend import Artifacts, Backend, Diagnosis, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.bundle.hashing import file_sha256
from lora_core.errors import Problem
from lora_core.events import stage
from lora_core_tiny.decoder import objections
from lora_core_tiny.quantization import quantize
from lora_core_tiny.session import TinySession
from lora_core_tiny.sharing import TinySharing

FOUNDATION = "foundation.safetensors"


class TinyBackend(Backend):
    sharing = TinySharing()

    def diagnose(self):
        return Diagnosis(facts={"numpy": np.__version__})

    def check(self, job):
        problems = [Problem(what=what) for what in objections(job.model.summary)]
        limit = job.model.summary.context_len
        if limit is not None and job.options.max_context_len > limit:
            what = f"The model was trained for {limit} tokens, and {job.options.max_context_len} were asked for"
            problems.append(Problem(what=what, remedy=f"Say --max-context-len {limit}."))
        for part in ("embedding", "lora"):
            if getattr(job.policy, part) is not None:
                problems.append(Problem(what=f"Policy {job.policy.name!r} quantizes {part}, which this backend cannot"))
        for scheme in (job.policy.linear, job.policy.output):
            if scheme is not None and not _known(scheme):
                problems.append(Problem(what=f"Policy {job.policy.name!r} is not 8 bits per channel"))
        return problems

    def export(self, job, out, emit):
        with stage(emit, "Store the base"):
            save_file(self.base_tensors(job), out / FOUNDATION)
        foundation = file_sha256(out / FOUNDATION)
        linked = self._link(job.adapters, foundation, out)
        return Artifacts(
            foundation=foundation,
            files=(WrittenFile(path=FOUNDATION, role="foundation", sha256=foundation), *linked.files),
            methods=(Method(name="forward", program=FOUNDATION), *linked.methods),
        )

    def link(self, bundle, adapters, out, emit):
        return self._link(adapters, self.sharing.require_own(bundle), out)

    def links_independently(self, bundle):
        return True

    def open(self, bundle, options):
        self.sharing.require_own(bundle)
        return TinySession(bundle)

    def base_tensors(self, job):
        """Return what the foundation holds: weights by their names, quantized ones with their scales."""
        stored = job.model.tensors()
        tensors = {name: tensor.read() for name, tensor in stored.items()}
        layers = job.model.summary.layers
        for layer in layers:
            if job.policy.decide(layer) is not None:
                # A tied output head has no tensor of its own: quantized, it is another one than the embedding.
                weight = stored[f"{layer.tied_to or layer.name}.weight"].read()
                tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.scale"] = quantize(weight)
        return tensors

    def adapter_tensors(self, adapter):
        """Return what the file of `adapter` holds: the parts of every slot, the scaling folded in."""
        return {f"{slot.module}.{part}": array for slot, parts in adapter.values() for part, array in parts.items()}

    def _link(self, adapters, foundation, out):
        files, methods = [], []
        (out / "adapters").mkdir(exist_ok=True)  # so that none can be called as the foundation is
        for adapter in adapters:
            path = f"adapters/{adapter.name}.safetensors"
            save_file(self.adapter_tensors(adapter), out / path, metadata={"foundation": foundation})
            files.append(WrittenFile(path=path, role="adapter-data", adapter=adapter.name))
            methods.append(Method(name=adapter.name, program=path, adapter=adapter.name))
        return Artifacts(foundation=foundation, files=tuple(files), methods=tuple(methods))


def _known(scheme):
    return (scheme.bits, scheme.granularity, scheme.activations) == (8, "channel", "int8_dynamic")
