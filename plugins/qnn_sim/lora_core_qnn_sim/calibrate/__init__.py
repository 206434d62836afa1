"""Calibration: sample prompts, observed ranges, encodings."""
