"""Old import paths say where things are now."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from lora_core import moved


@pytest.mark.parametrize("old", moved.MODULES)
def test_an_old_module_path_names_the_new_one(old: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(old)
    new = moved.MODULES[old].partition(" ")[0]
    assert new in str(caught.value)
    importlib.import_module(new)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in moved.NAMES.items() for name in names]
)
def test_an_old_name_says_where_it_is(module: str, name: str) -> None:
    with pytest.raises(ImportError) as caught:
        getattr(importlib.import_module(module), name)
    new = moved.NAMES[module][name]
    assert new in str(caught.value)
    pkgutil.resolve_name(new)


def test_a_name_that_never_was_is_an_ordinary_attribute_error() -> None:
    import lora_core.adapters.slots

    assert not hasattr(lora_core.adapters.slots, "nothing")


def test_a_module_that_never_was_is_an_ordinary_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named .lora_core\.nothing."):
        importlib.import_module("lora_core.nothing")
