"""Slots: where adapters can hang on a base, in which plan, and the values that fill them."""
