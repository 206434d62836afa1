"""What differs between two manifests of a bundle, found without reading what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import attrs

from lora_core.bundle.bundle import Manifest
from lora_core.bundle.entries import AdapterRecord, Artifact
from lora_core.bundle.records import RecordsDifference, difference


@attrs.frozen(kw_only=True)
class BundleDifference:
    """`old` and `new` are artifacts by path, the base's and those of adapters whose records are not in both."""

    old: Mapping[str, Artifact]
    new: Mapping[str, Artifact]
    records: RecordsDifference

    @classmethod
    def of(cls, old: Manifest, new: Manifest) -> Self:
        """Compare two manifests; raises as `RecordSource.read`."""
        records = difference(old.records, new.records)
        return cls(old=_by_path(old, records.old), new=_by_path(new, records.new), records=records)

    @property
    def own(self) -> frozenset[str]:
        """Files of the old bundle that the change may replace."""
        return frozenset((*self.old, *self.records.gone, *self.records.replaced))

    @property
    def removed(self) -> list[str]:
        """Files of the old bundle that the new one does not have."""
        return sorted([*(self.old.keys() - self.new.keys()), *self.records.gone])


def _by_path(manifest: Manifest, records: tuple[AdapterRecord, ...]) -> dict[str, Artifact]:
    artifacts = (*manifest.base_artifacts, *(each for record in records for each in record.artifacts))
    return {artifact.path: artifact for artifact in artifacts}
