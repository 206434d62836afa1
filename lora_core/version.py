"""The version of lora-core and of every plugin in this repository: the one place that says it."""

__version__ = "0.2.0"
