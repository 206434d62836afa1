"""The conformance kit: checks that a backend plugin runs against itself, and the tiny checkpoints they use.

`lora_core.testing.conformance.conform` runs them all and returns a report; nothing here needs pytest.
"""
