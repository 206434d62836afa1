"""Stamping: the program of a deep model derived from lowerings of a few of its layers."""
