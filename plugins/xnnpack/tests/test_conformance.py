"""The backend passes the conformance kit for everything it declares."""

from lora_core.testing.conformance import conform


def test_the_backend_conforms() -> None:
    report = conform("xnnpack", policies=("8da4w",), cache=True)
    assert report.passed, report
    assert len(report.results) >= 35
