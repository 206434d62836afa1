"""How a file spells the modules of the base: with what wrappers left in their names, or without what they lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property

import attrs

PEFT_PREFIX = "base_model.model."

# What wraps a model, or a part of it, while it is trained and leaves its name in the keys: DistributedDataParallel and
# DataParallel (`module`), torch.compile, FSDP, activation checkpointing, DeepSpeed, and models that see, whose text
# part has the names of the language model that it was made of.
WRAPPERS = frozenset(
    (
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "language_model",
    )
)


@attrs.frozen(kw_only=True, slots=False)
class Spelling:
    """The module names of a base, to find those that a file means."""

    names: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Spelling:
        """Return the spelling of a base whose modules have `names`."""
        return cls(names=frozenset(names))

    def module(self, written: str) -> str:
        """Return the module that a file means by `written`, or what is left of it without wrappers if that names none.

        A name that the base has is itself. Else wrappers are taken out, and `model.` or any other beginning is added if
        exactly one module then has the name.
        """
        plain = written.removeprefix(PEFT_PREFIX)
        if plain in self.names:
            return plain
        bare = unwrapped(written)
        for candidate in (bare, f"model.{bare}"):
            if candidate in self.names:
                return candidate
        return self._by_ending.get(bare, bare)

    @cached_property
    def _by_ending(self) -> Mapping[str, str]:
        """The endings, cut at a dot, that exactly one name has, each with that name."""
        endings = [
            (".".join(parts[start:]), name)
            for name in self.names
            for parts in (name.split("."),)
            for start in range(1, len(parts))
        ]
        counts = Counter(ending for ending, _ in endings)
        return {ending: name for ending, name in endings if counts[ending] == 1}


def unwrapped(written: str) -> str:
    """Return `written` without PEFT's prefix and without the names of wrappers."""
    return ".".join(part for part in written.split(".") if part not in WRAPPERS).removeprefix(PEFT_PREFIX)
