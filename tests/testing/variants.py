"""Variants of the example backend, each with one defect that the conformance kit must find.

Installed as a distribution of its own by the tests: the kit meets them as it meets any plugin.
"""

import itertools
from hashlib import sha256
from typing import ClassVar

import attrs
import numpy as np
from lora_core_plain.backend import PlainBackend
from lora_core_plain.sharing import PlainSharing
from safetensors.numpy import load, save

from lora_core.backend import Diagnosis
from lora_core.capability import Capability
from lora_core.errors import UsageError
from lora_core.hookspecs import hookimpl
from lora_core.runtime.session import Loaded, Session
from lora_core.specs import BackendSpec

COUNTER = itertools.count()
LINKS = frozenset({Capability.EXPORT, Capability.LINK})
RUNS = LINKS | {Capability.RUN}


def rewrite(artifacts, out, path, change):
    """Change the tensors of one file after it was written."""
    data = save(change(load((out / path).read_bytes())))
    (out / path).write_bytes(data)
    return attrs.evolve(
        artifacts,
        artifacts=tuple(
            attrs.evolve(each, sha256="", size=0) if each.path == path else each for each in artifacts.artifacts
        ),
    )


class Sick(PlainBackend):
    def diagnose(self):
        from lora_core.errors import Problem

        return Diagnosis(problems=(Problem(what="The library is missing"),))


class FoundationWithAdapters(PlainBackend):
    """Stores the number of adapters in the base."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        data = (out / "foundation.safetensors").read_bytes() + bytes(len(job.adapters))
        (out / "foundation.safetensors").write_bytes(data)
        foundation = sha256(data).hexdigest()
        first, *rest = made.artifacts
        return attrs.evolve(
            made,
            foundation=foundation,
            artifacts=(attrs.evolve(first, sha256=foundation, size=len(data)), *rest),
            adapters=tuple(attrs.evolve(each, foundation=foundation) for each in made.adapters),
        )


class Restless(PlainBackend):
    """Writes something else every time."""

    def _link(self, adapters, foundation, out):
        made = super()._link(adapters, foundation, out)
        for each in made.artifacts:
            made = rewrite(made, out, each.path, lambda tensors: {**tensors, "n": np.array([next(COUNTER)])})
        return made


class Forgetful(PlainBackend):
    """Loses the last B of an adapter."""

    def _link(self, adapters, foundation, out):
        made = super()._link(adapters, foundation, out)
        for each in made.artifacts:
            made = rewrite(made, out, each.path, lambda tensors: {name: tensors[name] for name in sorted(tensors)[:-1]})
        return made


class OtherwiseLinked(PlainBackend):
    """Adds an adapter in another way than it exports one."""

    def link(self, bundle, adapters, out, emit):
        made = super().link(bundle, adapters, out, emit)
        for each in made.artifacts:
            made = rewrite(made, out, each.path, lambda tensors: {**tensors, "added": np.zeros(1)})
        return made


class LyingSharing(PlainSharing):
    def blobs(self, bundle):
        for blob in super().blobs(bundle):
            yield attrs.evolve(blob, sha256=sha256(blob.key.encode()).hexdigest())


class Lying(PlainBackend):
    """States hashes that are not those of the bytes."""

    sharing = LyingSharing()


class Doubling(PlainBackend):
    """Stores an embedding twice."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        double = rewrite(
            made, out, "foundation.safetensors", lambda tensors: {**tensors, "copy": tensors["tok_embeddings.weight"]}
        )
        foundation = sha256((out / "foundation.safetensors").read_bytes()).hexdigest()
        return attrs.evolve(
            double,
            foundation=foundation,
            adapters=tuple(attrs.evolve(each, foundation=foundation) for each in made.adapters),
        )


class AnyFingerprintSharing(PlainSharing):
    def fingerprint(self, bundle):
        return bundle.manifest.foundation


class AnyFingerprint(PlainBackend):
    """Believes the manifest instead of the bytes."""

    sharing = AnyFingerprintSharing()


class Undeclared(PlainBackend):
    """Links and opens, and declares neither."""

    def open(self, bundle, options):
        return Echo(bundle)


class Foreign(PlainBackend):
    """Lets an exception of its own out."""

    def link(self, bundle, adapters, out, emit):
        raise KeyError("lost")


class Echo(Session):
    """A made-up runtime whose logits are a function of the stored bytes, the tokens and what it was asked before."""

    facts: ClassVar = {}
    remembers = False
    accepts_anyone = False
    ignores_adapters = False
    overflows = False

    def __init__(self, bundle):
        self._bundle = bundle
        self._past = b""

    @property
    def bundle(self):
        return self._bundle

    def load(self, adapter):
        names = [each.name for each in self._bundle.manifest.adapters]
        if adapter is not None and adapter not in names and not self.accepts_anyone:
            raise UsageError(f"There is no adapter {adapter!r}")
        return Loaded(adapter=adapter, seconds=0.0, resident=0, anonymous=0, file_backed=0)

    def step(self, adapter, tokens, position):
        self.load(adapter)
        text = repr(tuple(tokens)).encode() + self._past
        if adapter is not None and not self.ignores_adapters and not self.accepts_anyone:
            text += self._bundle.file(f"{adapter}.safetensors").read_bytes()
        if self.remembers:
            self._past = b"+"
        seed = int.from_bytes(sha256(text).digest()[:4], "little")
        logits = np.random.default_rng(seed).standard_normal(128).astype(np.float32)
        return logits * np.float32(np.nan if self.overflows else 1)

    def reset(self):
        self._past = b""

    def close(self):
        pass


class Running(PlainBackend):
    """Runs as it should."""

    session = Echo

    def open(self, bundle, options):
        self.sharing.require_own(bundle)
        return self.session(bundle)


def running(**faults):
    return type("Running", (Running,), {"session": type("Echo", (Echo,), faults)})


Remembering = running(remembers=True)
Deaf = running(ignores_adapters=True)
Overflowing = running(overflows=True)
Welcoming = running(accepts_anyone=True)

VARIANTS = {
    "sick": (Sick, LINKS),
    "foundation_with_adapters": (FoundationWithAdapters, LINKS),
    "restless": (Restless, LINKS),
    "forgetful": (Forgetful, LINKS),
    "otherwise_linked": (OtherwiseLinked, LINKS),
    "lying": (Lying, LINKS),
    "doubling": (Doubling, LINKS),
    "any_fingerprint": (AnyFingerprint, LINKS),
    "undeclared": (Undeclared, frozenset({Capability.EXPORT})),
    "foreign": (Foreign, LINKS),
    "running": (Running, RUNS),
    "remembering": (Remembering, RUNS),
    "deaf": (Deaf, RUNS),
    "overflowing": (Overflowing, RUNS),
    "welcoming": (Welcoming, RUNS),
}
globals().update({f"Made_{name}": cls for name, (cls, _) in VARIANTS.items()})


@hookimpl
def lora_core_register_backends():
    return [
        BackendSpec(
            name=name,
            summary=cls.__doc__ or "",
            target=f"{__name__}:Made_{name}",
            options="lora_core_plain.options:PlainOptions",
            capabilities=capabilities,
            policies=("fp32",),
        )
        for name, (cls, capabilities) in VARIANTS.items()
    ]
