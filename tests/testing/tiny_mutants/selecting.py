"""Mutants that take strengths and blends, and do something else."""

import numpy as np
from lora_core_tiny.session import TinySession

from lora_core.capability import Capability
from tiny_mutants.mutant import TINY, Mutant, mutant

SELECTS = TINY.capabilities | {Capability.STRENGTH, Capability.BLEND}


class AtFullStrength(TinySession):
    def step(self, adapter, tokens, position):
        return super().step(adapter and adapter.partition("@")[0], tokens, position)


class FirstOfSeveral(TinySession):
    def step(self, adapter, tokens, position):
        return super().step(adapter and adapter.partition(":")[0], tokens, position)


@mutant("strength-numbers", capabilities=SELECTS)
class StrengthIgnored(Mutant):
    """Strengths are declared, and every adapter runs at the one that it was linked at."""

    session = AtFullStrength


class ForgetsStrengths(TinySession):
    """Scales what it loads, and hears what is said of strengths without keeping it."""

    def read_adapter(self, adapter):
        name, _, strength = adapter.partition("@")
        parts = super().read_adapter(name)
        return {module: {**tensors, "b": tensors["b"] * np.float32(strength or 1)} for module, tensors in parts.items()}

    def load(self, adapter):
        if adapter is not None:
            self._files.setdefault(adapter, self._files[adapter.partition("@")[0]])
        return super().load(adapter)

    def strength(self, adapter, strength):
        pass


@mutant("strength-kept", capabilities=SELECTS)
class StrengthForgotten(Mutant):
    """What `Session.strength` is told has no effect."""

    session = ForgetsStrengths


@mutant("blend-numbers", capabilities=SELECTS)
class BlendsOnlyTheFirst(Mutant):
    """Blends are declared, and the first adapter of one runs alone."""

    session = FirstOfSeveral


@mutant("selection-undeclared")
class StrengthAcceptedAndIgnored(Mutant):
    """Strengths are not declared, and an adapter with one runs as it was linked."""

    session = AtFullStrength
