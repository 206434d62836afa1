"""The fake backend of the pipeline's tests, which takes no time by itself."""

from __future__ import annotations

from tests.pipeline.conftest import export, fake, hub, make_adapter

__all__ = ["export", "fake", "hub", "make_adapter"]
