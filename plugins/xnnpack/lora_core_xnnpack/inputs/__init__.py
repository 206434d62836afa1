"""Adapters as inputs: one program with a method for the base and one for all adapters, each of which is a data file."""
