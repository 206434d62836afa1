"""Lowered methods without the base's weights: lowered with stand-ins, filled with those of any base like it."""
