"""A base made ready for coarse grids before a backend quantizes it, and adapters fitted to what became of it."""
