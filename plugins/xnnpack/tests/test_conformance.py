"""The backend passes the conformance kit for everything it declares."""

from lora_core.testing.conformance import conform

OF_THE_LAYOUT = (
    *("base-numbers", "adapter-numbers", "pieces-numbers", "damage-not-passed-on", "foundation-constant"),
    *("add-is-export", "remove-undoes-add", "every-tensor", "link-light", "kv-cache", "adapter-unknown"),
    *("blobs-true", "base-once", "bytes-accounted", "weights-plain", "fingerprint-true", "fingerprint-covers"),
    *("foreign-not-linked", "foreign-not-opened"),
)
"""What depends on how adapters are stored and called."""


def test_the_backend_conforms() -> None:
    report = conform("xnnpack", policies=("8da4w",), cache=True)
    assert report.passed, report
    assert len(report.results) >= 35


def test_the_backend_conforms_where_adapters_are_inputs() -> None:
    report = conform("xnnpack", policies=("fp32",), options={"lora": "inputs"}, checks=OF_THE_LAYOUT, cache=True)
    assert report.passed, report
