"""Mutants that take strengths and blends, and do something else."""

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


@mutant("blend-numbers", capabilities=SELECTS)
class BlendsOnlyTheFirst(Mutant):
    """Blends are declared, and the first adapter of one runs alone."""

    session = FirstOfSeveral


@mutant("selection-undeclared")
class StrengthAcceptedAndIgnored(Mutant):
    """Strengths are not declared, and an adapter with one runs as it was linked."""

    session = AtFullStrength
