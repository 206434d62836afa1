"""A made-up backend whose export does what the environment variable ACT says."""

from __future__ import annotations

from pathlib import Path

from tests.hub.distributions import install

HOOKS = """
from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.specs import BackendSpec

@hookimpl
def lora_core_register_backends():
    return [BackendSpec(name="acting", summary="made up", policies=("fp32",),
                        target="acting_backend:Acting", options="acting_backend:Options",
                        capabilities=frozenset({Capability.EXPORT}))]
"""
BACKEND = """
import logging, os, time, warnings
import attrs
from lora_core.backend import Artifacts, Backend, Diagnosis, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.events import Noted, Warned, stage

@attrs.frozen(kw_only=True)
class Options:
    pass

class Acting(Backend):
    sharing = None

    def diagnose(self):
        return Diagnosis()

    def check(self, job):
        return []

    def export(self, job, out, emit):
        act = os.environ.get("ACT", "")
        (out / "foundation.bin").write_bytes(b"half")
        if "noise" in act:
            os.write(1, b"noise of C on stdout\\n")
            os.write(2, b"noise of C on stderr\\n")
            print("noise of Python")
            warnings.warn("noise of warnings")
            logging.getLogger("some.library").warning("noise of logging")
        with stage(emit, "act"):
            if "announce" in act:
                emit(Noted(message="ready to be interrupted"))
                time.sleep(60)
            if "raise" in act:
                raise KeyError("the plugin's own")
            if "memory" in act:
                raise MemoryError
            if "big" in act:
                (out / "foundation.bin").write_bytes(bytes(2_000_000))
            emit(Warned(message="mind the gap"))
        return Artifacts(
            foundation="0" * 64,
            files=(WrittenFile(path="foundation.bin", role="foundation"),),
            methods=(Method(name="forward", program="foundation.bin"),),
        )
"""


def install_acting(site: Path) -> Path:
    """Install the backend `acting` into directory `site`."""
    modules = {"acting_hooks.py": HOOKS, "acting_backend.py": BACKEND}
    return install(site, "lora-core-acting", {"acting": "acting_hooks"}, modules)
