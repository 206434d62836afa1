"""All that is installed with us may be used and passed on."""

from __future__ import annotations

import pytest
from licences.__main__ import main, needed


def test_every_licence_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0, capsys.readouterr().err


def test_what_only_extras_need_is_listed_too() -> None:
    assert {"numpy", "torch", "transformers", "coremltools", "pyyaml"} <= set(needed())
