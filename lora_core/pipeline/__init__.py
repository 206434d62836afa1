"""Thin orchestration of the core's parts: export, add, remove, inspect."""
