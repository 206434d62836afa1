"""Adapters as PEFT saves them."""
