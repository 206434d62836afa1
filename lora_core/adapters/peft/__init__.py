"""Adapters as PEFT saves them."""

from lora_core.moved import missing


def __getattr__(name: str) -> object:
    raise missing(__name__, name)
