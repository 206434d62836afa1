"""Variants of the example backend that runs, each with one defect that the conformance kit must find.

Installed as a distribution of its own by the tests: the kit meets them as it meets any plugin.
"""
