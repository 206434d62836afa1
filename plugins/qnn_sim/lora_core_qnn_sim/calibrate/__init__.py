"""Calibration: observed ranges, encodings, rounding."""
