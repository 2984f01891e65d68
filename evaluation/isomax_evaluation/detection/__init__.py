"""Detectors on a model: fitted, scored, measured, tuned."""
