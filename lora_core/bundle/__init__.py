"""Bundles on disk: the manifest, atomic creation and change, locking."""
