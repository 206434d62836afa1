"""Every mutant as a backend."""

from lora_core.hookspecs import hookimpl
from tiny_mutants import exports, linking, numbers, sessions, stored  # noqa: F401 - they register
from tiny_mutants.mutant import MUTANTS


@hookimpl
def lora_core_register_backends():
    return [known.spec for known in MUTANTS.values()]
