"""Mutants whose files or blobs are not what they should be."""

import time
from hashlib import sha256
from pathlib import Path

import attrs
import numpy as np
from lora_core_tiny.backend import FOUNDATION
from lora_core_tiny.sharing import TinySharing
from safetensors.numpy import load_file, save_file

from tiny_mutants.mutant import Mutant, mutant, written


class HalfTold(TinySharing):
    def blobs(self, bundle):
        for index, blob in enumerate(super().blobs(bundle)):
            if blob.group == "lora" or index % 2:
                yield blob


@mutant("base-reported")
class HalfOfTheBlobs(Mutant):
    """Half of the base's blobs are not reported."""

    sharing = HalfTold()


class NoEmbedding(TinySharing):
    def blobs(self, bundle):
        return (blob for blob in super().blobs(bundle) if "embed" not in blob.key)


@mutant("bytes-accounted")
class EmbeddingUntold(Mutant):
    """The embedding is not among the blobs."""

    sharing = NoEmbedding()


class CopiesUntold(TinySharing):
    def blobs(self, bundle):
        return (blob for blob in super().blobs(bundle) if not blob.key.startswith("copy."))


@mutant("base-once")
class CopyWithEveryAdapter(Mutant):
    """Each adapter brings a copy of the base, and the blobs do not say so."""

    sharing = CopiesUntold()

    def export(self, job, out, emit):
        self.base = {f"copy.{name}": array for name, array in self.base_tensors(job).items()}
        return super().export(job, out, emit)

    def adapter_tensors(self, adapter):
        return {**super().adapter_tensors(adapter), **self.base}


@mutant("bytes-accounted")
class PackedCopy(Mutant):
    """Each adapter brings a copy of the base in another form, and the blobs do not say so."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        base = load_file(out / FOUNDATION)
        packed = b"".join(np.ascontiguousarray(array.T).astype(np.float16).tobytes() for array in base.values())
        (out / "packed.bin").write_bytes(packed)
        return written(made, ("packed.bin", "program"))


class Lying(TinySharing):
    def blobs(self, bundle):
        return (attrs.evolve(blob, sha256=sha256(blob.key.encode()).hexdigest()) for blob in super().blobs(bundle))


@mutant("blobs-true")
class BlobsLie(Mutant):
    """Blobs state hashes that are not those of the bytes."""

    sharing = Lying()


class Beyond(TinySharing):
    def blobs(self, bundle):
        return (attrs.evolve(blob, offset=blob.offset + 8) for blob in super().blobs(bundle))


@mutant("blobs-true")
class BlobsShifted(Mutant):
    """Blobs state offsets that are those of the data without its header."""

    sharing = Beyond()


class Strange(TinySharing):
    def blobs(self, bundle):
        return (attrs.evolve(blob, methods=blob.methods | {"main"}) for blob in super().blobs(bundle))


@mutant("blobs-true")
class BlobsOfStrangers(Mutant):
    """Blobs name methods that the bundle does not have."""

    sharing = Strange()


class Alone(TinySharing):
    def blobs(self, bundle):
        return (
            attrs.evolve(blob, methods=frozenset({"forward"})) if blob.group == "base" else blob
            for blob in super().blobs(bundle)
        )


@mutant("base-once")
class NothingShared(Mutant):
    """Blobs say that adapters do not read the base."""

    sharing = Alone()


@mutant("base-once")
class EmbeddingTwice(Mutant):
    """The embedding is stored twice."""

    def base_tensors(self, job):
        tensors = super().base_tensors(job)
        return {**tensors, "copy": tensors["model.embed_tokens.weight"].copy()}


class FirstKilobyte(TinySharing):
    def fingerprint(self, bundle):
        return sha256(bundle.file(FOUNDATION).read_bytes()[:1024]).hexdigest()


@mutant("fingerprint-true")
class FingerprintOfTheHead(Mutant):
    """The fingerprint covers the first kilobyte, which is the header."""

    sharing = FirstKilobyte()

    def export(self, job, out, emit):
        return refingerprinted(self, super().export(job, out, emit), out)


class AllButTheEnd(TinySharing):
    def fingerprint(self, bundle):
        return sha256(bundle.file(FOUNDATION).read_bytes()[:-1024]).hexdigest()


@mutant("fingerprint-covers")
class FingerprintWithoutTheEnd(Mutant):
    """The fingerprint covers all but the last kilobyte."""

    sharing = AllButTheEnd()

    def export(self, job, out, emit):
        return refingerprinted(self, super().export(job, out, emit), out)


class Sampled(TinySharing):
    def fingerprint(self, bundle):
        return sha256(bundle.file(FOUNDATION).read_bytes()[::2]).hexdigest()


@mutant("fingerprint-covers")
class FingerprintSampled(Mutant):
    """The fingerprint covers every second byte."""

    sharing = Sampled()

    def export(self, job, out, emit):
        return refingerprinted(self, super().export(job, out, emit), out)


class Believing(TinySharing):
    def fingerprint(self, bundle):
        return bundle.manifest.foundation


@mutant("fingerprint-covers")
class FingerprintOfTheManifest(Mutant):
    """The fingerprint is what the manifest says, whatever is stored."""

    sharing = Believing()


class OfTheName(TinySharing):
    def fingerprint(self, bundle):
        return sha256(bundle.manifest.base.name.encode()).hexdigest()


@mutant("fingerprint-true")
class FingerprintOfTheName(Mutant):
    """The fingerprint is that of the model's name."""

    sharing = OfTheName()

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        return attrs.evolve(made, foundation=sha256(job.model.summary.name.encode()).hexdigest())


@mutant("foundation-constant")
class FoundationCountsAdapters(Mutant):
    """The foundation holds the number of adapters."""

    def base_tensors(self, job):
        return {**super().base_tensors(job), "adapters": np.array([len(job.adapters)])}


@mutant("reproducible")
class Restless(Mutant):
    """The time stands in every adapter's file."""

    def adapter_tensors(self, adapter):
        return {**super().adapter_tensors(adapter), "made.at": np.array([time.time_ns()])}


@mutant("reproducible")
class Numbered(Mutant):
    """Adapters are numbered as they come."""

    made = 0

    def adapter_tensors(self, adapter):
        Numbered.made += 1
        return {**super().adapter_tensors(adapter), "number.n": np.array([Numbered.made])}


@mutant("reproducible")
class PlaceOfTheModel(Mutant):
    """The hash of the model's place is in the foundation."""

    def base_tensors(self, job):
        place = str(job.model.tensors()["model.norm.weight"].path)
        return {**super().base_tensors(job), "place": np.frombuffer(sha256(place.encode()).digest(), np.uint8).copy()}


@mutant("no-machine-facts")
class PathInTheManifest(Mutant):
    """The manifest tells where the model lay."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        return attrs.evolve(made, detail={"model": str(job.model.tensors()["model.norm.weight"].path.parent)})


@mutant("no-machine-facts")
class PathInAFile(Mutant):
    """An adapter's file tells where it was made."""

    def _link(self, adapters, foundation, out):
        made = super()._link(adapters, foundation, out)
        for each in made.files:
            tensors = load_file(out / each.path)
            save_file(tensors, out / each.path, metadata={"foundation": foundation, "made in": str(Path.cwd())})
        return made


@mutant("no-machine-facts")
class OtherPathInTheManifest(Mutant):
    """The manifest holds an absolute path of the tool's own."""

    def export(self, job, out, emit):
        return attrs.evolve(super().export(job, out, emit), detail={"compiler": "/opt/tiny/bin/compile"})


@mutant("weights-plain")
class SmallWeightsInHalf(Mutant):
    """Weights of the output projections go through float16, too little to show in the logits' limits."""

    def base_tensors(self, job):
        return {
            name: array.astype(np.float16).astype(np.float32) if "o_proj" in name and array.dtype != np.int8 else array
            for name, array in super().base_tensors(job).items()
        }


def refingerprinted(backend, made, out):
    """Return `made` with the fingerprint that the backend's sharing gives for what is in `out`."""
    place = attrs.make_class("Place", ["path"])(out)
    place.__class__.file = lambda self, name: self.path / name
    return attrs.evolve(made, foundation=backend.sharing.fingerprint(place))
