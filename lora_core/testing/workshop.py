"""Where the conformance kit works: a tiny model, adapters, and exports of them that checks share."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

import lora_core
from lora_core.adapters.reference import AdapterReference
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.capability import Capability
from lora_core.events import Emit, ignore
from lora_core.hub import PluginHub
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint

RANK = 4
TARGETS = ("q_proj", "v_proj")
ADAPTERS = {"alice": 1, "bob": 2}
"""The kit's adapters and their seeds: of one shape, with other values."""


@attrs.define(kw_only=True)
class Workshop:
    """Makes what checks need, each export once. `options` are the backend's, by field name."""

    backend_name: str
    hub: PluginHub
    root: Path
    policies: tuple[str, ...]
    options: Mapping[str, Any] = attrs.field(factory=dict)
    emit: Emit = ignore
    _bundles: dict[tuple[object, ...], Bundle] = attrs.field(factory=dict, init=False)

    @property
    def backend(self) -> Backend:
        """The backend under test."""
        return self.hub.backend(self.backend_name)

    @property
    def links(self) -> bool:
        """True if the backend declares that it can link."""
        return self._declares(Capability.LINK)

    @property
    def runs(self) -> bool:
        """True if the backend declares that it can run or evaluate a bundle."""
        return self._declares(Capability.RUN) or self._declares(Capability.EVALUATE)

    @property
    def vocabulary(self) -> int:
        """The number of logits."""
        return int(TINY_LLAMA["vocab_size"])

    def model(self, seed: int = 0) -> Path:
        """Return the directory of the tiny model, or with another seed, of a different one of its shape."""
        directory = self.root / f"model{seed}"
        return directory if directory.exists() else write_tiny_checkpoint(directory, seed=seed)

    def adapter(self, name: str) -> AdapterReference:
        """Return one of the kit's adapters."""
        directory = self.root / "adapters" / name
        if not directory.exists():
            write_tiny_adapter(directory, seed=ADAPTERS[name], rank=RANK, targets=TARGETS)
        return AdapterReference(name=name, directory=directory)

    def export(self, names: Sequence[str] = (), *, policy: str = "", seed: int = 0, again: bool = False) -> Bundle:
        """Return the bundle of the tiny model with the adapters `names`, in that order; made once, or `again`.

        Room for the kit's adapters is always reserved, so that bundles differ in their adapters and nothing else.
        """
        policy = policy or self.policies[0]
        key = (policy, tuple(names), seed, again)
        if key not in self._bundles:
            self._bundles[key] = lora_core.export(
                self.model(seed),
                adapters=[self.adapter(name) for name in names],
                backend=self.backend_name,
                policy=policy,
                out=self.root / "bundles" / str(len(self._bundles)),
                options=self.options,
                max_rank=RANK,
                targets=TARGETS,
                emit=self.emit,
                hub=self.hub,
            )
        return self._bundles[key]

    def add(self, bundle: Path, adapters: Sequence[AdapterReference]) -> Bundle:
        """Add `adapters` to a bundle of the workshop's."""
        return lora_core.add(bundle, adapters, emit=self.emit, hub=self.hub)

    def copy(self, bundle: Bundle, name: str) -> Path:
        """Return the path of a copy of `bundle` that a check may change."""
        return Path(shutil.copytree(bundle.path, self.root / "copies" / name))

    def _declares(self, capability: Capability) -> bool:
        return capability in self.hub.backends[self.backend_name].capabilities
