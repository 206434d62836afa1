"""The base lies in one file; every method reads it."""

import json
from hashlib import sha256

from lora_core.errors import BundleError
from lora_core.sharing.blobs import Blob, WeightSharing


class PlainSharing(WeightSharing):
    def blobs(self, bundle):
        everyone = frozenset(method.name for method in bundle.manifest.methods)
        for artifact in bundle.manifest.artifacts:
            if not artifact.path.endswith(".safetensors"):
                continue
            data = bundle.file(artifact).read_bytes()
            # The format: eight bytes of length, a JSON header with offsets, the data.
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
            header.pop("__metadata__", None)
            for key, entry in header.items():
                begin, end = (start + offset for offset in entry["data_offsets"])
                yield Blob(
                    key=key,
                    file=artifact.path,
                    offset=begin,
                    size=end - begin,
                    sha256=sha256(data[begin:end]).hexdigest(),
                    methods=frozenset({artifact.adapter}) if artifact.adapter else everyone,
                    group="lora" if artifact.adapter else "base",
                )

    def fingerprint(self, bundle):
        return sha256(bundle.file("foundation.safetensors").read_bytes()).hexdigest()

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
