"""What a mutant is: a backend with one defect, and the check that must find it."""

import attrs
from lora_core_tiny.backend import TinyBackend
from lora_core_tiny.decoder import Decoder
from lora_core_tiny.hooks import lora_core_register_backends
from lora_core_tiny.session import TinySession

from lora_core.backend import Artifacts, WrittenFile

(TINY,) = lora_core_register_backends()
MUTANTS = {}


@attrs.frozen(kw_only=True)
class Known:
    """A mutant by its backend's name: its defect in a sentence, the check that must find it, and its descriptor."""

    defect: str
    found_by: str
    spec: object
    policy: str = "fp32"


def mutant(found_by, *, policy="fp32", **spec):
    """Register a backend class as a mutant that `policy` shows; `spec` are fields of its descriptor that differ."""

    def register(cls):
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).lstrip("_")
        own = attrs.evolve(TINY, name=name, target=f"{cls.__module__}:{cls.__name__}", **spec)
        MUTANTS[name] = Known(defect=cls.__doc__.strip(), found_by=found_by, spec=own, policy=policy)
        return cls

    return register


class Mutant(TinyBackend):
    """An honest backend whose decoder and session are easy to replace."""

    decoder = Decoder
    session = TinySession

    def open(self, bundle, options):
        self.sharing.require_own(bundle)
        return self.open_anyway(bundle)

    def open_anyway(self, bundle):
        return type("Session", (self.session,), {"decoder_class": self.decoder})(bundle)


def written(artifacts, *files, **changes):
    """Return `artifacts` with more files."""
    more = tuple(WrittenFile(path=path, role=role) for path, role in files)
    return attrs.evolve(artifacts, files=(*artifacts.files, *more), **changes)


__all__ = ["MUTANTS", "Artifacts", "Mutant", "mutant", "written"]
