"""Adapters: what they are, how they are read, and the slots they need of a base."""
