"""A base made ready for coarse grids before a backend quantizes it: calibrated, rounded with compensation."""
