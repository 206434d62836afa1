"""Fleets: packages for every adapter of a source, by the thousand, in whatever processes an executor has."""
