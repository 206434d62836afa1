"""The template cache: lowered programs without weights, filled with those of another base of the same architecture."""
