"""The backend passes the conformance kit for everything it declares."""

from __future__ import annotations

from lora_core.testing.conformance import conform


def test_the_backend_conforms() -> None:
    report = conform("onnx", policies=("fp32", "16w", "4w"))
    assert report.passed, report
    assert len(report.results) >= 35
