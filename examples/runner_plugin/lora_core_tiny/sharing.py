"""The base lies in one file; every method reads it."""

from hashlib import sha256

from lora_core.errors import BundleError
from lora_core.sharing.blobs import Blob, WeightSharing
from lora_core.sharing.fingerprint import foundation_file_fingerprint
from lora_core.tensors import open_tensors


class TinySharing(WeightSharing):
    plain_weights = True

    def blobs(self, bundle):
        everyone = frozenset(method.name for method in bundle.manifest.methods)
        for artifact in bundle.manifest.artifacts:
            if not artifact.path.endswith(".safetensors"):
                continue
            file = bundle.file(artifact)
            data = file.read_bytes()
            for tensor in open_tensors(file, error=BundleError):
                yield Blob(
                    key=tensor.name,
                    file=artifact.path,
                    offset=tensor.offset,
                    size=tensor.size,
                    sha256=sha256(data[tensor.offset : tensor.offset + tensor.size]).hexdigest(),
                    methods=frozenset({artifact.adapter}) if artifact.adapter else everyone,
                    group="lora" if artifact.adapter else "base",
                )

    def fingerprint(self, bundle):
        return foundation_file_fingerprint(bundle)

    def require_own(self, bundle):
        """Return the foundation's fingerprint; raises `BundleError` if it is not the one that was exported."""
        found = self.fingerprint(bundle)
        if found != bundle.manifest.foundation:
            raise BundleError(
                "The base in this bundle is not the one it was exported with",
                where=str(bundle.path),
                remedy="Restore foundation.safetensors, or export again.",
            )
        return found
