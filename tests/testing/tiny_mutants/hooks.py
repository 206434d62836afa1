"""Every mutant as a backend."""

import attrs

from lora_core.hookspecs import hookimpl
from tiny_mutants import exports, linking, numbers, selecting, sessions, stored  # noqa: F401 - they register
from tiny_mutants.mutant import MUTANTS, TINY


@hookimpl
def lora_core_register_backends():
    padded = attrs.evolve(TINY, name="padded", slot_plans=True)  # honest, and padding is honest too
    return [padded, *(known.spec for known in MUTANTS.values())]
