"""Slots: where adapters can hang on a base, in which plan, and the values that fill them."""

from lora_core.moved import missing


def __getattr__(name: str) -> object:
    raise missing(__name__, name)
