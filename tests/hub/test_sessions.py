"""Sessions that plugins return are guarded as their backends are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lora_core.errors import PluginError, StorageError, UsageError
from lora_core.hub import PluginHub
from lora_core.runtime.session import Session
from tests.hub.conftest import good

BACKEND = """
import attrs
from lora_core.backend import Backend, Diagnosis
from lora_core.errors import UsageError
from lora_core.runtime.session import Session

class Base(Session):
    bundle = None
    @property
    def facts(self): return {}["context_len"]
    def load(self, adapter): raise UsageError("ours")
    def reset(self): raise OSError(28, "No space left on device", "/full")
    def step(self, adapter, tokens, position): raise RuntimeError("native code 18")
    def close(self): self.closed = True
    def own(self): raise KeyError("its own")

class Plain(Base):
    def __init__(self): self.closed = False

@attrs.define
class Slotted(Base):
    closed: bool = False

class Made(Backend):
    sharing = None
    def diagnose(self): return Diagnosis()
    def check(self, job): return []
    def export(self, job, out, emit): raise NotImplementedError
    def open(self, bundle, options): return {"plain": Plain, "slotted": Slotted, "none": dict}[options]()
"""


@pytest.fixture
def opened(site: Path, hub_of: Callable[[Mapping[str, str]], PluginHub]) -> Callable[[str], Session]:
    """Open a session of some class."""
    (site / "made_fine_backend.py").write_text(BACKEND, encoding="utf-8")
    hub = hub_of({"fine": good("fine")})
    return lambda kind: hub.backend("fine").open(None, kind)


@pytest.mark.parametrize("kind", ["plain", "slotted"])
def test_a_foreign_exception_names_the_plugin(kind: str, opened: Callable[[str], Session]) -> None:
    with pytest.raises(
        PluginError, match=r"Step of the session of backend 'fine' .*made-fine.*RuntimeError: native code 18"
    ):
        opened(kind).step(None, (1,), 0)


def test_properties_are_guarded_too(opened: Callable[[str], Session]) -> None:
    with pytest.raises(PluginError, match=r"Facts of the session of backend 'fine' .*KeyError: 'context_len'"):
        _ = opened("plain").facts


def test_errors_of_ours_and_of_the_machine_keep_their_kind(opened: Callable[[str], Session]) -> None:
    session = opened("plain")
    with pytest.raises(UsageError, match="ours"):
        session.load(None)
    with pytest.raises(StorageError, match="No space left"):
        session.reset()


def test_what_the_interface_does_not_have_stays_as_it_is(opened: Callable[[str], Session]) -> None:
    session = opened("plain")
    with pytest.raises(KeyError, match="its own"):
        session.own()  # type: ignore[attr-defined]
    assert type(session).__name__ == "Plain"


def test_a_session_is_closed_by_its_block(opened: Callable[[str], Session]) -> None:
    with opened("slotted") as session:
        pass
    assert session.closed  # type: ignore[attr-defined]


def test_what_is_no_session_is_the_plugins_defect(opened: Callable[[str], Session]) -> None:
    with pytest.raises(PluginError, match=r"returned a dict, which is not a lora_core.runtime.session.Session"):
        opened("none")
