"""Every byte of a CoreML program is counted, and what methods of one adapter share is no saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from lora_core_coreml.sharing import CoremlSharing
from lora_core_coreml.storage import pte

from lora_core.bundle.bundle import Bundle
from lora_core.sharing.accounting import unaccounted_problems
from lora_core.sharing.report import SharingReport, owners_of

SHARING = CoremlSharing()
OTHER_BASE = bytes(range(1, 256)) * 500
PADDING = 64
"""More than segments are aligned by."""


def told(bundle: Bundle) -> list[str]:
    sized = tuple(
        attrs.evolve(each, size=(bundle.path / each.path).stat().st_size) for each in bundle.manifest.artifacts
    )
    bundle = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, artifacts=sized))
    blobs = list(SHARING.blobs(bundle))
    return [problem.what for problem in unaccounted_problems(bundle, blobs, SHARING.parts(bundle))]


def written_anew(bundle: Bundle, folder: Path, *, more: list[bytes]) -> Bundle:
    """Return a copy of the bundle whose program has further segments, to which nothing refers."""
    stored = pte.read(bundle.file("model.pte"))
    contents = [stored.read_segment(index) for index in range(len(stored.program["segments"]))]
    for artifact in bundle.manifest.artifacts:
        (folder / artifact.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / artifact.path).write_bytes(bundle.file(artifact).read_bytes())
    segments = [pte.Segment(size=len(each), chunks=[each]) for each in (*contents, *more)]
    pte.write(folder / "model.pte", stored.program, segments)
    return attrs.evolve(bundle, path=folder)


def test_an_honest_bundle_has_nothing_but_what_is_told(bundle: Bundle) -> None:
    assert told(bundle) == []


def test_a_segment_that_nothing_refers_to_is_found(bundle: Bundle, tmp_path: Path) -> None:
    (what,) = told(written_anew(bundle, tmp_path, more=[OTHER_BASE]))
    stray, told_of = what.split(" ", 1)
    assert told_of.startswith("bytes of 'model.pte', from byte")
    assert 0 <= int(stray) - len(OTHER_BASE) < PADDING


def test_decode_and_prefill_of_one_adapter_share_nothing_by_being_two(exporter: Any) -> None:
    bundle = exporter.export(["whole"], multifunction=True)
    assert {method.name for method in bundle.manifest.methods} >= {"whole_forward", "whole_prefill"}
    blobs = list(SHARING.blobs(bundle))
    report = SharingReport.from_blobs(blobs, owners_of(bundle.manifest.methods))
    own = [blob for blob in blobs if blob.methods == {"whole_forward", "whole_prefill"}]
    assert own, "the adapter's matrices are read by both of its methods"
    assert report.unique["whole"] == sum(blob.size for blob in own)
    assert report.shared == sum(blob.size for blob in blobs) - report.unique["whole"] - report.unique["forward"]
    assert told(bundle) == []
