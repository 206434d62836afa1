"""What the site's navigation shows, and in which order. A page that is missing here fails the build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAVIGATION: Mapping[str, Sequence[str]] = {
    "Tutorials": ("tutorial/backend", "tutorial/running", "tutorial/adapter-format"),
    "How to": (
        "how-to/own-module",
        "how-to/transformers",
        "how-to/many-adapters",
        "device",
        "how-to/sharing-proof",
        "how-to/quantize",
        "how-to/ship-a-plugin",
        "how-to/test-on-other-processors",
        "how-to/release",
    ),
    "Reference": (
        "reference/cli",
        "reference/cli-help",
        "reference/families",
        "reference/adapters",
        "reference/options",
        "reference/verify",
        "reference/bundle-format",
        "reference/package-format",
        "reference/manifest",
        "reference/errors",
        "reference/events",
        "reference/plugins",
        "reference/hooks",
        "reference/descriptors",
        "reference/backend",
        "reference/public-modules",
        "reference/conformance",
        "reference/dependencies",
        "reference/api/index",
    ),
    "Explanation": (
        "architecture",
        "explanation/xnnpack",
        "explanation/coreml",
        "explanation/qnn_sim",
        "explanation/onnx",
        "benchmarks",
        "reliability",
    ),
}
