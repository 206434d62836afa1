"""Checks of what is stored: hashes, the foundation, sharing, and whether model and adapters are those of the bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lora_core.adapters.adapter import Adapter
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import verify_hashes
from lora_core.layers import ModelSummary
from lora_core.sharing.accounting import unaccounted_problems
from lora_core.sharing.blobs import Blob, FilePart
from lora_core.sharing.proof import duplicate_problems, foundation_problems
from lora_core.sharing.report import SharingReport, owners_of
from lora_core.verification.finding import Finding, found, unchecked

BUNDLE = "bundle"


def hashes(bundle: Bundle) -> Finding:
    """Every file has the SHA-256 of the manifest."""
    problems = [problem.what for problem in verify_hashes(bundle)]
    return found("hashes", BUNDLE, problems, held=f"{len(bundle.manifest.artifacts)} files")


def foundation(bundle: Bundle, stored: str) -> Finding:
    """The fingerprint `stored`, taken from the stored bytes, is that of the manifest and of every adapter."""
    problems = [problem.what for problem in foundation_problems(bundle, stored)]
    return found("foundation", BUNDLE, problems, held=f"fingerprint {bundle.manifest.foundation[:16]}")


def sharing(bundle: Bundle, blobs: Sequence[Blob], parts: Iterable[FilePart] | None) -> Finding:
    """No byte of the base is stored twice, none is stored that nobody told of, and all methods read the base.

    `parts` is what `WeightSharing.parts` gave.
    """
    base = [method.name for method in bundle.manifest.methods if method.adapter is None]
    report = SharingReport.from_blobs(blobs, owners_of(bundle.manifest.methods))
    found_wrong = (*duplicate_problems(bundle, report), *unaccounted_problems(bundle, blobs, parts))
    problems = [problem.what for problem in found_wrong]
    for method in (method.name for method in bundle.manifest.methods):
        if not any(blob.methods >= {method, *base} for blob in blobs):
            problems.append(f"method {method!r} reads nothing of what the base reads")
    return found("sharing", BUNDLE, problems, held=f"{report.shared} of {report.total} bytes are shared")


def same_model(bundle: Bundle, model: ModelSummary, weights: str | None = None) -> Finding:
    """The model has the layers of the base that was exported, and its weights, whose digest is `weights`.

    Bundles of old schemas do not say which weights they have.
    """
    recorded, given = ({layer.name: layer for layer in summary.layers} for summary in (bundle.manifest.base, model))
    problems = [f"the model has no layer {name}" for name in sorted(set(recorded) - set(given))]
    problems += [f"the bundle has no layer {name}" for name in sorted(set(given) - set(recorded))]
    problems += [f"layer {name} is another" for name in recorded if name in given and recorded[name] != given[name]]
    if bundle.manifest.base.vocab_size != model.vocab_size:
        problems.append(f"the vocabulary has {bundle.manifest.base.vocab_size} tokens, the model's {model.vocab_size}")
    if not problems and None not in (weights, bundle.manifest.base_weights) and weights != bundle.manifest.base_weights:
        problems.append("the layers are of the same shape, and the weights are others")
    return found("model", BUNDLE, problems, held=model.name)


def digests(bundle: Bundle, given: Mapping[str, Adapter]) -> Iterator[Finding]:
    """Every adapter given is, by its digest, the one that was linked."""
    for adapter in bundle.manifest.adapters:
        if adapter.name not in given:
            why = f"say --adapter {adapter.name}=DIR to compare it with its source"
            yield unchecked("digest", adapter.name, why)
            continue
        problems = []
        if given[adapter.name].digest != adapter.digest:
            what = f"the adapter given has digest {given[adapter.name].digest}, the bundle's {adapter.digest}"
            problems.append(what)
        yield found("digest", adapter.name, problems, held=adapter.digest[:16])
