"""A backend that stores tensors and runs nothing: the least that a plugin has to do."""

from hashlib import sha256

from safetensors.numpy import save

from lora_core.backend import Artifacts, Backend, Diagnosis, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.errors import Problem
from lora_core.events import stage
from lora_core_plain.sharing import PlainSharing

FOUNDATION = "foundation.safetensors"


class PlainBackend(Backend):
    sharing = PlainSharing()

    def diagnose(self):
        return Diagnosis()

    def check(self, job):
        # Policies by name are refused by the core, but callers can hand in one of their own.
        parts = [part for part in ("linear", "output", "embedding", "lora") if getattr(job.policy, part) is not None]
        return [Problem(what=f"Policy {job.policy.name!r} quantizes {part}, and nothing is here") for part in parts]

    def export(self, job, out, emit):
        with stage(emit, "Store the base"):
            # A tied output head has no tensor of its own: stored once.
            data = save({name: each.read().astype(job.options.dtype) for name, each in job.model.tensors().items()})
            (out / FOUNDATION).write_bytes(data)
        foundation = sha256(data).hexdigest()
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

    def _link(self, adapters, foundation, out):
        files, methods = [], []
        for adapter in adapters:
            tensors = {
                f"{slot.module}.{part}": value for slot, values in adapter.values() for part, value in values.items()
            }
            path = f"{adapter.name}.safetensors"
            (out / path).write_bytes(save(tensors, metadata={"foundation": foundation}))
            files.append(WrittenFile(path=path, role="adapter-data", adapter=adapter.name))
            methods.append(Method(name=adapter.name, program=path, adapter=adapter.name))
        return Artifacts(foundation=foundation, files=tuple(files), methods=tuple(methods))
