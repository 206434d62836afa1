"""What is told of a rounded base: the weights that its programs have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import pytest
from lora_core_xnnpack.backend import XnnpackBackend
from lora_core_xnnpack.lowering.base import load_base
from workbench import Workbench

from lora_core.events import ignore


@pytest.mark.parametrize(
    ("policy", "options", "apart"),
    [
        ("8da4w", {}, 0.0),
        ("8da4w", {"rounding": "compensated"}, 0.0),
        ("8da4w", {"rounding": "importance"}, 0.0),
        # Scales that are not chosen among bfloat16's are rounded to it when they are stored.
        ("8da4w", {"scale_search": "affine"}, 2.0**-8),
        ("8da8w", {}, 0.0),
        ("fp16", {}, 0.0),
        ("c8w", {}, 0.0),
    ],
)
def test_rounding_tells_the_weights_of_the_quantized_base(
    two_layers: Workbench, tmp_path: Path, policy: str, options: Mapping[str, str], apart: float
) -> None:
    job = two_layers.job([], policy=policy)
    job = attrs.evolve(job, options=attrs.evolve(job.options, **options))
    base = load_base(job, ignore)
    rounded, tensors = XnnpackBackend().rounding(job, tmp_path, ignore), job.model.tensors()
    layers = [each for each in job.model.summary.layers if each.kind == "linear" and not each.is_output]
    for layer in layers:
        expected = base.module.get_submodule(base.paths[layer.name]).weight
        expected = (expected.dequantize() if hasattr(expected, "qdata") else expected.float()).numpy()
        found = rounded(layer, tensors[f"{layer.name}.weight"].read())
        assert np.abs(found - expected).max() <= apart * np.abs(expected).max(), layer.name
        assert not np.array_equal(found, tensors[f"{layer.name}.weight"].read())
    assert len(layers) == 14
