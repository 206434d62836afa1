"""Mutants that promise what they do not do, or leave traces."""

import os
import sys
from typing import ClassVar

import attrs
from lora_core_tiny.backend import FOUNDATION
from lora_core_tiny.session import TinySession
from safetensors.numpy import load_file

from tiny_mutants.mutant import Mutant, mutant


def without(problems, word):
    return [problem for problem in problems if word not in problem.what]


@mutant("check-complete")
class CheckMissesLora(Mutant):
    """`check` has nothing against a policy that quantizes LoRA, and `export` raises."""

    def check(self, job):
        return without(super().check(job), "quantizes lora")

    def export(self, job, out, emit):
        if job.policy.lora is not None:
            raise NotImplementedError("quantized LoRA")
        return super().export(job, out, emit)


@mutant("check-complete")
class CheckRefusesLate(Mutant):
    """`check` finds nothing, and `export` refuses what `check` should have found."""

    def check(self, job):
        return []

    def export(self, job, out, emit):
        from lora_core.errors import UnsupportedError

        if super().check(job):
            raise UnsupportedError(super().check(job))
        return super().export(job, out, emit)


@mutant("check-complete")
class LoraNotQuantized(Mutant):
    """A policy that quantizes LoRA is accepted, and LoRA is stored in float32."""

    def check(self, job):
        return without(super().check(job), "quantizes lora")


@mutant("check-complete")
class AnyBits(Mutant):
    """A policy of three bits is accepted, and the base is stored in float32."""

    def check(self, job):
        return without(super().check(job), "8 bits per channel")

    def base_tensors(self, job):
        if job.policy.linear is not None and job.policy.linear.bits == 3:
            job = attrs.evolve(job, policy=attrs.evolve(job.policy, linear=None, output=None))
        return super().base_tensors(job)


@mutant("check-complete", slot_plans=True)
class PlansPerShape(Mutant):
    """Several slot plans are accepted by `check` and refused by `export`."""

    def export(self, job, out, emit):
        (_plan,) = job.plans or (None,)
        return super().export(job, out, emit)


@mutant("inputs-untouched")
class WritesBesideTheModel(Mutant):
    """A cache is written into the model's directory."""

    def export(self, job, out, emit):
        directory = job.model.tensors()["model.norm.weight"].path.parent
        (directory / "tiny.cache").write_bytes(b"cache")
        return super().export(job, out, emit)


@mutant("embedding-quantized", embeddings=True)
class EmbeddingNotQuantized(Mutant):
    """Quantized embeddings are declared, and float32 is stored."""

    def check(self, job):
        return without(super().check(job), "quantizes embedding")

    def base_tensors(self, job):
        return super().base_tensors(attrs.evolve(job, policy=attrs.evolve(job.policy, embedding=None)))


@mutant("stdout-silent")
class PrintsInExport(Mutant):
    """Prints while it exports."""

    def export(self, job, out, emit):
        sys.stdout.write("exporting ...\n")
        return super().export(job, out, emit)


@mutant("stdout-silent")
class PrintsNatively(Mutant):
    """A native library writes to standard output while a step runs."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            os.write(1, b"step\n")
            return super().step(adapter, tokens, position)


@mutant("stderr-silent")
class LogsToStderr(Mutant):
    """Writes to standard error when a bundle is opened."""

    def open(self, bundle, options):
        sys.stderr.write("opening\n")
        return super().open(bundle, options)


@mutant("bundle-whole")
class WeightsFromTheModel(Mutant):
    """Weights are read from the model's directory at run time, so a bundle is not whole."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        path = job.model.tensors()["model.norm.weight"].path
        return attrs.evolve(made, detail={"weights": os.path.relpath(path, "/")})

    def open(self, bundle, options):
        session = super().open(bundle, options)
        session._decoder.weights = load_file(f"/{bundle.manifest.detail['weights']}")
        return session


@mutant("bundle-whole")
class TiedToItsPlace(Mutant):
    """A bundle knows where it was made and reads its foundation there."""

    places: ClassVar = {}

    def open(self, bundle, options):
        place = TiedToItsPlace.places.setdefault(bundle.manifest.foundation, bundle.path)
        load_file(place / FOUNDATION)
        return super().open(bundle, options)


@mutant("descriptors-light", options="tiny_mutants.heavy:TinyOptions")
class HeavyOptions(Mutant):
    """Importing the options imports torch: `--help` takes seconds."""
