"""What plugins may import: the modules that the core declares public, each with what it is for.

Everything else may change without notice. A test holds the plugins of this repository to it.
"""

from __future__ import annotations

from collections.abc import Mapping

PUBLIC: Mapping[str, str] = {
    "lora_core.hookspecs": "`hookimpl`, and the hooks that a plugin may implement",
    "lora_core.specs": "descriptors: what hooks return",
    "lora_core.capability": "what a backend can declare",
    "lora_core.limits": "how far a policy's numbers may be from full precision",
    "lora_core.backend": "the interface of backends, and what they are given and give back",
    "lora_core.errors": "the error tree and `Problem`",
    "lora_core.events": "events, `Emit` and `stage`",
    "lora_core.suggestions": "`did_you_mean`",
    "lora_core.layers": "layers and summary of a base model",
    "lora_core.tensors": "stored tensors, read on demand",
    "lora_core.elementary": "powers, cosines and sines that are the same on every processor",
    "lora_core.pte": "the container of ExecuTorch programs",
    "lora_core.adapters.adapter": "adapters and their updates",
    "lora_core.adapters.format": "the interface of adapter formats",
    "lora_core.adapters.ordering": "the order in which an adapter's updates stand",
    "lora_core.adapters.reference": "adapters as the command line and the library face refer to them",
    "lora_core.adapters.slots.choice": "adapters on their slot plans: what a backend links",
    "lora_core.adapters.slots.kinds": "slot kinds and their parts",
    "lora_core.adapters.slots.plan": "slots and slot plans",
    "lora_core.adapters.slots.placeholders": "placeholder values for lowering a template",
    "lora_core.bundle.bundle": "bundles, manifests and their entries",
    "lora_core.bundle.hashing": "the SHA-256 of a file",
    "lora_core.bundle.store": "opening a bundle",
    "lora_core.cli.command": "the command class that a plugin's commands derive from",
    "lora_core.cli.console": "what a command's callback gets",
    "lora_core.models.base": "model sources, handles and loaded bases",
    "lora_core.models.outline": "a base without its weights, and where they are read",
    "lora_core.models.families": "`ModelFamily`",
    "lora_core.models.rope": "rotary embeddings as configurations describe them",
    "lora_core.models.architecture": "the decoder that a configuration describes",
    "lora_core.models.injection": "slots attached to a torch module, and taken off again",
    "lora_core.models.tracing": "whose error it is that a module cannot be traced",
    "lora_core.models.executorch.options": "what is asked of ExecuTorch's Llama definition",
    "lora_core.models.reference_model": "the interface of independent references",
    "lora_core.plugin.requirements": "installed versions, and those that a backend was proven on",
    "lora_core.quant.policy": "quantization policies and schemes",
    "lora_core.quant.undivided": "how to tell of layers that a group size does not divide",
    "lora_core.runtime.session": "the interface of sessions",
    "lora_core.runtime.kv_cache": "the rule of who owns a KV cache",
    "lora_core.runtime.memory": "the memory of this process",
    "lora_core.sharing.blobs": "blobs and the interface of weight sharing",
    "lora_core.sharing.fingerprint": "the fingerprint of a foundation that is one file",
    "lora_core.sharing.proof": "whether the stored base is the recorded one, and stored once",
    "lora_core.testing.conformance": "the conformance kit",
    "lora_core.testing.tiny": "tiny random checkpoints and adapters, for tests",
}
