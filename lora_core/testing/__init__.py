"""The conformance kit: checks that a backend plugin runs against itself, and the tiny checkpoints they use.

`lora_core.testing.conformance.conform` runs them all and returns a report, `Conformance` beside it is the same as a
class of tests, `lora_core.testing.pytest_plugin` as a plugin of pytest. Only that plugin imports pytest.
"""
