"""Inspect: what a bundle holds, and the proof of what is shared, from the bytes on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.bundle.store import verify_hashes
from lora_core.errors import Problem
from lora_core.events import Emit, stage
from lora_core.intake.parsing import parsing
from lora_core.pipeline.soundness import blaming_damage
from lora_core.pipeline.undisturbed import undisturbed
from lora_core.sharing.accounting import unaccounted_problems
from lora_core.sharing.proof import duplicate_problems, foundation_problems
from lora_core.sharing.report import SharingReport, owners_of

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


@attrs.frozen(kw_only=True)
class InspectReport:
    """A bundle, its sharing report, and what is wrong with it.

    `problems` are files that differ from the manifest, a foundation other than the one that was recorded, adapters
    linked against another one, bytes of the base that are stored more than once, and bytes that are neither a tensor
    that is read nor a known part of their file.
    """

    bundle: Bundle
    sharing: SharingReport
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """True if there is no problem."""
        return not self.problems

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(artifact.size for artifact in self.bundle.manifest.artifacts)

    def adapter_size(self, name: str) -> int:
        """Return the bytes that go when the adapter `name` goes: its files, or what only its methods read of others,
        and what it is prompted with.
        """
        own = self._own_files.get(name, ())
        text = sum(artifact.size for artifact in own if artifact.role == "tokenizer")
        files = [artifact.size for artifact in own if artifact.role != "tokenizer"]
        return text + (sum(files) if files else self.sharing.unique.get(name, 0))

    @cached_property
    def _own_files(self) -> Mapping[str, Sequence[Artifact]]:
        found: dict[str, list[Artifact]] = defaultdict(list)
        for artifact in self.bundle.manifest.artifacts:
            if artifact.adapter is not None:
                found[artifact.adapter].append(artifact)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        manifest = self.bundle.manifest
        return {
            "path": str(self.bundle.path),
            "schema_version": manifest.schema_version,
            "backend": manifest.backend,
            "base": {
                "name": manifest.base.name,
                "family": manifest.base.family,
                "layers": len(manifest.base.layers),
                "context_len": manifest.base.context_len,
                "vocab_size": manifest.base.vocab_size,
            },
            "policy": dict(manifest.policy),
            "options": dict(manifest.options),
            "versions": dict(manifest.versions),
            "foundation": manifest.foundation,
            "kv_cache": manifest.kv_cache,
            "plans": [
                {"slots": len(plan.slots), "max_rank": plan.max_rank, "adapter_bytes": plan.size}
                for plan in manifest.plans
            ],
            "bytes": self.size,
            "files": [attrs.asdict(artifact) for artifact in manifest.artifacts],
            "adapters": [
                {**attrs.asdict(adapter), "bytes": self.adapter_size(adapter.name)} for adapter in manifest.adapters
            ],
            "methods": [attrs.asdict(method) for method in manifest.methods],
            "sharing": self.sharing.to_json(),
            "problems": [attrs.asdict(problem) for problem in self.problems],
        }


def inspect(path: Path, *, emit: Emit, hub: PluginHub) -> InspectReport:
    """Report on the bundle at `path`; `lora_core.inspect` documents arguments and errors."""
    with stage(emit, "Inspect"):
        return undisturbed(path, emit, lambda bundle: _inspected(bundle, hub), whole=lambda report: report.passed)


def _inspected(bundle: Bundle, hub: PluginHub) -> InspectReport:
    sharing = hub.backend(hub.spec_of(bundle).name, check_requirements=False).sharing
    # All that is done here is to read files, so what a plugin stumbles over is in them.
    with parsing(bundle.path, "The bundle"), blaming_damage(bundle):
        blobs = list(sharing.blobs(bundle))
        report = SharingReport.from_blobs(blobs, owners_of(bundle.manifest.methods))
        fingerprint = sharing.fingerprint(bundle)
        unaccounted = tuple(unaccounted_problems(bundle, blobs, sharing.parts(bundle)))
    problems = (
        *verify_hashes(bundle),
        *foundation_problems(bundle, fingerprint),
        *duplicate_problems(bundle, report),
        *unaccounted,
    )
    return InspectReport(bundle=bundle, sharing=report, problems=problems)
